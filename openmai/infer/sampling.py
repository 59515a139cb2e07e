"""From logits to a token: the filters, and a random source of the request's own."""

from __future__ import annotations

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
    scaled = logits_V.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    tokens = _largest(scaled, sampling.top_k) if 0 < sampling.top_k < len(scaled) else np.arange(len(scaled))
    if sampling.top_p < 1:
        tokens = _nucleus(tokens, weights, sampling.top_p)
    tokens = tokens[weights[tokens] >= sampling.min_p]
    return tokens, weights[tokens] / weights[tokens].sum()


def _nucleus(tokens: np.ndarray, weights: np.ndarray, top_p: float) -> np.ndarray:
    """Return the fewest of `tokens` that hold `top_p` of their weight, heaviest first."""
    total = weights[tokens].sum()
    tokens = tokens[weights[tokens] > (1 - top_p) * total / len(tokens)]  # the others together weigh too little: no need to sort them
    tokens = tokens[np.argsort(-weights[tokens], kind="stable")]
    before = np.cumsum(weights[tokens]) - weights[tokens]
    return tokens[before < top_p * total]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` largest values, largest first, ties in index order."""
    chosen = np.sort(np.argpartition(-values, count - 1)[:count])
    return chosen[np.argsort(-values[chosen], kind="stable")]


class Sampler:
    """Draws one request's tokens. It uses one random number per token, so neighbours in the batch cannot disturb it."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.random = np.random.default_rng(sampling.seed if sampling.seed is None else sampling.seed % 2**63)

    def draw(self, logits_V: Tensor) -> int:
        """Choose a token from its logits."""
        if self.sampling.temperature == 0:
            return int(logits_V.argmax())
        tokens, probabilities = keep_probable(logits_V.float().cpu().numpy(), self.sampling)
        place = np.searchsorted(np.cumsum(probabilities), self.random.random(), side="right")
        return int(tokens[min(int(place), len(tokens) - 1)])


def measure(logits_V: Tensor, token: int, top: int) -> Logprob:
    """Return the log-probability of `token` and of the `top` most probable ones."""
    logprobs_V = logits_V.float().log_softmax(dim=-1)
    values, ids = logprobs_V.topk(min(top, len(logprobs_V)))
    return Logprob(token, float(logprobs_V[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
