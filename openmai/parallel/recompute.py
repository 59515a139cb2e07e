"""Activation checkpointing: what a layer computed is not kept for the backward pass but computed again (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from openmai.model.transformer import Transformer

_aten = torch.ops.aten
KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_mm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.openmai.grouped_product.default,
}
"what selective checkpointing keeps: the results of the dear operations"


def forget_activations(model: Transformer, how: str) -> None:
    """Let each layer keep its input only ("full"), or beside it the results of products and attention ("selective")."""
    if how == "none":
        return
    contexts: dict[str, Any] = {}
    if how == "selective":
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    blocks: list[Any] = [*model.blocks.children(), *(predictor.block for predictor in model.predictors)]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, **contexts)


def _policy(_: Any, operation: Callable[..., Any], *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
