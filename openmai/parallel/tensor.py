"""Tensor and sequence parallelism: heads, feed-forward and vocabulary divided among neighbours (Megatron-LM, arXiv:1909.08053, 2205.05198).

Between the divided parts each process holds its part of the tokens (sequence parallel), or all of them. Entering a part the tokens are
gathered, leaving it the partial results are summed and scattered; without sequence parallelism they are summed only.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from openmai.model.attention import Attention, LatentAttention
from openmai.model.float8 import product_of
from openmai.model.layers import FeedForward
from openmai.model.transformer import Transformer
from openmai.parallel.collectives import gather_tokens, reduced, scatter_tokens, summed_backward, summed_forward
from openmai.parallel.mesh import Axis
from openmai.parallel.parts import Parts


class Region:
    """The way into and out of what is divided; `length` is how many tokens of each row attention sees here."""

    def __init__(self, axis: Axis, sequence: bool) -> None:
        self.axis, self.sequence, self.length = axis, sequence, 0

    def enter(self, x_BTD: Tensor) -> Tensor:
        """Return all tokens; gradients are summed."""
        return gather_tokens(x_BTD, self.axis, self.length) if self.sequence else summed_backward(x_BTD, self.axis)

    def leave(self, x_BTD: Tensor) -> Tensor:
        """Sum partial results; return the tokens of this process."""
        return scatter_tokens(x_BTD, self.axis) if self.sequence else summed_forward(x_BTD, self.axis)

    def cut(self, x_BT: Tensor) -> Tensor:
        """Return of what is the same in all processes the tokens of this one."""
        if not self.sequence:
            return x_BT
        missing = -x_BT.shape[1] % self.axis.size
        size = (x_BT.shape[1] + missing) // self.axis.size
        return (F.pad(x_BT, (0, missing)) if missing else x_BT).narrow(1, self.axis.rank * size, size)


class RowParallel(nn.Module):
    """A linear layer of which each process holds some inputs; its bias is added once, to the sum."""

    def __init__(self, linear: nn.Linear, region: Region) -> None:
        super().__init__()
        self.weight, self.bias, self.region, self.product = linear.weight, linear.bias, region, product_of(linear)

    def forward(self, x: Tensor) -> Tensor:
        y = self.region.leave(self.product(x, self.weight))
        return y if self.bias is None else y + self.bias


class SharedHeads(nn.Module):
    """The projection to keys or values when there are fewer of their heads than processes: computed for the one head needed here."""

    def __init__(self, linear: nn.Linear, head: int, axis: Axis) -> None:
        super().__init__()
        self.weight, self.bias, self.product = linear.weight, linear.bias, product_of(linear)
        groups = linear.out_features // head
        first = axis.rank * groups // axis.size * head
        self.rows = slice(first, first + head)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight[self.rows], None if self.bias is None else self.bias[self.rows])


class SpreadNorm(nn.Module):
    """RMSNorm over values that are divided among processes."""

    def __init__(self, norm: nn.RMSNorm, axis: Axis) -> None:
        super().__init__()
        self.weight, self.eps, self.axis = norm.weight, norm.eps, axis

    def forward(self, x: Tensor) -> Tensor:
        mine = x.float().square().sum(dim=-1, keepdim=True)
        squares = summed_forward(summed_backward(mine, self.axis), self.axis)  # every process goes on with other values
        eps = torch.finfo(torch.float32).eps if self.eps is None else self.eps
        normed = (x.float() * torch.rsqrt(squares / (x.shape[-1] * self.axis.size) + eps)).type_as(x)
        return normed if self.weight is None else normed * self.weight


class SpreadEmbedding(nn.Module):
    """The embedding of a part of the vocabulary; tokens of the other parts are zero until the parts are summed."""

    def __init__(self, embedding: nn.Embedding, region: Region) -> None:
        super().__init__()
        self.weight, self.region = embedding.weight, region

    def forward(self, ids_BT: Tensor) -> Tensor:
        numbers_BT = ids_BT - self.region.axis.rank * len(self.weight)
        here_BT = (numbers_BT >= 0) & (numbers_BT < len(self.weight))
        found_BTD = F.embedding(numbers_BT * here_BT, self.weight) * here_BT.unsqueeze(-1)
        return self.region.leave(found_BTD)


class SpreadVocabulary:
    """The part of the vocabulary whose logits this process makes."""

    def __init__(self, region: Region, size: int) -> None:
        self.region, self.first = region, region.axis.rank * size

    def enter(self, x_BTD: Tensor) -> Tensor:
        return self.region.enter(x_BTD)

    def total(self, x: Tensor) -> Tensor:
        return summed_forward(x, self.region.axis)

    def largest(self, x: Tensor) -> Tensor:
        return reduced(x, self.region.axis, dist.ReduceOp.MAX)


def divide_tensors(model: Transformer, axis: Axis, sequence: bool, parts: Parts) -> Region:
    """Divide attention by heads, feed-forwards by their hidden values, embedding and head by tokens. Experts stay as they are."""
    region = Region(axis, sequence)
    for name, module in list(model.named_modules()):
        prefix = f"{name}."
        if isinstance(module, Attention):
            _divide_attention(module, prefix, region, parts)
        elif isinstance(module, LatentAttention):
            for child in ("q_up",) if module.mla.query_rank else ("q",):
                parts.divide(getattr(module, child), f"{prefix}{child}.", {"weight": 0}, axis, "tp")
            parts.divide(module.kv_up, f"{prefix}kv_up.", {"weight": 0}, axis, "tp")
        elif isinstance(module, FeedForward):
            for child in ("gate", "up") if module.config.gated else ("up",):
                parts.divide(getattr(module, child), f"{prefix}{child}.", {"weight": 0, "bias": 0}, axis, "tp")
        else:
            continue
        end = "down" if isinstance(module, FeedForward) else "o"
        parts.divide(getattr(module, end), f"{prefix}{end}.", {"weight": 1}, axis, "tp")
        setattr(module, end, RowParallel(getattr(module, end), region))
        module.register_forward_pre_hook(lambda _, inputs: (region.enter(inputs[0]), *inputs[1:]))
        if not sequence:  # outside of the divided parts all processes do the same
            inner = {f"{prefix}{inner}" for inner, _ in module.named_parameters()} - {f"{prefix}{end}.bias"}
            parts.summed |= inner - parts.by_name.keys()
    tied = model.head.weight is model.embedding.weight
    parts.divide(model.embedding, "embedding.", {"weight": 0}, axis, "tp")
    parts.divide(model.head, "head.", {"weight": 0, "bias": 0}, axis, "tp")
    if tied:
        model.head.weight = model.embedding.weight
        del parts.by_name["head.weight"]
    model.embedding = SpreadEmbedding(model.embedding, region)  # type: ignore[assignment]
    model.head.vocabulary = SpreadVocabulary(region, len(model.head.weight))
    if model.position_embedding is not None:
        model.position_embedding.register_forward_pre_hook(lambda _, inputs: (region.cut(inputs[0]),))
    heads = model.config.num_heads // axis.size
    model.heads = slice(axis.rank * heads, (axis.rank + 1) * heads)
    if sequence:
        parts.summed |= {name for name, _ in model.named_parameters() if ".experts." not in name} - parts.by_name.keys()
    return region


def _divide_attention(module: Attention, prefix: str, region: Region, parts: Parts) -> None:
    axis, config = region.axis, module.config
    parts.divide(module.q, f"{prefix}q.", {"weight": 0, "bias": 0}, axis, "tp")
    few = config.kv_heads % axis.size != 0
    for child in ("k", "v"):
        if few:
            setattr(module, child, SharedHeads(getattr(module, child), config.head, axis))
        else:
            parts.divide(getattr(module, child), f"{prefix}{child}.", {"weight": 0, "bias": 0}, axis, "tp")
    parts.divide(module, prefix, {"sinks_H": 0}, axis, "tp")
    if config.qk_norm and config.qk_norm_span == "all":
        for child in ("q_norm", "k_norm"):
            parts.divide(getattr(module, child), f"{prefix}{child}.", {"weight": 0}, axis, "tp")
            setattr(module, child, SpreadNorm(getattr(module, child), axis))
    if module.place.has_value_embedding:
        parts.divide(module.value_embedding, f"{prefix}value_embedding.", {"weight": 1}, axis, "tp")
        parts.divide(module.value_gate, f"{prefix}value_gate.", {"weight": 0}, axis, "tp")
