"""From logits to a token: penalties, filters, and a random source of the request's own."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from openmai.infer.config import Sampling


@dataclass(frozen=True)
class Logprob:
    """Natural log-probability of a token under the unfiltered model at temperature 1, and the most probable tokens, best first."""

    id: int
    value: float
    top: tuple[tuple[int, float], ...] = ()


def keep_probable(logits_V: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens that may be chosen and their probabilities, which add up to one."""
    tokens = _largest(logits_V, sampling.top_k) if 0 < sampling.top_k < len(logits_V) else np.arange(len(logits_V))
    scaled = logits_V[tokens].astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    if sampling.top_p < 1:
        kept = _nucleus(weights, sampling.top_p)
        tokens, weights = tokens[kept], weights[kept]
    kept = (weights >= sampling.min_p) & (weights > 0)
    return tokens[kept], weights[kept] / weights[kept].sum()


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Return the indices of the fewest `weights` that hold `top_p` of their sum, heaviest first."""
    total = weights.sum()
    kept = np.flatnonzero(weights > (1 - top_p) * total / len(weights))  # the others together weigh too little: no need to sort them
    kept = kept[np.argsort(-weights[kept], kind="stable")]
    before = np.cumsum(weights[kept]) - weights[kept]
    return kept[before < top_p * total]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` largest values, largest first, ties in index order."""
    chosen = np.sort(np.argpartition(-values, count - 1)[:count])
    return chosen[np.argsort(-values[chosen], kind="stable")]


class Sampler:
    """Draws one request's tokens. It uses one random number per token, so neighbours in the batch cannot disturb it."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self.random = np.random.default_rng(sampling.seed if sampling.seed is None else sampling.seed % 2**63)
        self._drawn: deque[float] = deque()
        self._bias = np.array([token for token, _ in sampling.logit_bias], dtype=np.int64), np.array([by for _, by in sampling.logit_bias])
        self._repeats = sampling.repetition_penalty != 1
        self._counts: dict[int, int] = {}
        self._seen = dict.fromkeys(prompt) if self._repeats else {}
        self.adjusts = bool(sampling.logit_bias or self._repeats or sampling.presence_penalty or sampling.frequency_penalty)
        "whether logits are changed before a token is chosen"

    def draw(self, logits_V: np.ndarray, allowed_V: np.ndarray | None = None) -> int:
        """Choose a token from its logits, among those that a constraint allows, and take note of it."""
        token = self._choose(logits_V, allowed_V, self.number(0))
        if self._drawn:
            self._drawn.popleft()
        if self.adjusts:
            self._counts[token] = self._counts.get(token, 0) + 1
            self._seen[token] = None
        return token

    def guess(self, logits_V: np.ndarray, ahead: int) -> int:
        """Choose as `draw` will `ahead` tokens from now, were these the logits then: two models that agree choose the same."""
        return self._choose(logits_V, None, self.number(ahead))

    def number(self, ahead: int) -> float:
        """Return the random number of a token to come; greedy requests have none."""
        if self.sampling.temperature == 0:
            return 0.0
        while len(self._drawn) <= ahead:
            self._drawn.append(self.random.random())
        return self._drawn[ahead]

    def _choose(self, logits_V: np.ndarray, allowed_V: np.ndarray | None, number: float) -> int:
        if self.adjusts:
            logits_V = self._adjusted(logits_V)
        if allowed_V is not None:
            logits_V = np.where(allowed_V, logits_V, -np.inf)
        if self.sampling.temperature == 0:
            return int(logits_V.argmax())
        tokens, probabilities = keep_probable(logits_V, self.sampling)
        place = np.searchsorted(np.cumsum(probabilities), number, side="right")
        return int(tokens[min(int(place), len(tokens) - 1)])

    def _adjusted(self, logits_V: np.ndarray) -> np.ndarray:
        """Apply the penalties: repetition divides (arXiv:1909.05858), presence and frequency subtract, as in OpenAI's API."""
        sampling, logits_V = self.sampling, logits_V.astype(np.float64)
        if self._repeats:
            seen = np.fromiter(self._seen, dtype=np.int64, count=len(self._seen))
            logits_V[seen] *= np.where(logits_V[seen] > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty)
        if self._counts and (sampling.presence_penalty or sampling.frequency_penalty):
            tokens = np.fromiter(self._counts, dtype=np.int64, count=len(self._counts))
            counts = np.fromiter(self._counts.values(), dtype=np.float64, count=len(self._counts))
            logits_V[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        if len(self._bias[0]):
            np.add.at(logits_V, self._bias[0], self._bias[1])
        return logits_V


def measure(logits_NV: Tensor, tokens: Sequence[int], top: int) -> list[Logprob]:
    """Return for each row of logits the log-probability of its token and of the `top` most probable ones."""
    logprobs_NV = logits_NV.float().log_softmax(dim=-1)
    values, ids = logprobs_NV.topk(min(top, logprobs_NV.shape[1]), dim=-1)
    own = [float(row[token]) for row, token in zip(logprobs_NV, tokens, strict=True)]
    return [
        Logprob(token, value, tuple(zip(top_ids, top_values, strict=True)))
        for token, value, top_ids, top_values in zip(tokens, own, ids.tolist(), values.tolist(), strict=True)
    ]
