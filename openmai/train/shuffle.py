"""A pseudo-random permutation of any size that is computed, not stored."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def shuffle(index: np.ndarray, size: int, key: int, rounds: int = 4) -> np.ndarray:
    """Map `index` (values below `size`) through a pseudo-random permutation of range(size), without storing it.

    A Feistel network over the next even number of bits, repeated until the value falls inside (Black & Rogaway 2002, cycle walking).
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    value = index.astype(np.uint64)
    pending = np.ones(len(value), dtype=bool)
    while pending.any():
        left, right = value[pending] >> np.uint64(half), value[pending] & mask
        for round_key in _keys(key, rounds):
            mixed = (right ^ round_key) * np.uint64(0x9E3779B97F4A7C15)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(29))) >> np.uint64(7) & mask)
        value[pending] = left << np.uint64(half) | right
        pending = value >= size
    return value.astype(np.int64)


@lru_cache(256)
def _keys(key: int, rounds: int) -> np.ndarray:
    return np.random.SeedSequence(key).generate_state(rounds, np.uint64)
