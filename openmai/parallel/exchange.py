"""Work on whole matrices when each process holds a piece of all: every matrix has one owner, to which the pieces go and return."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from openmai.parallel.mesh import Axis
from openmai.parallel.processes import local

Compute = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Pieces:
    """How a matrix (R, C) lies in the processes of `axis`: the rows and columns of each, and whether it is the one that speaks for them."""

    axis: Axis
    shape: tuple[int, int]
    held: tuple[tuple[slice, slice], ...]
    speaks: tuple[bool, ...]

    def size(self, rank: int) -> tuple[int, int]:
        """Return rows and columns of the piece of process `rank`."""
        rows, columns = self.held[rank]
        return rows.stop - rows.start, columns.stop - columns.start

    def sent(self, rank: int) -> int:
        """Return how many values process `rank` sends to the owner."""
        return math.prod(self.size(rank)) if self.speaks[rank] else 0

    @classmethod
    def of(cls, shape: tuple[int, int], dim: int | None, axis: Axis, tp: int) -> Pieces:
        """Describe a matrix that is divided into `tp` equal parts along `dim` (None: each has all), and each of them by rows (FSDP).

        Processes of `axis` count through parts of FSDP and, faster, those of tp.
        """
        shards = axis.size // tp
        held = []
        for rank in range(axis.size):
            shard, part = divmod(rank, tp)
            rows, columns = (shape[0] // tp if dim == 0 else shape[0]), (shape[1] // tp if dim == 1 else shape[1])
            top, left = part * rows if dim == 0 else 0, part * columns if dim == 1 else 0
            chunk = -(-rows // shards)
            first, last = min(rows, shard * chunk), min(rows, (shard + 1) * chunk)
            held.append((slice(top + first, top + last), slice(left, left + columns)))
        return cls(axis, shape, tuple(held), tuple(dim is not None or rank % tp == 0 for rank in range(axis.size)))


def on_whole_matrices(values: list[Tensor], compute: Compute, pieces: Sequence[Pieces | None] = ()) -> list[Tensor]:
    """Return `compute(values)`, which treats each matrix (R, C) or stack of matrices (E, R, C) by itself, for tensors in pieces.

    Matrices with `pieces`, also those of a stack, travel once to their owner and once back, each process computing its share of them; the
    rest is computed where it lies.
    """
    results: list[Tensor | None] = [None] * len(values)
    here = [index for index in range(len(values)) if index >= len(pieces) or pieces[index] is None]
    if any(_cut(values[index]) for index in here):
        raise RuntimeError("a matrix is divided but nobody said how: `Team.take` or `Team.initialize` must see it first")
    for index, result in zip(here, compute([local(values[index]) for index in here]), strict=True):
        results[index] = result
    by_axis: dict[int, list[tuple[int, Pieces]]] = {}
    for index, place in enumerate(pieces):
        if place is not None:
            by_axis.setdefault(id(place.axis), []).append((index, place))
    for apart in by_axis.values():
        matrices = [matrix for index, _ in apart for matrix in _matrices(local(values[index]))]
        places = [place for index, place in apart for _ in _matrices(local(values[index]))]
        found = iter(_by_owner(matrices, places, compute))
        for index, _ in apart:
            own = [next(found) for _ in _matrices(local(values[index]))]
            results[index] = own[0] if values[index].ndim == 2 else torch.stack(own)
    return [_like(value, result) for value, result in zip(values, results, strict=True)]


def _cut(value: Tensor) -> bool:
    """Whether processes hold pieces of the matrices of `value`."""
    return isinstance(value, DTensor) and (value.ndim == 2 or value.placements[-1].is_shard(1))


def _matrices(value: Tensor) -> list[Tensor]:
    """Return the matrices of a stack, or the one that it is."""
    return [value] if value.ndim == 2 else list(value)


def _by_owner(values: list[Tensor], pieces: list[Pieces], compute: Compute) -> list[Tensor]:
    """Return each process's pieces of the results; matrix number i is owned by process i modulo their number."""
    axis = pieces[0].axis
    rank, size = axis.rank, axis.size
    outgoing = [
        [value.flatten() for value, place in zip(values[owner::size], pieces[owner::size], strict=True) if place.speaks[rank]]
        for owner in range(size)
    ]
    mine = pieces[rank::size]
    incoming = [sum(place.sent(source) for place in mine) for source in range(size)]
    arrived = _trade(values[0], outgoing, incoming, axis)
    wholes = [values[0].new_empty(place.shape) for place in mine]
    for source, data in enumerate(arrived):
        parts = data.split([place.sent(source) for place in mine])
        for whole, place, part in zip(wholes, mine, parts, strict=True):
            if place.speaks[source]:
                whole[place.held[source]] = part.view(place.size(source))
    computed = compute(wholes) if wholes else []
    chunks = [[whole[place.held[to]].flatten() for whole, place in zip(computed, mine, strict=True)] for to in range(size)]
    back = _trade(values[0], chunks, [sum(value.numel() for value in values[owner::size]) for owner in range(size)], axis)
    results: list[Tensor] = [value.new_empty(0) for value in values]
    for owner, data in enumerate(back):
        indices = range(owner, len(values), size)
        for index, part in zip(indices, data.split([values[index].numel() for index in indices]), strict=True):
            results[index] = part.view_as(values[index])
    return results


def _trade(like: Tensor, outgoing: list[list[Tensor]], incoming: list[int], axis: Axis) -> list[Tensor]:
    """Send a list of flat tensors to each process; return what each sent here, joined."""
    sent = torch.cat([like.new_empty(0), *(tensor for tensors in outgoing for tensor in tensors)])
    received = sent.new_empty(sum(incoming))
    dist.all_to_all_single(received, sent, incoming, [sum(tensor.numel() for tensor in tensors) for tensors in outgoing], group=axis.group)
    return list(received.split(incoming))


def _like(value: Tensor, mine: Tensor | None) -> Tensor:
    assert mine is not None
    if not isinstance(value, DTensor):
        return mine
    return DTensor.from_local(mine, value.device_mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride())
