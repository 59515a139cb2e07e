"""OMP_NUM_THREADS=1 pytest tests/test_plan.py: the plan verb, its arithmetic, its files and its errors."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from openmai.base.errors import OpenmaiError
from openmai.base.launch import Launch, kubernetes_manifest, slurm_script, torchrun_script
from openmai.cli import main
from openmai.model.config import load_preset, preset_names
from openmai.model.count import count_parameters, flops_per_token, training_state_bytes
from openmai.plan.calibration import choose_calibration
from openmai.plan.config import LayoutChoice, PlanConfig
from openmai.plan.failures import best_interval, expected_goodput, load_fleet, resilience, simulate_goodput
from openmai.plan.hardware import DATA, GPUS, load_gpu
from openmai.plan.inference import load_device, plan_device, plan_inference
from openmai.plan.laws import load_laws
from openmai.plan.layout import Grid, Layout
from openmai.plan.make import make_plan
from openmai.plan.memory import stage_memory
from openmai.plan.run import plan_run
from openmai.plan.search import Choices, Workload, evaluate, search
from openmai.plan.step import Machine, step_seconds
from openmai.plan.totals import USABLE

SMALL = ("--layout.tp=1", "--layout.cp=1", "--layout.pp=1")
"leaves a search little to try"
TINY = {"vocab_size": 300, "num_layers": 2, "width": 32, "num_heads": 4, "ffn_width": 64, "context": 128}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def machine(gpu: str = "h100", precision: str = "bf16", moe: bool = False) -> Machine:
    return Machine(load_gpu(gpu), choose_calibration("auto", gpu, precision, moe).factors, precision)


def test_text_names_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "mixtral-8x7b", "--tokens", "2T", "--gpus", "256", "--serve", "--layout.tp=1")
    for word in (
        "46,702,792,704",
        "12.9B per token",
        "training state",
        "KV cache, full context",
        "fewest GPUs to train",
        "cluster of 256 H100",
        "layouts that lose",
        "GPU-hours",
        "failures",
        "checkpoint",
        "MWh",
        "CO2e",
        "nats",
        "memory per GPU by pipeline stage",
        "assumptions, not measurements",
        "$/M tokens",
    ):
        assert word in out
    assert "training run" not in run(capsys, "mixtral-8x7b")


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line for line in run(capsys, "llama-3-8b").splitlines() if line.startswith("  ")]
    column = rows[0].index("8,030,261,248") + len("8,030,261,248")
    assert len(rows) > 10
    assert all(row[:column].rstrip() and row[column - 1] != " " and row[column : column + 2].strip() == "" for row in rows)


def test_json_holds_what_the_text_says(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--seq", "16384", "--mfu", "0.2", "--goodput", "0.9", "--precision", "fp8", *SMALL, "--layout.ep=64")
    read = json.loads(run(capsys, "mai-base-1", "--json", "--tokens", "30T", "--gpu", "gb200", "--gpus", "8192", *given))
    assert read["parameters"]["total"] == 962_147_803_136
    assert read["sequence"] == 16384
    assert read["flops_per_token"] == pytest.approx(225.14e9, rel=0.001)
    days = read["training"]["run"]["days"][1]
    assert days == pytest.approx(21.2, rel=0.01)  # published goodput and utilisation give 21.2 days
    assert read["gpu"]["peak"]["bf16"] == 2500
    assert read["training"]["layout"]["tp"] == 1
    assert json.loads(run(capsys, "mai-base-1", "--json"))["training"] is None


def test_list_has_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys)
    assert all(name in out for name in preset_names())
    listed = json.loads(run(capsys, "--json"))
    assert [preset["name"] for preset in listed] == preset_names()


def test_yaml_file_and_checkpoint_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "model.json").write_text(json.dumps(TINY))
    from_file, from_folder = (json.loads(run(capsys, str(path), "--json")) for path in (tmp_path / "tiny.yaml", tmp_path))
    assert from_file["parameters"] == from_folder["parameters"]
    assert from_file["sequence"] == 128


def test_errors_are_one_line_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "mixtral-8x7b" in fail(capsys, "mixtral")
    assert "mai-1" in fail(capsys, "MAI1")
    assert "known: a100, a100-40, h100" in fail(capsys, "mai-1", "--gpu", "v100")
    assert "learned positions for 1024 tokens" in fail(capsys, "gpt2-124m", "--seq", "2048")
    assert "needs at least 124" in fail(capsys, "mai-1", "--tokens", "1T", "--gpus", "123")
    assert "tokens" in fail(capsys, "mai-1", "--tokens", "many")
    assert "known: auto, megatron" in fail(capsys, "mai-1", "--tokens", "1T", "--gpus", "1024", "--software", "none")
    assert "known: llama-3" in fail(capsys, "gpt2-124m", "--tokens", "1B", "--gpus", "8", "--fleet", "x")
    assert "known: us" in fail(capsys, "gpt2-124m", "--tokens", "1B", "--gpus", "8", "--grid", "x")
    assert "known: phone" in fail(capsys, "phi-3-mini", "--device", "toaster")
    assert "choose among bf16" in fail(capsys, "gpt2-124m", "--tokens", "1B", "--gpus", "8", "--gpu", "a100", "--precision", "fp8")
    assert "name a model" in fail(capsys, "--tokens", "1T")
    assert "which is $336" in fail(capsys, "--budget", "100$", "--gpu", "a100")
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump({**TINY, "num_heads": 5}))
    assert "width=32 is not divisible by num_heads=5" in fail(capsys, str(tmp_path / "odd.yaml"))


def test_layouts_that_cannot_be_are_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*layout: str, model: str = "llama-3-8b", batch: str = "1M") -> str:
        return fail(capsys, model, "--seq", "4096", "--batch", batch, *(f"--layout.{part}" for part in layout))

    assert "choose among [1, 2, 4, 8, 16]" in refused("tp=3", "dp_shard=8")
    assert "nearest that does has 240" in refused("dp_shard=24", "micro_rows=2")
    assert "take 32 chunks at most" in refused("pp=20", "virtual=2", "dp_shard=1")
    assert "has no experts" in refused("dp_shard=8", "ep=8")
    assert "GB of each H100 SXM 80 GB, which has 80; divide more" in refused("dp_shard=8", "zero=1", batch="4194304")
    assert "multiples of pp=8" in refused("pp=8", "virtual=2", "dp_shard=4", batch="245760")
    assert "does not divide dp_shard=6" in refused("dp_shard=6", "ep=4", model="mixtral-8x7b")
    message = fail(capsys, "llama-3-8b", "--gpus", "128", "--layout.dp_shard", "64")
    assert "has 64 processes, gpus=128; leave gpus out or change dp_shard to 128" in message
    tight = fail(capsys, "llama-3-70b", "--gpus", "16", "--seq", "8192", "--layout.pp", "1", "--layout.tp", "1")
    assert "needs at least 18" in tight
    long = ("--gpus", "24", "--seq", "24576", "--batch", "4M", "--layout.checkpointing=full", *SMALL)
    assert "take 48 of them" in fail(capsys, "llama-3-70b", *long)
    fixed = fail(capsys, "llama-3-70b", "--gpus", "24", "--layout.checkpointing=none", *SMALL)
    assert "take larger GPUs or a smaller model, or leave more of layout free" in fixed
    late = fail(capsys, "llama-3-8b", "--tokens", "1000T", "--days", "1", "--batch", "100k")
    assert "in time; " in late


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """As in `openmai plan mai-1 | head -1`: the pipe is closed before anything is written."""
    for unbuffered in ("", "1"):
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        command = [sys.executable, "-m", "openmai", "plan", "mai-1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0


def test_a_plan_without_a_cluster_loads_no_numpy() -> None:
    """So it answers in well under a second."""
    code = "import sys; from openmai.cli import main; main(['plan', 'mai-1']); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_fewest_gpus_hold_the_state_and_one_fewer_does_not() -> None:
    state, gpu = training_state_bytes(load_preset("mai-1")), load_gpu("h200")
    fewest = make_plan(PlanConfig(model="mai-1", gpu="h200")).memory.min_gpus_training
    room = gpu.memory_gb * 1e9 * USABLE
    assert fewest * room >= state > (fewest - 1) * room


def test_run_arithmetic() -> None:
    """A run of exactly one GPU-day of steps at a given share of useful time, then its money, energy and emissions."""
    gpu = load_gpu("h100")
    survives = resilience(4, 8, load_fleet("llama-3"), 6.0, 1e9, 100, 10)
    planned = plan_run(86400 * 100, 1e9, 400.0, 100.0, gpu, 4, 0.25, survives, "us", 50000)
    assert planned.useful_days == pytest.approx(0.25)
    assert planned.days[1] == pytest.approx(0.25 / survives.goodput)
    assert planned.days[0] == pytest.approx(planned.days[1] / 1.25)
    assert planned.gpu_hours[1] == pytest.approx(planned.days[1] * 96)
    assert planned.energy_mwh[1] == pytest.approx(planned.gpu_hours[1] * 700 * 1.1 / 1e6)
    assert planned.tonnes_co2[1] == pytest.approx(planned.energy_mwh[1] * 0.376)
    assert planned.dollars[0] == pytest.approx(planned.gpu_hours[0] * 1.70)
    assert planned.dollars[2] == pytest.approx(planned.gpu_hours[2] * 3.00)
    assert planned.mfu == pytest.approx(1e9 * 400 / (4 * 989e12))
    assert planned.steps == 86400


def test_deepseek_hours_are_near_the_published_ones() -> None:
    """DeepSeek-V3's pre-training took 2.664M H800 hours for 14.8T tokens at 38.94 % causal utilisation (arXiv:2412.19437, 2505.09343)."""
    config = PlanConfig(
        model="deepseek-v3-671b",
        seq=4096,
        tokens=14.8e12,
        mfu=0.3894,
        goodput=1,
        gpu="h800",
        gpus=2048,
        batch=62.9e6,
        precision="fp8",
        layout=LayoutChoice(tp=1, pp=16, virtual=1, ep=64),
    )
    training = make_plan(config).training
    assert training is not None
    assert training.run is not None
    assert training.run.gpu_hours[1] == pytest.approx(2.664e6, rel=0.02)


def test_llama_fails_as_often_as_it_did() -> None:
    """419 unexpected interruptions in 54 days on 16,384 GPUs, with more than 90 % useful time (arXiv:2407.21783, section 3.3.4)."""
    survives = resilience(16384, 8, load_fleet("llama-3"), 54 * 24 * 0.9, 405.85e9 * 12, 2000, 10)
    assert survives.hours_between_failures == pytest.approx(3.09, rel=0.01)
    assert survives.failures == pytest.approx(419, rel=0.02)
    assert survives.goodput > 0.90


@pytest.mark.parametrize(
    ("mean", "restart", "stall", "interval"), [(12240, 600, 60, 1200), (7200, 1800, 300, 2000), (180000, 600, 30, 3000)]
)
def test_daly_agrees_with_the_simulation(mean: float, restart: float, stall: float, interval: float) -> None:
    assert simulate_goodput(mean, restart, stall, interval) == pytest.approx(expected_goodput(mean, restart, stall, interval), abs=0.01)
    best = best_interval(mean, stall, 0.0)
    assert expected_goodput(mean, restart, stall, best) >= max(expected_goodput(mean, restart, stall, best * by) for by in (0.5, 2.0))


def test_laws_have_their_optimum_where_the_loss_is_least() -> None:
    for law in load_laws().values():
        parameters, tokens = law.optimum(1e24)
        assert 6 * parameters * tokens == pytest.approx(1e24)
        best = law.loss(parameters, tokens)
        assert best < min(law.loss(parameters * by, tokens / by) for by in (0.8, 1.25))
    assert load_laws()["chinchilla"].loss(70e9, 1.4e12) == pytest.approx(1.94, abs=0.01)


def test_hardware_rows_are_whole() -> None:
    for name in yaml.safe_load(GPUS.read_text()):
        gpu = load_gpu(name)
        assert gpu.source
        assert gpu.price_date
        assert math.isfinite(gpu.peak["bf16"])
        assert all(0.5 * gpu.peak[kind] < value <= gpu.peak[kind] for kind, value in gpu.measured.items())
        assert gpu.dollars_per_hour[0] <= gpu.dollars_per_hour[1]
        assert gpu.domain % gpu.per_node == 0


def test_a_gpu_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file with what differs; twice the price is twice the rent, and the calibration is that of the GPU it is like."""
    own = {"like": "h100", "name": "ours", "dollars_per_hour": [3.40, 6.00], "price_date": "today", "source": "our contract"}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(own))
    arguments = ("llama-3-8b", "--tokens", "100B", "--gpus", "16", "--json", *SMALL)
    theirs, mine = (json.loads(run(capsys, *arguments, "--gpu", gpu))["training"] for gpu in ("h100", str(tmp_path / "ours.yaml")))
    assert mine["software"] == theirs["software"]
    assert mine["remark"] == theirs["remark"]
    assert mine["run"]["dollars"][1] == pytest.approx(2 * theirs["run"]["dollars"][1])
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"like": "h1000"}))
    assert "like=h1000: unknown" in fail(capsys, *arguments, "--gpu", str(tmp_path / "bad.yaml"))
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"like": "h100", "wats": 3}))
    assert "did you mean 'watts'" in fail(capsys, *arguments, "--gpu", str(tmp_path / "bad.yaml"))


def test_search_agrees_with_one_layout_at_a_time() -> None:
    """The arrays of a search hold what the same layouts give alone, and the best is the best of them."""
    work = Workload(load_preset("mixtral-8x7b"), 4096, 512)
    choices = Choices(tp=2, cp=1, dp_replicate=1, micro_rows=1)
    found = search(work, 64, machine(moe=True), choices)
    for one in found.best:
        exact = Workload(work.model, work.sequence, one.batch_rows, work.state, work.kept)
        alone, memory, _ = evaluate(exact, one.layout, machine(moe=True))
        assert alone.seconds == pytest.approx(one.seconds)
        assert float(memory.peak[0]) == pytest.approx(one.memory)
        assert alone.tokens_per_second <= found.best[0].tokens_per_second * (1 + 1e-9)
        assert one.layout.processes <= 64
        assert one.memory <= 80e9


def test_search_of_a_large_cluster_is_quick() -> None:
    import time

    began = time.process_time()
    found = search(Workload(load_preset("mai-1"), 4096, 4096), 4096, machine(moe=True))
    assert found.searched >= 20_000
    assert time.process_time() - began < 10


def test_time_behaves_as_it_must() -> None:
    model, fast = load_preset("llama-3-70b"), machine()

    def seconds(batch: int = 512, on: Machine = fast, **layout: Any) -> float:
        chosen = {"tp": 8, "dp_shard": 8, "zero": 1, **layout}
        return float(step_seconds(model, Grid.of([Layout.model_validate(chosen)]), 4096, batch, on).total[0])

    assert seconds(batch=1024) == pytest.approx(2 * seconds(), rel=0.05)
    assert seconds(dp_shard=16) == pytest.approx(seconds() / 2, rel=0.05)
    assert seconds(checkpointing="none") < seconds(checkpointing="selective") < seconds(checkpointing="full")
    assert 1.2 < seconds(checkpointing="full") / seconds() < 1.4
    piped, twice = (seconds(pp=8, dp_shard=1, batch=batch) for batch in (32, 64))
    assert piped < twice < 1.9 * piped  # the bubble stays as it is
    assert seconds(pp=8, dp_shard=1, batch=32, virtual=5, schedule="interleaved") < 0.95 * piped
    assert seconds(pp=8, dp_shard=1, batch=32, schedule="zero-bubble") < piped
    assert seconds(pp=8, dp_shard=1, batch=32, schedule="zbv", virtual=2) < seconds(pp=8, dp_shard=1, batch=32, schedule="zero-bubble")
    assert seconds(on=machine(precision="fp8")) < seconds()
    assert seconds(tp=16) * 2 > seconds() * 1.05  # over the edge of the fast domain


def test_stage_memory_of_many_layouts_is_that_of_each() -> None:
    model = load_preset("mai-1")
    layouts = [Layout(pp=4, dp_shard=32, ep=ep, tp=tp, zero=zero) for ep in (8, 32) for tp in (1, 4) for zero in (1, 3)]
    together = stage_memory(model, Grid.of(layouts), 4096, 1024).peak
    alone = [float(stage_memory(model, Grid.of([layout]), 4096, 1024).peak[0]) for layout in layouts]
    assert np.allclose(together, alone)


def test_more_gpus_are_found_for_a_nearer_deadline(capsys: pytest.CaptureFixture[str]) -> None:
    def gpus(days: str) -> dict[str, Any]:
        return json.loads(run(capsys, "llama-3-8b", "--tokens", "200B", "--days", days, "--json", *SMALL))["training"]

    slow, fast = gpus("20"), gpus("5")
    assert slow["gpus"] < fast["gpus"]
    assert slow["run"]["days"][1] <= 20
    assert fast["run"]["days"][1] <= 5
    assert slow["run"]["days"][1] > 10  # not far more than needed


def test_budgets(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "--budget", "5M$", "--gpu", "h200")
    assert "1,428,571 hours of one H200" in out
    assert "compute-optimal" in out
    values = json.loads(run(capsys, "--budget", "5M$", "--gpu", "h200", "--json"))
    assert values["sizes"][0]["losses"]["chinchilla-refit"] < values["sizes"][-1]["losses"]["chinchilla-refit"]
    for size in values["sizes"]:
        assert 6 * size["parameters"] * size["tokens"] == pytest.approx(values["flops"])
    assert all(one["tokens_per_active"] >= 20 for one in values["presets"])
    spent = json.loads(run(capsys, "llama-3-8b", "--budget", "50000$", "--json", *SMALL))["training"]["run"]
    assert spent["dollars"][1] == pytest.approx(50000, rel=0.15)


def test_phones(capsys: pytest.CaptureFixture[str]) -> None:
    """Phi-3-mini at four bits writes some 12 tokens/s on an iPhone 14 (arXiv:2404.14219, section 2); a 14B model does not fit."""
    by_precision = {one.precision: one for one in plan_device(load_preset("phi-3-mini"), load_device("iphone-14-pro"))}
    assert 9 < by_precision["int4"].tokens_per_s < 14
    assert by_precision["bf16"].context == 0
    assert "does not fit" in run(capsys, "phi-3-mini", "--device", "phone")
    assert "nothing fits" in run(capsys, "phi-3-medium", "--device", "iphone-14-pro")


def test_serving_is_bound_by_reading_first_and_by_computing_last() -> None:
    model, gpu = load_preset("llama-3-8b"), load_gpu("h100")
    ways = plan_inference(model, gpu, 8192).ways
    assert [way.batch for way in ways] == sorted(way.batch for way in ways)
    assert all(left.tokens_per_s < right.tokens_per_s for left, right in pairwise(ways))
    assert all(left.dollars_per_million > right.dollars_per_million for left, right in pairwise(ways))
    limit = gpu.memory_gb_s * 1e9 / (2 * (count_parameters(model).total - model.vocab_size * model.width))
    assert 0.5 * limit < ways[0].tokens_per_s < limit
    with pytest.raises(OpenmaiError, match="serve in fp8"):
        plan_inference(load_preset("mai-base-1"), load_gpu("a100-40"), 4096, "bf16")


def test_comparison_of_two_plans(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "llama-3-8b", "--tokens", "200B", "--gpus", "16", "--versus", "gpus=32", *SMALL)
    rows = {line.split("  ")[1]: line.split() for line in out[out.index("beside it") :].splitlines()[2:]}
    assert rows["GPUs"][-1] == "2.00"
    assert float(rows["days"][-1]) == pytest.approx(0.5, abs=0.05)
    assert "did you mean --gpus" in fail(capsys, "llama-3-8b", "--versus", "gpuss=32")


def test_the_page_asks_nothing_of_the_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "sub" / "plan.html"
    run(
        capsys,
        *("mixtral-8x7b", "--tokens", "1T", "--gpus", "64", "--html", str(page), "--serve", "--device", "laptop"),
        "--versus=gpu=b200",
        "--layout.tp=1",
    )
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 5
    assert not re.findall(r"(?:src|href)=|@import|url\(", text)
    assert set(re.findall(r"https?://[^\s\"<]+", text)) == {"http://www.w3.org/2000/svg"}
    for word in (
        "Money for time",
        "What fills the GPUs",
        "Beside another plan",
        "To serve it",
        "a laptop with 16 GB",
        "What this rests on",
    ):
        assert word in text
    run(capsys, "gpt2-124m", "--html", str(page))
    assert "Training state" in page.read_text(encoding="utf-8")


def test_emitted_files_are_what_train_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from openmai.base.config import read_yaml, validate
    from openmai.run.recipe import load_recipe
    from openmai.train.config import PretrainConfig

    given = ("--layout.tp=1", "--layout.pp=1", "--layout.cp=1", "--layout.checkpointing=none", "--seq", "2048")
    run(capsys, "llama-3.2-1b", "--tokens", "100B", "--gpus", "16", *given, "--emit", "recipe", "--out", str(tmp_path))
    config = validate(PretrainConfig, read_yaml(tmp_path / "pretrain.yaml"), "pretrain.yaml")
    assert config.preset == "llama-3.2-1b"
    assert config.loop.steps * config.batch_rows * config.context == pytest.approx(100e9, rel=0.001)
    assert config.layout.resolve(16, config.batch_rows, config.micro_rows).dp_shard == 16
    _, (step,) = load_recipe(tmp_path / "recipe.yaml", [])
    assert step.config.model_copy(update={"out": config.out}) == config
    assert "--nnodes=2 --nproc-per-node=8" in (tmp_path / "torchrun.sh").read_text()
    assert "#SBATCH --nodes=2" in (tmp_path / "slurm.sbatch").read_text()
    service, job = yaml.safe_load_all((tmp_path / "kubernetes.yaml").read_text())
    assert job["spec"]["completions"] == 2
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]
    assert "emit needs gpus and tokens" in fail(capsys, "llama-3.2-1b", "--emit", "recipe")
    low = ("llama-3.2-1b", "--tokens", "1B", "--gpus", "8", *SMALL, "--precision", "fp8", "--emit", "recipe", "--out", str(tmp_path))
    assert "plan with precision=bf16" in fail(capsys, *low)


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("llama-3-8b", ("tp=2", "pp=4", "virtual=2", "cp=1", "micro_rows=1")),
        ("qwen3-30b-a3b", ("tp=2", "pp=2", "virtual=1", "ep=8", "cp=2", "micro_rows=1")),
        ("llama-3-8b", ("tp=2", "pp=4", "virtual=2", "schedule=zbv", "micro_rows=1")),
        ("llama-3-8b", ("tp=2", "pp=4", "virtual=1", "schedule=zero-bubble", "micro_rows=1")),
    ],
)
def test_emitted_layouts_pass_the_checks_of_training(
    model: str, layout: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from openmai.base.config import read_yaml, validate
    from openmai.train.config import PretrainConfig

    given = [f"--layout.{part}" for part in layout]
    run(capsys, model, "--tokens", "100B", "--gpus", "64", "--seq", "4096", *given, "--emit", "recipe", "--out", str(tmp_path))
    config = validate(PretrainConfig, read_yaml(tmp_path / "pretrain.yaml"), "pretrain.yaml")
    resolved = config.layout.resolve(64, config.batch_rows, config.micro_rows)
    resolved.check_model(load_preset(model), config.context)
    assert (resolved.pp, resolved.tp) == tuple(int(part[-1]) for part in (layout[1], layout[0]))
    assert resolved.num_stages == resolved.pp * int(layout[2][-1])
    assert config.precision == "bf16"
    if "schedule=" in layout[3]:
        assert resolved.schedule == layout[3].removeprefix("schedule=")


def test_launch_files() -> None:
    """Shells parse them, quotes survive, and one machine needs no meeting point."""
    one = Launch("run-1", 1, 4, ("-m", "openmai", "train", "pretrain", "--out=it's here"))
    many = Launch("run-2", 32, 8, ("-m", "openmai", "train", "pretrain", '--model={"a": 1}'))
    for launch in (one, many):
        for script in (torchrun_script(launch), slurm_script(launch)):
            assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
        _, job = yaml.safe_load_all(kubernetes_manifest(launch))
        command = job["spec"]["template"]["spec"]["containers"][0]["command"]
        assert subprocess.run(["bash", "-n"], input=command[2], text=True, check=False).returncode == 0
        assert launch.command[2] in command[2]
    assert "--standalone" in torchrun_script(one)
    assert "--rdzv-endpoint" not in torchrun_script(one)
    assert "run-2-0.run-2:29500" in kubernetes_manifest(many)


def test_every_row_of_data_has_a_source() -> None:
    for name in ("fleets", "grids", "laws", "devices", "systems"):
        for key, row in yaml.safe_load((DATA / f"{name}.yaml").read_text()).items():
            assert row["source"], f"{name}: {key}"


def test_flops_in_the_plan_are_those_of_the_model() -> None:
    made = make_plan(PlanConfig(model="mai-1", seq=4096))
    assert made.flops_per_token == flops_per_token(load_preset("mai-1"), 4096)
