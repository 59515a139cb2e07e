"""Where each document of an artifact lies and what was decided about it: about 40 bytes each in memory, texts are read when asked for."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openmai.base.artifact import Artifact
from openmai.base.progress import Progress

Row = dict[str, Any]
Rows = NDArray[np.int64]
KEPT = ""
_BATCH = 500
_SEARCH_SECONDS = 10.0
_COPIES = ("exact.duplicate", "near.duplicate")
_ID = re.compile(r"\b[0-9a-f]{32}\b")
_SEARCHED = ("text", "url", "meta")


@dataclass(frozen=True)
class Block:
    """A row group of a Parquet file; its first row has number `start` in the artifact."""

    file: Path
    group: int
    start: int
    rows: int


@dataclass(frozen=True)
class Search:
    """Rows that hold what was looked for; `share` of the rows were looked at before time ran out."""

    rows: Rows
    share: float


class Names:
    """Numbers for names."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.numbers: dict[str, int] = {}

    def encode(self, column: pa.ChunkedArray) -> NDArray[np.int32]:
        """Return the number of each name in a column; new names get new numbers."""
        encoded = column.combine_chunks().dictionary_encode()
        codes = [self.numbers.setdefault(name, len(self.numbers)) for name in encoded.dictionary.to_pylist()]
        self.names = list(self.numbers)
        return np.array(codes, np.int32)[encoded.indices.to_numpy()] if codes else np.zeros(0, np.int32)


class Index:
    """The documents of an artifact, those kept first, numbered from 0."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.rules, self.sources = Names(), Names()
        self.rules.numbers[KEPT] = 0
        self.blocks = list(_blocks(artifact))
        self.starts = np.array([block.start for block in self.blocks], np.int64)
        total = sum(block.rows for block in self.blocks)
        self.rule, self.source = np.zeros(total, np.int32), np.zeros(total, np.int32)
        self.high, self.low = np.zeros(total, np.uint64), np.zeros(total, np.uint64)
        copies: list[tuple[int, str]] = []
        with Progress("index", total, "documents") as progress:
            for block in self.blocks:
                copies += self._read(block)
                progress.advance(block.rows)
        self.order = np.argsort(self.high, kind="stable")
        found = [(row, other) for row, identity in copies if (other := self.find(identity)) is not None]
        self.copies = np.array(found, np.int64).reshape(-1, 2)  # (rejected, the one it is a copy of)

    def __len__(self) -> int:
        return len(self.rule)

    def _read(self, block: Block) -> Iterator[tuple[int, str]]:
        """Take in a row group; yield (row, id of the document that it is a copy of)."""
        rejected = block.file.parent.name == "rejected"
        columns = ["id", "source", *(["rule", "reason"] if rejected else [])]
        table = pq.ParquetFile(block.file).read_row_group(block.group, columns=columns)
        rows = slice(block.start, block.start + block.rows)
        ids = np.frombuffer(bytes.fromhex("".join(table["id"].to_pylist())), ">u8").reshape(-1, 2)
        self.high[rows], self.low[rows] = ids[:, 0], ids[:, 1]
        self.source[rows] = self.sources.encode(table["source"])
        if rejected:
            self.rule[rows] = self.rules.encode(table["rule"])
            for place in np.flatnonzero(pc.is_in(table["rule"], pa.array(_COPIES)).to_numpy()):
                if match := _ID.search(table["reason"][int(place)].as_py()):
                    yield block.start + int(place), match[0]

    def find(self, identity: str) -> int | None:
        """Return the row of a document by its id, None if it is not here."""
        if not _ID.fullmatch(identity):
            return None
        high, low = np.uint64(int(identity[:16], 16)), np.uint64(int(identity[16:], 16))
        start, end = (int(np.searchsorted(self.high, high, side, sorter=self.order)) for side in ("left", "right"))
        return next((int(row) for row in self.order[start:end] if self.low[row] == low), None)

    def identity(self, row: int) -> str:
        """Return the id of a document."""
        return f"{int(self.high[row]):016x}{int(self.low[row]):016x}"

    def rule_of(self, row: int) -> str:
        """Return the rule that rejected a document, "" if it was kept."""
        return self.rules.names[self.rule[row]] if self.rule[row] else KEPT

    def partner(self, row: int) -> int | None:
        """Return the document that a rejected one is a copy of, None if it is none or that document lies elsewhere."""
        place = np.flatnonzero(self.copies[:, 0] == row)
        return int(self.copies[place[0], 1]) if len(place) else None

    def copies_of(self, row: int) -> list[int]:
        """Return the documents that were rejected as copies of this one."""
        return [int(other) for other in self.copies[self.copies[:, 1] == row, 0]]

    def select(self, which: str = "all", source: str = "") -> Rows:
        """Return the rows of "all", "kept", "rejected", a rule or a family of rules, of one source if it is named."""
        mask = np.ones(len(self), np.bool_)
        if which == "kept":
            mask = self.rule == 0
        elif which == "rejected":
            mask = self.rule != 0
        elif which != "all":
            wanted = [number for name, number in self.rules.numbers.items() if which in (name, name.split(".")[0])]
            mask = np.isin(self.rule, wanted)
        if source:
            mask &= self.source == self.sources.numbers.get(source, -1)
        return np.flatnonzero(mask)

    def counts(self, source: str = "") -> dict[str, int]:
        """Return the number of documents by rule; "" stands for those kept."""
        rule = self.rule[self.source == self.sources.numbers.get(source, -1)] if source else self.rule
        return {
            name: int(count) for name, count in zip(self.rules.numbers, np.bincount(rule, minlength=len(self.rules.numbers)), strict=True)
        }

    def read(self, rows: Sequence[int], columns: list[str]) -> list[Row]:
        """Return columns of some documents, in the order asked for; `rule` and `reason` are "" in those kept."""
        found: dict[int, Row] = {}
        for block, inside in self._by_block(np.unique(np.array(rows, np.int64))):
            for start, batch in _batches(block, columns):
                places = inside[(inside >= start) & (inside < start + batch.num_rows)]
                taken = batch.take(pa.array(places - start)).to_pylist()
                found |= {block.start + int(place): {"rule": KEPT, "reason": ""} | row for place, row in zip(places, taken, strict=True)}
                if len(inside) and inside[-1] < start + batch.num_rows:
                    break
        return [found[int(row)] for row in rows]

    @lru_cache(maxsize=8)  # noqa: B019 - an index lives as long as the program
    def search(self, query: str, which: str = "all", source: str = "") -> Search:
        """Return the selected rows whose text, URL or metadata holds `query`, whatever its case, as far as ten seconds go."""
        selected = self.select(which, source)
        found, seen, stop = [np.zeros(0, np.int64)], 0, time.monotonic() + _SEARCH_SECONDS
        for block, inside in self._by_block(selected):
            if time.monotonic() > stop:
                break
            wanted = np.zeros(block.rows, np.bool_)
            wanted[inside] = True
            for start, batch in _batches(block, list(_SEARCHED)):
                hits = wanted[start : start + batch.num_rows] & _holds(batch, query)
                found.append(block.start + start + np.flatnonzero(hits))
            seen += len(inside)
        return Search(np.concatenate(found), seen / max(1, len(selected)))

    def _by_block(self, rows: Rows) -> Iterator[tuple[Block, Rows]]:
        """Yield the row groups that hold sorted `rows`, each with their numbers in it."""
        edges = np.searchsorted(rows, [*self.starts, len(self)])
        for number, block in enumerate(self.blocks):
            if edges[number] < edges[number + 1]:
                yield block, rows[edges[number] : edges[number + 1]] - block.start


def sample(rows: Rows, seed: int) -> Rows:
    """Return rows in an order that the seed decides."""
    return np.random.default_rng(seed).permutation(rows)


def _blocks(artifact: Artifact) -> Iterator[Block]:
    start = 0
    for folder in ("documents/", "rejected/"):
        for file in (artifact.path / name for name in sorted(artifact.files) if name.startswith(folder) and name.endswith(".parquet")):
            metadata = pq.read_metadata(file)
            for group in range(metadata.num_row_groups):
                yield Block(file, group, start, metadata.row_group(group).num_rows)
                start += metadata.row_group(group).num_rows


def _batches(block: Block, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (number of the first row in the row group, batch); a bounded number of texts is in memory."""
    file, start = pq.ParquetFile(block.file), 0
    present = [name for name in columns if name in file.schema_arrow.names]
    for batch in file.iter_batches(batch_size=_BATCH, row_groups=[block.group], columns=present):
        yield start, batch
        start += batch.num_rows


def _holds(batch: pa.RecordBatch, query: str) -> NDArray[np.bool_]:
    hits = np.zeros(batch.num_rows, np.bool_)
    for name in _SEARCHED:
        hits |= pc.fill_null(pc.match_substring(batch.column(name), query, ignore_case=True), False).to_numpy(zero_copy_only=False)
    return hits
