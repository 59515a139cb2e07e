"""Which layers a pipeline stage holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from openmai.model.config import ModelConfig
from openmai.model.count import count_around, count_layer
from openmai.model.stages import divide_layers, holder
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


@lru_cache(maxsize=4096)
def stages_of(model: ModelConfig, pp: int, virtual: int, schedule: str = "") -> Stages:
    """Place the layers: chunks go to the stages in turns, or with zbv down and up again."""
    by_kind = layer_kinds(model)
    kinds = tuple(by_kind)
    place = {layer: number for number, layers in enumerate(by_kind.values()) for layer in layers}
    counts, layer = np.zeros((pp, len(kinds)), dtype=int), 0
    for chunk, size in enumerate(divide_layers(model.num_layers, pp * virtual, model.num_predict)):
        for number, amount in Counter(place[index] for index in range(layer, layer + size)).items():
            counts[holder(schedule, pp, chunk), number] += amount
        layer += size
    return Stages(kinds, counts)


def local_parameters(model: ModelConfig, grid: Grid) -> tuple[Array, Array]:
    """Return the parameters that one process of each stage works with, (S, layouts): what is not a routed expert, and routed experts."""
    stages = stages_of(model, grid.pp, grid.virtual, grid.schedule)
    dense, experts = np.zeros((grid.pp, len(grid))), np.zeros((grid.pp, len(grid)))
    for number, kind in enumerate(stages.kinds):
        held = count_layer(model, kind.layer)
        groups = np.maximum(1, np.minimum(grid.tp, model.kv_heads))
        one = (held.heads + held.mlp + held.value_embedding) / grid.tp + held.keys_values / groups + held.latents + held.router + held.small
        dense += stages.counts[:, number, None] * one
        experts += stages.counts[:, number, None] * (held.experts / (grid.ep * grid.etp))
    embedding, head, small = count_around(model)
    dense[0] += embedding / grid.tp
    dense[grid.end] += (head if head > model.vocab_size or grid.pp == 1 else model.vocab_size * model.width + head) / grid.tp + small
    if model.num_predict:
        held = count_layer(model, model.num_layers - 1)
        dense[grid.end] += model.num_predict * (
            (held.heads + held.mlp + held.value_embedding + 2 * model.width**2) / grid.tp
            + held.keys_values / np.maximum(1, np.minimum(grid.tp, model.kv_heads))
            + held.latents
            + held.router
            + held.small
        )
        experts[grid.end] += model.num_predict * held.experts / (grid.ep * grid.etp)
        if grid.pp > 1:
            dense[grid.end] += model.vocab_size * model.width / grid.tp
    return dense, experts
