"""Paragraphs that occur often in the whole corpus, and lines that stand on many pages of one site."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openmai.data.dedup.fingerprint import Keys, Lists, mix
from openmai.data.dedup.spill import Spill, run_starts

_ITEM_BITS = np.uint64(24)  # a document's parts are numbered below 2^24, the rest of 64 bits numbers the documents
_ITEMS, _ITEMS_PER_DOCUMENT = 1 << 24, 32  # so many are prepared for


class Repeated:
    """The repeated parts of documents, in a file, in order. Use as a context; the file is removed at its end."""

    def __init__(self, path: Path) -> None:
        self.path, self.start, self.count = path, 0, path.stat().st_size // 8

    def take(self, end: int) -> dict[int, NDArray[np.int64]]:
        """Return row -> numbers of its repeated parts, for the rows after those taken before, up to row `end`."""
        found: list[Keys] = []
        with self.path.open("rb") as file:
            file.seek(self.start * 8)
            while len(piece := np.fromfile(file, np.uint64, 1 << 16)):
                inside = int(np.searchsorted(piece, np.uint64(end) << _ITEM_BITS))
                found.append(piece[:inside])
                self.start += inside
                if inside < len(piece):
                    break
        return _by_row(np.concatenate(found)) if found else {}

    def __enter__(self) -> Repeated:
        return self

    def __exit__(self, *error: object) -> None:
        self.path.unlink()


def repeated(
    keys: Iterable[Lists], takes_part: NDArray[np.bool_], copies: int, scratch: Path, earlier: int = 0, sites: Keys | None = None
) -> Repeated:
    """Find the parts of documents (paragraphs, lines) that occurred `copies` times before.

    `keys` are `Fingerprints.paragraphs` or `.lines` in chunks, in the documents' order; rows that do not take part are passed over. With
    `sites` (a hash of each document's host) only documents of the same site are compared, and a part counts once per document. The first
    `earlier` rows count, but keep all they have. Files in the folder `scratch` bound the memory.
    """
    count = len(takes_part)
    expected = max(_ITEMS, _ITEMS_PER_DOCUMENT * count)
    path = scratch / "repeated"
    with (
        Spill(scratch / "items", 2, expected) as spill,
        Spill(scratch / "ordered", 2, expected, below=max(1, count)) as ordered,
        path.open("wb") as file,
    ):
        for rows in _numbered(keys, takes_part, sites):
            spill.add(rows)
        for part in spill.parts():
            row = part[:, 1] >> _ITEM_BITS
            goes = _beyond(part[:, 0], row, copies, sites is not None) & (row >= earlier)
            ordered.add(np.column_stack([row, part[:, 1]])[goes])
        for part in ordered.parts():
            file.write(np.sort(part[:, 1]).data)
    return Repeated(path)


def _numbered(keys: Iterable[Lists], takes_part: NDArray[np.bool_], sites: Keys | None) -> Iterator[Keys]:
    """Yield pairs (key, document << 24 | number of the part) of all that counts."""
    start = 0
    for chunk in keys:
        lengths = np.diff(chunk.offsets)
        rows = np.repeat(np.arange(start, start + len(chunk)), lengths)
        numbers = np.arange(len(chunk.values)) - np.repeat(chunk.offsets[:-1], lengths)
        counts = np.flatnonzero(takes_part[rows] & (chunk.values != 0) & (numbers < 1 << int(_ITEM_BITS)))
        rows, numbers, values = rows[counts], numbers[counts], chunk.values[counts]
        if sites is not None:
            values = mix(values + mix(sites[rows]))
        yield np.column_stack([values, rows.astype(np.uint64) << _ITEM_BITS | numbers.astype(np.uint64)])
        start += len(chunk)
    if start != len(takes_part):
        raise ValueError(f"{start} rows of keys for {len(takes_part)} documents")


def _beyond(keys: Keys, rows: Keys, copies: int, once_per_row: bool) -> NDArray[np.bool_]:
    """Tell which parts, sorted by key and row, come after `copies` of the same key."""
    starts = run_starts(keys)
    counted = np.ones(len(keys), np.int64)
    if once_per_row:
        counted[1:] = (keys[1:] != keys[:-1]) | (rows[1:] != rows[:-1])
    before = np.cumsum(counted) - counted[0]
    return before - np.repeat(before[starts[:-1]], np.diff(starts)) >= copies


def _by_row(items: Keys) -> dict[int, NDArray[np.int64]]:
    rows = (items >> _ITEM_BITS).astype(np.int64)
    numbers = (items & np.uint64((1 << int(_ITEM_BITS)) - 1)).astype(np.int64)
    starts = run_starts(rows)
    return {int(rows[start]): numbers[start:end] for start, end in pairwise(starts)} if len(items) else {}
