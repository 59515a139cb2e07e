"""Losses on logits: what training, alignment and evaluation share."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openmai.model.transformer import Transformer

IGNORE = -100


def token_nats(model: Transformer, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the negative log-likelihood of each target, (B, T) in nats; targets of IGNORE count 0."""
    logits_BTV = model(ids_BT)
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORE, reduction="none").view_as(
        targets_BT
    )


def on_device_of(model: Transformer, micro: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a micro-batch on the device of `model`."""
    return {name: value.to(model.embedding.weight.device) for name, value in micro.items()}


@torch.no_grad()
def stream_nats(model: Transformer, tokens: np.ndarray, context: int, end_of_text: int, rows: int = 16) -> float:
    """Return the total nats of a token stream cut into windows of `context`, end-of-text targets left out.

    Divided by ln 2 and the bytes of the text it is the bits per byte. Every token but the first is predicted once.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    total = 0.0
    for start in range(0, len(tokens) - 1, context * rows):
        block = torch.from_numpy(np.asarray(tokens[start : start + context * rows + 1], dtype=np.int64)).to(device)
        ids, targets = block[:-1], block[1:].masked_fill(block[1:] == end_of_text, IGNORE)
        whole = len(ids) // context * context
        for part_ids, part_targets in (
            (ids[:whole].view(-1, context), targets[:whole].view(-1, context)),
            (ids[None, whole:], targets[None, whole:]),
        ):
            if part_ids.numel():
                total += token_nats(model, part_ids, part_targets).sum().item()
    model.train(training)
    return total
