"""A learned quality score: a linear model over hashed words and pairs of words.

The kind of model that DCLM (Li et al. 2024, arXiv:2406.11794) found best among cheap ones, without fastText: features are hashed counts
(Weinberger et al. 2009, arXiv:0902.2206) of words and pairs of neighbours, 1 + log(count), scaled to length one. Weights and feature values
are integers and every float operation is one that IEEE 754 rounds exactly, so a text has the same score to the bit on every machine.

Tokens: a word is a run of letters and other signs beyond ASCII, in lower case; a run of digits is as many zeros; a run of the same
punctuation mark is that mark; one or more line ends are one token, so the model sees lists and headings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from openmai.base.files import read_json, write_json

WEIGHTS, FACTS = "model.safetensors", "model.json"
UNIT = 256  # feature value of an n-gram that occurs once
MOST = 64  # counts above are taken for this
_BASIS, _PRIME, _PAIR = 0xCBF29CE484222325, 0x100000001B3, 0x9E3779B97F4A7C15  # FNV-1a; the golden ratio mixes a word into a pair
_MASK64 = (1 << 64) - 1
_SPACE, _WORD, _DIGIT, _MARK, _LINE = range(5)


def _classes() -> NDArray[np.uint8]:
    classes = np.full(256, _MARK, dtype=np.uint8)
    classes[[9, 11, 12, 32, 13]] = _SPACE
    classes[10] = _LINE
    classes[48:58] = _DIGIT
    classes[97:123] = _WORD
    classes[128:] = _WORD
    return classes


_CLASSES = _classes()


@dataclass(frozen=True)
class QualityFacts:
    """What a model knows beside its arrays: `target` is "classes" or "grades", raw = bias + scale * (weights . features)."""

    target: str
    bits: int
    chars: int
    bias: float
    scale: float
    slope: float = 1.0
    shift: float = 0.0


class QualityModel:
    """Scores texts from 0 (poor) to 1 (good).

    Trained on classes, a score is the calibrated probability of the good class at equal shares of both; trained on grades, it is the
    predicted grade, clipped to 0..5, divided by five.
    """

    def __init__(self, facts: QualityFacts, weights: NDArray[np.int16], counts: NDArray[np.int32], curve: NDArray[np.float64]) -> None:
        """`weights` by bucket, `counts[c]` the value of a count, `curve` the logistic function at -16, -15.9375 … 16."""
        self.facts, self.weights, self.counts, self.curve = facts, weights, counts, curve

    @classmethod
    def load(cls, folder: Path) -> QualityModel:
        """Read a model from the folder of a quality artifact."""
        arrays = load_file(folder / WEIGHTS)
        return cls(QualityFacts(**read_json(folder / FACTS)), arrays["weights"], arrays["counts"], arrays["curve"])

    def save(self, folder: Path) -> None:
        """Write the model to `folder`."""
        save_file({"weights": self.weights, "counts": self.counts, "curve": self.curve}, folder / WEIGHTS)
        write_json(folder / FACTS, asdict(self.facts))

    def raw(self, text: str) -> float:
        """Return the model's own number: a log-odds (classes) or a grade (grades)."""
        dot, square = _dot(features(text, self.facts.bits, self.facts.chars), self.weights, self.counts)
        return self.facts.bias + self.facts.scale * (dot / sqrt(square)) if square else self.facts.bias

    def score(self, texts: list[str]) -> list[float]:
        """Return the quality of each text, 0 to 1."""
        return [self.of_raw(self.raw(text)) for text in texts]

    def of_raw(self, raw: float) -> float:
        """Turn a raw number into a quality."""
        if self.facts.target == "grades":
            return min(5.0, max(0.0, raw)) / 5.0
        return _interpolate(self.curve, self.facts.slope * raw + self.facts.shift)


def logistic_curve() -> NDArray[np.float64]:
    """Tabulate 1 / (1 + exp(-x)) from -16 to 16 in steps of 1/16."""
    return 1.0 / (1.0 + np.exp(-np.arange(-256, 257) / 16.0))


def count_values() -> NDArray[np.int32]:
    """Tabulate UNIT * (1 + log(count)) for counts up to MOST, 0 for none, as integers."""
    return np.concatenate([[0], np.round(UNIT * (1 + np.log(np.arange(1, MOST + 1))))]).astype(np.int32)


def _interpolate(curve: NDArray[np.float64], x: float) -> float:
    place = (min(15.999, max(-16.0, x)) + 16.0) * 16.0
    low = int(place)
    left, right = float(curve[low]), float(curve[low + 1])
    return left + (right - left) * (place - low)


def features(text: str, bits: int, chars: int) -> NDArray[np.uint32]:
    """Return the buckets of all words and pairs in the first `chars` characters, in rising order, repeated as often as they occur."""
    data = np.frombuffer(text[:chars].lower().encode("utf-8", errors="replace"), dtype=np.uint8)
    found = np.empty(2 * len(data) + 2, dtype=np.uint32)
    return np.sort(found[: _hash_tokens(data, _CLASSES, np.uint64((1 << bits) - 1), found)])


@njit(cache=True)
def _hash_tokens(data: NDArray[np.uint8], classes: NDArray[np.uint8], mask: np.uint64, found: NDArray[np.uint32]) -> int:
    """Write the buckets of tokens and pairs to `found`; return how many. UTF-8 punctuation (U+2000-U+203F, U+3000-U+303F) is a space."""
    prime, pair = np.uint64(0x100000001B3), np.uint64(0x9E3779B97F4A7C15)
    count, place, end, before = 0, 0, len(data), np.uint64(0)
    while place < end:
        kind = classes[data[place]]
        if data[place] >= 128 and _is_wide_space(data, place):
            place += 3 if data[place] >= 224 else 2
            continue
        if kind == 0:
            place += 1
            continue
        token, first = np.uint64(0xCBF29CE484222325), data[place]
        while place < end:
            byte = data[place]
            if kind == 4:
                if byte != 10 and classes[byte] != 0:
                    break
                byte = np.uint8(10)
            elif classes[byte] != kind or (kind == 3 and byte != first) or (byte >= 128 and _is_wide_space(data, place)):
                break
            if kind == 2:
                byte = np.uint8(48)
            if kind < 3 or token == np.uint64(0xCBF29CE484222325):
                token = (token ^ np.uint64(byte)) * prime
            place += 1
        found[count] = (token ^ (token >> np.uint64(32))) & mask
        count += 1
        if before:
            both = (before * pair ^ token) * prime
            found[count] = (both ^ (both >> np.uint64(32))) & mask
            count += 1
        before = token
    return count


@njit(cache=True)
def _is_wide_space(data: NDArray[np.uint8], place: int) -> bool:
    """Tell whether a no-break space, general or CJK punctuation begins here."""
    if data[place] == 0xC2:
        return place + 1 < len(data) and data[place + 1] == 0xA0
    if data[place] != 0xE2 and data[place] != 0xE3:
        return False
    return place + 2 < len(data) and data[place + 1] == 0x80


@njit(cache=True)
def _dot(buckets: NDArray[np.uint32], weights: NDArray[np.int16], counts: NDArray[np.int32]) -> tuple[int, int]:
    """Return the product of weights and feature values, and the sum of the values' squares: integers, so the order does not matter."""
    dot, square, place = 0, 0, 0
    while place < len(buckets):
        last = place
        while last < len(buckets) and buckets[last] == buckets[place]:
            last += 1
        value = int(counts[min(last - place, len(counts) - 1)])
        dot += value * int(weights[buckets[place]])
        square += value * value
        place = last
    return dot, square


def slow_features(text: str, bits: int, chars: int) -> Iterator[tuple[str, int]]:
    """Yield every word and pair with its bucket: the slow twin of `features`, which also knows what a bucket stands for."""
    before: tuple[bytes, int] | None = None
    for token in _slow_tokens(text[:chars].lower().encode("utf-8", errors="replace")):
        key = _BASIS
        for byte in token:
            key = (key ^ byte) * _PRIME & _MASK64
        yield _readable(token), (key ^ key >> 32) & (1 << bits) - 1
        if before:
            both = ((before[1] * _PAIR & _MASK64) ^ key) * _PRIME & _MASK64
            yield f"{_readable(before[0])} {_readable(token)}", (both ^ both >> 32) & (1 << bits) - 1
        before = token, key


def _readable(token: bytes) -> str:
    return "⏎" if token == b"\n" else token.decode("utf-8", errors="replace")


def _slow_tokens(data: bytes) -> Iterator[bytes]:
    wide = [
        data[at : at + 2] == b"\xc2\xa0" or (data[at : at + 2] in (b"\xe2\x80", b"\xe3\x80") and at + 2 < len(data))
        for at in range(len(data))
    ]
    place = 0
    while place < len(data):
        kind, start = _CLASSES[data[place]], place
        if wide[place]:
            place += 3 if data[place] >= 224 else 2
            continue
        if kind == _LINE:
            while place < len(data) and data[place] in b"\n\t\v\f \r":
                place += 1
            yield b"\n"
            continue
        while place < len(data) and _CLASSES[data[place]] == kind and not wide[place] and (kind != _MARK or data[place] == data[start]):
            place += 1
        if kind in (_WORD, _DIGIT):
            yield data[start:place] if kind == _WORD else b"0" * (place - start)
        elif kind == _MARK:
            yield data[start : start + 1]
