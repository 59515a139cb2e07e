"""Attention: grouped-query and latent (MLA), causal, optionally windowed, with an optional key-value cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmai.model.cache import KVCache
from openmai.model.config import ModelConfig
from openmai.model.layers import make_norm, rotate


@dataclass
class Context:
    """What the layers of one forward pass share."""

    positions_BT: Tensor
    rope: tuple[Tensor, Tensor] | None
    masks: dict[bool, Tensor | None]
    "attention mask by `is_global`: (B, 1, T, S) bool, or None where plain causal attention does"
    cache: KVCache | None = None
    rows_B: Tensor | None = None
    used: int = 0


def attend(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention through PyTorch's fused kernel; `mask` None means causal. Returns (B, T, H, K of values)."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped).transpose(1, 2)


def attend_plain(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: Tensor | None) -> Tensor:
    """The readable twin of `attend`."""
    groups = q_BTHK.shape[2] // k_BSGK.shape[2]
    k_BSHK, v_BSHK = k_BSGK.repeat_interleave(groups, dim=2), v_BSGK.repeat_interleave(groups, dim=2)
    scores_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK) * q_BTHK.shape[-1] ** -0.5
    if mask is None:
        mask = torch.ones(scores_BHTS.shape[-2:], dtype=torch.bool, device=scores_BHTS.device).tril()
    weights_BHTS = scores_BHTS.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhts,bshk->bthk", weights_BHTS, v_BSHK)


class Attention(nn.Module):
    """Grouped-query attention (arXiv:2305.13245) with optional QK norm."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        heads, groups, head = config.num_heads, config.kv_heads, config.head
        self.q = nn.Linear(config.width, heads * head, bias=config.qkv_bias)
        self.k = nn.Linear(config.width, groups * head, bias=config.qkv_bias)
        self.v = nn.Linear(config.width, groups * head, bias=config.qkv_bias)
        self.o = nn.Linear(heads * head, config.width, bias=config.o_bias)
        if config.qk_norm:
            together = config.qk_norm_span == "all"
            self.q_norm = make_norm(config, heads * head if together else head)
            self.k_norm = make_norm(config, groups * head if together else head)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        config = self.config
        q, k, v = self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)
        if config.qk_norm and config.qk_norm_span == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (projected.unflatten(-1, (-1, config.head)) for projected in (q, k, v))
        if config.qk_norm and config.qk_norm_span == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if context.rope is not None and config.has_rope(self.layer):
            q, k = rotate(q, context.rope), rotate(k, context.rope)
        return self.o(_attend_cached(self, q, k, v, context).flatten(2))


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): queries and key-values pass through narrow, normed latents."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        assert config.mla is not None
        self.config, self.layer, self.mla = config, layer, config.mla
        heads, mla = config.num_heads, config.mla
        self.q_down = nn.Linear(config.width, mla.query_rank, bias=False)
        self.q_norm = make_norm(config, mla.query_rank)
        self.q_up = nn.Linear(mla.query_rank, heads * config.head, bias=False)
        self.kv_down = nn.Linear(config.width, mla.kv_rank + mla.rope_width, bias=False)
        self.kv_norm = make_norm(config, mla.kv_rank)
        self.kv_up = nn.Linear(mla.kv_rank, heads * (mla.nope_width + mla.value_width), bias=False)
        self.o = nn.Linear(heads * mla.value_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        mla, heads = self.mla, self.config.num_heads
        q = self.q_up(self.q_norm(self.q_down(x_BTD))).unflatten(-1, (heads, -1))
        q_nope, q_rope = q.split((mla.nope_width, mla.rope_width), dim=-1)
        latent, k_rope = self.kv_down(x_BTD).split((mla.kv_rank, mla.rope_width), dim=-1)
        k_nope, v = self.kv_up(self.kv_norm(latent)).unflatten(-1, (heads, -1)).split((mla.nope_width, mla.value_width), dim=-1)
        k_rope = k_rope.unsqueeze(2)
        if context.rope is not None and self.config.has_rope(self.layer):
            q_rope, k_rope = rotate(q_rope, context.rope), rotate(k_rope, context.rope)
        q = torch.cat((q_nope, q_rope), dim=-1)
        k = torch.cat((k_nope, k_rope.expand(-1, -1, heads, -1)), dim=-1)
        return self.o(_attend_cached(self, q, k, v, context).flatten(2))


def _attend_cached(module: Attention | LatentAttention, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
    if context.cache is not None:
        assert context.rows_B is not None
        k, v = context.cache.update(module.layer, context.rows_B, context.positions_BT, k, v, context.used)
    return attend(q, k, v, context.masks[module.config.is_global(module.layer)])
