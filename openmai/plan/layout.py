"""How processes divide the work: one layout as configuration, and many that are worked out at once as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from openmai.base.config import Config
from openmai.model.stages import Schedule, holder

Array = Any
"a NumPy array over layouts, or one number that holds for all of them"

CHECKPOINTING = ("none", "selective", "full")


class Layout(Config):
    """Processes = pp x dp_replicate x dp_shard x cp x tp; experts divide dp_shard x cp x tp once more, by ep x etp."""

    pp: int = Field(1, gt=0)
    "pipeline stages"
    virtual: int = Field(1, gt=0)
    "chunks of layers per stage: 1 with 1f1b, 2 with zbv, more than 1 if interleaved (arXiv:2104.04473, section 2.2)"
    dp_replicate: int = Field(1, gt=0)
    "groups that each hold the whole state (HSDP)"
    dp_shard: int = Field(1, gt=0)
    "processes that divide the state"
    cp: int = Field(1, gt=0)
    "processes that divide each sequence (context parallelism)"
    tp: int = Field(1, gt=0)
    "processes that divide each matrix, and the sequence between them (tensor and sequence parallelism)"
    ep: int = Field(1, gt=0)
    "processes that divide the experts, folded over dp_shard x cp x tp"
    etp: int = Field(1, gt=0)
    "processes that divide each expert's matrices"
    zero: int = Field(3, ge=0, le=3)
    "what dp_shard divides (arXiv:1910.02054): 0 nothing, 1 optimizer state, 2 and gradients, 3 and weights (FSDP)"
    schedule: Schedule = "1f1b"
    "order of micro-batches in the pipeline: zero-bubble is ZB-H1, also interleaved, zbv ZB-V (arXiv:2401.10241)"
    micro_rows: int = Field(1, gt=0)
    "sequences per forward pass"
    checkpointing: Literal["none", "selective", "full"] = "none"
    "what is computed again in the backward pass: nothing, norms and activations, or whole layers"

    @model_validator(mode="after")
    def _consistent(self) -> Layout:
        if not fits(self.schedule, self.virtual):
            raise ValueError(
                f"schedule={self.schedule} does not go with virtual={self.virtual}; 1f1b has 1, zbv 2, interleaved more than 1"
            )
        if self.dp_shard * self.cp * self.tp % (self.ep * self.etp):
            raise ValueError(
                f"ep={self.ep} x etp={self.etp} does not divide dp_shard={self.dp_shard} x cp={self.cp} x tp={self.tp}; "
                f"choose ep among {_divisors(self.dp_shard * self.cp * self.tp)}"
            )
        return self

    @property
    def processes(self) -> int:
        return self.pp * self.dp_replicate * self.dp_shard * self.cp * self.tp

    def describe(self) -> str:
        """Say what is not 1, as TP8 PP16x8 DP64."""
        shown = {"TP": self.tp, "CP": self.cp, "EP": self.ep, "ETP": self.etp, "FSDP" if self.zero == 3 else "DP": self.dp_shard}
        parts = [f"{name}{value}" for name, value in shown.items() if value > 1]
        if self.pp > 1:
            parts.insert(1 if self.tp > 1 else 0, f"PP{self.pp}" + (f"x{self.virtual}" if self.virtual > 1 else ""))
        if self.dp_replicate > 1:
            parts.append(f"replicas {self.dp_replicate}")
        if self.zero < 3 and self.dp_shard * self.cp > 1:
            parts.append(f"ZeRO-{self.zero}")
        return " ".join(parts) or "one GPU"


def fits(schedule: str, virtual: int) -> bool:
    """Tell whether a schedule runs so many chunks per stage."""
    return {"1f1b": virtual == 1, "interleaved": virtual > 1, "zbv": virtual == 2}.get(schedule, True)


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]


@dataclass(frozen=True)
class Grid:
    """Many layouts that share stages, chunks and schedule; the other fields are arrays of equal length."""

    pp: int
    virtual: int
    schedule: str
    dp_replicate: Array
    dp_shard: Array
    cp: Array
    tp: Array
    ep: Array
    etp: Array
    zero: Array
    micro_rows: Array
    checkpointing: Array
    "as a place in CHECKPOINTING"

    @classmethod
    def of(cls, layouts: Sequence[Layout]) -> Grid:
        """Join layouts of equal pp, virtual and schedule."""
        first = layouts[0]
        names = ("dp_replicate", "dp_shard", "cp", "tp", "ep", "etp", "zero", "micro_rows")
        arrays = {name: np.array([getattr(layout, name) for layout in layouts]) for name in names}
        kept = np.array([CHECKPOINTING.index(layout.checkpointing) for layout in layouts])
        return cls(first.pp, first.virtual, first.schedule, checkpointing=kept, **arrays)

    def layout(self, place: int) -> Layout:
        """Return one of them."""
        names = ("dp_replicate", "dp_shard", "cp", "tp", "ep", "etp", "zero", "micro_rows")
        values = {name: int(getattr(self, name)[place]) for name in names}
        kept = CHECKPOINTING[int(self.checkpointing[place])]
        return Layout.model_validate(dict(pp=self.pp, virtual=self.virtual, schedule=self.schedule, checkpointing=kept, **values))

    def take(self, places: Array) -> Grid:
        """Return those at `places`."""
        names = ("dp_replicate", "dp_shard", "cp", "tp", "ep", "etp", "zero", "micro_rows", "checkpointing")
        return Grid(self.pp, self.virtual, self.schedule, **{name: getattr(self, name)[places] for name in names})

    def __len__(self) -> int:
        return len(self.tp)

    @property
    def end(self) -> int:
        """Stage that holds the last layers, the output matrix and the loss: with zbv the first."""
        return holder(self.schedule, self.pp, self.pp * self.virtual - 1)

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of inputs and of weights are made at different times."""
        return self.schedule in ("zero-bubble", "zbv")

    @cached_property
    def dp(self) -> Array:
        """Processes that see different rows."""
        return self.dp_replicate * self.dp_shard

    @cached_property
    def shards(self) -> Array:
        """Processes that divide the state of what is not a routed expert."""
        return self.dp_shard * self.cp

    @cached_property
    def expert_shards(self) -> Array:
        """Processes that divide the state of each routed expert."""
        return self.dp_shard * self.cp * self.tp // (self.ep * self.etp)

    @cached_property
    def full(self) -> Array:
        return self.checkpointing == 2

    @cached_property
    def selective(self) -> Array:
        return self.checkpointing == 1
