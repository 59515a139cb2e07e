"""Context parallelism: each process holds a part of every row, and keys and values go round in a ring (arXiv:2310.01889).

A row of 2n chunks is divided so that process r has chunks r and 2n - 1 - r: then every process has as much to do under a causal mask
(Striped and zig-zag attention, arXiv:2311.09431).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from openmai.model.attention import Attention, Context, LatentAttention
from openmai.model.layers import soft_cap
from openmai.model.span import Span
from openmai.parallel.mesh import Axis
from openmai.parallel.tensor import Region


class DividedSpan(Span):
    """The tokens of each row that a process of a context-parallel group attends with, and how routers count those of whole rows."""

    def __init__(self, cp: Axis, row: Axis, region: Region | None) -> None:
        self.cp, self.row, self.region = cp, row, region
        self.parts = row.size if region is None or region.sequence else cp.size
        self.divides_positions = cp.size > 1

    def cut(self, x_BT: Tensor, fill: int = 0) -> Tensor:
        missing = -x_BT.shape[1] % (2 * self.cp.size) if self.cp.size > 1 else 0
        whole = F.pad(x_BT, (0, missing), value=fill) if missing else x_BT
        if self.cp.size > 1:
            chunks = whole.chunk(2 * self.cp.size, dim=1)
            whole = torch.cat((chunks[self.cp.rank], chunks[-1 - self.cp.rank]), dim=1)
        if self.region is not None:
            self.region.length = whole.shape[1]
        return whole

    def total(self, x: Tensor) -> Tensor:
        if self.parts == 1:
            return x
        summed = x.detach().clone()
        dist.all_reduce(summed, group=(self.row if self.parts == self.row.size else self.cp).group)
        return summed


@dataclass
class _Rules:
    """What a layer's attention is, beside queries, keys and values."""

    axis: Axis
    positions_BT: Tensor
    documents_BT: Tensor | None
    window: int | None
    scale: float
    softcap: float | None
    slopes_H: Tensor | None


class Ring:
    """The kernel of a layer's attention when processes share each row."""

    def __init__(self, axis: Axis) -> None:
        self.axis = axis

    def __call__(
        self, layer: Attention | LatentAttention, q: Tensor, k: Tensor, v: Tensor, context: Context, sinks_H: Tensor | None
    ) -> Tensor:
        """Return what `attend` does for whole rows, for this process's tokens: (B, T, H, K of values)."""
        config = layer.config
        scale = config.score_scale or q.shape[-1] ** -0.5
        window = context.windows[layer.place.is_global]
        rules = _Rules(self.axis, context.positions_BT, context.documents_BT, window, scale, config.attention_softcap, context.slopes_H)
        return _RingAttention.apply(q, k, v, sinks_H, rules)


class _RingAttention(torch.autograd.Function):
    """Scores of one block of keys at a time; what is kept for the backward pass is this process's part only."""

    @staticmethod
    def forward(ctx: Any, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, sinks_H: Tensor | None, rules: _Rules) -> Tensor:
        sums_BHT = None if sinks_H is None else sinks_H.float()[:, None].expand(len(q_BTHK), -1, q_BTHK.shape[1])
        output_BHTK = q_BTHK.new_zeros(*q_BTHK.transpose(1, 2).shape[:3], v_BSGK.shape[-1], dtype=torch.float32)
        k, v, places = k_BSGK, v_BSGK, _places(rules)
        for turn in range(rules.axis.size):
            scores_BHTS, _ = _scores(q_BTHK, k, places, rules)
            block_BHT = scores_BHTS.logsumexp(dim=-1)
            total_BHT = block_BHT if sums_BHT is None else torch.logaddexp(sums_BHT, block_BHT)
            if sums_BHT is not None:
                output_BHTK *= (sums_BHT - total_BHT).exp().unsqueeze(-1)
            weights_BHTS = (scores_BHTS - total_BHT.unsqueeze(-1)).exp()
            output_BHTK += weights_BHTS @ _by_head(v, q_BTHK.shape[2])
            sums_BHT = total_BHT
            if turn + 1 < rules.axis.size:
                k, v, places = _pass_on([k, v, places], rules.axis)
        output = output_BHTK.type_as(q_BTHK)
        ctx.save_for_backward(q_BTHK, k_BSGK, v_BSGK, sinks_H, output, sums_BHT)
        ctx.rules = rules
        return output.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad_BTHK: Tensor) -> tuple[Tensor | None, ...]:
        q_BTHK, k, v, sinks_H, output_BHTK, sums_BHT = ctx.saved_tensors
        rules, heads = ctx.rules, q_BTHK.shape[2]
        grad_BHTK = grad_BTHK.transpose(1, 2).float()
        inner_BHT1 = (grad_BHTK * output_BHTK.float()).sum(-1, keepdim=True)
        q_grad_BTHK = torch.zeros_like(q_BTHK, dtype=torch.float32)
        k_grad, v_grad = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        places = _places(rules)
        for _ in range(rules.axis.size):
            scores_BHTS, slope_BHTS = _scores(q_BTHK, k, places, rules)
            weights_BHTS = (scores_BHTS - sums_BHT.unsqueeze(-1)).exp()
            v_grad += _by_group(weights_BHTS.mT @ grad_BHTK, v.shape[2])
            score_grad_BHTS = weights_BHTS * (grad_BHTK @ _by_head(v, heads).mT - inner_BHT1) * rules.scale
            if slope_BHTS is not None:
                score_grad_BHTS = score_grad_BHTS * slope_BHTS
            q_grad_BTHK += (score_grad_BHTS @ _by_head(k, heads)).transpose(1, 2)
            k_grad += _by_group(score_grad_BHTS.mT @ q_BTHK.transpose(1, 2).float(), k.shape[2])
            k, v, places, k_grad, v_grad = _pass_on([k, v, places, k_grad, v_grad], rules.axis)
        sinks_grad_H = None
        if sinks_H is not None:
            share_BHT1 = (sinks_H.float()[:, None] - sums_BHT).exp().unsqueeze(-1)
            sinks_grad_H = -(share_BHT1 * inner_BHT1).sum((0, 2, 3)).type_as(sinks_H)
        return q_grad_BTHK.type_as(q_BTHK), k_grad.type_as(k), v_grad.type_as(v), sinks_grad_H, None


def _scores(q_BTHK: Tensor, k_BSGK: Tensor, places_PBS: Tensor, rules: _Rules) -> tuple[Tensor, Tensor | None]:
    """Return the scores (B, H, T, S) in fp32, -inf where a key is not seen, and the slope of their soft cap."""
    scores = q_BTHK.transpose(1, 2).float() @ _by_head(k_BSGK, q_BTHK.shape[2]).mT * rules.scale
    capped = soft_cap(scores, rules.softcap)
    slope = None if rules.softcap is None else 1 - (capped / rules.softcap).square()
    behind_BTS = rules.positions_BT[:, :, None] - places_PBS[0, :, None, :]
    seen_BTS = behind_BTS >= 0
    if rules.window is not None:
        seen_BTS = seen_BTS & (behind_BTS < rules.window)
    if rules.documents_BT is not None:
        seen_BTS = seen_BTS & (rules.documents_BT[:, :, None] == places_PBS[1, :, None, :])
    if rules.slopes_H is not None:
        capped = capped - rules.slopes_H[:, None, None] * behind_BTS[:, None]
    return capped.masked_fill(~seen_BTS[:, None], float("-inf")), slope


def _places(rules: _Rules) -> Tensor:
    """Return positions and documents of this process's keys, (1 or 2, B, S)."""
    found = [rules.positions_BT] if rules.documents_BT is None else [rules.positions_BT, rules.documents_BT]
    return torch.stack([places.expand_as(rules.positions_BT) for places in found])


def _by_head(x_BSGK: Tensor, heads: int) -> Tensor:
    """Return keys or values for each query head, (B, H, S, K) in fp32."""
    return x_BSGK.transpose(1, 2).float().repeat_interleave(heads // x_BSGK.shape[2], dim=1)


def _by_group(x_BHSK: Tensor, groups: int) -> Tensor:
    """Return the sums over the query heads of each key-value head, (B, S, G, K)."""
    return x_BHSK.unflatten(1, (groups, -1)).sum(2).transpose(1, 2)


def _pass_on(tensors: list[Tensor], axis: Axis) -> list[Tensor]:
    """Send tensors to the next process of the ring and return those of the one before."""
    after = dist.get_global_rank(axis.group, (axis.rank + 1) % axis.size)
    before = dist.get_global_rank(axis.group, (axis.rank - 1) % axis.size)
    sent = [tensor.contiguous() for tensor in tensors]
    received = [torch.empty_like(tensor) for tensor in sent]
    operations = [dist.P2POp(dist.isend, tensor, after, axis.group) for tensor in sent]
    operations += [dist.P2POp(dist.irecv, tensor, before, axis.group) for tensor in received]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return received


def divide_rows(model: torch.nn.Module, axis: Axis) -> None:
    """Let every attention of `model` look for keys in all processes of the ring."""
    for module in model.modules():
        if isinstance(module, Attention | LatentAttention):
            module.kernel = Ring(axis)
