"""The processes of one run: who this one is, and what they tell each other. Under `torchrun` there are several, else there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from openmai.base.artifact import Artifact, Remote, Work, create
from openmai.base.config import Config
from openmai.base.errors import OpenmaiError

TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """This process among `size`; `rank` 0 writes artifacts and speaks to the user."""

    rank: int = 0
    size: int = 1

    @classmethod
    def start(cls, device: str) -> Processes:
        """Join the others if `torchrun` started this process with others; all but the first become silent."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            if device == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
        found = cls(dist.get_rank(), size)
        if found.rank:
            os.environ["OPENMAI_QUIET"] = "1"
        return found

    def total(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return the sums of figures over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return sums.tolist()

    def tell(self, value: Any) -> Any:
        """Return the first process's `value` to all."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            dist.barrier()


def whole(value: Tensor) -> Tensor:
    """Return a tensor with all its parts; every process that holds one must ask at the same time."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@contextmanager
def create_together(
    processes: Processes, out: Path, *, kind: str, version: int, config: Config, inputs: Sequence[Artifact | Path | Remote]
) -> Iterator[Work]:
    """Begin an artifact that the first process writes and all work at; its refusals reach all of them."""
    if processes.rank:
        error, finished = processes.tell(None)
        if error:
            raise OpenmaiError(error)
        yield Follower(out, kind, "", {}, [], finished=Artifact.load(out, verify=False) if finished else None)
        return
    try:
        manager = create(out, kind=kind, version=version, config=config, inputs=inputs)
        work = manager.__enter__()
    except OpenmaiError as refusal:
        processes.tell((str(refusal), False))
        raise
    processes.tell(("", work.finished is not None))
    try:
        yield work
    except BaseException as error:
        manager.__exit__(type(error), error, error.__traceback__)
        raise
    manager.__exit__(None, None, None)


class Follower(Work):
    """The artifact as all but the first process see it: they write nothing."""

    def tick(self) -> None:
        """Leave the clock to the first process."""

    def finish(self, metrics: dict[str, Any], scratch: Sequence[str] = ()) -> Artifact:
        """Return what this process knows of the artifact, which the first one seals."""
        self.finished = Artifact(self.path, self.kind, self.key, "", {}, [], {}, metrics, 0.0, "", "")
        return self.finished
