"""Duplicates: whole texts, paragraphs, and near-duplicates by MinHash with a check of the true similarity.

Broder 1997, "On the resemblance and containment of documents"; bands and rows as in FineWeb (arXiv:2406.17557); the true Jaccard
check keeps chains of candidates from joining texts that are not alike.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from openmai.data.dedup.config import Dedup

_WORD = re.compile(r"\w+")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


def text_hash(text: str) -> bytes:
    """Return the 128-bit hash of a text's words in lower case: layout and punctuation do not make two texts different."""
    return hashlib.blake2b(" ".join(_WORD.findall(text.casefold())).encode(), digest_size=16).digest()


class ParagraphFilter:
    """Takes documents in order and leaves out paragraphs that have occurred often enough."""

    def __init__(self, copies: int, min_chars: int) -> None:
        self.copies, self.min_chars = copies, min_chars
        self.seen: dict[bytes, int] = defaultdict(int)
        self.dropped = 0

    def apply(self, text: str) -> str:
        """Return `text` without paragraphs of at least `min_chars` characters that occurred `copies` times before."""
        kept = []
        for paragraph in _BLANK_LINE.split(text):
            if len(paragraph) >= self.min_chars:
                key = hashlib.blake2b(" ".join(paragraph.split()).encode(), digest_size=8).digest()
                self.seen[key] += 1
                if self.seen[key] > self.copies:
                    self.dropped += 1
                    continue
            kept.append(paragraph)
        return "\n\n".join(kept)


class MinHash:
    """Signatures of word n-grams, all arithmetic in numpy modulo 2^64; the same in every process and run."""

    def __init__(self, config: Dedup) -> None:
        self.config = config
        count = config.bands * config.rows
        parameters = np.random.Generator(np.random.PCG64(1)).integers(0, 2**64, (2, count), dtype=np.uint64)
        self.multipliers, self.offsets = parameters[0] | np.uint64(1), parameters[1]
        self.words: dict[str, int] = {}

    def shingles(self, text: str) -> NDArray[np.uint64]:
        """Return the sorted distinct hashes of the word n-grams; a shorter text is one shingle."""
        ids = np.fromiter((self._word(word) for word in _WORD.findall(text.casefold())), dtype=np.uint64)
        n = max(1, min(self.config.ngram, len(ids)))
        total = np.zeros(max(0, len(ids) - n + 1), dtype=np.uint64)
        for position in range(n):
            total = _mix(total + ids[position : position + len(total)])
        return np.unique(total)

    def signature(self, shingles: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Return the minima under every permutation (multiply-shift, Dietzfelbinger et al. 1997), shape (bands * rows,)."""
        lowest = np.full(len(self.multipliers), 2**32 - 1, dtype=np.uint32)
        for start in range(0, len(shingles), 4096):
            piece = shingles[start : start + 4096, None] * self.multipliers + self.offsets
            lowest = np.minimum(lowest, (piece >> np.uint64(32)).astype(np.uint32).min(axis=0))
        return lowest

    def _word(self, word: str) -> int:
        number = self.words.get(word)
        if number is None:
            number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
            self.words[word] = number
        return number


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit values (the finalizer of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def candidates(signatures: NDArray[np.uint32], bands: int) -> list[tuple[int, int]]:
    """Return the pairs of rows that agree in a whole band, each with the first row of its bucket; sorted, without repetition."""
    pairs: set[tuple[int, int]] = set()
    for band in np.split(signatures, bands, axis=1):
        _, first, bucket = np.unique(band, axis=0, return_index=True, return_inverse=True)
        leaders = first[bucket.reshape(-1)]
        members = np.flatnonzero(leaders != np.arange(len(leaders)))
        pairs.update(zip(leaders[members].tolist(), members.tolist(), strict=True))
    return sorted(pairs)


def jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    """Return |a and b| / |a or b| of two sorted sets of distinct hashes."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / max(1, len(a) + len(b) - common)


def clusters(size: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return for each of `size` rows the smallest row it is connected with."""
    root = list(range(size))

    def find(row: int) -> int:
        while root[row] != row:
            root[row] = root[root[row]]
            row = root[row]
        return row

    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        root[high] = low
    return [find(row) for row in range(size)]


def near_duplicates(
    pairs: Iterable[tuple[int, int]], texts: Mapping[int, str], lengths: list[int], hasher: MinHash
) -> dict[int, tuple[int, float]]:
    """Return dropped row -> (row that stays, their similarity). Of each cluster of truly similar rows the longest stays, then the earliest.

    `texts` holds the rows that occur in `pairs`, `lengths` every row's length.
    """
    sets = {row: hasher.shingles(text) for row, text in texts.items()}
    similar = [(a, b) for a, b in pairs if jaccard(sets[a], sets[b]) >= hasher.config.jaccard]
    members = defaultdict(list)
    for row, leader in enumerate(clusters(len(lengths), similar)):
        members[leader].append(row)
    dropped: dict[int, tuple[int, float]] = {}
    for group in members.values():
        best = min(group, key=lambda row: (-lengths[row], row))
        dropped |= {row: (best, jaccard(sets[row], sets[best])) for row in group if row != best}
    return dropped
