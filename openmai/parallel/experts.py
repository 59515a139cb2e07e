"""Expert parallelism: each process holds some experts, and tokens travel to them and back (GShard, arXiv:2006.16668)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from openmai.model.moe import Experts
from openmai.model.transformer import Transformer
from openmai.parallel.collectives import exchange_rows
from openmai.parallel.mesh import Axis
from openmai.parallel.parts import Parts

STACKS = ("gate_EFD", "up_EFD", "down_EDF", "gate_bias_EF", "up_bias_EF", "down_bias_ED")


class AllToAll:
    """Bring rows to the processes that hold their experts, and the answers back into the same order."""

    balanced = False
    "assume that experts get equal numbers of rows: for symbolic runs, where nobody can count"

    def __init__(self, axis: Axis) -> None:
        self.axis = axis

    def __call__(self, compute: Callable[[Tensor, Tensor], Tensor], x_MD: Tensor, counts_E: Tensor) -> Tensor:
        ranks = self.axis.size
        incoming_RE = torch.empty_like(counts_E).view(ranks, -1)  # by sender and local expert
        dist.all_to_all_single(incoming_RE, counts_E.view(ranks, -1).contiguous(), group=self.axis.group)
        if self.balanced:
            sent = received = [len(x_MD) // ranks] * ranks
        else:
            sent, received = counts_E.view(ranks, -1).sum(1).tolist(), incoming_RE.sum(1).tolist()
        arrived_MD = exchange_rows(x_MD, sent, received, self.axis)
        order_M = _by_expert(incoming_RE, len(arrived_MD))
        y_MD = compute(arrived_MD[order_M], incoming_RE.sum(0, dtype=torch.int32))
        back_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))
        return exchange_rows(y_MD.index_select(0, back_M), received, sent, self.axis)  # index_copy would keep y_MD for its backward pass


def _by_expert(counts_RE: Tensor, rows: int) -> Tensor:
    """Return the order that sorts rows, which come by sender and within it by expert, by expert and within it by sender."""
    experts_M = torch.arange(counts_RE.numel(), device=counts_RE.device).remainder(counts_RE.shape[1])
    return experts_M.repeat_interleave(counts_RE.flatten(), output_size=rows).argsort(stable=True)


def divide_experts(model: Transformer, axis: Axis, parts: Parts) -> None:
    """Keep this process's equal share of the experts of every layer."""
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            parts.divide(module, f"{name}.", dict.fromkeys(STACKS, 0), axis, "ep")
            module.exchange = AllToAll(axis)
