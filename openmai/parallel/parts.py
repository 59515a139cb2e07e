"""Which part of each tensor of a model this process holds: what optimizers, clipping and checkpoints must know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from openmai.parallel.mesh import Axis


@dataclass(frozen=True)
class Part:
    """This process's share of a tensor before FSDP: along `axis` it is divided at `dim`, or whole (None)."""

    axis: Literal["tp", "ep"] = "tp"
    dim: int | None = None


@dataclass
class Parts:
    """The shares of all parameters and buffers, by name; what is not listed is whole in every process of the tensor-parallel group."""

    by_name: dict[str, Part] = field(default_factory=dict)
    summed: set[str] = field(default_factory=set)
    "whole tensors to whose gradients every tensor-parallel process adds its share"

    def of(self, name: str) -> Part:
        """Return the share of a tensor."""
        return self.by_name.get(name, Part())

    def divide(self, module: nn.Module, prefix: str, names: dict[str, int], axis: Axis, kind: Literal["tp", "ep"]) -> None:
        """Replace parameters of `module` by this process's equal share of them, at the given axes of each; None parameters stay None."""
        for name, dim in names.items():
            parameter = getattr(module, name, None)
            if parameter is not None:
                setattr(module, name, nn.Parameter(share(parameter.detach(), dim, axis), requires_grad=parameter.requires_grad))
                self.by_name[prefix + name] = Part(kind, dim)


def share(value: Tensor, dim: int, axis: Axis) -> Tensor:
    """Return a copy of this process's equal share of `value` along `dim`."""
    rows = share_of(range(value.shape[dim]), axis)
    return value.narrow(dim, rows.start, len(rows)).clone()


def share_of(rows: range, axis: Axis) -> range:
    """Return this process's part of what divides into equal parts."""
    size = len(rows) // axis.size
    return rows[axis.rank * size : (axis.rank + 1) * size]


def chunk_of(rows: range, axis: Axis) -> range:
    """Return this process's part of what FSDP divides, as `torch.chunk` does."""
    size = -(-len(rows) // axis.size)
    return rows[axis.rank * size : (axis.rank + 1) * size]
