"""Attention: grouped-query and latent (MLA), with an optional key-value cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from openmai.cpu.attention import attend_few
from openmai.cpu.compile import compiles
from openmai.model.cache import Batch, Span
from openmai.model.config import ModelConfig
from openmai.model.layers import make_norm, soft_cap
from openmai.model.mask import Mask
from openmai.model.rope import Table, rotate


@dataclass(frozen=True)
class Place:
    """What a layer is by its number; worked out once, so that compiled code is the same for all layers of a kind."""

    layer: int
    is_global: bool
    has_rope: bool
    has_value_embedding: bool

    @classmethod
    def of(cls, config: ModelConfig, layer: int) -> Place:
        """Look a layer up in its configuration."""
        return cls(layer, config.is_global(layer), config.has_rope(layer), config.has_value_embedding(layer))


@dataclass
class Context:
    """What the layers of one forward pass share; tables and masks are by `is_global`."""

    ids_BT: Tensor
    positions_BT: Tensor
    ropes: dict[bool, Table]
    masks: dict[bool, Mask]
    cache: Batch | None = None
    documents_BT: Tensor | None = None
    windows: dict[bool, int | None] = field(default_factory=dict)
    slopes_H: Tensor | None = None


def attend(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    mask: Mask,
    scale: float | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention by the fastest kernel that computes it. Returns (B, T, H, K of values).

    PyTorch's fused kernels (SDPA) wherever they do; FlexAttention on a GPU for windows, documents, soft caps and sinks; the plain twin for
    a soft cap elsewhere.
    """
    if q_BTHK.is_cuda and (mask.blocks or ((softcap or sinks_H is not None) and mask.dense is None)):
        return attend_flex(q_BTHK, k_BSGK, v_BSGK, mask, scale, softcap, sinks_H)
    if softcap:
        return attend_plain(q_BTHK, k_BSGK, v_BSGK, mask, scale, softcap, sinks_H)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    bias = mask.dense if mask.dense is None or mask.dense.dtype == torch.bool else mask.dense.type_as(q)
    if sinks_H is not None:  # a key of zeros with a value of zeros, whose score is the sink
        scores = _added(mask, q)
        bias = torch.cat((scores.expand(-1, len(sinks_H), -1, -1), sinks_H[:, None, None].expand(len(scores), -1, q.shape[2], 1)), dim=-1)
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    width, grouped = v.shape[-1], q.shape[1] != k.shape[1]
    if width < q.shape[-1]:  # fused kernels want values as wide as keys
        v = F.pad(v, (0, q.shape[-1] - width))
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None, scale=scale, enable_gqa=grouped)
    return output[..., :width].transpose(1, 2)


def attend_plain(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    mask: Mask,
    scale: float | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """The readable twin of `attend`."""
    groups = q_BTHK.shape[2] // k_BSGK.shape[2]
    k_BSHK, v_BSHK = k_BSGK.repeat_interleave(groups, dim=2), v_BSGK.repeat_interleave(groups, dim=2)
    scores_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK) * (scale or q_BTHK.shape[-1] ** -0.5)
    scores_BHTS = soft_cap(scores_BHTS, softcap) + _added(mask, q_BTHK.transpose(1, 2))
    if sinks_H is not None:
        sinks_BHT1 = sinks_H[:, None, None].expand(*scores_BHTS.shape[:-1], 1)
        weights_BHTS = torch.cat((scores_BHTS, sinks_BHT1), dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights_BHTS = scores_BHTS.softmax(dim=-1)
    return torch.einsum("bhts,bshk->bthk", weights_BHTS, v_BSHK)


def _added(mask: Mask, q_BHTK: Tensor) -> Tensor:
    """Return a mask as numbers to add to scores, (B or 1, H or 1, T, S)."""
    seen, length = mask.dense, q_BHTK.shape[2]
    if seen is None:
        seen = torch.ones(1, 1, length, length, dtype=torch.bool, device=q_BHTK.device).tril()
    if seen.dtype != torch.bool:
        return seen.type_as(q_BHTK)
    return torch.zeros_like(seen, dtype=q_BHTK.dtype).masked_fill(~seen, float("-inf"))


def attend_flex(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: Mask, scale: float | None, softcap: float | None, sinks_H: Tensor | None
) -> Tensor:
    """FlexAttention (arXiv:2412.05496): only the blocks of the mask are computed; a sink takes its share of the sum afterwards."""

    def score(s: Tensor, _b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        s = soft_cap(s, softcap)
        return s if mask.blocks else torch.where(i >= j, s, float("-inf"))

    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    kernel = _compiled_flex() if q.is_cuda and not torch.compiler.is_compiling() else flex_attention
    modify = None if softcap is None and mask.blocks else score
    grouped = q.shape[1] != k.shape[1]
    if sinks_H is None:
        return kernel(q, k, v, score_mod=modify, block_mask=mask.blocks, scale=scale, enable_gqa=grouped).transpose(1, 2)
    wanted = AuxRequest(lse=True)
    output, aux = kernel(q, k, v, score_mod=modify, block_mask=mask.blocks, scale=scale, enable_gqa=grouped, return_aux=wanted)
    return (output * torch.sigmoid(aux.lse - sinks_H[:, None]).unsqueeze(-1)).type_as(q).transpose(1, 2)


@cache
def _compiled_flex():  # type: ignore[no-untyped-def]
    return torch.compile(flex_attention)


Kernel = Callable[["Attention | LatentAttention", Tensor, Tensor, Tensor, Context, "Tensor | None"], Tensor]
"(layer, queries, keys, values, context, sinks) -> attended values (B, T, H, K)"


class Attention(nn.Module):
    """Grouped-query attention (arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.place = config, Place.of(config, layer)
        self.kernel: Kernel = _attend_cached
        heads, groups, head = config.num_heads, config.kv_heads, config.head
        self.q = nn.Linear(config.width, heads * head, bias=config.qkv_bias)
        self.k = nn.Linear(config.width, groups * head, bias=config.qkv_bias)
        self.v = nn.Linear(config.width, groups * head, bias=config.qkv_bias)
        self.o = nn.Linear(heads * head, config.width, bias=config.o_bias)
        self.joint: nn.Module | None = None  # computes q, k and v as one product; set by infer/pack.py
        if config.qk_norm:
            together = config.qk_norm_span == "all"
            self.q_norm = make_norm(config, heads * head if together else head)
            self.k_norm = make_norm(config, groups * head if together else head)
        self.sinks_H = nn.Parameter(torch.empty(heads)) if config.sinks else None
        if config.has_value_embedding(layer):
            self.value_embedding = nn.Embedding(config.vocab_size, groups * head)
            self.value_gate = nn.Linear(config.value_gate_width, groups, bias=False)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        config = self.config
        q, k, v = (self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)) if self.joint is None else self.joint(x_BTD)
        if config.qk_norm and config.qk_norm_span == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        if config.clip_qkv:
            q, k, v = (projected.clamp(-config.clip_qkv, config.clip_qkv) for projected in (q, k, v))
        q, k, v = (projected.unflatten(-1, (-1, config.head)) for projected in (q, k, v))
        if self.place.has_value_embedding:
            v = v + self._embedded_values(x_BTD, context.ids_BT)
        by_head = config.qk_norm and config.qk_norm_span == "head"
        if by_head and config.qk_norm_place == "before":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.place.has_rope:
            table = context.ropes[self.place.is_global]
            q, k = rotate(q, table), rotate(k, table)
        if by_head and config.qk_norm_place == "after":
            q, k = self.q_norm(q), self.k_norm(k)
        return self.o(self.kernel(self, q, k, v, context, self.sinks_H).flatten(2))

    def _embedded_values(self, x_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        """Return what the tokens' value embeddings add, (B, T, G, K), gated per head within (0, 3)."""
        gate_BTG = 3 * torch.sigmoid(self.value_gate(x_BTD[..., : self.value_gate.in_features]))
        return gate_BTG.unsqueeze(-1) * self.value_embedding(ids_BT).unflatten(-1, (-1, self.config.head))


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): queries and key-values pass through narrow, normed latents."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        assert config.mla is not None
        self.config, self.place, self.mla = config, Place.of(config, layer), config.mla
        self.kernel: Kernel = _attend_cached
        heads, mla = config.num_heads, config.mla
        if mla.query_rank:
            self.q_down = nn.Linear(config.width, mla.query_rank, bias=False)
            self.q_norm = make_norm(config, mla.query_rank)
            self.q_up = nn.Linear(mla.query_rank, heads * config.head, bias=False)
        else:
            self.q = nn.Linear(config.width, heads * config.head, bias=False)
        self.kv_down = nn.Linear(config.width, mla.kv_rank + mla.rope_width, bias=False)
        self.kv_norm = make_norm(config, mla.kv_rank)
        self.kv_up = nn.Linear(mla.kv_rank, heads * (mla.nope_width + mla.value_width), bias=False)
        self.o = nn.Linear(heads * mla.value_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        mla = self.mla
        q = self.q_up(self.q_norm(self.q_down(x_BTD))) if mla.query_rank else self.q(x_BTD)
        q_nope, q_rope = q.unflatten(-1, (-1, self.config.head)).split((mla.nope_width, mla.rope_width), dim=-1)
        latent, k_rope = self.kv_down(x_BTD).split((mla.kv_rank, mla.rope_width), dim=-1)
        latent, k_rope = self.kv_norm(latent), k_rope.unsqueeze(2)
        if self.place.has_rope:
            table = context.ropes[self.place.is_global]
            q_rope, k_rope = rotate(q_rope, table), rotate(k_rope, table)
        q = torch.cat((q_nope, q_rope), dim=-1)
        if context.cache is not None:
            return self.o(self._attend_latent(q, torch.cat((latent, k_rope.squeeze(2)), dim=-1), context, context.cache).flatten(2))
        k, v = self._expand(latent, k_rope)
        return self.o(self.kernel(self, q, k, v, context, None).flatten(2))

    def _expand(self, latent_BSR: Tensor, k_rope_BS1K: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of all heads."""
        mla = self.mla
        both = self.kv_up(latent_BSR).unflatten(-1, (-1, mla.nope_width + mla.value_width))
        k_nope, v = both.split((mla.nope_width, mla.value_width), dim=-1)
        return torch.cat((k_nope, k_rope_BS1K.expand(-1, -1, k_nope.shape[2], -1)), dim=-1), v

    def _attend_latent(self, q_1NHK: Tensor, latent_1NR: Tensor, context: Context, cache: Batch) -> Tensor:
        """Attend over a cache of latents, (1, N, H, K of values).

        Long stretches expand the latents; where there are few queries the expansion moves to their side (arXiv:2405.04434, section 2.1.2).
        """
        mla = self.mla
        cache.write(self.place.layer, latent_1NR[0].unsqueeze(1))
        up_HPR = self.kv_up.weight.unflatten(0, (-1, mla.nope_width + mla.value_width))
        k_up_HKR, v_up_HKR = up_HPR.split((mla.nope_width, mla.value_width), dim=1)
        few, outputs = len(cache.row_N), []
        if few:
            q_nope, q_rope = q_1NHK[0, :few].split((mla.nope_width, mla.rope_width), dim=-1)
            q_NHR = torch.cat((torch.einsum("nhk,hkr->nhr", q_nope, k_up_HKR), q_rope), dim=-1)
            outputs.append(torch.einsum("nhr,hkr->nhk", attend_in_blocks(self, context, q_NHR, None), v_up_HKR))
        for span in cache.long:
            latent, k_rope = cache.read(self.place.layer, span)[0].split((mla.kv_rank, mla.rope_width), dim=-1)
            k, v = self._expand(latent.squeeze(2), k_rope)
            outputs.append(_attend_span(self, context, span, q_1NHK, k, v, None))
        return torch.cat(outputs)[None]


def _attend_cached(
    module: Attention | LatentAttention, q: Tensor, k: Tensor, v: Tensor, context: Context, sinks_H: Tensor | None
) -> Tensor:
    config, place, cache = module.config, module.place, context.cache
    if cache is None:
        return attend(q, k, v, context.masks[place.is_global], config.score_scale, config.attention_softcap, sinks_H)
    cache.write(place.layer, k[0], v[0])
    few = len(cache.row_N)
    outputs = [attend_in_blocks(module, context, q[0, :few], sinks_H)] if few else []
    outputs += [_attend_span(module, context, span, q, *cache.read(place.layer, span), sinks_H) for span in cache.long]
    return torch.cat(outputs)[None]


def attend_in_blocks(module: Attention | LatentAttention, context: Context, q_NHK: Tensor, sinks_H: Tensor | None) -> Tensor:
    """Attend for the tokens of sequences with few new ones, (N, H, K of values): compiled, or its twin that gathers the cache."""
    config, place, cache = module.config, module.place, context.cache
    assert cache is not None
    window, slopes_H = context.windows[place.is_global], context.slopes_H
    scale, softcap = config.score_scale, config.attention_softcap
    if compiles(q_NHK):
        keys, values = cache.cache.keys[place.layer], cache.cache.values[place.layer]
        where = cache.tables_BM, cache.row_N, cache.seen_N
        return attend_few(q_NHK, keys, values, *where, window, scale, softcap, sinks_H, slopes_H)
    k, v = cache.read_few(place.layer)
    return attend(q_NHK[:, None], k, v, cache.mask(None, window, slopes_H), scale, softcap, sinks_H)[:, 0]


def _attend_span(
    module: Attention | LatentAttention,
    context: Context,
    span: Span,
    q_1NHK: Tensor,
    k_1SGK: Tensor,
    v_1SGK: Tensor,
    sinks_H: Tensor | None,
) -> Tensor:
    """Attend for a stretch of one sequence, (T, H, K of values)."""
    q = q_1NHK[:, span.first : span.first + span.count]
    assert context.cache is not None
    mask = context.cache.mask(span, context.windows[module.place.is_global], context.slopes_H)
    return attend(q, k_1SGK, v_1SGK, mask, module.config.score_scale, module.config.attention_softcap, sinks_H)[0]
