"""OMP_NUM_THREADS=1 pytest tests/test_plan.py: the plan verb, its arithmetic and its errors."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from openmai.cli import main
from openmai.model.config import load_preset, preset_names
from openmai.model.count import training_state_bytes
from openmai.plan.config import PlanConfig
from openmai.plan.cost import plan_cost
from openmai.plan.hardware import HARDWARE, load_gpu
from openmai.plan.make import make_plan
from openmai.plan.memory import USABLE

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


def test_text_names_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "mai-1", "--tokens", "15T", "--gpus", "15000")
    for word in (
        "495,800,375,040",
        "31.8B per token",
        "training state",
        "KV cache, full context",
        "fewest GPUs to train",
        "GPU-days",
        "MWh",
    ):
        assert word in out
    assert "training run, an estimate" in out
    assert "assumptions, not measurements" in out
    assert "training run" not in run(capsys, "mai-1")


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line for line in run(capsys, "llama-3-8b", "--tokens", "1T").splitlines() if line.startswith("  ") and "- " not in line]
    column = rows[0].index("8,030,261,248") + len("8,030,261,248")
    figures = [row for row in rows if not row.startswith("  assumptions")]
    assert len(figures) > 15
    assert all(row[:column].rstrip() and row[column - 1] != " " and row[column : column + 2].strip() == "" for row in figures)


def test_json_holds_what_the_text_says(capsys: pytest.CaptureFixture[str]) -> None:
    read = json.loads(run(capsys, "mai-base-1", "--json", "--tokens", "30T", "--gpu", "gb200", "--gpus", "8192", "--mfu", "0.2"))
    assert read["parameters"]["total"] == 962_147_803_136
    assert read["sequence"] == 16384
    assert read["flops_per_token"] == pytest.approx(225.14e9, rel=0.001)
    assert read["cost"]["days"][1] == pytest.approx(21.2, rel=0.01)  # published goodput and utilisation give 21.2 days
    assert read["gpu"]["bf16_tflops"] == 2500
    assert json.loads(run(capsys, "mai-base-1", "--json"))["cost"] is None


def test_list_has_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys).splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(preset_names())]] == preset_names()
    assert [preset["name"] for preset in json.loads(run(capsys, "--json"))] == preset_names()


def test_plan_reads_a_yaml_file_and_a_checkpoint_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "model.json").write_text(json.dumps(TINY))
    from_file, from_folder = (json.loads(run(capsys, str(path), "--json")) for path in (tmp_path / "tiny.yaml", tmp_path))
    assert from_file["parameters"] == from_folder["parameters"]
    assert from_file["sequence"] == 128


def test_errors_are_one_line_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "mixtral-8x7b" in fail(capsys, "mixtral")
    assert "mai-1" in fail(capsys, "MAI1")
    assert "known: a100, h100" in fail(capsys, "mai-1", "--gpu", "v100")
    assert "learned positions for 1024 tokens" in fail(capsys, "gpt2-124m", "--seq", "2048")
    assert "needs at least 124" in fail(capsys, "mai-1", "--tokens", "1T", "--gpus", "123")
    assert "tokens" in fail(capsys, "mai-1", "--tokens", "many")
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump({**TINY, "num_heads": 5}))
    assert "width=32 is not divisible by num_heads=5" in fail(capsys, str(tmp_path / "odd.yaml"))


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


def test_fewest_gpus_hold_the_state_and_one_fewer_does_not() -> None:
    state, gpu = training_state_bytes(load_preset("mai-1")), load_gpu("h200")
    fewest = make_plan(PlanConfig(model="mai-1", gpu="h200")).memory.min_gpus_training
    room = gpu.memory_gb * 1e9 * USABLE
    assert fewest * room >= state > (fewest - 1) * room


def test_cost_arithmetic() -> None:
    """A run of exactly one GPU-day, then its money and energy."""
    gpu = load_gpu("h100")
    flops = gpu.bf16_tflops * 1e12 * 0.5 * 0.8 * 86400
    cost = plan_cost(flops, 1.0, gpu, 4, mfu=0.5, goodput=0.8)
    assert cost.gpu_days[1] == pytest.approx(1)
    assert cost.gpu_days[0] < 1 < cost.gpu_days[2]
    assert cost.days is not None
    assert cost.days[1] == pytest.approx(0.25)
    assert cost.energy_mwh[1] == pytest.approx(24 * 700 * 1.1 / 1e6)
    assert cost.dollars[0] == pytest.approx(cost.gpu_days[0] * 24 * 1.70)
    assert cost.dollars[2] == pytest.approx(cost.gpu_days[2] * 24 * 3.00)


def test_deepseek_hours_are_near_the_published_ones() -> None:
    """DeepSeek-V3's pre-training took 2.664M H800 hours for 14.8T tokens at 38.94 % causal utilisation (arXiv:2412.19437, 2505.09343)."""
    made = make_plan(PlanConfig(model="deepseek-v3-671b", seq=4096, tokens=14.8e12, mfu=0.3894, goodput=1))
    assert made.cost is not None
    assert made.cost.gpu_days[1] * 24 == pytest.approx(2.664e6, rel=0.02)


def test_hardware_rows_are_whole() -> None:
    for name in yaml.safe_load(HARDWARE.read_text()):
        gpu = load_gpu(name)
        assert gpu.source
        assert gpu.price_date
        assert math.isfinite(gpu.bf16_tflops)
        assert gpu.dollars_per_hour[0] <= gpu.dollars_per_hour[1]
