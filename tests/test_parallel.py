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
from parallel_worker import STEPS
from safetensors.torch import load_file

from openmai.base.artifact import Artifact
from openmai.base.errors import OpenmaiError
from openmai.parallel.exchange import on_whole_matrices
from openmai.parallel.layout import Layout

WORKER = Path(__file__).parent / "parallel_worker.py"
CASES = ["dense-muon", "dense-adamw", "tied-adamw", "moe-muon", "moe-adamw", "mla-muon", "nanochat-muon", "ahead-muon"]


def run(out: Path, cases: list[str], processes: int = 1, replicas: int = 1, stop: int = STEPS + 1) -> None:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENMAI_QUIET": "1"}
    command = [*launcher, str(WORKER), str(out), ",".join(cases), str(replicas), str(stop)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def events(out: Path, case: str) -> list[dict]:
    return [json.loads(line) for line in (out / case / "events.jsonl").read_text().splitlines()]


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert [event["step"] for event in found] == [event["step"] for event in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert one["penalty"] == pytest.approx(other["penalty"], abs=1e-5)
        assert one["tokens"] == other["tokens"]
        assert one.get("expert_load") == other.get("expert_load")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process does."""
    out = tmp_path_factory.mktemp("alone")
    run(out, CASES)
    for case in CASES:
        losses = [event["loss"] for event in events(out, case)]
        assert losses[-1] < losses[0] - 0.1, f"{case} learns nothing: {losses}"
    return out


@pytest.mark.parametrize(("processes", "replicas", "cases"), [(2, 1, CASES), (4, 2, ["moe-muon"]), (4, 1, ["mla-muon"])])
def test_fsdp_and_hsdp_train_what_one_process_trains(processes: int, replicas: int, cases: list[str], alone: Path, tmp_path: Path) -> None:
    run(tmp_path, cases, processes, replicas)
    for case in cases:
        assert_same(events(tmp_path, case), events(alone, case))


@pytest.mark.parametrize(("before", "after"), [(4, 2), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(before: int, after: int, alone: Path, tmp_path: Path) -> None:
    """Stopped after 12 of 20 steps, two after its newest checkpoint."""
    case = "moe-muon"
    run(tmp_path, [case], before, stop=12)
    assert_same(events(tmp_path, case), events(alone, case)[:12])
    run(tmp_path, [case], after)
    assert_same(events(tmp_path, case), events(alone, case))


def openmai(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, "-m", "openmai", *arguments], env=environment, capture_output=True, text=True, timeout=600)


def test_the_command_line_trains_with_two_processes(tmp_path: Path) -> None:
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
        "--depth=1",
        "--context=64",
        "--batch_rows=4",
        "--micro_rows=1",
    ]
    common += ["--loop.steps=6", "--loop.evaluate_every=6", "--loop.threads=1"]
    refused = openmai(*common, "--out", str(tmp_path / "odd"), processes=3)
    assert "batch_rows=4 cannot be divided among 3 processes" in refused.stderr
    for out, processes in (("one", 1), ("two", 2)):
        done = openmai(*common, "--out", str(tmp_path / out), processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "two"))
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in two.items()}
    trained = [[event for event in events(tmp_path, out) if event["kind"] == "train"] for out in ("two", "one")]
    assert_same(*trained)
    metrics = [Artifact.load(tmp_path / out, "checkpoint").metrics for out in ("one", "two")]
    assert metrics[0]["val_bpb"] == pytest.approx(metrics[1]["val_bpb"], abs=1e-4)
    before = (tmp_path / "two" / "manifest.json").read_bytes()
    assert openmai(*common, "--out", str(tmp_path / "two"), processes=2).returncode == 0
    assert openmai(*common, "--out", str(tmp_path / "two")).returncode == 0
    assert (tmp_path / "two" / "manifest.json").read_bytes() == before


def test_a_damaged_checkpoint_is_passed_over_by_all(alone: Path, tmp_path: Path) -> None:
    case = "moe-muon"
    shutil.copytree(alone / case, tmp_path / case)
    newest = sorted((tmp_path / case / "checkpoints").iterdir())[-1]
    file = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    run(tmp_path, [case], 2)
    assert_same(events(tmp_path, case), events(alone, case))


@pytest.mark.parametrize(
    ("layout", "processes", "rows", "message"),
    [
        (Layout(dp_replicate=3), 4, 8, "dp_replicate=3 x dp_shard=1 is not 4, .* among 1 x 4, 2 x 2, 4 x 1"),
        (Layout(dp_replicate=2, dp_shard=4), 4, 8, "dp_replicate=2 x dp_shard=4 is not 4"),
        (Layout(), 3, 8, "batch_rows=8 cannot be divided among 3 processes .* take 2 processes, or a multiple of 3 rows"),
    ],
)
def test_impossible_layouts_are_refused_with_possible_ones(layout: Layout, processes: int, rows: int, message: str) -> None:
    with pytest.raises(OpenmaiError, match=message):
        layout.resolve(processes, rows, 1)


def test_layouts_fill_in_what_is_left() -> None:
    assert Layout().resolve(4, 8, 2) == Layout(dp_shard=4)
    assert Layout(dp_replicate=2).resolve(8, 8, 1) == Layout(dp_replicate=2, dp_shard=4)


def test_plain_matrices_stay_where_they_are() -> None:
    values = [torch.ones(2, 3), torch.ones(2, 2, 2)]
    found = on_whole_matrices(values, lambda parts: [2 * part for part in parts])
    assert all(torch.equal(one, 2 * other) for one, other in zip(found, values, strict=True))
