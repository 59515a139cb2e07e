"""Which layers a pipeline stage holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from openmai.model.config import ModelConfig
from openmai.model.count import count_around, count_layer
from openmai.plan.layout import Array, Grid


@dataclass(frozen=True)
class Kind:
    """A layer as the plan sees it; layers of one kind cost the same."""

    moe: bool
    is_global: bool
    values: bool
    "adds a value embedding"
    layer: int
    "one layer of the kind, by which its figures are looked up"


@dataclass(frozen=True)
class Stages:
    """Layers per pipeline stage and kind, (S, kinds)."""

    kinds: tuple[Kind, ...]
    counts: np.ndarray


def layer_kinds(model: ModelConfig) -> dict[Kind, list[int]]:
    """Sort the layers by kind."""
    found: dict[tuple[bool, bool, bool], list[int]] = {}
    for layer in range(model.num_layers):
        found.setdefault((model.is_moe(layer), model.is_global(layer), model.has_value_embedding(layer)), []).append(layer)
    return {Kind(*key, layer=layers[0]): layers for key, layers in found.items()}


def divide_layers(num_layers: int, chunks: int, num_predict: int = 0) -> list[int]:
    """Return the layers of each chunk: equal where they divide; else the last and then the first have fewer, for they hold the rest.

    So are Llama 3.1 405B's 126 layers on 16 stages (arXiv:2407.21783, section 3.3.2), or DeepSeek-V3's 61 in Megatron-Bridge, whose last
    chunk holds one layer, its predictor and both output layers.
    """
    most = -(-num_layers // chunks)
    sizes, missing = [most] * chunks, most * chunks - num_layers
    order = [*[chunks - 1] * (1 + 2 * num_predict), 0, chunks - 1, *range(chunks - 2, 0, -1)] * (most + 1)
    for place in order:
        least = 0 if most == 1 or (num_predict and place == chunks - 1) else 1
        if missing and sizes[place] > least:
            sizes[place] -= 1
            missing -= 1
    return sizes


@lru_cache(maxsize=4096)
def stages_of(model: ModelConfig, pp: int, virtual: int) -> Stages:
    """Place the layers: chunk number c belongs to stage c modulo `pp`."""
    by_kind = layer_kinds(model)
    kinds = tuple(by_kind)
    place = {layer: number for number, layers in enumerate(by_kind.values()) for layer in layers}
    counts, layer = np.zeros((pp, len(kinds)), dtype=int), 0
    for chunk, size in enumerate(divide_layers(model.num_layers, pp * virtual, model.num_predict)):
        for number, amount in Counter(place[index] for index in range(layer, layer + size)).items():
            counts[chunk % pp, number] += amount
        layer += size
    return Stages(kinds, counts)


def local_parameters(model: ModelConfig, grid: Grid) -> tuple[Array, Array]:
    """Return the parameters that one process of each stage works with, (S, layouts): what is not a routed expert, and routed experts."""
    stages = stages_of(model, grid.pp, grid.virtual)
    dense, experts = np.zeros((grid.pp, len(grid))), np.zeros((grid.pp, len(grid)))
    for number, kind in enumerate(stages.kinds):
        held = count_layer(model, kind.layer)
        groups = np.maximum(1, np.minimum(grid.tp, model.kv_heads))
        one = (held.heads + held.mlp + held.value_embedding) / grid.tp + held.keys_values / groups + held.latents + held.router + held.small
        dense += stages.counts[:, number, None] * one
        experts += stages.counts[:, number, None] * (held.experts / (grid.ep * grid.etp))
    embedding, head, small = count_around(model)
    dense[0] += embedding / grid.tp
    dense[-1] += (head if head > model.vocab_size or grid.pp == 1 else model.vocab_size * model.width + head) / grid.tp + small
    if model.num_predict:
        held = count_layer(model, model.num_layers - 1)
        dense[-1] += model.num_predict * (
            (held.heads + held.mlp + held.value_embedding + 2 * model.width**2) / grid.tp
            + held.keys_values / np.maximum(1, np.minimum(grid.tp, model.kv_heads))
            + held.latents
            + held.router
            + held.small
        )
        experts[-1] += model.num_predict * held.experts / (grid.ep * grid.etp)
        if grid.pp > 1:
            dense[-1] += model.vocab_size * model.width / grid.tp
    return dense, experts
