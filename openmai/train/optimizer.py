"""Optimizers: Muon for matrices, AdamW for the rest, one learning-rate schedule over both."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from openmai.model.transformer import Transformer
from openmai.parallel.exchange import on_whole_matrices
from openmai.train.config import OptimizerConfig, ScheduleConfig

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(update_MRC: Tensor, steps: int = 5) -> Tensor:
    """Replace each matrix of a stack (M, R, C) by an approximation of U V^T of its singular value decomposition.

    Quintic Newton-Schulz iteration of Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).
    """
    a, b, c = _NEWTON_SCHULZ
    tall = update_MRC.shape[1] > update_MRC.shape[2]
    x = update_MRC.mT if tall else update_MRC
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def orthogonalize_all(updates: list[Tensor]) -> list[Tensor]:
    """Orthogonalise each matrix (R, C), also in stacks (E, R, C), those of one shape together, and scale it by sqrt(max(1, R / C))."""
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index, update in enumerate(updates):
        by_shape[update.shape[-2:]].append(index)
    results = list(updates)
    for (rows, columns), indices in by_shape.items():
        parts = [updates[index].reshape(-1, rows, columns) for index in indices]
        stack = orthogonalize(torch.cat(parts)) * max(1, rows / columns) ** 0.5
        for index, part in zip(indices, stack.split([len(part) for part in parts]), strict=True):
            results[index] = part.view_as(updates[index])
    return results


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for matrices (R, C) and stacks of them (E, R, C), each matrix alone.

    Under FSDP each process orthogonalises its share of the whole matrices (`parallel/exchange.py`).
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            pieces = [getattr(parameter, "pieces", None) for parameter in parameters]
            momenta = [self._momentum(parameter, group["momentum"]) for parameter in parameters]
            updates = on_whole_matrices(momenta, orthogonalize_all, pieces)
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"])

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """Advance the running mean of gradients and return its Nesterov look-ahead."""
        assert parameter.grad is not None
        buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        buffer.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


def make_optimizers(model: Transformer, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Sort the parameters into groups, each with its `peak_lr`; return the optimizers that step them."""
    matrices = model.matrices()
    taken = {id(parameter) for parameter in matrices}
    rest: dict[float, list[torch.nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if id(parameter) not in taken:
            rest[_rate(name, config)].append(parameter)
    groups: list[dict[str, Any]] = [{"params": parameters, "lr": lr, "weight_decay": 0.0} for lr, parameters in rest.items()]
    optimizers: list[torch.optim.Optimizer] = []
    if config.name == "muon":
        optimizers.append(Muon(matrices, config.lr, config.momentum, config.weight_decay))
    else:
        groups.append({"params": matrices, "lr": config.lr, "weight_decay": config.weight_decay})
    optimizers.append(torch.optim.AdamW(groups, betas=config.betas, eps=1e-10, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _rate(name: str, config: OptimizerConfig) -> float:
    if name.startswith(("embedding.", "position_embedding.")) or "value_embedding." in name:
        return config.embedding_lr
    return config.head_lr if name.startswith("head.") else config.other_lr


def schedule_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Return the learning rate of `step` (from 0) as a share of the peak."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    decaying = config.decay * steps
    left = (steps - step) / decaying if decaying else 1.0
    return warm * min(1.0, config.final + (1 - config.final) * left)


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
