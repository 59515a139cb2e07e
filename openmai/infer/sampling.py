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
    """Return the tokens that may be chosen, most probable first, and their probabilities, which add up to one."""
    scaled = logits_V.astype(np.float64) / sampling.temperature
    order = _largest(scaled, sampling.top_k) if 0 < sampling.top_k < len(scaled) else np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order] - scaled[order[0]])
    before = np.cumsum(weights) - weights
    keep = (before < sampling.top_p * weights.sum()) & (weights >= sampling.min_p)
    keep[0] = True
    return order[keep], weights[keep] / weights[keep].sum()


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
