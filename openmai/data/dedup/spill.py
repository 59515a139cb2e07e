"""Grouping more keys than memory holds: rows are spread over files by their key, then one file at a time is looked at."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from openmai.data.dedup.fingerprint import Keys, mix

_ROWS = 1 << 18  # rows of one file, as far as _FILES allow
_FILES = 256


class Spill:
    """Rows of `columns` 64-bit numbers, grouped by the first. Use as a context; the folder is removed at its end.

    `expected` rows in all decide into how many files they are spread, which changes nothing but speed and memory. With `below`, a bound
    of the first column, each file holds a range of it and the ranges come in order.
    """

    def __init__(self, folder: Path, columns: int, expected: int, below: int | None = None) -> None:
        self.folder, self.columns, self.below = folder, columns, below
        self.bits = (min(_FILES, max(1, -(-expected // _ROWS))) - 1).bit_length()
        self.open: dict[int, BinaryIO] = {}

    def __enter__(self) -> Spill:
        shutil.rmtree(self.folder, ignore_errors=True)  # of an attempt that was killed here
        self.folder.mkdir(parents=True)
        return self

    def add(self, rows: Keys) -> None:
        """Take rows of shape (M, columns)."""
        where = self._files_of(rows[:, 0])
        rows = rows[np.argsort(where, kind="stable")]
        ends = np.cumsum(np.bincount(where, minlength=1 << self.bits))
        for number, piece in enumerate(np.split(rows, ends[:-1])):
            if len(piece):
                self._file(number).write(piece.data)

    def parts(self) -> Iterator[Keys]:
        """Yield one file after the other, sorted by all columns but the last, equal rows in the order in which they came."""
        for number in sorted(self.open):
            self.open[number].close()
            yield self._sorted(self.folder / str(number))

    def _sorted(self, path: Path) -> Keys:
        rows = np.fromfile(path, np.uint64).reshape(-1, self.columns)
        path.unlink()
        return rows[np.lexsort(rows.T[-2::-1])]

    def _file(self, number: int) -> BinaryIO:
        if number not in self.open:
            self.open[number] = (self.folder / str(number)).open("wb", buffering=1 << 16)
        return self.open[number]

    def _files_of(self, values: Keys) -> NDArray[np.uint8]:
        if self.bits == 0:
            return np.zeros(len(values), np.uint8)
        if self.below is None:
            return (mix(values) >> np.uint64(64 - self.bits)).astype(np.uint8)
        return (values.astype(np.int64) // -(-self.below >> self.bits)).astype(np.uint8)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self.open.values():
            file.close()
        shutil.rmtree(self.folder)


def numbered(chunks: Iterable[Keys], takes_part: NDArray[np.bool_]) -> Iterator[tuple[Keys, Keys]]:
    """Yield, for chunks of keys of shape (M, K) in order, the rows' numbers and keys where they take part and have keys at all."""
    start = 0
    for chunk in chunks:
        rows = np.flatnonzero(takes_part[start : start + len(chunk)] & (chunk[:, 0] != 0))
        yield (rows + start).astype(np.uint64), chunk[rows]
        start += len(chunk)
    if start != len(takes_part):
        raise ValueError(f"{start} rows of keys for {len(takes_part)} documents")


def run_starts(values: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return where runs of equal rows begin, and the end; `values` has shape (M,) or (M, K)."""
    changes = values[1:] != values[:-1]
    if changes.ndim > 1:
        changes = changes.any(axis=1)
    return np.concatenate([[0], np.flatnonzero(changes) + 1, [len(values)]])
