"""Collectives through which gradients pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from openmai.parallel.mesh import Axis


def gather_tokens(x_BTD: Tensor, axis: Axis, length: int) -> Tensor:
    """Join the parts (B, ceil(length / n), D) of the processes along T, and sum the gradients of each part on their way back."""
    return _Gather.apply(x_BTD, axis)[:, :length]


def scatter_tokens(x_BTD: Tensor, axis: Axis) -> Tensor:
    """Sum the tensors (B, T, D) of the processes and return this one's part along T, filled up with zeros where T does not divide."""
    missing = -x_BTD.shape[1] % axis.size
    return _Scatter.apply(F.pad(x_BTD, (0, 0, 0, missing)) if missing else x_BTD, axis)


def summed_backward(x: Tensor, axis: Axis) -> Tensor:
    """Return `x`; its gradients are summed over the processes."""
    return _SumBackward.apply(x, axis)


def summed_forward(x: Tensor, axis: Axis) -> Tensor:
    """Return the sum over the processes; gradients pass as they are."""
    return _SumForward.apply(x, axis)


def exchange_rows(x_MD: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
    """Send the first `sent[0]` rows to process 0, the next `sent[1]` to process 1, ...; return those received, in the order of senders."""
    return _Exchange.apply(x_MD, sent, received, axis)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _gathered(x_BTD, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _scattered(grad, ctx.axis), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _scattered(x_BTD, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gathered(grad, ctx.axis), None


class _SumBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return reduced(grad, ctx.axis), None


class _SumForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return reduced(x, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
        ctx.sent, ctx.received, ctx.axis = sent, received, axis
        return _exchanged(x_MD, sent, received, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchanged(grad, ctx.received, ctx.sent, ctx.axis), None, None, None


def reduced(x: Tensor, axis: Axis, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Return the sum (or the greatest values) of `x` over the processes, without gradient."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, operation, group=axis.group)
    return total


def _gathered(x_BTD: Tensor, axis: Axis) -> Tensor:
    joined = x_BTD.new_empty(axis.size * x_BTD.shape[0], *x_BTD.shape[1:])
    dist.all_gather_single(joined, x_BTD.contiguous(), group=axis.group)
    return joined.unflatten(0, (axis.size, -1)).transpose(0, 1).flatten(1, 2)


def _scattered(x_BTD: Tensor, axis: Axis) -> Tensor:
    parts = x_BTD.unflatten(1, (axis.size, -1)).transpose(0, 1).contiguous()
    mine = torch.empty_like(parts[0])
    dist.reduce_scatter_single(mine, parts.flatten(0, 1), group=axis.group)
    return mine


def _exchanged(x_MD: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
    result = x_MD.new_empty(sum(received), x_MD.shape[1])
    dist.all_to_all_single(result, x_MD.contiguous(), received, sent, group=axis.group)
    return result
