"""Optimizers: Muon for matrices, AdamW for the rest, and what changes from step to step: rates, momentum, decay."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from openmai.model.config import ModelConfig
from openmai.model.transformer import Transformer
from openmai.parallel.exchange import on_whole_matrices
from openmai.train.config import OptimizerConfig, ScheduleConfig

# Coefficients (a, b, c) of x -> a x + b x^3 + c x^5 on the singular values, step by step; the last goes on.
_POLYNOMIALS = {
    # Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/
    "newton-schulz": ((3.4445, -4.7750, 2.0315),),
    # Amsel et al., arXiv:2505.16932, table of section 4: the best polynomials for singular values from 0.001 to 1
    "polar-express": (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ),
}
_SAFETY = {"newton-schulz": 1.0, "polar-express": 1.01}
"room for rounding beyond the largest singular value (arXiv:2505.16932, section 4.4)"


def orthogonalize(update_MRC: Tensor, steps: int = 5, method: str = "newton-schulz") -> Tensor:
    """Replace each matrix of a stack (M, R, C) by an approximation of U V^T of its singular value decomposition.

    Long ones in fp32 go by their Gram matrices, which costs half as much; in bfloat16 that loses the small singular values.
    """
    polynomials, safety = _POLYNOMIALS[method], _SAFETY[method]
    tall = update_MRC.shape[1] > update_MRC.shape[2]
    x = update_MRC.mT if tall else update_MRC
    x = x / (x.norm(dim=(1, 2), keepdim=True) * safety).clamp(min=1e-7)
    taken = [polynomials[min(step, len(polynomials) - 1)] for step in range(steps)]
    if safety != 1:
        taken = [(a / safety, b / safety**3, c / safety**5) for a, b, c in taken[: len(polynomials) - 1]] + taken[len(polynomials) - 1 :]
    by_gram = x.dtype == torch.float32 and x.shape[2] >= 1.5 * x.shape[1]
    x = _by_gram(x, taken) if by_gram else _directly(x, taken)
    return x.mT if tall else x


def _directly(x: Tensor, polynomials: Sequence[tuple[float, float, float]]) -> Tensor:
    """Apply the polynomials to the singular values of matrices (M, R, C), R <= C."""
    for a, b, c in polynomials:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_gram(x: Tensor, polynomials: Sequence[tuple[float, float, float]]) -> Tensor:
    """Do the same with products of the small (M, R, R) only: with G = x x^T and P = a + b G + c G^2, x becomes P x and G becomes P G P."""
    gram = x @ x.mT
    product: Tensor | None = None
    for number, (a, b, c) in enumerate(polynomials):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if number < len(polynomials) - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product @ x


AT_ONCE = 256 << 20
"bytes of fp32 matrices that are orthogonalised together; it takes some five times as much for the time being"


def orthogonalize_all(updates: list[Tensor], steps: int = 5, method: str = "newton-schulz", rms: bool = False) -> list[Tensor]:
    """Orthogonalise each matrix (R, C), also in stacks (E, R, C), those of one shape together, and scale it as `scale` says."""
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index, update in enumerate(updates):
        by_shape[update.shape[-2:]].append(index)
    results = list(updates)
    for (rows, columns), indices in by_shape.items():
        parts = [updates[index].reshape(-1, rows, columns) for index in indices]
        done = [
            orthogonalize(some, steps, method) * scale(rows, columns, rms)
            for some in torch.cat(parts).split(max(1, AT_ONCE // (4 * rows * columns)))
        ]
        for index, part in zip(indices, torch.cat(done).split([len(part) for part in parts]), strict=True):
            results[index] = part.view_as(updates[index])
    return results


def scale(rows: int, columns: int, rms: bool) -> float:
    """Return what an orthogonal update is multiplied with: sqrt(max(1, R / C)), or what gives it the size of AdamW's.

    That is 0.2 sqrt(max(R, C)), for 0.2 in the mean square root (Moonlight, arXiv:2502.16982, eq. 4).
    """
    return 0.2 * max(rows, columns) ** 0.5 if rms else max(1, rows / columns) ** 0.5


@dataclass(frozen=True)
class Recipe:
    """What Muon does with whole matrices. `heads`: with each equal share of the rows alone, or of the `columns`."""

    method: str = "newton-schulz"
    steps: int = 5
    rms: bool = False
    heads: int = 1
    columns: bool = False

    def orthogonalize(self, updates: list[Tensor]) -> list[Tensor]:
        """Orthogonalise and scale each matrix, or each head's part of it."""
        if self.heads == 1:
            return orthogonalize_all(updates, self.steps, self.method, self.rms)
        parts = [update.unflatten(-1, (self.heads, -1)).movedim(-2, 0) if self.columns else self._by_rows(update) for update in updates]
        done = orthogonalize_all(parts, self.steps, self.method, self.rms)
        return [part.movedim(0, -2).flatten(-2) if self.columns else part.flatten(0, 1) for part in done]

    def row_squares(self, updates: list[Tensor]) -> list[Tensor]:
        """Return for each value the mean square of its row."""
        return [update.square().mean(dim=-1, keepdim=True).expand_as(update) for update in updates]

    def renorm(self, updates: list[Tensor]) -> list[Tensor]:
        """Give each matrix the norm that `orthogonalize` aims at."""
        results = []
        for update in updates:
            rows, columns = update.shape[-2:]
            shape = (rows, columns // self.heads) if self.columns else (rows // self.heads, columns)
            norm = scale(*shape, self.rms) * (self.heads * min(shape)) ** 0.5
            results.append(update * (norm / update.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)))
        return results

    def _by_rows(self, update: Tensor) -> Tensor:
        return update.unflatten(0, (self.heads, -1))


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for matrices (R, C) and stacks of them (E, R, C), each matrix alone.

    Of matrices that are divided among processes, each process orthogonalises its share (`parallel/exchange.py`). Options of a group
    besides those of a Recipe: `normuon`: even out the rows by a running mean of their squares with this beta (NorMuon, arXiv:2510.05491),
    for which matrices travel twice more; `cautious`: decay only weights that the update makes smaller (arXiv:2510.12402).
    """

    def __init__(
        self,
        parameters: list[nn.Parameter] | list[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        recipe: Recipe = Recipe(),
        normuon: float | None = None,
        cautious: bool = False,
    ) -> None:
        options = {"recipe": recipe, "normuon": normuon, "cautious": cautious}
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, **options})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            pieces = [getattr(parameter, "pieces", None) for parameter in parameters]
            recipe: Recipe = group["recipe"]
            momenta = [self._momentum(parameter, group["momentum"]) for parameter in parameters]
            updates = on_whole_matrices(momenta, recipe.orthogonalize, pieces)
            if group["normuon"] is not None:
                squares = on_whole_matrices(updates, recipe.row_squares, pieces)
                each = zip(parameters, updates, squares, strict=True)
                updates = on_whole_matrices([self._even(*one, group["normuon"]) for one in each], recipe.renorm, pieces)
            for parameter, update in zip(parameters, updates, strict=True):
                if group["weight_decay"]:
                    shrink = group["lr"] * group["weight_decay"]
                    parameter.sub_(parameter * (update * parameter > 0) * shrink if group["cautious"] else parameter * shrink)
                parameter.add_(update, alpha=-group["lr"])

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """Advance the running mean of gradients and return its Nesterov look-ahead."""
        assert parameter.grad is not None
        buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        buffer.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)

    def _even(self, parameter: Tensor, update: Tensor, squares: Tensor, beta: float) -> Tensor:
        """Divide each row by the root of its running mean square, which is kept for each value, as it lies wherever the value does."""
        mean = self.state[parameter].setdefault("row_squares", torch.zeros_like(parameter))
        mean.lerp_(squares, 1 - beta)
        return update * mean.clamp(min=1e-10).rsqrt()


def make_optimizers(model: Transformer, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Sort the parameters into groups, each with its peak rate and decay; return the optimizers that step them."""
    matrices = model.matrices()
    taken = {id(parameter) for parameter in matrices}
    rest: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if id(parameter) not in taken:
            rest[group_of(name)].append(parameter)
    groups = [{"params": parameters, **config.group(name).model_dump()} for name, parameters in rest.items()]
    optimizers: list[torch.optim.Optimizer] = []
    if config.name == "adamw":
        groups.append({"params": matrices, "lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay})
    else:
        recipe = Recipe(config.orthogonalize, config.orthogonalize_steps, config.name == "muon-rms")
        optimizers.append(
            Muon(
                _by_heads(model, recipe) if config.per_head else matrices,
                config.lr,
                config.momentum,
                config.weight_decay,
                recipe,
                config.normuon,
                config.cautious,
            )
        )
    optimizers.append(torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"], group["peak_decay"] = group["lr"], group["weight_decay"]
            if isinstance(optimizer, Muon):
                group["peak_momentum"] = group["momentum"]
    return optimizers


def group_of(name: str) -> str:
    """Name the group that a parameter which is not Muon's belongs to (`OptimizerConfig.groups`)."""
    if name.startswith(("embedding.", "position_embedding.")):
        return "embedding"
    if name.startswith("head."):
        return "head"
    for part in ("value_embedding", "router", "stream_scale", "embedding_scale"):
        if f"{part}." in name or name == f"{part}_L":
            return part
    return "scalar" if name.startswith(("smear_", "backout_")) or name.endswith("sinks_H") else "other"


def _by_heads(model: Transformer, recipe: Recipe) -> list[dict[str, Any]]:
    """Sort Muon's parameters by whether their rows or columns belong to heads, and to how many."""
    config: ModelConfig = model.config
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for parameter in model.matrices():
        name = names[id(parameter)].removesuffix(".weight")
        heads = config.kv_heads if name.endswith((".attention.k", ".attention.v")) else config.num_heads
        of_heads = name.endswith(tuple(f".attention.{part}" for part in ("q", "k", "v", "o", "q_up", "kv_up")))
        groups[(heads, name.endswith(".o")) if of_heads else (1, False)].append(parameter)
    return [
        {"params": parameters, "recipe": replace(recipe, heads=heads, columns=columns)} for (heads, columns), parameters in groups.items()
    ]


def schedule_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Return the learning rate of `step` (from 0) as a share of the peak."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    decaying = config.decay * steps
    left = min(1.0, (steps - step) / decaying) if decaying else 1.0
    if config.shape == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    elif config.shape == "sqrt":
        left = 1 - math.sqrt(1 - left)
    return warm * (config.final + (1 - config.final) * left)


def ramp_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Return the square root of the share of the whole batch that `step` has: what rates of smaller batches are scaled by."""
    stages = config.ramp_of(1_000_000, steps)
    for part, (length, rows) in enumerate(stages):
        if step < length * (part + 1):
            return math.sqrt(rows / 1_000_000)
    return 1.0


def momentum_at(config: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """Return Muon's momentum at `step`: rising while it warms up, falling while the learning rate decays."""
    if step < config.momentum_warmup and config.momentum_first is not None:
        return config.momentum_first + (peak - config.momentum_first) * step / config.momentum_warmup
    decaying = config.decay * steps
    gone = max(0.0, 1 - (steps - step) / decaying) if decaying else 0.0
    return peak if config.momentum_last is None else peak + (config.momentum_last - peak) * gone


def set_rates(optimizers: list[torch.optim.Optimizer], config: ScheduleConfig, step: int, steps: int) -> float:
    """Set every group's learning rate, momentum and decay for `step` of `steps`; return the share of the peak rates."""
    factor = schedule_factor(config, step, steps) * ramp_factor(config, step, steps)
    decay = (1 + math.cos(math.pi * step / steps)) / 2 if config.decay_fades else 1.0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
            if isinstance(optimizer, Muon):
                group["momentum"] = momentum_at(config, group["peak_momentum"], step, steps)
                group["weight_decay"] = group["peak_decay"] * decay
    return factor
