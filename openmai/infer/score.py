"""Log-probabilities of given tokens, in chunks so that memory stays flat however large the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openmai.base.errors import OpenmaiError
from openmai.model.transformer import Transformer


@dataclass(frozen=True)
class Scores:
    """What the model thinks of tokens 1, 2, … of one prompt of length P (the first has no prediction); all on the CPU."""

    logprobs_T: Tensor
    "(P - 1,) natural log-probability of each token"
    top_ids_TK: Tensor
    "(P - 1, top) the most probable tokens in its place, best first"
    top_logprobs_TK: Tensor


@torch.inference_mode()
def score(model: Transformer, prompts: Sequence[Sequence[int]], top: int = 0, rows: int = 8, max_logits: int = 1 << 25) -> list[Scores]:
    """Return the log-probabilities of the prompts' own tokens, in the order given.

    Prompts of similar length share a forward pass, `rows` at a time; at most `max_logits` logits exist at once.
    Raises OpenmaiError for an empty prompt or one beyond the model's context.
    """
    assert not model.training, "call model.eval() first"
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= model.config.context:
            raise OpenmaiError(f"prompt {number}: {len(prompt)} tokens; the model's context takes 1 to {model.config.context}")
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    results: dict[int, Scores] = {}
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        results.update(zip(batch, _score_batch(model, [prompts[number] for number in batch], top, max_logits), strict=True))
    return [results[number] for number in range(len(prompts))]


def _score_batch(model: Transformer, prompts: list[Sequence[int]], top: int, max_logits: int) -> list[Scores]:
    device = model.embedding.weight.device
    longest, top = max(len(prompt) for prompt in prompts), min(top, model.config.vocab_size)
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_BT[row, : len(prompt)] = torch.tensor(prompt)
    ids_BT = ids_BT.to(device)
    x_BTD = model.stream(ids_BT)
    step = max(1, max_logits // (len(prompts) * model.config.vocab_size))
    parts = []
    for start in range(0, longest - 1, step):
        stop = min(start + step, longest - 1)
        logits_BTV = model.logits(x_BTD[:, start:stop]).float()
        total_BT1 = logits_BTV.logsumexp(dim=-1, keepdim=True)
        own_BT1 = logits_BTV.gather(2, ids_BT[:, start + 1 : stop + 1, None])
        values_BTK, top_BTK = logits_BTV.topk(top, dim=-1)
        parts.append(((own_BT1 - total_BT1).squeeze(2).cpu(), top_BTK.cpu(), (values_BTK - total_BT1).cpu()))
    if not parts:
        parts.append((torch.empty(len(prompts), 0), torch.empty(len(prompts), 0, top, dtype=torch.long), torch.empty(len(prompts), 0, top)))
    logprobs, top_ids, top_logprobs = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    ends = [len(prompt) - 1 for prompt in prompts]
    return [Scores(logprobs[row, :end], top_ids[row, :end], top_logprobs[row, :end]) for row, end in enumerate(ends)]
