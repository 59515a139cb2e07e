"""pytest tests/test_dry_run.py: what a symbolic step says of a process is what that process holds and sends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from parallel_worker import launch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from openmai.cli import main
from openmai.model.transformer import Transformer
from openmai.parallel.processes import Processes, local
from openmai.parallel.team import Team
from openmai.train.config import DryRunConfig
from openmai.train.dry_run import ACTIVATIONS, Counted, dry_run, one_step, pretend
from openmai.train.optimizer import make_optimizers

EXPERTS = {"moe": {"num_experts": 8, "num_active": 2, "expert_width": 32, "first_dense": 1}}


def config(out: Path, layout: dict, model: dict, processes: int = 4) -> DryRunConfig:
    return DryRunConfig.model_validate(
        {
            "depth": 2,
            "model": model,
            "context": 64,
            "batch_rows": 8,
            "micro_rows": 1,
            "law": "none",
            "vocab_size": 128,
            "processes": processes,
            "layout": layout,
            "precision": "fp32",
            "out": out,
        }
    )


def really(wanted: DryRunConfig, out: Path) -> dict:
    """Do the same step with real processes; return what the first of them counted. They are forked, so not from here, where threads run."""
    command = [sys.executable, __file__, wanted.model_dump_json(), str(out)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def count_for_real(wanted: DryRunConfig, out: Path) -> int:
    """Do a step in forked processes; the first one writes what it counted to `out`. Return how many failed."""

    def work() -> None:
        torch.set_num_threads(1)
        processes = Processes.start("cpu")
        layout = wanted.layout.resolve(processes.size, wanted.batch_rows, wanted.micro_rows)
        with torch.device("meta"):
            model = Transformer(wanted.architecture(128))
        team = Team(processes, layout, "cpu")
        model = team.take(model)
        team.initialize(model, 0, "cpu")
        optimizers = make_optimizers(model, wanted.optimizer)
        counted = Counted()
        with counted:
            for parameter in model.parameters():
                counted.watch(local(parameter))
            found = one_step(model, team, optimizers, wanted, wanted.batch_rows // layout.data, counted)
        if processes.rank == 0:
            out.write_text(json.dumps(found))

    return launch(wanted.processes, work, out.with_suffix(".store"))


@pytest.mark.parametrize(
    ("layout", "model"),
    [({"pp": 2, "tp": 2}, {}), ({"cp": 2, "ep": 2, "checkpointing": "full"}, EXPERTS), ({"tp": 2, "ep": 4, "pp": 1}, EXPERTS)],
)
def test_a_dry_run_says_what_a_process_does(layout: dict, model: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    wanted = config(tmp_path / "dry.json", layout, model)
    real = really(wanted, tmp_path / "real.json")
    dry_run(wanted)
    report = capsys.readouterr().out  # for pipes; the time it took is a message
    assert "parameters on 4 processes" in report
    assert "optimizer state" in report
    dry = json.loads((tmp_path / "dry.json").read_text())
    for one, other in zip(dry["collectives"], real["collectives"], strict=True):
        if model and one["kind"] == "all-to-all":  # how many tokens experts get is known to the real ones only
            one["bytes"] = other["bytes"] = 0
        assert one == other
    for name in ("weights (fp32)", "gradients (fp32)", "optimizer state"):
        assert dry["bytes"][name] == real["bytes"][name]
    if model:
        return  # how much is held at once hangs on how many tokens each expert gets
    assert dry["bytes"][ACTIVATIONS] == pytest.approx(real["bytes"][ACTIVATIONS], rel=0.03)


def test_of_a_divided_tensor_counts_what_is_here() -> None:
    with pretend(8, 0):
        mesh = init_device_mesh("cpu", (8,))
        whole = distribute_tensor(torch.ones(64, 16), mesh, [Shard(0)])
        with Counted() as counted:
            _kept = torch.zeros_like(whole)
    assert counted.alive == 4 * 8 * 16


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "dry-run", "--preset=mai-1", "--processes=8", "--layout.tp=3"]) == 1
    assert "is not 8, the number of processes; nearest:" in capsys.readouterr().err
    assert main(["train", "dry-run", "--depth=2", "--processes=2", "--rank=2", "--batch_rows=32"]) == 1
    assert "there are processes 0 to 1" in capsys.readouterr().err


RECIPES = Path(__file__).parents[1] / "recipes" / "cluster"


def test_launch_files_start_every_process_once(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    recipe = str(RECIPES / "mai-1.yaml")
    common = ["train", "launch", f"--recipe={recipe}", "--nodes=1024", "--arguments", '["--shards=a b"]']
    assert main([*common, "--print"]) == 0
    torchrun = capsys.readouterr().out
    assert "torchrun --nnodes=1024 --nproc-per-node=8" in torchrun
    assert f"-m openmai train pretrain --config {recipe} '--shards=a b'" in torchrun
    assert main([*common, "--to=slurm", "--print"]) == 0
    assert "#SBATCH --nodes=1024" in capsys.readouterr().out
    assert main([*common, "--to=kubernetes", f"--out={tmp_path / 'job.yaml'}"]) == 0
    _, job = yaml.safe_load_all((tmp_path / "job.yaml").read_text())
    assert job["spec"]["completions"] == 1024
    capsys.readouterr()
    assert main(["train", "launch", f"--recipe={recipe}", "--nodes=1000", "--print"]) == 1
    assert "is not 8000, the number of processes; nearest:" in capsys.readouterr().err
    assert main(common) == 1
    assert "say where to: --print, or --out=FILE" in capsys.readouterr().err


if __name__ == "__main__":
    sys.exit(count_for_real(DryRunConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2])))
