"""The small parts: norms, rotary positions, feed-forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmai.model.config import ModelConfig


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """Build the configured norm over the last `width` values."""
    if config.norm == "layer":
        return nn.LayerNorm(width, eps=config.norm_eps)
    return nn.RMSNorm(width, eps=config.norm_eps)


def activate(config: ModelConfig, x: Tensor) -> Tensor:
    """Apply the configured activation."""
    if config.activation == "silu":
        return F.silu(x)
    if config.activation == "relu2":
        return F.relu(x).square()
    return F.gelu(x, approximate="tanh")


def rope_table(positions_BT: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each (B, T, 1, width / 2) in fp32, for `positions_BT` (RoFormer, arXiv:2104.09864)."""
    frequencies = theta ** (-torch.arange(0, width, 2, device=positions_BT.device, dtype=torch.float32) / width)
    angles = positions_BT[..., None, None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate(x_BTHK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + K/2) of each head by the table's angles, as Llama does in the Hugging Face layout."""
    cos, sin = table
    first, second = x_BTHK.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x_BTHK)


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) when not gated."""

    def __init__(self, config: ModelConfig, hidden: int) -> None:
        super().__init__()
        self.config = config
        if config.gated:
            self.gate = nn.Linear(config.width, hidden, bias=config.mlp_bias)
        self.up = nn.Linear(config.width, hidden, bias=config.mlp_bias)
        self.down = nn.Linear(hidden, config.width, bias=config.mlp_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up = self.up(x_BTD)
        hidden = activate(self.config, self.gate(x_BTD)) * up if self.config.gated else activate(self.config, up)
        return self.down(hidden)
