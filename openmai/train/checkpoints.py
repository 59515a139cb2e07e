"""Checkpoints for resuming: model, optimizers and step through torch.distributed.checkpoint, atomic and checksummed."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from openmai.base.errors import OpenmaiError
from openmai.base.files import hash_file, read_json, sync_folder, write_json
from openmai.base.progress import say
from openmai.model.transformer import Transformer
from openmai.parallel.team import Team, prepare_state

_SUMS = "checksums.json"


class Checkpoints:
    """The checkpoints of one run in `folder`; the newest `keep` are kept."""

    def __init__(self, folder: Path, keep: int, team: Team | None = None) -> None:
        self.folder, self.keep, self.team = folder, keep, team or Team.alone()
        self.processes = self.team.processes
        folder.mkdir(exist_ok=True)

    def save(self, step: int, model: Transformer, optimizers: list[torch.optim.Optimizer]) -> None:
        """Write the state after `step` steps under a temporary name, each process its part; then the first one renames it."""
        final, temporary = self.folder / f"step-{step:08d}", self.folder / f"step-{step:08d}.tmp"
        if self.processes.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        self.processes.wait()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.save(self.team.state(model, optimizers), checkpoint_id=temporary, no_dist=self.processes.size == 1)
        if self.processes.rank == 0:
            write_json(temporary / _SUMS, {file.name: hash_file(file) for file in sorted(temporary.iterdir())})
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            sync_folder(self.folder)
            for old in self._finished()[: -self.keep]:
                shutil.rmtree(old)
        self.processes.wait()

    def restore(self, model: Transformer, optimizers: list[torch.optim.Optimizer]) -> int:
        """Load the newest undamaged checkpoint into model and optimizers; return its step, or 0 if there is none.

        It may have been written by another number of processes. The first process looks for it, so that all take the same.
        """
        folder = self.processes.tell(self._newest() if self.processes.rank == 0 else None)
        if folder is None:
            return 0
        prepare_state(optimizers)
        state = self.team.state(model, optimizers)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, checkpoint_id=folder, no_dist=self.processes.size == 1)
        return int(folder.name.removeprefix("step-"))

    def _newest(self) -> Path | None:
        for folder in reversed(self._finished()):
            problem = _damage(folder)
            if problem is None:
                return folder
            say(f"{folder}: {problem}; falling back to the checkpoint before it")
        return None

    def _finished(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".tmp")


def _damage(folder: Path) -> str | None:
    """Compare a checkpoint's files with their recorded hashes; return what is wrong, if anything."""
    try:
        sums = read_json(folder / _SUMS)
    except OpenmaiError as error:
        return str(error)
    for name, digest in sums.items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if hash_file(folder / name) != digest:
            return f"{name} is damaged"
    return None
