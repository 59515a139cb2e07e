"""python benchmarks/kill_every_step.py [recipe]

Runs a recipe twice: once undisturbed, once killed with SIGKILL at a random moment of every step and then started again. Prints per step
when it was killed, whether the finished steps before it were left alone, and whether its result equals that of the undisturbed run.
Exits with status 1 if any differs.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from openmai.base.artifact import MANIFEST, Artifact
from openmai.base.progress import duration

# What a step makes, where two runs must agree to the bit; the web archive holds times and memory addresses, the report times.
COMPARED = {
    "documents": "documents/*.parquet",
    "tokenizer": "tokenizer.json",
    "shards": "*.bin",
    "checkpoint": "model.safetensors",
    "eval": "results.json",
    "hf": "*.safetensors",
    "gguf": "*.gguf",
}


def main() -> int:
    recipe = sys.argv[1] if len(sys.argv) > 1 else "recipes/smoke.yaml"
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        assert start(recipe, whole).wait() == 0, "the undisturbed run failed"
        steps = sorted(
            (Artifact.load(path.parent) for path in whole.glob(f"*/{MANIFEST}")),
            key=lambda step: step.path.joinpath(MANIFEST).stat().st_mtime,
        )
        rows = [kill_in(recipe, cut, step) for step in steps]
        assert start(recipe, cut).wait() == 0, "the last run failed"
        print(f"{'step':<12} {'killed after':>12} {'of':>8}  {'earlier steps':<13}  result")
        good = True
        for step, (after, untouched) in zip(steps, rows, strict=True):
            same = equal(step, cut / step.path.name)
            good &= untouched and same is not False
            verdict = {True: "equal to the bit", False: "DIFFERS", None: "not compared (holds times)"}[same]
            kept = "kept" if untouched else "REPEATED"
            print(f"{step.path.name:<12} {duration(after):>12} {duration(step.seconds):>8}  {kept:<13}  {verdict}")
    return 0 if good else 1


def start(recipe: str, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "openmai", "run", recipe, f"--out={out}"]
    return subprocess.Popen(command, stderr=subprocess.PIPE if out.name == "cut" else subprocess.DEVNULL, text=True)


def kill_in(recipe: str, out: Path, step: Artifact) -> tuple[float, bool]:
    """Run until `step` begins, kill within the time that it took undisturbed; return when, and whether finished steps were left alone."""
    before = {path: path.stat().st_mtime_ns for path in out.glob(f"*/{MANIFEST}")}
    process = start(recipe, out)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[") and f"] {step.path.name}: " in line:
            break
    after = random.uniform(0.1, 0.9) * step.seconds
    time.sleep(after)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    return after, all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def equal(step: Artifact, other: Path) -> bool | None:
    """Compare the files of a step that must be equal; None where nothing must."""
    pattern = COMPARED.get(step.kind)
    if pattern is None:
        return None
    files = sorted(step.path.glob(pattern))
    assert files, f"{step.path}: nothing matches {pattern}"
    return all(file.read_bytes() == (other / file.relative_to(step.path)).read_bytes() for file in files)


if __name__ == "__main__":
    raise SystemExit(main())
