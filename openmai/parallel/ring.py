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
from openmai.parallel.collectives import reduced
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
        return x if self.parts == 1 else reduced(x, self.row if self.parts == self.row.size else self.cp)


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

    @property
    def plain_causal(self) -> bool:
        """Whether each token sees all before it and no more, so that flash kernels compute it."""
        return self.window is None and self.documents_BT is None and self.softcap is None and self.slopes_H is None


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
        sums_BHT = q_BTHK.new_full(q_BTHK.transpose(1, 2).shape[:3], float("-inf"), dtype=torch.float32)
        if sinks_H is not None:
            sums_BHT = sums_BHT.copy_(sinks_H.float()[:, None].expand_as(sums_BHT[0]))
        output_BHTK = q_BTHK.new_zeros(*sums_BHT.shape, v_BSGK.shape[-1], dtype=torch.float32)
        k, v, places = k_BSGK, v_BSGK, _places(rules)
        attend = _attend_fast if rules.plain_causal else _attend_plain
        for turn in range(rules.axis.size):
            queries, found_BHTK, block_BHT = attend(q_BTHK, k, v, places, (rules.axis.rank - turn) % rules.axis.size, rules)
            before_BHT = sums_BHT[:, :, queries]
            total_BHT = torch.logaddexp(before_BHT, block_BHT)
            kept_BHTK = output_BHTK[:, :, queries] * (before_BHT - total_BHT).exp().unsqueeze(-1)
            output_BHTK[:, :, queries] = kept_BHTK + found_BHTK * (block_BHT - total_BHT).exp().unsqueeze(-1)
            sums_BHT[:, :, queries] = total_BHT
            if turn + 1 < rules.axis.size:
                k, v, places = _pass_on([k, v, places], rules.axis)
        output = output_BHTK.type_as(q_BTHK)
        ctx.save_for_backward(q_BTHK, k_BSGK, v_BSGK, sinks_H, output, sums_BHT)
        ctx.rules = rules
        return output.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad_BTHK: Tensor) -> tuple[Tensor | None, ...]:
        q_BTHK, k, v, sinks_H, output_BHTK, sums_BHT = ctx.saved_tensors
        rules, grad_BHTK = ctx.rules, grad_BTHK.transpose(1, 2)
        q_grad_BHTK = torch.zeros_like(q_BTHK.transpose(1, 2), dtype=torch.float32)
        k_grad, v_grad = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        places = _places(rules)
        back = _back_fast if rules.plain_causal else _back_plain
        for turn in range(rules.axis.size):
            source = (rules.axis.rank - turn) % rules.axis.size
            queries, keys, grads = back(q_BTHK, k, v, places, source, rules, grad_BHTK, output_BHTK, sums_BHT)
            q_grad_BHTK[:, :, queries] += grads[0]
            k_grad[:, keys] += _by_group(grads[1].float(), k.shape[2])
            v_grad[:, keys] += _by_group(grads[2].float(), v.shape[2])
            onward = [] if turn + 1 == rules.axis.size else [k, v, places]  # nobody needs them once more, but gradients must come home
            k_grad, v_grad, *arrived = _pass_on([k_grad, v_grad, *onward], rules.axis)
            k, v, places = arrived or (k, v, places)
        sinks_grad_H = None
        if sinks_H is not None:
            inner_BHT = (grad_BHTK.float() * output_BHTK.float()).sum(-1)
            sinks_grad_H = -((sinks_H.float()[:, None] - sums_BHT).exp() * inner_BHT).sum((0, 2)).type_as(sinks_H)
        return q_grad_BHTK.transpose(1, 2).type_as(q_BTHK), k_grad.type_as(k), v_grad.type_as(v), sinks_grad_H, None


def _attend_plain(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, places: Tensor, _: int, rules: _Rules) -> tuple[slice, Tensor, Tensor]:
    """Return which queries look at a block of keys, the mean of its values for each (B, H, T, K), and the logarithm of its weights' sum."""
    scores_BHTS, _slope = _scores(q_BTHK, k_BSGK, places, rules)
    sums_BHT = scores_BHTS.logsumexp(dim=-1)
    weights_BHTS = (scores_BHTS - sums_BHT.clamp(min=-1e30).unsqueeze(-1)).exp()
    return slice(None), weights_BHTS @ _by_head(v_BSGK, q_BTHK.shape[2]).float(), sums_BHT


def _back_plain(
    q_BTHK: Tensor,
    k: Tensor,
    v: Tensor,
    places: Tensor,
    _: int,
    rules: _Rules,
    grad_BHTK: Tensor,
    output_BHTK: Tensor,
    sums_BHT: Tensor,
) -> tuple[slice, slice, tuple[Tensor, Tensor, Tensor]]:
    """Return which queries and keys met, and the gradients of queries, keys and values by query head."""
    heads, grad = q_BTHK.shape[2], grad_BHTK.float()
    scores_BHTS, slope_BHTS = _scores(q_BTHK, k, places, rules)
    weights_BHTS = (scores_BHTS - sums_BHT.unsqueeze(-1)).exp()
    inner_BHT1 = (grad * output_BHTK.float()).sum(-1, keepdim=True)
    score_grad_BHTS = weights_BHTS * (grad @ _by_head(v, heads).float().mT - inner_BHT1) * rules.scale
    if slope_BHTS is not None:
        score_grad_BHTS = score_grad_BHTS * slope_BHTS
    q_grad = score_grad_BHTS @ _by_head(k, heads).float()
    k_grad = score_grad_BHTS.mT @ q_BTHK.transpose(1, 2).float()
    return slice(None), slice(None), (q_grad, k_grad, weights_BHTS.mT @ grad)


def _meeting(source: int, length: int, rules: _Rules) -> tuple[slice, slice, bool]:
    """Return which of this process's queries see which keys of process `source`, and whether a causal mask is left between them."""
    rank, half = rules.axis.rank, length // 2
    if source == rank:
        return slice(None), slice(None), True
    return (slice(None), slice(0, half), False) if source < rank else (slice(half, None), slice(None), False)


def _attend_fast(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, _: Tensor, source: int, rules: _Rules) -> tuple[slice, Tensor, Tensor]:
    """The twin of `_attend_plain` by PyTorch's flash kernels, which never hold all scores; nothing is computed that the mask would hide."""
    queries, keys, causal = _meeting(source, q_BTHK.shape[1], rules)
    q, k, v = _for_flash(q_BTHK, k_BSGK, v_BSGK, queries, keys)
    if q.is_cuda:
        output, sums, *_rest = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=rules.scale)
    else:
        output, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=rules.scale)
    return queries, output[..., : v_BSGK.shape[-1]].float(), sums.float()


def _back_fast(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    _: Tensor,
    source: int,
    rules: _Rules,
    grad_BHTK: Tensor,
    output_BHTK: Tensor,
    sums_BHT: Tensor,
) -> tuple[slice, slice, tuple[Tensor, Tensor, Tensor]]:
    """The twin of `_back_plain` by PyTorch's flash kernels."""
    queries, keys, causal = _meeting(source, q_BTHK.shape[1], rules)
    q, k, v = _for_flash(q_BTHK, k_BSGK, v_BSGK, queries, keys)
    width = v_BSGK.shape[-1]
    grad, output = (F.pad(x[:, :, queries], (0, v.shape[-1] - width)).contiguous() for x in (grad_BHTK, output_BHTK))
    sums = sums_BHT[:, :, queries].contiguous()
    if q.is_cuda:
        none = torch.empty(0, dtype=torch.int64, device=q.device)
        lengths = q.shape[2], k.shape[2]
        found = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, output, sums, none, none, *lengths, 0.0, causal, none, none, scale=rules.scale
        )
    else:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, output, sums, 0.0, causal, scale=rules.scale
        )
    return queries, keys, (found[0].float(), found[1], found[2][..., :width])


def _for_flash(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, queries: slice, keys: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the kernels take: all of (B, H, T, K), with values as wide as keys."""
    heads = q_BTHK.shape[2]
    k, v = _by_head(k_BSGK[:, keys], heads), _by_head(v_BSGK[:, keys], heads)
    return q_BTHK[:, queries].transpose(1, 2).contiguous(), k, F.pad(v, (0, k.shape[-1] - v.shape[-1]))


def _scores(q_BTHK: Tensor, k_BSGK: Tensor, places_PBS: Tensor, rules: _Rules) -> tuple[Tensor, Tensor | None]:
    """Return the scores (B, H, T, S) in fp32, -inf where a key is not seen, and the slope of their soft cap."""
    scores = q_BTHK.transpose(1, 2).float() @ _by_head(k_BSGK, q_BTHK.shape[2]).float().mT * rules.scale
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
    """Return keys or values for each query head, (B, H, S, K)."""
    return x_BSGK.transpose(1, 2).repeat_interleave(heads // x_BSGK.shape[2], dim=1).contiguous()


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
