"""Readers for text, Markdown, HTML, JSON lines and Parquet files, and what every reader says of damage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openmai.base.errors import OpenmaiError
from openmai.data.document import Raw
from openmai.data.read.config import Source
from openmai.data.read.stream import Stream

MAX_BYTES = 64 << 20
"""content of one record; what is larger is rejected as extract.size and not read into memory"""
_MAX_LINE = 16 << 20  # JSON may take twenty times as much memory when it is parsed
_MAX_DEPTH = 100
# Keys that go into the document's own columns; everything else goes into its `meta`.
_KNOWN = ("url", "date", "license")
_TOO_LARGE = f"extract.size: more than {MAX_BYTES >> 20} MB"


class Damaged(Exception):
    """A file that cannot be read on from here; the message says why."""


@dataclass(frozen=True)
class Gap:
    """A damaged place that a reader passed over; the message says what is lost and where."""

    message: str


def read_text(file: Path, source: Source) -> Iterator[Raw | Gap]:
    """Yield a text or Markdown file as one record."""
    yield _whole(file, "text/plain")


def read_html(file: Path, source: Source) -> Iterator[Raw | Gap]:
    """Yield an HTML file as one record."""
    yield _whole(file, "text/html")


def read_json(file: Path, source: Source) -> Iterator[Raw | Gap]:
    """Yield the values of a JSON array, or one JSON value."""
    with open(file, "rb") as data:
        content = _content(Stream(data), MAX_BYTES)
    if content is None:
        raise Damaged(f"one JSON value of more than {MAX_BYTES >> 20} MB; turn it into JSON lines")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not valid JSON: {_short(error)}") from None
    for number, row in enumerate(value if isinstance(value, list) else [value]):
        yield _row(row, file, number, source, number == 0)


def read_lines(file: Path, source: Source) -> Iterator[Raw | Gap]:
    """Yield the objects of JSON lines; a line that is none is a gap."""
    is_first = True
    with open(file, "rb") as data:
        stream = Stream(data)
        for place, line in enumerate(stream.lines(_MAX_LINE)):
            if line is None:
                yield Raw(b"", f"{file.name}#{place}", problem=f"extract.size: a line of more than {_MAX_LINE >> 20} MB")
            elif line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield Gap(f"line {place + 1} is not valid JSON ({_short(error)})")
                    continue
                yield _row(row, file, place, source, is_first)
                is_first = False
        if stream.problem:
            raise Damaged(f"{stream.problem} at byte {stream.position} of its text")


def read_parquet(file: Path, source: Source) -> Iterator[Raw | Gap]:
    """Yield the rows of a Parquet file, in batches that bound the memory."""
    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=100):
            for row in batch.to_pylist():
                yield _row(row, file, number, source, number == 0)
                number += 1
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise Damaged(f"not readable as Parquet after {number} rows: {_short(error)}") from None


def _whole(file: Path, mime: str) -> Raw:
    with open(file, "rb") as data:
        stream = Stream(data)
        content = _content(stream, MAX_BYTES)
    return Raw(content or b"", file.name, mime, charset="", problem=_TOO_LARGE if content is None else "")


def _content(stream: Stream, limit: int) -> bytes | None:
    """Return all of a stream, None if it is more than `limit`. Raises Damaged if it breaks."""
    if stream.ensure(limit + 1):
        return None
    if stream.problem:
        raise Damaged(stream.problem)
    return stream.take(len(stream.buffer))


def _row(row: Any, file: Path, number: int, source: Source, is_first: bool) -> Raw:
    """Return a row of a table. One without the text field is a mistake in the source's settings if it is the first, else it is rejected."""
    place, field = f"{file.name}#{number}", source.text_field
    row = row if isinstance(row, dict) else {type(row).__name__: row}
    text = row.get(field, ...)
    if text is ...:
        found = _clean(", ".join(row))[:500]
        if is_first:
            raise OpenmaiError(f"{place}: no text in '{field}' (source '{source.name}'), found {found}; set text_field")
        return Raw(b"", place, problem=f"extract.empty: no '{field}' in the row, found {found}")
    if not isinstance(text, str | bytes | None):
        return Raw(b"", place, problem=f"extract.empty: '{field}' holds no text but {type(text).__name__}")
    content = text.encode("utf-8", errors="replace") if isinstance(text, str) else text or b""
    if len(content) > MAX_BYTES:
        return Raw(b"", place, problem=_TOO_LARGE)
    known = {name: _clean(row[name]) if isinstance(row.get(name), str) else "" for name in _KNOWN}
    charset = "" if isinstance(text, bytes) else "utf-8"
    return Raw(content, known["url"] or place, charset=charset, date=known["date"], license=known["license"], meta=_meta(row, field))


def _meta(row: dict[str, Any], text_field: str) -> str:
    """Return the other columns as a JSON object; without those nested so deeply that a reader of it might fail."""
    rest = {key: value for key, value in row.items() if key not in (text_field, *_KNOWN) and not _is_deep(value)}
    return _clean(json.dumps(rest, ensure_ascii=False, sort_keys=True, default=str)) if rest else "{}"


def _is_deep(value: Any) -> bool:
    level, depth = [value], 0
    while level and depth <= _MAX_DEPTH:
        level = [
            inner for outer in level if isinstance(outer, dict | list) for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    return bool(level)


def _clean(text: str) -> str:
    """Return `text` without what UTF-8 cannot express."""
    return text.encode("utf-8", errors="replace").decode()


def _short(error: Exception) -> str:
    return _clean(" ".join(str(error).split()))[:200]
