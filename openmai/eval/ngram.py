"""Unigram and bigram models of a token stream: what a language model must beat before it is worth anything."""

from __future__ import annotations

import numpy as np

_DISCOUNT = 0.75


def unigram_nats(train: np.ndarray, test: np.ndarray, vocab_size: int, skip: int) -> float:
    """Return the total nats of `test` but its first token under add-one unigram frequencies of `train`; targets of `skip` count 0."""
    targets = test[1:].astype(np.int64)
    return float(-np.log(_unigram(train, vocab_size)[targets[targets != skip]]).sum())


def bigram_nats(train: np.ndarray, test: np.ndarray, vocab_size: int, skip: int) -> float:
    """Return the total nats of `test` under an interpolated bigram model with absolute discounting (Ney, Essen & Kneser 1994)."""
    unigram = _unigram(train, vocab_size)
    pairs, counts = np.unique(train[:-1].astype(np.int64) * vocab_size + train[1:].astype(np.int64), return_counts=True)
    firsts = pairs // vocab_size
    totals = np.bincount(firsts, counts, vocab_size)
    followers = np.bincount(firsts, minlength=vocab_size)
    before, targets = test[:-1].astype(np.int64), test[1:].astype(np.int64)
    before, targets = before[targets != skip], targets[targets != skip]
    wanted = before * vocab_size + targets
    place = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
    seen = np.where(pairs[place] == wanted, counts[place] - _DISCOUNT, 0.0)
    known = totals[before] > 0
    total = np.where(known, totals[before], 1)
    backoff = np.where(known, _DISCOUNT * followers[before] / total, 1.0)
    return float(-np.log(seen / total + backoff * unigram[targets]).sum())


def _unigram(train: np.ndarray, vocab_size: int) -> np.ndarray:
    counts = np.bincount(train, minlength=vocab_size) + 1.0
    return counts / counts.sum()
