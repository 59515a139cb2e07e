"""Losses of next tokens: what training, alignment and evaluation share. None of them ever holds all logits.

Logits are made for some tokens at a time (`CHUNK_BYTES`), so memory does not grow with vocabulary x tokens. `summed_nats` makes the
gradient in the same pass, with no product done twice: what training uses. `token_nats` gives each token's loss and makes the logits again
in the backward pass: for objectives that must know the losses before they know the gradient (DPO).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from openmai.model.span import VocabularyPart
from openmai.model.transformer import Transformer

IGNORE = -100
CHUNK_BYTES = 32 << 20
"of fp32 logits at a time"


def token_nats(model: Transformer, ids_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
    """Return the negative log-likelihood of each target, (B, T) in nats; targets of IGNORE count 0.

    Where processes share the rows, it is of this process's span of them.
    """
    x_BTD, targets_BT = model.stream(ids_BT, documents_BT=documents_BT), model.span.cut(targets_BT, IGNORE)
    vocabulary = model.head.vocabulary
    if vocabulary is not None:
        x_BTD = vocabulary.enter(x_BTD)
    rows = _rows_at_once(model.config.vocab_size)

    def nats(x_ND: Tensor, targets_N: Tensor) -> Tensor:
        logits_NV = model.logits(x_ND).float()
        if vocabulary is None:
            return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE, reduction="none")
        top_N1 = vocabulary.largest(logits_NV.detach().amax(dim=1, keepdim=True))
        here_N1, picked_N1 = _picked(targets_N, vocabulary.first, logits_NV.shape[1])
        sums_N1 = vocabulary.total((logits_NV - top_N1).exp().sum(dim=1, keepdim=True)).log() + top_N1
        chosen_N1 = vocabulary.total(logits_NV.gather(1, picked_N1) * here_N1)
        return ((sums_N1 - chosen_N1) * (targets_N != IGNORE).unsqueeze(1)).squeeze(1)

    parts = zip(x_BTD.flatten(0, 1).split(rows), targets_BT.flatten().split(rows), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(nats, x, targets, use_reentrant=False) for x, targets in parts]).view_as(targets_BT)
    return torch.cat([nats(x, targets) for x, targets in parts]).view_as(targets_BT)


def summed_nats(model: Transformer, ids_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return the summed loss of all targets that are not IGNORE, in nats, and of the predictors of tokens further ahead, if there are any.

    The second is the mean over the predictors (DeepSeek-V3, arXiv:2412.19437, eq. 25, without its factor).
    """
    return stream_loss(model, model.stream(ids_BT, documents_BT=documents_BT), ids_BT, targets_BT, documents_BT)


def stream_loss(
    model: Transformer, x_BTD: Tensor, ids_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return what `summed_nats` does, from the stream after the last block."""
    loss = _linear_nats(model, model.norm(x_BTD), model.span.cut(targets_BT, IGNORE))
    if not model.predictors:
        return loss, None
    ahead = []
    for k, normed_BTD in enumerate(model.streams_ahead(x_BTD, ids_BT, documents_BT), start=1):
        targets = targets_BT[:, k:]
        if documents_BT is not None:
            targets = targets.masked_fill(documents_BT[:, k:] != documents_BT[:, :-k], IGNORE)
        ahead.append(_linear_nats(model, normed_BTD, targets))
    return loss, torch.stack(ahead).mean()


def _linear_nats(model: Transformer, normed_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    vocabulary = model.head.vocabulary
    if vocabulary is not None:
        normed_BTD = vocabulary.enter(normed_BTD)
    parts = [normed_BTD.flatten(0, 1), model.head.weight, model.head.bias]
    if not torch.is_grad_enabled():  # else gradients would be made that nobody asks for
        parts = [part if part is None else part.detach() for part in parts]
    return _LinearNats.apply(*parts, targets_BT.flatten(), model.config.logit_softcap, vocabulary)


class _LinearNats(torch.autograd.Function):
    """Sum of cross-entropies of `soft_cap(x @ weight.T + bias)`; gradients are made while the logits of a chunk are at hand.

    With a part of the vocabulary, maxima, sums and the targets' logits are put together from all parts (Megatron-LM, arXiv:1909.08053, 3).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        cap: float | None,
        vocabulary: VocabularyPart | None,
    ) -> Tensor:
        needs = ctx.needs_input_grad
        total = x_ND.new_zeros((), dtype=torch.float32)
        x_grad_ND = torch.empty_like(x_ND) if needs[0] else None
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs[1] else None
        bias_grad_V = torch.zeros_like(bias_V) if needs[2] and bias_V is not None else None
        rows = _rows_at_once(len(weight_VD))
        for start in range(0, len(x_ND), rows):
            x, targets = x_ND[start : start + rows], targets_N[start : start + rows]
            logits_NV = F.linear(x, weight_VD, bias_V).float()
            if cap is not None:
                logits_NV = logits_NV.div_(cap).tanh_().mul_(cap)
            kept_N1 = (targets != IGNORE).unsqueeze(1)
            here_N1, picked_N1 = _picked(targets, vocabulary.first if vocabulary else 0, len(weight_VD))
            chosen_N1 = logits_NV.gather(1, picked_N1) * here_N1
            sums_N1 = logits_NV.logsumexp(dim=1, keepdim=True)
            if vocabulary is not None:
                top_N1 = vocabulary.largest(sums_N1)
                sums_N1 = vocabulary.total((sums_N1 - top_N1).exp()).log() + top_N1
                chosen_N1 = vocabulary.total(chosen_N1)
            total += ((sums_N1 - chosen_N1) * kept_N1).sum()
            if not any(needs[:3]):
                continue
            slope_NV = None if cap is None else 1 - (logits_NV / cap).square()
            grad_NV = logits_NV.sub_(sums_N1).exp_()  # probabilities
            grad_NV.scatter_add_(1, picked_N1, -here_N1.to(grad_NV.dtype))
            grad_NV = grad_NV.mul_(kept_N1) if slope_NV is None else grad_NV.mul_(slope_NV).mul_(kept_N1)
            grad_NV = grad_NV.type_as(x_ND)
            if x_grad_ND is not None:
                torch.mm(grad_NV, weight_VD, out=x_grad_ND[start : start + rows])
            if weight_grad_VD is not None:
                _add_product(weight_grad_VD, grad_NV.T, x)
            if bias_grad_V is not None:
                bias_grad_V += grad_NV.sum(0)
        weight_grad_VD = None if weight_grad_VD is None else weight_grad_VD.type_as(weight_VD)
        ctx.save_for_backward(x_grad_ND, weight_grad_VD, bias_grad_V)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if value is None else value * grad for value in ctx.saved_tensors), None, None, None


def _picked(targets_N: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
    """Return which targets are among the tokens `first` ... `first + size - 1`, and their numbers there (0 for the others), both (N, 1)."""
    numbers_N1 = (targets_N - first).unsqueeze(1)
    here_N1 = (numbers_N1 >= 0) & (numbers_N1 < size)
    return here_N1, numbers_N1 * here_N1


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to an fp32 total."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += left @ right


def _rows_at_once(vocab_size: int) -> int:
    return max(1, CHUNK_BYTES // (4 * vocab_size))


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
    with torch.compiler.set_stance("eager_on_recompile") if model.compiled else nullcontext():  # other shapes than training's
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
