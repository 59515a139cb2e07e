"""The convex problems behind the quality score: logistic and ridge regression over sparse rows, solved in the dual.

Stochastic dual coordinate ascent (Shalev-Shwartz & Zhang 2013, arXiv:1209.1873): each step sets one text's dual variable to its best value,
there is no learning rate, and the duality gap says how far the result can be from the best one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from openmai.data.filter.quality import features

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Sparse rows of length one: row r has `values[starts[r]:starts[r + 1]]` in the columns `buckets` of the same places."""

    starts: NDArray[np.int64]
    buckets: NDArray[np.uint32]
    values: NDArray[np.float32]


def rows_of(texts: list[str], bits: int, chars: int, counts: NDArray[np.int32]) -> Rows:
    """Return the feature rows of `texts`."""
    starts, buckets, values = [0], [], []
    for text in texts:
        columns, repeats = np.unique(features(text, bits, chars), return_counts=True)
        weights = counts[np.minimum(repeats, len(counts) - 1)].astype(np.float64)
        buckets.append(columns)
        values.append((weights / max(1.0, np.sqrt((weights**2).sum()))).astype(np.float32))
        starts.append(starts[-1] + len(columns))
    return Rows(np.array(starts), np.concatenate(buckets), np.concatenate(values))


def solve(
    rows: Rows, targets: Floats, weights: Floats, is_logistic: bool, columns: int, penalty: float, epochs: int, seed: int
) -> tuple[Floats, float]:
    """Return (weights of the columns and, last, the bias; duality gap as a share of the loss) for per-text `weights` and a mean loss.

    Targets are -1 and 1 (logistic) or numbers (ridge); the bias is the weight of a column of ones and is penalised like the others.
    """
    count = len(targets)
    strength = penalty / count
    primal, dual = np.zeros(columns + 1), np.zeros(count)
    random = np.random.default_rng(seed)
    gap = 1.0
    for _ in range(epochs):
        order = random.permutation(count)
        _pass(rows.starts, rows.buckets, rows.values, targets, weights, is_logistic, strength, order, primal, dual)
        gap = _gap(rows.starts, rows.buckets, rows.values, targets, weights, is_logistic, strength, primal, dual)
        if gap < 1e-3:
            break
    return primal, gap


@njit(cache=True)
def _pass(
    starts: NDArray[np.int64],
    buckets: NDArray[np.uint32],
    values: NDArray[np.float32],
    targets: Floats,
    weights: Floats,
    is_logistic: bool,
    strength: float,
    order: NDArray[np.int64],
    primal: Floats,
    dual: Floats,
) -> None:
    """Improve every dual variable once; `primal` stays sum of dual * target * row / (strength * count)."""
    count = len(targets)
    for row in order:
        begin, end, product, square = starts[row], starts[row + 1], primal[-1], 1.0
        for place in range(begin, end):
            product += primal[buckets[place]] * values[place]
            square += values[place] * values[place]
        pull, old, target = square / (strength * count), dual[row], targets[row]
        if is_logistic:
            new = _best_logistic(target * product, old, pull, weights[row])
            step = (new - old) * target
        else:
            step = (target - product - old / weights[row]) / (1.0 / weights[row] + pull)
            new = old + step
        dual[row] = new
        step /= strength * count
        primal[-1] += step
        for place in range(begin, end):
            primal[buckets[place]] += step * values[place]


@njit(cache=True)
def _best_logistic(margin: float, old: float, pull: float, weight: float) -> float:
    """Solve log(a / (weight - a)) + margin + pull * (a - old) = 0 for a in (0, weight) by halving: the left side only rises."""
    low, high = 0.0, weight
    for _ in range(50):
        middle = 0.5 * (low + high)
        if np.log(middle / (weight - middle)) + margin + pull * (middle - old) > 0:
            high = middle
        else:
            low = middle
    return 0.5 * (low + high)


@njit(cache=True)
def _gap(
    starts: NDArray[np.int64],
    buckets: NDArray[np.uint32],
    values: NDArray[np.float32],
    targets: Floats,
    weights: Floats,
    is_logistic: bool,
    strength: float,
    primal: Floats,
    dual: Floats,
) -> float:
    """Return the duality gap as a share of the primal objective."""
    loss, value, count = 0.0, 0.0, len(targets)
    for row in range(count):
        product = primal[-1]
        for place in range(starts[row], starts[row + 1]):
            product += primal[buckets[place]] * values[place]
        a, weight = dual[row], weights[row]
        if is_logistic:
            margin = targets[row] * product
            loss += weight * (np.log1p(np.exp(-abs(margin))) + max(0.0, -margin))
            share = min(1.0 - 1e-15, max(1e-15, a / weight))
            value -= weight * (share * np.log(share) + (1.0 - share) * np.log(1.0 - share))
        else:
            loss += 0.5 * weight * (targets[row] - product) ** 2
            value += a * targets[row] - 0.5 * a * a / weight
    square = 0.5 * strength * (primal**2).sum()
    upper, lower = loss / count + square, value / count - square
    return (upper - lower) / max(1e-12, upper)


def platt(raw: Floats, labels: NDArray[np.bool_]) -> tuple[float, float]:
    """Return (slope, shift) so that the logistic function of slope * raw + shift is the probability of True at equal shares of both labels.

    Newton's method on the log loss, both labels weighted alike (Platt 1999).
    """
    weights = np.where(labels, 0.5 / max(1, labels.sum()), 0.5 / max(1, (~labels).sum()))
    design = np.stack([raw, np.ones_like(raw)], axis=1)
    point = np.array([1.0, 0.0])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(design @ point, -30, 30)))
        slope = design.T @ (weights * (chance - labels)) + 1e-4 * (point - [1.0, 0.0])
        bend = (design * (weights * chance * (1 - chance))[:, None]).T @ design + 1e-4 * np.eye(2)
        step = np.linalg.solve(bend, slope)
        point = point - step
        if np.abs(step).max() < 1e-9:
            break
    return float(point[0]), float(point[1])
