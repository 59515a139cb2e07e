"""Checkpoints for resuming: everything a run needs, through torch.distributed.checkpoint, written in the background, atomic, checksummed.

step-00000400/
    *.distcp, .metadata     weights and optimizer state, in parts that any number of processes can load
    run.json                what the loop must know: step, token stream, running statistics
    random-R.json           state of the random generators of process R
    model.json              ModelConfig, so that the folder can be turned into a model on its own
    checksums.json          of all these; written last, before the folder takes its name
"""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from openmai.base.errors import OpenmaiError
from openmai.base.files import hash_file, read_json, sync_folder, write_json
from openmai.base.progress import say
from openmai.model.transformer import Transformer
from openmai.parallel.team import Team, prepare_state

FOLDER = "checkpoints"
_SUMS, _RUN, _MODEL = "checksums.json", "run.json", "model.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was loaded: its folder, after how many steps it was made, and what the loop gave it."""

    folder: Path
    step: int
    run: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in `folder`: the newest `keep` and those of every `keep_every`-th step stay."""

    def __init__(self, folder: Path, keep: int, team: Team | None = None, keep_every: int = 0, background: bool = True) -> None:
        self.folder, self.keep, self.keep_every, self.background = folder, keep, keep_every, background
        self.team = team or Team.alone()
        self.processes = self.team.processes
        # operations of their own for the thread that writes, so that they do not mix with those of training
        self.group = dist.new_group(backend="gloo") if self.processes.size > 1 else None
        self.writer: threading.Thread | None = None
        self.problem: str | BaseException = ""
        folder.mkdir(exist_ok=True)

    def save(self, step: int, model: Transformer, optimizers: list[torch.optim.Optimizer], run: dict[str, Any]) -> None:
        """Copy the state after `step` steps and begin to write it; `wait` waits until it is there.

        What stops it from being written (a full disk) is said and the run goes on: its older checkpoints stay.
        """
        self.wait()
        state = self.team.state(model, optimizers)
        if self.background:
            state = tree_map_only(Tensor, _on_cpu, state)
        files = {_RUN: {"step": step, "processes": self.processes.size, **run}, _MODEL: json.loads(model.config.model_dump_json())}
        chance = _random_state()

        def work() -> None:
            try:
                self.problem = self._write(step, state, files, chance)
            except Exception as error:
                self.problem = error

        self.writer = threading.Thread(target=work, name="checkpoint", daemon=True)
        self.writer.start()
        if not self.background:
            self.wait()

    def wait(self) -> bool:
        """Wait for the checkpoint that is being written; return whether it is there."""
        if self.writer is None:
            return True
        self.writer.join()
        self.writer = None
        if isinstance(self.problem, BaseException):
            raise self.problem
        if self.problem:
            say(self.problem)
        return not self.problem

    def restore(self, model: Transformer, optimizers: list[torch.optim.Optimizer], most: int | None = None) -> Saved | None:
        """Load the newest undamaged checkpoint, of at most `most` steps; None if there is none. Later ones are removed.

        It may have been written by another number of processes; random generators go on where they were if the number is the same.
        """
        self.wait()
        if self.processes.rank == 0:
            for unfinished in self.folder.glob("*.tmp"):  # a process was killed in the middle
                shutil.rmtree(unfinished)
        folder = self._newest(most)
        if folder is None:
            return None
        prepare_state(optimizers)
        state = self.team.state(model, optimizers)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, checkpoint_id=folder, no_dist=self.processes.size == 1)
        run = read_json(folder / _RUN)
        if run["processes"] == self.processes.size:
            _set_random_state(read_json(folder / f"random-{self.processes.rank}.json"))
        return Saved(folder, run["step"], run)

    def _write(self, step: int, state: dict[str, Any], files: dict[str, Any], chance: dict[str, Any]) -> str:
        """Write a checkpoint under a temporary name, each process its part, then let the first one name it; return what went wrong."""
        final, temporary = self.folder / f"step-{step:08d}", self.folder / f"step-{step:08d}.tmp"
        rank = self.processes.rank

        def begin() -> None:
            if rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                for name, value in files.items():
                    write_json(temporary / name, value)

        def write() -> dict[str, str]:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                dcp.save(state, checkpoint_id=temporary, process_group=self.group, no_dist=self.group is None)
            write_json(temporary / f"random-{rank}.json", chance)
            own = [*temporary.glob(f"__{rank}_*"), temporary / f"random-{rank}.json"]
            if rank == 0:
                own += [temporary / ".metadata", *(temporary / name for name in files)]
            return {file.name: hash_file(file) for file in own}

        def name(sums: list[dict[str, str]]) -> None:
            if rank == 0:
                write_json(temporary / _SUMS, {name: digest for part in sums for name, digest in sorted(part.items())})
                shutil.rmtree(final, ignore_errors=True)
                os.replace(temporary, final)
                sync_folder(self.folder)

        problem, _ = self._together(begin)
        if not problem:
            problem, sums = self._together(write)
        if not problem:
            problem, _ = self._together(lambda: name(sums))
        if problem:
            if rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            older = self._finished()
            return (
                f"checkpoint of step {step} not written: {problem}; training goes on, "
                f"{f'{older[-1].name} is kept' if older else 'without a checkpoint so far'}; make room in {self.folder}"
            )
        if rank == 0:
            self._thin_out()
        return ""

    def _together(self, work: Callable[[], Any]) -> tuple[str, list[Any]]:
        """Do `work` in every process; return what stopped any of them, and all results."""
        problem, result = "", None
        try:
            result = work()
        except OSError as error:
            problem = _say_what(error)
        except CheckpointException as error:  # raised in all processes if one fails
            problem = "; ".join(sorted({_say_what(failure) for failure, _ in error.failures.values()}))
        if self.group is None:
            return problem, [result]
        answers: list[Any] = [None] * self.processes.size
        dist.all_gather_object(answers, (problem, result), group=self.group)
        return next((problem for problem, _ in answers if problem), ""), [result for _, result in answers]

    def _thin_out(self) -> None:
        newest = self._finished()[-self.keep :]
        for folder in self._finished():
            if folder not in newest and not (self.keep_every and _step(folder) % self.keep_every == 0):
                shutil.rmtree(folder)
        for folder in self.folder.glob("*.damaged"):
            shutil.rmtree(folder)

    def _newest(self, most: int | None) -> Path | None:
        """Find the newest good checkpoint, each process looking at some of the files; put damaged ones aside and remove later ones."""
        while True:
            found = [path for path in self._finished() if most is None or _step(path) <= most] if self.processes.rank == 0 else []
            folder = self.processes.tell(found[-1] if found else None)
            if folder is None:
                return None
            problem = next(filter(None, self.processes.gather(self._damage(folder))), "")
            if not problem:
                break
            say(f"{folder}: {problem}; falling back to the checkpoint before it")
            if self.processes.rank == 0:
                aside = folder.with_suffix(".damaged")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(folder, aside)
        if self.processes.rank == 0:
            for late in self._finished():
                if _step(late) > _step(folder):
                    shutil.rmtree(late)
        return folder

    def _damage(self, folder: Path) -> str:
        """Compare this process's share of a checkpoint's files with their recorded hashes; return what is wrong."""
        return damage(folder, self.processes.rank, self.processes.size)

    def _finished(self) -> list[Path]:
        return finished(self.folder)


def finished(folder: Path) -> list[Path]:
    """Return the whole checkpoints in a folder, in the order of their steps."""
    return sorted(path for path in folder.glob("step-*") if not path.suffix)


def damage(folder: Path, rank: int = 0, size: int = 1) -> str:
    """Compare a checkpoint's files (of `size` shares that number `rank`) with their recorded hashes; return what is wrong, if anything."""
    try:
        sums = read_json(folder / _SUMS)
    except OpenmaiError as error:
        return str(error)
    for name, digest in sorted(sums.items())[rank::size]:
        if not (folder / name).exists():
            return f"{name} is missing"
        if hash_file(folder / name) != digest:
            return f"{name} is damaged"
    return ""


def scratch(run: Path, keep_every: int) -> list[str]:
    """Return what can be removed from the folder of a finished run: all checkpoints but those that are kept for good."""
    if not keep_every:
        return [FOLDER]
    entries = (run / FOLDER).iterdir() if (run / FOLDER).is_dir() else []
    return [f"{FOLDER}/{path.name}" for path in entries if path.suffix or not path.is_dir() or _step(path) % keep_every]


def _on_cpu(value: Tensor) -> Tensor:
    """Copy this process's part; as an operation on a DTensor this takes seconds when first seen, and `from_local` goes back to the GPU."""
    if isinstance(value, DTensor):
        return DTensor(value.to_local().detach().to("cpu", copy=True), value._spec, requires_grad=False)
    return value.detach().to("cpu", copy=True)


def _say_what(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _random_state() -> dict[str, Any]:
    """Return the state of all random generators as JSON."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_from_hex(state["torch"]))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_from_hex(value) for value in state["cuda"]])


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
