"""pytest tests/test_parallel.py: several processes train what one process trains, step by step, and go on where others stopped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel_worker import BASE, CONTEXT, MODELS, STEPS
from safetensors.torch import load_file

from openmai.base.artifact import Artifact
from openmai.base.errors import OpenmaiError
from openmai.base.events import read_events
from openmai.model.checkpoint import load_model
from openmai.model.config import ModelConfig
from openmai.parallel.exchange import on_whole_matrices
from openmai.parallel.layout import Layout
from openmai.parallel.team import Team
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.train.pretrain import Validation

WORKER = Path(__file__).parent / "parallel_worker.py"


def run(out: Path, processes: int, cases: list[tuple[str, str, dict]], last: int = STEPS + 1) -> None:
    """Train each (name, model-optimizer, layout) up to its last step with so many processes."""
    told = json.dumps([[name, *model.split("-"), layout, last] for name, model, layout in cases])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENMAI_QUIET": "1"}
    done = subprocess.run(
        [sys.executable, str(WORKER), str(out), str(processes), told], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]


def events(out: Path, case: str) -> list[dict]:
    return list(read_events(out / case / "events.jsonl", "train"))


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert [event["step"] for event in found] == [event["step"] for event in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert one["penalty"] == pytest.approx(other["penalty"], abs=1e-5)
        assert one["tokens"] == other["tokens"]
        assert one["stream"] == other["stream"]
        assert one.get("expert_load") == other.get("expert_load")


LAYOUTS: dict[int, list[tuple[str, dict]]] = {
    2: [
        ("ahead-muon", {}),
        ("nanochat-muon", {}),
        ("tied-adamw", {"tp": 2, "sequence_parallel": False}),
        ("tied-adamw", {"cp": 2}),
        ("alibi-muon", {"tp": 2}),
        ("span-adamw", {"tp": 2}),
        ("values-muon", {"tp": 2}),
        ("dense-muon", {"cp": 2}),
        ("mla-adamw", {"cp": 2}),
        ("moe-muon", {"ep": 2, "checkpointing": "full"}),
        ("mla-adamw", {"tp": 2, "ep": 2}),
        ("tied-adamw", {"pp": 2}),
        ("values-muon", {"pp": 2}),
        ("dense-muon", {"pp": 2, "schedule": "interleaved", "checkpointing": "full"}),
        ("mla-adamw", {"pp": 2, "schedule": "zero-bubble"}),
        ("moe-muon", {"pp": 2, "schedule": "zbv"}),
    ],
    4: [
        ("moe-adamw", {"dp_replicate": 2, "ep": 2, "checkpointing": "selective"}),
        ("tied-adamw", {"tp": 4}),
        ("dense-muon", {"cp": 2, "tp": 2}),
        ("mla-muon", {"tp": 2, "ep": 4}),
        ("latent-adamw", {"cp": 2, "ep": 4}),
        ("moe-muon", {"pp": 2, "schedule": "zero-bubble", "ep": 2}),
    ],
    8: [
        ("moe-muon", {"dp_shard": 2, "cp": 2, "tp": 2, "ep": 4}),
        ("latent-muon", {"cp": 2, "ep": 2}),  # fewer experts than processes that divide them
        ("dense-adamw", {"dp_replicate": 2, "dp_shard": 2, "tp": 2}),
        ("dense-muon", {"pp": 2, "dp_shard": 2, "tp": 2}),
        ("moe-adamw", {"pp": 2, "schedule": "interleaved", "cp": 2, "tp": 2, "ep": 4}),
    ],
}


def name(processes: int, model: str, layout: dict) -> str:
    return "-".join([model, str(processes), *(f"{axis}={size}" for axis, size in layout.items())])


SOME: dict[int, list[tuple[str, dict]]] = {
    2: [("tied-adamw", {"tp": 2, "sequence_parallel": False}), ("moe-muon", {"ep": 2, "checkpointing": "full"})],
    4: [("mla-muon", {"tp": 2, "ep": 4}), ("moe-muon", {"pp": 2, "schedule": "zero-bubble", "ep": 2})],
    8: [("moe-adamw", {"pp": 2, "schedule": "interleaved", "cp": 2, "tp": 2, "ep": 4})],
}
"at least one of each kind; `make layouts` goes through all"


class Alone:
    """What one process does, trained when it is first asked for."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __call__(self, *models: str) -> Path:
        """Return the folder in which each model has been trained."""
        missing = sorted({model for model in models if not (self.out / model).exists()})
        if missing:
            run(self.out, 1, [(model, model, {}) for model in missing])
        for model in missing:
            losses = [event["loss"] for event in events(self.out, model)]
            assert losses[-1] < losses[0] - 0.1, f"{model} learns nothing: {losses}"
        return self.out


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(
    ("processes", "cases"),
    [*SOME.items(), *(pytest.param(number, cases, marks=pytest.mark.layouts) for number, cases in LAYOUTS.items())],
)
def test_layouts_train_what_one_process_trains(processes: int, cases: list[tuple[str, dict]], alone: Alone, tmp_path: Path) -> None:
    expected = alone(*(model for model, _ in cases))
    run(tmp_path, processes, [(name(processes, *case), *case) for case in cases])
    for model, layout in cases:
        assert_same(events(tmp_path, name(processes, model, layout)), events(expected, model))


@pytest.mark.layouts
@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.005), ("float8", 0.02)])
def test_low_precision_learns_the_same_alone_and_together(precision: str, bound: float, alone: Alone, tmp_path: Path) -> None:
    model = "moe-muon"
    low = {"precision": precision}
    run(tmp_path, 1, [("one", model, low)])
    run(tmp_path, 2, [("tp", model, {**low, "tp": 2, "ep": 2}), ("pp", model, {**low, "pp": 2, "checkpointing": "selective"})])
    exact = [event["loss"] for event in events(alone(model), model)]
    for case in ("one", "tp", "pp"):
        losses = [event["loss"] for event in events(tmp_path, case)]
        assert losses == pytest.approx(exact, abs=bound)
        assert max(abs(one - other) for one, other in zip(losses, exact, strict=True)) > 1e-5, "computed in fp32"


@pytest.mark.parametrize(
    ("before", "first", "after", "second"),
    [
        (4, {"tp": 2, "ep": 2}, 2, {"cp": 2}),
        pytest.param(2, {"pp": 2}, 4, {"dp_replicate": 2, "ep": 2}, marks=pytest.mark.layouts),
        pytest.param(1, {}, 4, {"pp": 2, "schedule": "interleaved", "tp": 2, "ep": 2}, marks=pytest.mark.layouts),
    ],
)
def test_a_run_goes_on_under_another_layout(before: int, first: dict, after: int, second: dict, alone: Alone, tmp_path: Path) -> None:
    """Stopped after 12 of 20 steps, two after its newest checkpoint."""
    model = "moe-muon"
    run(tmp_path, before, [(model, model, first)], last=12)
    assert_same(events(tmp_path, model), events(alone(model), model)[:12])
    run(tmp_path, after, [(model, model, second)])
    assert_same(events(tmp_path, model), events(alone(model), model))


def openmai(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, "-m", "openmai", *arguments], env=environment, capture_output=True, text=True, timeout=600)


def test_the_command_line_trains_with_several_processes(tmp_path: Path) -> None:
    """From lessons to a checkpoint, which is the one that a single process makes, up to rounding; it is recognised by both."""
    sources = json.dumps([{"name": "lessons", "path": str(Path(__file__).parents[1] / "examples/lessons/general"), "trusted": True}])
    documents, tokenizer, shards = (str(tmp_path / name) for name in ("documents", "tokenizer", "shards"))
    made = [
        openmai("data", "build", "--sources", sources, "--out", documents),
        openmai("tokenizer", "train", "--documents", json.dumps([documents]), "--vocab_size", "500", "--out", tokenizer),
        openmai("tokenizer", "encode", "--documents", json.dumps([documents]), "--tokenizer", tokenizer, "--out", shards),
    ]
    assert [step.returncode for step in made] == [0, 0, 0], made
    common = [
        "train",
        "pretrain",
        "--shards",
        shards,
        "--tokenizer",
        tokenizer,
        "--depth=2",
        "--context=64",
        "--batch_rows=4",
        "--micro_rows=1",
    ]
    common += ["--loop.steps=6", "--loop.evaluate_every=6", "--loop.threads=1"]
    refused = openmai(*common, "--out", str(tmp_path / "odd"), processes=3)
    assert "batch_rows=4 cannot be divided among 3 data-parallel groups" in refused.stderr
    divided = ["--layout.pp=2", "--layout.tp=2"]
    for out, layout, processes in (("one", [], 1), ("many", divided, 4)):
        done = openmai(*common, *layout, "--out", str(tmp_path / out), processes=processes)
        assert done.returncode == 0, done.stderr
    one, many = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "many"))
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in many.items()}
    trained = [[event for event in events(tmp_path, out) if event["kind"] == "train"] for out in ("many", "one")]
    assert_same(*trained)
    metrics = [Artifact.load(tmp_path / out, "checkpoint").metrics for out in ("one", "many")]
    assert metrics[0]["val_bpb"] == pytest.approx(metrics[1]["val_bpb"], abs=1e-4)
    validation = Validation(Artifact.load(Path(shards), "shards"), 64, Tokenizer.load(Path(tokenizer)).end_of_text, 1, Team.alone())
    assert validation.bits_per_byte(load_model(tmp_path / "many")) == pytest.approx(metrics[1]["val_bpb"], abs=1e-5)
    before = (tmp_path / "many" / "manifest.json").read_bytes()
    assert openmai(*common, "--out", str(tmp_path / "many"), processes=2).returncode == 0
    assert openmai(*common, "--out", str(tmp_path / "many")).returncode == 0
    assert (tmp_path / "many" / "manifest.json").read_bytes() == before


def test_a_damaged_checkpoint_is_passed_over_by_all(alone: Alone, tmp_path: Path) -> None:
    case = "moe-muon"
    shutil.copytree(alone(case) / case, tmp_path / case)
    newest = sorted((tmp_path / case / "checkpoints").iterdir())[-1]
    file = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    run(tmp_path, 2, [(case, case, {})])
    assert_same(events(tmp_path, case), events(alone(case), case))


@pytest.mark.parametrize(
    ("layout", "processes", "rows", "message"),
    [
        ({"dp_replicate": 3}, 4, 8, "dp_replicate=3 x dp_shard=1 is not 4, .* nearest: dp_replicate=2 x dp_shard=2; "),
        ({"dp_replicate": 2, "dp_shard": 4}, 4, 8, "dp_replicate=2 x dp_shard=4 is not 4"),
        ({"tp": 3, "cp": 2}, 8, 8, "cp=2 x tp=3 is not 8, .* nearest: .*cp=2 x tp=2 x dp_shard=2|cp=2 x tp=4"),
        ({}, 3, 8, "batch_rows=8 cannot be divided among 3 data-parallel groups .* take 2 groups, or a multiple of 3 rows"),
        ({"ep": 3}, 4, 8, "ep=3 does not divide dp_shard x cp x tp = 4; it can be 1 or 2 or 4"),
    ],
)
def test_impossible_layouts_are_refused_with_possible_ones(layout: dict, processes: int, rows: int, message: str) -> None:
    with pytest.raises(OpenmaiError, match=message):
        Layout.model_validate(layout).resolve(processes, rows, 1)


@pytest.mark.parametrize(
    ("model", "layout", "message"),
    [
        ("dense", {"tp": 8}, "tp=8 does not divide num_heads=4; take tp=1 or 2 or 4, or num_heads=8"),
        ("dense", {"ep": 2}, "ep=2 for a model without experts"),
        ("moe", {"ep": 16}, "ep=16 does not divide num_experts=8; take 1 or 2 or 4 or 8"),
        ("moe", {"tp": 2, "sequence_parallel": False}, "a mixture with tp needs sequence_parallel"),
        ("span", {"cp": 3}, "2 x cp = 6 does not divide context=32; take 30"),
        ("nanochat", {"cp": 2}, "cp does not work with smear"),
        ("values", {"pp": 2, "schedule": "zbv", "stages_each": 3}, "6 stages for num_layers=4"),
    ],
)
def test_layouts_that_do_not_divide_the_model_are_refused(model: str, layout: dict, message: str) -> None:
    with pytest.raises(OpenmaiError, match=message):
        Layout.model_validate(layout).check_model(ModelConfig.model_validate({**BASE, **MODELS[model]}), CONTEXT)


def test_layouts_fill_in_what_is_left() -> None:
    assert Layout().resolve(4, 8, 2) == Layout(dp_shard=4)
    assert Layout(dp_replicate=2, tp=2).resolve(16, 8, 1) == Layout(dp_replicate=2, dp_shard=4, tp=2)


def test_plain_matrices_stay_where_they_are() -> None:
    values = [torch.ones(2, 3), torch.ones(2, 2, 2)]
    found = on_whole_matrices(values, lambda parts: [2 * part for part in parts])
    assert all(torch.equal(one, 2 * other) for one, other in zip(found, values, strict=True))


def test_bfloat16_does_not_round_the_cosines_of_positions() -> None:
    """Nor ALiBi's scores, which are added in the type of the queries."""
    script = """
import torch
from openmai.model.config import ModelConfig
from openmai.model.transformer import Transformer
from openmai.parallel.layout import Layout
from openmai.parallel.processes import Processes
from openmai.parallel.team import Team
shape = {"vocab_size": 64, "num_layers": 2, "width": 32, "num_heads": 2, "ffn_width": 48, "context": 16}
for change in ({}, {"positions": "alibi"}, {"positions": "alibi", "attention_softcap": 20.0}, {"positions": "alibi", "sinks": True}):
    with torch.device("meta"):
        model = Transformer(ModelConfig.model_validate(shape | change))
    team = Team(Processes(), Layout().resolve(1, 1, 1), "cpu", False, "bf16")
    model = team.take(model)
    team.initialize(model, 0, "cpu")
    seen = []
    for block in model.blocks:
        block.attention.register_forward_pre_hook(
            lambda _, inputs: seen.append((inputs[0].dtype, [x.dtype for table in inputs[1].ropes.values() for x in table]))
        )
    model.stream(torch.zeros(1, 16, dtype=torch.long)).float().sum().backward()
    assert seen == 2 * [(torch.bfloat16, [] if change else 2 * [torch.float32])], seen
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
