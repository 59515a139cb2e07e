"""Encoding at several times the speed of `tokenizers`, with the same ids: an automaton for the split, a memory of pieces, compiled merges.

`SlowEncoder` does the same through `tokenizers`; the tests compare the two.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from openmai.tokenizer import kernels
from openmai.tokenizer.automaton import Automaton, compile_split
from openmai.tokenizer.splits import patterns_of
from openmai.tokenizer.tokenizer import Tokenizer, byte_letters

_MEMO_ROWS = 1 << 17  # 4 MiB, near the size of a second-level cache
_FACTOR = 0x9E3779B97F4A7C15


class Encoder(Protocol):
    """Turns bytes into ids."""

    def encode(self, data: NDArray[np.uint8], spans: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of the texts data[start:stop] of `spans` (n, 2), one after the other, and (n,) where each one's ids end.

        A span (-1, id) gives the id itself. Bytes that are not UTF-8 become one token each.
        """


class SlowEncoder:
    """The reference, for every tokenizer that `tokenizers` can load."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, data: NDArray[np.uint8], spans: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        texts = [[stop] if start < 0 else self.tokenizer.encode_bytes(data[start:stop].tobytes()) for start, stop in spans.tolist()]
        ids = np.fromiter((number for text in texts for number in text), np.int32)
        return ids, np.cumsum([len(text) for text in texts], dtype=np.int64)


@dataclass(frozen=True)
class Tables:
    """What a vocabulary says, as arrays; read by any number of encoders at once."""

    automaton: Automaton
    byte_ids: NDArray[np.int64]
    pairs: NDArray[np.int64]
    wholes: NDArray[np.int64]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Tables:
        """Translate a tokenizer; raises ValueError for one that works in another way than those of `tokenizer train`."""
        data = json.loads(tokenizer.backend.to_str())
        patterns, model = patterns_of(tokenizer.backend), data["model"]
        plain = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "byte_fallback": False}
        vocab = model.get("vocab", {})
        letters = byte_letters()
        if patterns is None or data["normalizer"] or any(model.get(key) != value for key, value in plain.items()):
            raise ValueError("not byte-level BPE with a list of splits")
        if any(letter not in vocab for letter in letters) or max(vocab.values()) >= 1 << kernels.MEMO_BITS:
            raise ValueError("a byte without a token, or an id beyond a million")
        byte_ids = np.array([vocab[letter] for letter in letters], np.int64)
        pairs = _hash([(vocab[a], vocab[b], rank, vocab[a + b]) for rank, (a, b) in enumerate(model["merges"])])
        wholes = _wholes(tokenizer, byte_ids, pairs) if model.get("ignore_merges") else _hash([])
        return cls(compile_split(patterns), byte_ids, pairs, wholes)


class FastEncoder:
    """The compiled encoder; each has its own memory, so give every thread one of its own. It does not hold the interpreter's lock."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.memo = np.zeros((_MEMO_ROWS, 4), np.uint64)
        self.room = 0
        self._reserve(1 << 16)

    def encode(self, data: NDArray[np.uint8], spans: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        data = data.view()
        data.flags.writeable = False  # numba compiles anew for each kind of array
        is_text = spans[:, 0] >= 0
        sizes = spans[is_text, 1] - spans[is_text, 0]
        self._reserve(int(sizes.max(initial=0)))
        out = np.empty(int(sizes.sum()) + int((~is_text).sum()), np.int32)
        marks = np.empty(len(spans), np.int64)
        split, tables = self.tables.automaton, self.tables
        arrays = (split.classes, split.moves, split.starts, tables.byte_ids, tables.pairs, tables.wholes)
        filled = kernels.encode(data, spans, *arrays, self.memo, *self.scratch, out, marks)
        return out[:filled], marks

    def _reserve(self, size: int) -> None:
        """Make room for a text of `size` bytes; pages that are never touched cost nothing."""
        if size > self.room:
            self.room = size
            kinds, ends = np.empty(size + 1, np.uint8), np.empty(size, np.int64)
            self.scratch = (kinds, ends, np.empty(size, np.int64), np.empty(size, np.int64))


def _hash(rows: list[tuple[int, int, int, int]]) -> NDArray[np.int64]:
    """Return (left, right, a, b) as an open hash table of (key, a, b), at most half full; free rows have key -1."""
    size = 2
    while size < 2 * len(rows) + 2:
        size *= 2
    table = np.full((size, 3), -1, np.int64)
    for left, right, first, second in rows:
        key = left << 32 | right
        row = (key * _FACTOR % 2**64 >> 40) % size
        while table[row, 0] not in (-1, key):
            row = (row + 1) % size
        if table[row, 0] == -1:
            table[row] = key, first, second
    return table


def _wholes(tokenizer: Tokenizer, byte_ids: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the tokens that merges do not lead to, as a tree over what they lead to instead: (node, id) to (token or -1, node)."""
    nodes: dict[tuple[int, int], int] = {}
    tokens: dict[int, int] = {}
    special = set(tokenizer.special.values())
    for token, text in enumerate(tokenizer.token_bytes):
        symbols = byte_ids[np.frombuffer(text, np.uint8)]
        count = kernels.merge(symbols, np.empty_like(symbols), len(symbols), pairs)
        if count > 1 and token not in special:
            node = int(symbols[0])
            for symbol in symbols[1:count].tolist():
                node = nodes.setdefault((node, symbol), tokenizer.vocab_size + len(nodes))
            tokens[node] = token
    return _hash([(left, right, tokens.get(node, -1), node) for (left, right), node in nodes.items()])
