"""Work on whole matrices when each process holds some rows of all: every matrix has one owner, to which the rows go and return."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def on_whole_matrices(values: list[Tensor], compute: Callable[[list[Tensor]], list[Tensor]]) -> list[Tensor]:
    """Return `compute(values)`, which treats each matrix (R, C) or stack of matrices (E, R, C) by itself, for tensors in shards.

    Shards are of the first axis, as FSDP makes them. Stacks are computed where they lie, matrix by matrix; matrices travel once to their
    owner and once back, each process computing its share of them. Plain tensors are computed as they are.
    """
    if not any(isinstance(value, DTensor) for value in values):
        return compute(values)
    results: list[Tensor | None] = [None] * len(values)
    stacks = [index for index, value in enumerate(values) if value.ndim == 3]
    for index, result in zip(stacks, compute([_local(values[index]) for index in stacks]), strict=True):
        results[index] = result
    flat = [index for index, value in enumerate(values) if value.ndim == 2]
    for index, result in zip(flat, _by_owner([values[index] for index in flat], compute), strict=True):
        results[index] = result
    return [_like(value, result) for value, result in zip(values, results, strict=True)]


def _by_owner(values: list[Tensor], compute: Callable[[list[Tensor]], list[Tensor]]) -> list[Tensor]:
    """Return each process's rows of the results for matrices in shards; number i is owned by process i modulo their number."""
    if not values:
        return []
    group = _group(values[0])
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    mine = values[rank::size]
    outgoing = [[_local(value).flatten() for value in values[owner::size]] for owner in range(size)]
    incoming = [sum(_rows(value, source, size) * value.shape[1] for value in mine) for source in range(size)]
    parts = _trade(outgoing, incoming, group)
    wholes = []
    offsets = [0] * size
    for value in mine:
        rows = []
        for source in range(size):
            count = _rows(value, source, size) * value.shape[1]
            rows.append(parts[source][offsets[source] : offsets[source] + count].view(-1, value.shape[1]))
            offsets[source] += count
        wholes.append(torch.cat(rows))
    computed = compute(wholes) if wholes else []
    chunks = [[result.split([_rows(result, to, size) for to in range(size)])[to].flatten() for result in computed] for to in range(size)]
    back = _trade(chunks, [sum(_local(value).numel() for value in values[owner::size]) for owner in range(size)], group)
    results: list[Tensor] = [value.new_empty(0) for value in values]
    for owner in range(size):
        offset = 0
        for index in range(owner, len(values), size):
            local = _local(values[index])
            results[index] = back[owner][offset : offset + local.numel()].view_as(local)
            offset += local.numel()
    return results


def _trade(outgoing: list[list[Tensor]], incoming: list[int], group: dist.ProcessGroup) -> list[Tensor]:
    """Send a list of flat tensors to each process; return what each sent here, joined."""
    like = next(tensor for tensors in outgoing for tensor in tensors) if any(outgoing) else torch.empty(0)
    sent = torch.cat([like.new_empty(0), *(tensor for tensors in outgoing for tensor in tensors)])
    received = sent.new_empty(sum(incoming))
    dist.all_to_all_single(received, sent, incoming, [sum(tensor.numel() for tensor in tensors) for tensors in outgoing], group=group)
    return list(received.split(incoming))


def _rows(value: Tensor, rank: int, size: int) -> int:
    """Return how many rows process `rank` holds of a tensor that is divided as `torch.chunk` does."""
    chunk = -(-value.shape[0] // size)
    return max(0, min(chunk, value.shape[0] - rank * chunk))


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _like(value: Tensor, local: Tensor | None) -> Tensor:
    assert local is not None
    if not isinstance(value, DTensor):
        return local
    return DTensor.from_local(local, value.device_mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride())


def _group(value: Tensor) -> dist.ProcessGroup:
    """Return the processes among which `value` is divided."""
    assert isinstance(value, DTensor)
    axis = next(index for index, placement in enumerate(value.placements) if isinstance(placement, Shard))
    return value.device_mesh.get_group(axis)
