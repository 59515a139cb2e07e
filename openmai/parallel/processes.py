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
from openmai.parallel.rendezvous import fresh_store

TIMEOUT = timedelta(hours=1)
"of a collective operation; longer than `loop.guards.hang_seconds`, for the watchdog says more about a hang than the operation that fails"


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
            os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # operations that the flight recorder keeps
            if device == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            store = fresh_store(TIMEOUT)
            backend, rank = "nccl" if device == "cuda" else "gloo", int(os.environ["RANK"])
            dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank if store else -1, world_size=size if store else -1)
        found = cls(dist.get_rank(), size)
        if found.rank:
            os.environ["OPENMAI_QUIET"] = "1"
        return found

    def form_group(self, device: str) -> None:
        """Let a process that works alone be a group of one, which FSDP wants."""
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)

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

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of each process, in their order."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Return the `data` of each process, equally long, in their order."""
        if self.size == 1:
            return [data]
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8).to("cuda" if dist.get_backend() == "nccl" else "cpu")
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return [part.cpu().numpy().tobytes() for part in parts]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            dist.barrier()


def whole(value: Tensor) -> Tensor:
    """Return a tensor with all its parts; every process that holds one must ask at the same time."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """Return what this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


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
