"""Loops over word numbers that numpy has no words for, compiled: repeated n-grams and sentences."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
TOP, DUPLICATE = (2, 3, 4), (5, 6, 7, 8, 9, 10)  # Gopher, table A1


@njit(cache=True)
def repeated_ngrams(words: Numbers, lengths: Numbers) -> Numbers:
    """Return 9 numbers of characters: of the most frequent 2-, 3- and 4-gram (its first if several are, its blanks too, times its count),
    and in 5- to 10-grams that occurred before, left to right, where a repeated one is passed over whole.

    `words` are numbers (equal words, equal numbers), `lengths` their characters. An n-gram is numbered by the (n-1)-gram that it begins
    with and its last word, so nothing is compared by hash alone.
    """
    count = len(words)
    size = 16
    while size < 2 * count:
        size *= 2
    ends = np.zeros(count + 1, np.int64)
    ends[1:] = np.cumsum(lengths)
    base = words.max() + 1 if count else 1
    firsts = words.copy()  # of the n-gram at a position: the word (n = 1), then the position where it is first seen
    keys, slots, uses = np.empty(count, np.int64), np.empty(size, np.int64), np.empty(count, np.int64)
    found = np.zeros(9, np.int64)
    for n in range(2, 11):
        grams = count - n + 1
        if grams <= 0:
            break
        slots[:] = -1
        uses[:] = 0
        for i in range(grams):
            keys[i] = firsts[i] * base + words[i + n - 1]
            slot = (keys[i] * 0x9E3779B97F4A7C1 >> 20) & (size - 1)
            while slots[slot] >= 0 and keys[slots[slot]] != keys[i]:
                slot = (slot + 1) & (size - 1)
            if slots[slot] < 0:
                slots[slot] = i
            firsts[i] = slots[slot]
            uses[firsts[i]] += 1
        found[n - 2] = _top(uses[:grams], ends, n) if n < 5 else _again(firsts[:grams], ends, n)
    return found


@njit(cache=True)
def _top(uses: Numbers, ends: Numbers, n: int) -> int:
    best = np.argmax(uses)
    return uses[best] * (ends[best + n] - ends[best] + n - 1)


@njit(cache=True)
def _again(firsts: Numbers, ends: Numbers, n: int) -> int:
    seen = np.zeros(len(firsts), np.bool_)
    chars, i = 0, 0
    while i < len(firsts):
        if seen[firsts[i]]:
            chars += ends[i + n] - ends[i]
            i += n
        else:
            seen[firsts[i]] = True
            i += 1
    return chars


@njit(cache=True)
def count_sentences(kinds: NDArray[np.int8]) -> int:
    """Count the sentences of lines: one ends with its line, or before the first word after an end mark that is no punctuation.

    `kinds` holds for every token: 0 end of the line, 1 white space, 2 a word, 3 punctuation, 4 a mark that ends a sentence. That is
    spaCy's sentencizer, applied to each line; a sentence of white space does not count.
    """
    sentences, ended, filled = 0, False, False
    for kind in kinds:
        if kind == 0 or (ended and kind < 3):
            sentences += filled
            ended, filled = False, False
        elif kind == 4:
            ended = True
        filled = filled or kind > 1
    return sentences + filled
