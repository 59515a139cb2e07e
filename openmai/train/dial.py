"""The dial: batch, horizon, rates and decay of a pretraining run from the size of its model, by published laws.

Whatever a configuration gives stays as it is; a law fills in the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from openmai.base.config import merge
from openmai.model.config import ModelConfig
from openmai.model.count import count_parameters
from openmai.train.config import OptimizerConfig, PretrainConfig, ScheduleConfig, from_depth

_MICRO_TOKENS = 8192
"at most so many tokens in a forward pass, if nothing else is said"


_MOST_DECAY = 0.05
"of the weights in one step: for models far smaller than those that the laws were found with"


@dataclass(frozen=True)
class Law:
    """What a law says for one model: `tokens` to train on, `batch` tokens per step, and the fields of optimizer and schedule."""

    tokens: float
    batch: float
    optimizer: dict[str, Any]
    schedule: dict[str, Any]


def nanochat(model: ModelConfig, family: str, ratio: float | None, batch: float | None, tokens: float | None) -> Law:
    """Scale the recipe of nanochat (scripts/base_train.py, gpt.py), tuned at depth 12, to `model`.

    The horizon is 12 tokens per parameter of matrices and head. The best batch grows with the horizon to the power of 0.383
    (arXiv:2505.13738) from 2^19 tokens at depth 12, rates with the square root of the batch; weight decay keeps the time over which AdamW
    averages a constant share of the horizon (arXiv:2405.13698). AdamW's rates fall with the square root of the width.
    """
    reference = ModelConfig.model_validate(from_depth(12, family) | {"vocab_size": model.vocab_size})
    ratio = ratio or 12.0
    horizon = ratio * count_parameters(model).active_matmul
    relative = horizon / (ratio * count_parameters(reference).active_matmul)
    batch = batch or 2 ** round(math.log2(2**19 * relative**0.383))
    scale = math.sqrt(batch / 2**19)
    adam = scale * math.sqrt(768 / model.width)
    groups = {
        "embedding": {"betas": (0.8, 0.995), "weight_decay": 0.001},
        "value_embedding": {"lr": 0.15 * adam, "betas": (0.8, 0.995), "weight_decay": 0.01},
        "head": {"betas": (0.8, 0.96), "weight_decay": 0.01},
        "router": {"lr": 0.005 * adam, "betas": (0.8, 0.96)},
        "stream_scale": {"lr": 0.005 * scale, "weight_decay": 0.05},
        "embedding_scale": {"lr": 0.5 * scale, "betas": (0.96, 0.95)},
        "scalar": {"lr": 0.2},
    }
    optimizer = {
        "lr": 0.02 * scale,
        "momentum": 0.97,
        "orthogonalize": "polar-express",
        "normuon": 0.9,
        "cautious": True,
        "embedding_lr": 0.3 * adam,
        "head_lr": 0.008 * adam,
        "other_lr": 0.01 * adam,
        "weight_decay": min(0.28 * scale / relative, _MOST_DECAY / (0.02 * scale)),
        "groups": groups,
        "clip": None,
    }
    steps = (tokens or horizon) / batch
    schedule = {
        "warmup": min(40, int(steps / 10)),
        "decay": 0.65,
        "final": 0.05,
        "momentum_first": 0.85,
        "momentum_warmup": 400,
        "momentum_last": 0.9,
        "decay_fades": True,
    }
    return Law(horizon, batch, optimizer, schedule)


def olmo(model: ModelConfig, name: str, ratio: float | None, batch: float | None, tokens: float | None) -> Law:
    """Give OLMo-core's model ladder (model_ladder/wsds_chinchilla_run_configurator.py), for AdamW and for updates of AdamW's size.

    20 tokens per parameter, 2048 x 160 tokens x (N / 108M)^(2/3) per step, rate 0.0047 (N / 108M)^(-1/3) / 2, warm-up of N tokens, decay
    over the last tenth; N counts what a token is multiplied with. A Muon whose updates have AdamW's size takes its rate
    (arXiv:2502.16982).
    """
    size = count_parameters(model).active_matmul
    batch = batch or 2 ** round(math.log2(2048 * 160 * (size / 108e6) ** (2 / 3)))
    horizon = (ratio or 20.0) * size
    lr = 0.0047 * (size / 108e6) ** (-1 / 3) / 2
    beta = 0.99 if batch < 524_288 else 0.95
    optimizer = {
        "lr": lr,
        "embedding_lr": lr,
        "head_lr": lr,
        "other_lr": lr,
        "betas": (0.9, beta),
        "eps": 1e-8,
        "weight_decay": 0.1,
        "clip": 1.0,
    }
    if name != "adamw":
        optimizer["orthogonalize"] = "polar-express"
    warmup = min(size / batch, (tokens or horizon) / batch / 10)
    return Law(horizon, batch, optimizer, {"warmup": max(1, round(warmup)), "decay": 0.1, "final": 0.0})


def turn(config: PretrainConfig, vocab_size: int, processes: int = 1) -> tuple[PretrainConfig, str]:
    """Return `config` with every number known, and a sentence about what the law chose."""
    groups = max(1, processes // config.layout.copies)
    model = config.architecture(vocab_size)
    batch = config.batch_rows * config.context if config.batch_rows else None
    given = config.loop.steps * batch if config.loop.steps and batch else None
    name = "nanochat" if config.optimizer.name == "muon" and config.law != "olmo" else "olmo"
    if name == "nanochat":
        law = nanochat(model, config.family, config.tokens_per_parameter, batch, given)
    else:
        law = olmo(model, config.optimizer.name, config.tokens_per_parameter, batch, given)
    rows = config.batch_rows or max(1, round(law.batch / config.context))
    each = rows // groups or 1
    most = min(_MICRO_TOKENS // config.context, each if config.layout.pp == 1 else each // (2 * config.layout.pp))
    micro = config.micro_rows or _divisor(each, max(1, most))
    ramp = config.schedule
    mean = 1 - ramp.ramp * (1 - sum(ramp.batch_ramp) / len(ramp.batch_ramp)) if ramp.batch_ramp else 1.0
    steps = config.loop.steps or max(1, round(law.tokens / (rows * config.context * mean)))
    rates, shape = (law.optimizer, law.schedule) if config.law != "none" else ({}, {})
    optimizer = OptimizerConfig.model_validate(merge(rates, _set(config.optimizer)))
    schedule = ScheduleConfig.model_validate(merge(shape, _set(config.schedule)))
    chosen = config.model_copy(
        update={
            "batch_rows": rows,
            "micro_rows": micro,
            "loop": config.loop.model_copy(update={"steps": steps}),
            "optimizer": optimizer,
            "schedule": schedule,
        }
    )
    used = name if config.law != "none" else "none"
    return chosen, (
        f"dial ({used}): {model.num_layers} layers x {model.width}, {steps:,} steps of {rows} x {config.context} tokens, "
        f"rates {optimizer.lr:.3g} (matrices), {optimizer.embedding_lr:.3g} (embeddings), {optimizer.head_lr:.3g} (head), "
        f"decay {optimizer.weight_decay:.3g}"
    )


def _set(part: OptimizerConfig | ScheduleConfig) -> dict[str, Any]:
    """Return what a configuration gives, without its defaults."""
    return part.model_dump(exclude_unset=True)


def _divisor(rows: int, most: int) -> int:
    """Return the largest divisor of `rows` up to `most`."""
    return max(n for n in range(1, min(rows, most) + 1) if rows % n == 0)
