"""The last step of a build: parts and what was decided about their documents become files of the result, each a task of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openmai.base.files import atomic_file, read_json, write_json
from openmai.data.config import BuildConfig
from openmai.data.dedup import fingerprint
from openmai.data.document import PARQUET, REJECTED_SCHEMA, SCHEMA
from openmai.data.engine.funnel import Funnel
from openmai.data.engine.parts import Part
from openmai.data.engine.select import Selector
from openmai.data.extract.clean import drop_empty_headings

Row = dict[str, Any]
Numbers = NDArray[np.int64]
_ROWS = 500
_NONE = np.zeros(0, np.int64)


@dataclass
class Decided:
    """A part and what the comparison with other documents decided, by the row's number in the part."""

    file: Path
    rejected: dict[int, tuple[str, str]] = field(default_factory=dict)
    paragraphs: dict[int, Numbers] = field(default_factory=dict)
    lines: dict[int, Numbers] = field(default_factory=dict)


def group(parts: Iterable[Part], megabytes: float) -> list[int]:
    """Return how many parts, in order, make up each file of the result."""
    counts, size = [0], 0.0
    for part in parts:
        if counts[-1] and size + part.text_bytes / 1e6 > megabytes:
            counts.append(0)
            size = 0.0
        counts[-1] += 1
        size += part.text_bytes / 1e6
    return counts


def write_shard(config: BuildConfig, number: int, parts: Sequence[Decided], folder: Path, done: Path) -> Funnel:
    """Write file `number` of `documents/`, `rejected/` and `keys/` under `folder`; return its counts, which `done` keeps.

    A file whose counts are there is finished and is not written again.
    """
    if done.exists():
        return Funnel.from_plain(read_json(done))
    funnel, selector = Funnel(), Selector(config)
    key_schema = fingerprint.schema(config.dedup)
    name = f"part-{number:05d}.parquet"
    with (
        _Writer(folder / "documents" / name, SCHEMA) as documents,
        _Writer(folder / "rejected" / name, REJECTED_SCHEMA) as rejected,
        _Writer(folder / "keys" / name, key_schema) as keys,
    ):
        for part in parts:
            start = 0
            for batch in pq.ParquetFile(part.file).iter_batches(batch_size=_ROWS):
                rows = batch.select(REJECTED_SCHEMA.names).to_pylist()
                kept = [_decide(row, start + place, part, config, selector, funnel) for place, row in enumerate(rows)]
                documents.write([row for row, stays in zip(rows, kept, strict=True) if stays])
                rejected.write([row for row, stays in zip(rows, kept, strict=True) if not stays])
                keys.write_batch(batch.select(key_schema.names).filter(pa.array(kept)))
                start += len(rows)
    write_json(done, funnel.plain())
    return funnel


def _decide(row: Row, number: int, part: Decided, config: BuildConfig, selector: Selector, funnel: Funnel) -> bool:
    """Complete a document's rule and reason, shorten its text, count it; return whether it stays."""
    funnel.take(row)
    row["rule"], row["reason"] = selector.verdict(row)
    if not row["rule"] and number in part.rejected:
        row["rule"], row["reason"] = part.rejected[number]
    if not row["rule"] and (number in part.paragraphs or number in part.lines):
        row["rule"], row["reason"] = _shorten(row, number, part, config, funnel)
    if row["rule"]:
        funnel.drop(row)
    else:
        funnel.keep(row)
    return not row["rule"]


def _shorten(row: Row, number: int, part: Decided, config: BuildConfig, funnel: Funnel) -> tuple[str, str]:
    """Take repeated paragraphs and lines out of the text; the scores stay those of the whole text."""
    paragraphs, lines = part.paragraphs.get(number, _NONE), part.lines.get(number, _NONE)
    text = drop_empty_headings(fingerprint.drop(row["text"], paragraphs, lines))
    share = len(text) / len(row["text"])
    if share < config.dedup.min_left:
        return "paragraphs.repeated", f"{share:.0%} left without paragraphs and lines of other documents"
    funnel.shorten(len(row["text"].encode()) - len(text.encode()))
    row["text"] = text
    return "", ""


class _Writer:
    """Writes documents to one Parquet file that appears when it is whole. Use as a context."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema, self.stack = path, schema, ExitStack()

    def __enter__(self) -> _Writer:
        self.path.parent.mkdir(exist_ok=True)
        with ExitStack() as stack:
            file = stack.enter_context(atomic_file(self.path))
            self.file = stack.enter_context(pq.ParquetWriter(file, self.schema, compression_level=3, **PARQUET))
            self.stack = stack.pop_all()
        return self

    def write(self, rows: list[Row]) -> None:
        """Add documents."""
        self.write_batch(pa.RecordBatch.from_pylist(rows, schema=self.schema))

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add a batch."""
        if batch.num_rows:
            self.file.write_batch(batch)

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)
