"""Words as numbers: hashes, and tables from hash to bits that compiled code can look into."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numba import njit

_OFFSET, _PRIME = -3750763034362895579, 1099511628211  # FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/, in signed 64 bits


@njit(cache=True, inline="always")
def start_hash() -> int:
    """Return the hash of the empty word."""
    return -3750763034362895579


@njit(cache=True)
def add_to_hash(value: int, character: int) -> int:
    """Return the hash of a word with one more character, upper case as lower case (Latin and Cyrillic)."""
    if 65 <= character <= 90 or 0xC0 <= character <= 0xDE or 0x410 <= character <= 0x42F:
        character += 32
    return (value ^ character) * 1099511628211


def hash_word(word: str) -> int:
    """Return the hash of `word` as `add_to_hash` makes it."""
    value = _OFFSET
    for character in word.lower():
        value = ((value ^ ord(character)) * _PRIME + 2**63) % 2**64 - 2**63
    return value


def table(words: Mapping[str, int]) -> np.ndarray:
    """Return int64 [2, size]: an open-addressing table of hashes and values; 0 stands for what is not there."""
    size = 1 << (4 * len(words) + 8).bit_length()
    result = np.zeros((2, size), dtype=np.int64)
    for word, value in words.items():
        slot = hash_word(word) & (size - 1)
        while result[0, slot]:
            slot = (slot + 1) & (size - 1)
        result[:, slot] = hash_word(word), value
    return result


@njit(cache=True)
def look_up(words: np.ndarray, value: int) -> int:
    """Return what `table` holds for the hash `value`, or 0."""
    mask = words.shape[1] - 1
    slot = value & mask
    while words[0, slot] != 0:
        if words[0, slot] == value:
            return words[1, slot]
        slot = (slot + 1) & mask
    return 0
