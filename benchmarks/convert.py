"""python benchmarks/convert.py --work FOLDER [--preset llama-2-13b]

Memory that `model import` and `export hf` take for a model that is larger than this machine's memory. The Hugging Face folder is made of
files with holes, which read as zeros and take no disk; what is imported and exported is real and needs twice the model's size in FOLDER.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from openmai.base.files import write_json
from openmai.model.config import load_preset
from openmai.model.hf.convert import SHARD_BYTES, our_shapes, their_tensors
from openmai.model.hf.family import choose
from openmai.model.hf.files import Writer


def hollow(preset: str, folder: Path) -> int:
    """Write config.json and weights of holes in bf16; return their bytes."""
    model = load_preset(preset)
    family = choose(model)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", family.write(model) | {"torch_dtype": "bfloat16"})
    tensors = {name: (torch.bfloat16, shape) for name, shape in their_tensors(model, family, our_shapes(model)).items()}
    names, size, number, total = [], 0, 0, 0
    for name, (_, shape) in [*tensors.items(), ("", (torch.bfloat16, (0,)))]:
        if names and (not name or size > SHARD_BYTES):
            writer = Writer(folder / f"model-{number:05d}.safetensors", {key: tensors[key] for key in names})
            writer.written = writer.size  # nothing is written: the file stays hollow
            with writer:
                total += writer.size
            names, size, number = [], 0, number + 1
        names.append(name)
        size += 2 * torch.Size(shape).numel()
    return total


def watched(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds and the most anonymous memory that it held, in GB."""
    began, most = time.perf_counter(), 0
    process = subprocess.Popen(command)

    def watch() -> None:
        nonlocal most
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            most = max([most, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    if process.wait():
        sys.exit(process.returncode)
    thread.join()
    return time.perf_counter() - began, most / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--preset", default="llama-2-13b")
    arguments = parser.parse_args()
    work = arguments.work / "convert"
    try:
        size = hollow(arguments.preset, work / "theirs")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        print(f"{arguments.preset}: {size / 1e9:.1f} GB of weights, {memory / 1e9:.1f} GB of memory", flush=True)
        openmai = [sys.executable, "-m", "openmai", "--quiet"]
        seconds, held = watched([*openmai, "model", "import", "--folder", str(work / "theirs"), "--out", str(work / "ours")])
        print(f"import: {seconds:.0f} s, {size / 1e6 / seconds:,.0f} MB/s, at most {held:.2f} GB of its own", flush=True)
        seconds, held = watched([*openmai, "export", "hf", "--checkpoint", str(work / "ours"), "--out", str(work / "back")])
        print(f"export: {seconds:.0f} s, {size / 1e6 / seconds:,.0f} MB/s, at most {held:.2f} GB of its own")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
