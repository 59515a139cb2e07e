"""The small parts: norms and the feed-forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmai.cpu import steps
from openmai.cpu.compile import compiles
from openmai.model.config import ModelConfig


class OffsetNorm(nn.Module):
    """RMSNorm whose weight is stored less one (Gemma): weight decay pulls the factor towards one."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], 1.0 + self.weight.float(), self.eps).type_as(x)


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """Build the configured norm over the last `width` values."""
    weighted = config.norm_weight != "none"
    if config.norm == "layer":
        return nn.LayerNorm(width, eps=config.norm_eps, elementwise_affine=weighted, bias=config.norm_bias)
    if config.norm_weight == "offset":
        return OffsetNorm(width, config.norm_eps)
    return nn.RMSNorm(width, eps=config.norm_eps, elementwise_affine=weighted)


def activate(config: ModelConfig, x: Tensor) -> Tensor:
    """Apply the configured activation."""
    match config.activation:
        case "silu":
            return F.silu(x)
        case "relu2":
            return F.relu(x).square()
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        case kind:
            return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def is_swiglu(config: ModelConfig) -> bool:
    """Tell whether a gated feed-forward is silu(gate) * up and nothing else."""
    return config.activation == "silu" and not config.glu_limit and not config.glu_offset


def activate_gated(config: ModelConfig, gate: Tensor, up: Tensor) -> Tensor:
    """Return act(gate) * up, clamped and shifted as configured."""
    if is_swiglu(config) and compiles(gate) and gate.ndim > 1:
        y = steps.gate(gate.flatten(0, -2).numpy(), up.flatten(0, -2).numpy())
        return torch.from_numpy(y).view(gate.shape)
    if config.glu_limit:
        gate, up = gate.clamp(max=config.glu_limit), up.clamp(-config.glu_limit, config.glu_limit)
    return activate(config, gate) * (up + config.glu_offset if config.glu_offset else up)


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """Squash values smoothly into (-cap, cap) (Gemma 2, arXiv:2408.00118, section 2)."""
    return x if cap is None else cap * torch.tanh(x / cap)


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) when not gated."""

    def __init__(self, config: ModelConfig, hidden: int) -> None:
        super().__init__()
        self.config = config
        if config.gated:
            self.gate = nn.Linear(config.width, hidden, bias=config.mlp_bias)
        self.up = nn.Linear(config.width, hidden, bias=config.mlp_bias)
        self.down = nn.Linear(hidden, config.width, bias=config.mlp_bias)
        self.joint: nn.Module | None = None  # computes up and gate as one product; set by infer/pack.py

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.config.gated:
            return self.down(activate(self.config, self.up(x_BTD)))
        up, gate = (self.up(x_BTD), self.gate(x_BTD)) if self.joint is None else self.joint(x_BTD)
        return self.down(activate_gated(self.config, gate, up))
