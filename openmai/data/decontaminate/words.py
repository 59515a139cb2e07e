"""Words of a text as 64-bit hashes, and n-grams of them found among known ones: compiled loops over UTF-8 bytes.

What makes no difference: case, accents, width and ligatures (NFKD, then casefold, marks left out) and apostrophes; all else that is neither
letter nor digit separates words. In scripts without spaces every character is a word.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

_SEPARATOR, _NOTHING, _POOL = 0, 1, 1 << 31
_ROOM = 1024
_TABLE = 0x20000  # code points beyond are ideographs, which fold to themselves
_VANISH = frozenset("'’‘ʼ＇`´\u00ad\u200b\u200c\u200d\u2060\ufeff")
_WORD = np.uint64(0x9FB21C651E98DF25)
_GRAM = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Words:
    """The words of one text: `hashes` (W,), and where each begins and ends, in bytes (W,)."""

    hashes: Hashes
    starts: Places
    ends: Places

    def __len__(self) -> int:
        return len(self.hashes)


def split(text: str | bytes | NDArray[np.uint8], by_char: bool = False) -> Words:
    """Split a text (UTF-8 if bytes) into words, or into its letters and digits."""
    if isinstance(text, str):
        text = text.encode("utf-8", errors="replace")
    data = np.frombuffer(text, dtype=np.uint8) if isinstance(text, bytes) else text
    fold, pool = _tables()
    size = 64 + len(data) // (1 if by_char else 4)
    parts: list[tuple[Hashes, Places, Places]] = []
    at = 0
    while at < len(data) or not parts:
        out = np.empty(size, np.uint64), np.empty(size, np.int64), np.empty(size, np.int64)
        count, at = _scan(data, at, fold, pool, by_char, out)
        parts.append((out[0][:count], out[1][:count], out[2][:count]))
    if len(parts) == 1:
        return Words(*parts[0])
    hashes, starts, ends = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Words(hashes, starts, ends)


def grams(hashes: Hashes, n: int) -> Hashes:
    """Return the hash of every n-gram of words, in order (max(0, W - n + 1),)."""
    return _grams(hashes, n)


@lru_cache(maxsize=1)
def _tables() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return per code point its folded one, a mark, or (where it becomes several) a place and length in the pool."""
    fold = np.arange(_TABLE, dtype=np.uint32)
    pool: list[int] = []
    for code in range(_TABLE):
        symbols = _folded(chr(code))
        if len(symbols) == 1:
            fold[code] = symbols[0]
        elif not symbols:
            fold[code] = _NOTHING
        else:
            fold[code] = _POOL | len(symbols) << 20 | len(pool)
            pool += symbols
    return fold, np.array(pool, dtype=np.uint32)


def _folded(char: str) -> list[int]:
    if char in _VANISH:
        return []
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
    kept = [c for c in plain if not unicodedata.combining(c) and c not in _VANISH]
    return [ord(c) if c.isalnum() or unicodedata.category(c)[0] == "M" else _SEPARATOR for c in kept]


@njit(cache=True, nogil=True)
def _mix(value: np.uint64) -> np.uint64:
    """Scramble 64 bits (the finalizer of splitmix64, Steele et al. 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def _decode(data: NDArray[np.uint8], i: int) -> tuple[np.int64, int]:
    """Return the code point at byte `i` and its length; a byte that begins none stands for itself as a separator."""
    c, left = np.int64(data[i]), len(data) - i  # int64 throughout: numba joins it with uint64 to float64
    if c < 0x80:
        return c, 1
    if 0xC0 <= c < 0xE0 and left >= 2:
        return (c & 0x1F) << 6 | (np.int64(data[i + 1]) & 0x3F), 2
    if 0xE0 <= c < 0xF0 and left >= 3:
        return (c & 0x0F) << 12 | (np.int64(data[i + 1]) & 0x3F) << 6 | (np.int64(data[i + 2]) & 0x3F), 3
    if c >= 0xF0 and left >= 4:
        return (c & 0x07) << 18 | (np.int64(data[i + 1]) & 0x3F) << 12 | (np.int64(data[i + 2]) & 0x3F) << 6 | (
            np.int64(data[i + 3]) & 0x3F
        ), 4
    return np.int64(0), 1


@njit(cache=True, nogil=True)
def _stands_alone(code: np.int64) -> bool | np.bool:
    """Tell whether a character of a script without spaces: Thai, Lao, Burmese, Khmer, kana, ideographs."""
    if code < 0x0E00:
        return False
    return (
        code < 0x0F00 or 0x1000 <= code < 0x10A0 or 0x1780 <= code < 0x1800 or 0x3040 <= code < 0x3100 or 0x3400 <= code < 0xA000
    ) or code >= 0x20000


@njit(cache=True, nogil=True)
def _scan(
    data: NDArray[np.uint8], i: int, fold: NDArray[np.uint32], pool: NDArray[np.uint32], by_char: bool, out: tuple[Hashes, Places, Places]
) -> tuple[int, int]:
    """Fill `out` with the words from byte `i` on, until it is full; return how many there are and where to go on."""
    hashes, starts, ends = out
    room = len(hashes) - 20  # one character folds to at most 18
    count, inside, word = 0, False, np.uint64(0)
    while i < len(data) and (inside or count < room):
        code, step = _decode(data, i)
        symbol = np.int64(fold[code]) if code < len(fold) else np.int64(code)
        if symbol == 1:
            i += step
            continue
        length, first = ((symbol >> 20) & 0x7FF, symbol & 0xFFFFF) if symbol >= 1 << 31 else (1, -1)
        for j in range(length):
            if first >= 0:
                symbol = np.int64(pool[first + j])
            alone = by_char or _stands_alone(symbol)
            if inside and (symbol == 0 or alone):
                hashes[count] = _mix(word)
                count += 1
                inside = False
            if symbol != 0:
                if not inside:
                    starts[count], word, inside = i, np.uint64(0), True
                word = (word ^ np.uint64(symbol)) * _WORD
                ends[count] = i + step
                if alone:
                    hashes[count] = _mix(word)
                    count += 1
                    inside = False
        i += step
    if inside:
        hashes[count] = _mix(word)
        count += 1
    return count, i


@njit(cache=True, nogil=True)
def _power(n: int) -> np.uint64:
    value = np.uint64(1)
    for _ in range(n):
        value *= _GRAM
    return value


@njit(cache=True, nogil=True)
def _grams(words: Hashes, n: int) -> Hashes:
    out = np.empty(max(0, len(words) - n + 1), np.uint64)
    last, rolling = _power(n), np.uint64(0)
    for i in range(len(words)):
        rolling = rolling * _GRAM + words[i]
        if i >= n:
            rolling -= words[i - n] * last
        if i >= n - 1:
            out[i - n + 1] = _mix(rolling + np.uint64(n))
    return out


@dataclass(frozen=True)
class Keys:
    """Sorted hashes to look for, and a bitmap of 2^(64 - shift) bits with their upper bits set: it spares most n-grams the search."""

    hashes: Hashes
    bits: Hashes
    shift: int

    @classmethod
    def of(cls, hashes: Hashes) -> Keys:
        """Make the bitmap of sorted `hashes`, at least 16 bits for each."""
        size = max(10, (16 * len(hashes)).bit_length())
        bits = np.zeros(1 << (size - 6), np.uint64)
        places = hashes >> np.uint64(64 - size)
        np.bitwise_or.at(bits, places >> np.uint64(6), np.uint64(1) << (places & np.uint64(63)))
        return cls(hashes, bits, 64 - size)

    def find(self, words: Hashes, n: int) -> tuple[Places, Places]:
        """Return which keys occur among the n-grams of `words`, and at which word each: two arrays of equal length."""
        parts, at = [], 0
        while True:
            found, places = np.empty(_ROOM, np.int64), np.empty(_ROOM, np.int64)
            count, at = _find(words, at, n, self.hashes, self.bits, self.shift, found, places)
            parts.append((found[:count], places[:count]))
            if count < _ROOM:
                return _joined(parts)


class Phrases:
    """Runs of words of any length, 2 to 63, to be found whole: through their first 2 or 4 words, then by the hash of all."""

    def __init__(self, phrases: Iterable[Hashes]) -> None:
        """Take each phrase as the hashes of its words."""
        begins: dict[int, dict[int, int]] = {2: {}, 4: {}}
        keys = set()
        for words in phrases:
            size = 4 if len(words) >= 4 else 2
            begin = int(grams(words[:size], size)[0])
            begins[size][begin] = begins[size].get(begin, 0) | 1 << len(words)
            keys.add(int(grams(words, len(words))[0]))
        self.keys = np.array(sorted(keys), dtype=np.uint64)
        self.begins = {
            size: (Keys.of(np.array(sorted(masks), dtype=np.uint64)), np.array([masks[key] for key in sorted(masks)], dtype=np.uint64))
            for size, masks in begins.items()
            if masks
        }

    def index(self, words: Hashes) -> int:
        """Return the number of a phrase that was taken."""
        return int(np.searchsorted(self.keys, grams(words, len(words))[0]))

    def find(self, words: Hashes) -> tuple[Places, Places]:
        """Return the numbers of the phrases found, and at which word each."""
        parts = []
        for size, (begins, masks) in self.begins.items():
            found, places = begins.find(words, size)
            if len(found):
                parts.append(_complete(words, found, places, masks, self.keys))
        return _joined(parts or [(np.empty(0, np.int64), np.empty(0, np.int64))])


def _joined(parts: list[tuple[Places, Places]]) -> tuple[Places, Places]:
    if len(parts) == 1:
        return parts[0]
    found, places = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return found, places


@njit(cache=True, nogil=True)
def _find(words: Hashes, begin: int, n: int, keys: Hashes, bits: Hashes, shift: int, found: Places, places: Places) -> tuple[int, int]:
    """Fill `found` and `places` from word `begin` on, until they are full; return how many there are and where to go on."""
    last, rolling, count = _power(n), np.uint64(0), 0
    for i in range(begin, len(words)):
        rolling = rolling * _GRAM + words[i]
        if i - begin >= n:
            rolling -= words[i - n] * last
        if i - begin < n - 1:
            continue
        gram = _mix(rolling + np.uint64(n))
        bit = gram >> np.uint64(shift)
        if (bits[bit >> np.uint64(6)] >> (bit & np.uint64(63))) & np.uint64(1):
            place = _place(keys, gram)
            if place >= 0:
                found[count], places[count] = place, i - n + 1
                count += 1
                if count == len(found):
                    return count, i - n + 2
    return count, len(words)


@njit(cache=True, nogil=True)
def _complete(words: Hashes, begins: Places, places: Places, masks: Hashes, keys: Hashes) -> tuple[Places, Places]:
    """Return the phrases that go on as they begin; bit k of a mask: some phrase of k words begins so."""
    total = np.int64(0)
    for begin in begins:
        for k in range(2, 64):
            total += np.int64((masks[begin] >> np.uint64(k)) & np.uint64(1))
    found, starts, count = np.empty(total, np.int64), np.empty(total, np.int64), 0
    for begin, start in zip(begins, places):  # noqa: B905 numba has no strict
        for k in range(2, 64):
            if not (masks[begin] >> np.uint64(k)) & np.uint64(1) or start + k > len(words):
                continue
            rolling = np.uint64(0)
            for i in range(start, start + k):
                rolling = rolling * _GRAM + words[i]
            place = _place(keys, _mix(rolling + np.uint64(k)))
            if place >= 0:
                found[count], starts[count] = place, start
                count += 1
    return found[:count].copy(), starts[:count].copy()


@njit(cache=True, nogil=True)
def _place(keys: Hashes, key: np.uint64) -> int:
    """Return where `key` stands among the sorted `keys`, or -1."""
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) >> 1
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low if low < len(keys) and keys[low] == key else -1
