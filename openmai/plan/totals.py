"""Bytes of a model whatever the layout, and the fewest GPUs that hold them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from openmai.model.config import ModelConfig
from openmai.model.count import WEIGHT_BYTES, cache_bytes, cache_bytes_per_token, training_state_bytes, weight_bytes
from openmai.plan.hardware import GPU

USABLE = 0.9
"assumption: a tenth of each GPU's memory goes to the runtime, communication buffers and fragmentation"


@dataclass(frozen=True)
class Memory:
    """Bytes of a model whatever the layout, and the fewest GPUs that hold them."""

    weights: dict[str, float]
    "by precision"
    training_state: int
    "bf16 weights, fp32 gradients, master weights and both Adam moments"
    cache_per_token: float
    "key-value cache in bf16"
    cache_full_context: float
    "of one sequence"
    context: int
    min_gpus_training: int
    "training state alone, split evenly; activations come on top"
    min_gpus_inference: int
    "bf16 weights and the cache of one full context"


def plan_memory(config: ModelConfig, gpu: GPU) -> Memory:
    """Work out the memory of `config` and the fewest `gpu`s for training and for bf16 inference."""
    weights = {precision: weight_bytes(config, precision) for precision in WEIGHT_BYTES}
    full = cache_bytes(config, config.context)
    return Memory(
        weights=weights,
        training_state=training_state_bytes(config),
        cache_per_token=cache_bytes_per_token(config),
        cache_full_context=full,
        context=config.context,
        min_gpus_training=_fewest(training_state_bytes(config), gpu),
        min_gpus_inference=_fewest(weights["bf16"] + full, gpu),
    )


def _fewest(size: float, gpu: GPU) -> int:
    return math.ceil(size / (gpu.memory_gb * 1e9 * USABLE))
