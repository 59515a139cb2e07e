"""Readers for JSON lines, Parquet, text and HTML files."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from openmai.base.errors import OpenmaiError
from openmai.data.document import Raw
from openmai.data.read.config import Source

# Keys that go into the document's own columns; everything else goes into its `meta`.
_KNOWN = ("url", "date", "license")


class Damaged(Exception):
    """A file that cannot be read on from here; the message says why."""


def read_text(file: Path, source: Source) -> Iterator[Raw]:
    """Yield a text or Markdown file as one record."""
    yield Raw(content=file.read_bytes(), url=file.name, mime="text/plain", charset="")


def read_html(file: Path, source: Source) -> Iterator[Raw]:
    """Yield an HTML file as one record."""
    yield Raw(content=file.read_bytes(), url=file.name, mime="text/html", charset="")


def read_json(file: Path, source: Source) -> Iterator[Raw]:
    """Yield the objects of JSON lines, or of one JSON array or object."""
    if file.name.lower().endswith(".json"):
        try:
            value = json.loads(file.read_bytes())
        except ValueError as error:
            raise Damaged(f"not valid JSON: {error}") from None
        rows = value if isinstance(value, list) else [value]
        yield from (_row(row, f"{file.name}#{number}", source) for number, row in enumerate(rows))
        return
    for number, line in enumerate(_lines(file)):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise Damaged(f"line {number + 1} is not valid JSON") from None
        yield _row(row, f"{file.name}#{number}", source)


def read_parquet(file: Path, source: Source) -> Iterator[Raw]:
    """Yield the rows of a Parquet file, in batches that bound the memory."""
    try:
        table = pq.ParquetFile(file)
        number = 0
        for batch in table.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                yield _row(row, f"{file.name}#{number}", source)
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise Damaged(f"not readable as Parquet: {' '.join(str(error).split())[:200]}") from None


def _row(row: Any, place: str, source: Source) -> Raw:
    text = row.get(source.text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise OpenmaiError(f"{place}: no text in '{source.text_field}' (source '{source.name}'), found {found}; set text_field")
    known = {name: row[name] if isinstance(row.get(name), str) else "" for name in _KNOWN}
    rest = {key: value for key, value in row.items() if key not in (source.text_field, *_KNOWN)}
    meta = json.dumps(rest, ensure_ascii=False, sort_keys=True, default=str)
    content = text.encode("utf-8", errors="replace")
    return Raw(content=content, url=known["url"] or place, date=known["date"], license=known["license"], meta=meta)


def _lines(file: Path) -> Iterator[bytes]:
    name = file.name.lower()
    try:
        with open(file, "rb") as raw:
            stream: IO[bytes] = raw
            if name.endswith(".gz"):
                stream = gzip.GzipFile(fileobj=raw)  # type: ignore[assignment]
            elif name.endswith(".zst"):
                stream = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
            yield from stream
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise Damaged(f"compressed data broken off or damaged ({' '.join(str(error).split())})") from None
