"""Documents that are the same word for word."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openmai.data.dedup.fingerprint import Keys
from openmai.data.dedup.spill import Spill, numbered, run_starts


@dataclass(frozen=True)
class Dropped:
    """Rows that go, in order, each with the row that stays in its place and how alike the two are."""

    rows: NDArray[np.int64]
    kept: NDArray[np.int64]
    similarity: NDArray[np.float64]


def exact(keys: Iterable[Keys], takes_part: NDArray[np.bool_], scratch: Path, earlier: int = 0) -> Dropped:
    """Find the documents whose words all occurred before; the first stays.

    `keys` are `Fingerprints.exact` in chunks, in the documents' order; rows that do not take part are passed over. The first `earlier`
    rows are of documents that stay whatever happens. Files in the folder `scratch` bound the memory.
    """
    rows, kept = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    with Spill(scratch / "exact", 3, int(takes_part.sum())) as spill:
        for numbers, chunk in numbered(keys, takes_part):
            spill.add(np.column_stack([chunk, numbers]))
        for part in spill.parts():
            starts = run_starts(part[:, :2])
            first = np.repeat(part[starts[:-1], 2], np.diff(starts))
            goes = (part[:, 2] != first) & (part[:, 2] >= earlier)
            rows.append(part[goes, 2])
            kept.append(first[goes])
    return in_order(np.concatenate(rows), np.concatenate(kept), None)


def in_order(rows: Keys, kept: Keys, similarity: NDArray[np.float64] | None) -> Dropped:
    """Return the result sorted by row; without similarities they are 1."""
    order = np.argsort(rows)
    alike = np.ones(len(rows)) if similarity is None else similarity[order]
    return Dropped(rows[order].astype(np.int64), kept[order].astype(np.int64), alike)
