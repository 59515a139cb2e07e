"""Rotary positions (RoFormer, arXiv:2104.09864) and the ways to stretch them beyond the context of the first training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openmai.cpu.compile import compiles
from openmai.cpu.steps import turn
from openmai.model.config import ModelConfig, RopeScaling, yarn_growth

Table = tuple[Tensor, Tensor]
"cosines and sines, each (B, T, 1, R / 2) in fp32 for R rotated values per head"


def rope_table(config: ModelConfig, positions_BT: Tensor, length: int, is_global: bool = True) -> Table:
    """Return the table of `positions_BT` for global or windowed layers; `length` tells LongRoPE which of its two sets of factors holds."""
    frequencies, factor = rope_frequencies(config, length, is_global, positions_BT.device)
    angles = positions_BT[..., None, None].float() * frequencies
    return angles.cos() * factor, angles.sin() * factor


def rope_frequencies(config: ModelConfig, length: int, is_global: bool, device: torch.device | str = "cpu") -> tuple[Tensor, float]:
    """Return the turn per position of each pair, (R / 2,) in fp32, and the factor on what is rotated.

    Computed in the order of operations of the reference implementations, so that angles far out agree to the last bits.
    """
    theta = config.rope_theta if is_global else config.rope_local_theta or config.rope_theta
    powers = theta ** (torch.arange(0, config.rope_width, 2, device=device).float() / config.rope_width)
    scaling = config.rope_scaling
    if scaling is None or (scaling.global_only and not is_global):
        return 1.0 / powers, 1.0
    if scaling.kind == "longrope":
        return _longrope(scaling, powers, length, config.context)
    assert scaling.factor is not None
    if scaling.kind == "linear":
        return 1.0 / powers / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(scaling, 1.0 / powers), 1.0
    return _yarn(scaling, powers, theta)


def _llama3(scaling: RopeScaling, frequencies: Tensor) -> Tensor:
    """Stretch long waves, keep short ones, and mix in between (Llama 3.1, meta-llama/llama-models, `apply_scaling`)."""
    assert scaling.factor
    assert scaling.original_context
    waves = scaling.original_context * frequencies / (2 * math.pi)  # turns within the original context
    kept = ((waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn(scaling: RopeScaling, powers: Tensor, theta: float) -> tuple[Tensor, float]:
    """Mix stretched and kept frequencies along a ramp between two numbers of turns (YaRN, arXiv:2309.00071, section 3.2).

    The ramp is linear in the number of the pair, as in the authors' code, not in turns as in the paper's eq. 18.
    """
    assert scaling.factor
    assert scaling.original_context
    width = 2 * len(powers)

    def pair_with(turns: float) -> float:
        return width * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))  # type: ignore[operator]

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = (torch.arange(len(powers), device=powers.device).float() - low) / (max(high - low, 0) or 0.001)
    kept = 1 - ramp.clamp(0, 1)
    frequencies = 1.0 / (scaling.factor * powers) * (1 - kept) + 1.0 / powers * kept
    if scaling.attention_factor is not None:
        return frequencies, scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return frequencies, yarn_growth(scaling.factor, scaling.mscale) / yarn_growth(scaling.factor, scaling.mscale_all_dim)
    return frequencies, yarn_growth(scaling.factor)


def _longrope(scaling: RopeScaling, powers: Tensor, length: int, context: int) -> tuple[Tensor, float]:
    """Divide each frequency by its own searched factor; another set holds beyond the original context (LongRoPE, arXiv:2402.13753)."""
    assert scaling.original_context
    beyond = length > scaling.original_context
    frequencies = 1.0 / (torch.tensor(scaling.long_factor if beyond else scaling.short_factor, device=powers.device) * powers)
    mscale = scaling.long_mscale if beyond else scaling.short_mscale
    factor = scaling.factor or context / scaling.original_context
    grown = math.sqrt(1 + math.log(factor) / math.log(scaling.original_context)) if factor > 1 else 1.0
    return frequencies, next(value for value in (mscale, scaling.attention_factor, grown) if value is not None)


def rotate(x_BTHK: Tensor, table: Table) -> Tensor:
    """Rotate the pairs (i, i + R/2) of the first R values of each head, as Llama does in the Hugging Face layout."""
    cos, sin = table
    if compiles(x_BTHK):
        return turn(x_BTHK, cos, sin)
    rotated = 2 * cos.shape[-1]
    x, rest = (x_BTHK, None) if rotated == x_BTHK.shape[-1] else x_BTHK.split((rotated, x_BTHK.shape[-1] - rotated), dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x_BTHK)
    return turned if rest is None else torch.cat((turned, rest), dim=-1)
