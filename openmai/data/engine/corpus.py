"""All documents that are compared with each other, in order, as files that are read piece by piece."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

_ROWS = 1000
_HOST = re.compile(r"[a-z][a-z0-9+.-]*://([^/?#]*)")


@dataclass(frozen=True)
class Piece:
    """Documents in two Parquet files of the same rows, which may be one: their keys, and their texts and ids."""

    keys: Path
    texts: Path
    rows: int


class Corpus:
    """Documents numbered over all pieces."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self.starts = [0, *accumulate(piece.rows for piece in pieces)]

    def __len__(self) -> int:
        return self.starts[-1]

    def keys(self, column: str) -> Iterator[pa.Array]:
        """Yield a column of keys in chunks."""
        for piece in self.pieces:
            for batch in pq.ParquetFile(piece.keys).iter_batches(batch_size=_ROWS, columns=[column]):
                yield batch.column(0)

    def values(self, column: str, rows: NDArray[np.int64]) -> Iterator[Any]:
        """Yield a column of the documents `rows`, which are in order."""
        done = 0
        while done < len(rows):
            number = bisect_right(self.starts, int(rows[done])) - 1
            end = int(np.searchsorted(rows, self.starts[number + 1]))
            yield from _values(self.pieces[number].texts, column, rows[done:end] - self.starts[number])
            done = end


def _values(file: Path, column: str, rows: NDArray[np.int64]) -> Iterator[Any]:
    start, done = 0, 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=_ROWS, columns=[column]):
        end = int(np.searchsorted(rows, start + batch.num_rows))
        if end > done:
            yield from batch.column(0).take(pa.array(rows[done:end] - start)).to_pylist()
        start, done = start + batch.num_rows, end


def site_keys(corpus: Corpus) -> NDArray[np.uint64]:
    """Return a hash of each document's host."""
    found = [np.zeros(0, np.uint64)]
    for piece in corpus.pieces:
        for batch in pq.ParquetFile(piece.texts).iter_batches(batch_size=_ROWS, columns=["url"]):
            hosts = [_HOST.match(url.lower()) for url in batch.column(0).to_pylist()]
            digests = b"".join(hashlib.blake2b(host[1].encode() if host else b"", digest_size=8).digest() for host in hosts)
            found.append(np.frombuffer(digests, "<u8"))
    return np.concatenate(found)
