"""The one schema that all text has, and the raw records it is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openmai.base.artifact import Artifact

KIND = "documents"

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("url", pa.string()),
        ("source", pa.string()),
        ("license", pa.string()),
        ("language", pa.string()),
        ("date", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("meta", pa.string()),
    ]
)
# A document that is dropped, or may yet be: the same, and which rule dropped it and why; both are "" in a document that stays.
REJECTED_SCHEMA = SCHEMA.append(pa.field("rule", pa.string())).append(pa.field("reason", pa.string()))
RAW_SCHEMA = pa.schema(
    [
        ("content", pa.binary()),
        ("mime", pa.string()),
        ("charset", pa.string()),
        ("status", pa.int32()),
        ("url", pa.string()),
        ("source", pa.string()),
        ("license", pa.string()),
        ("date", pa.string()),
        ("meta", pa.string()),
        ("headers", pa.string()),
        ("problem", pa.string()),
        ("file", pa.string()),
        ("record", pa.int64()),
    ]
)

# How Parquet files are written: no dictionary of what hardly repeats, which takes half as long again to write and twice to read.
PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["source", "license", "language", "date", "rule", "mime", "charset", "file"],
}


@dataclass(frozen=True)
class Raw:
    """One record as a reader found it: bytes of HTML or text, and what is known about them.

    `date` is an ISO day or none; `meta` and `headers` are JSON objects: other columns of a table, and the HTTP headers that say how a page
    may be used (names in lower case: x-robots-tag, tdm-reservation, tdm-policy, content-language, last-modified). `problem` is "" or
    "rule: reason": what was found cannot be used, and the document is rejected so.
    """

    content: bytes
    url: str
    mime: str = "text/plain"
    charset: str = "utf-8"
    status: int = 200
    date: str = ""
    license: str = ""
    meta: str = "{}"
    headers: str = "{}"
    problem: str = ""


def raw_batch(records: Sequence[tuple[str, int, Raw]], source: str, license: str) -> pa.RecordBatch:
    """Return records, each with its file's name and its number in the file, as a batch of RAW_SCHEMA.

    A licence of their own goes before the source's.
    """
    raws = [record for *_, record in records]
    columns: dict[str, list] = {name: [getattr(record, name, None) for record in raws] for name in RAW_SCHEMA.names}
    columns["source"] = [source] * len(records)
    columns["license"] = [record.license or license for record in raws]
    columns["file"] = [file for file, *_ in records]
    columns["record"] = [number for _, number, _ in records]
    return pa.RecordBatch.from_pydict(columns, schema=RAW_SCHEMA)


def document_id(source: str, url: str, text: str) -> str:
    """Return a document's identity, 32 hex digits: the same text of the same place has the same id in every run."""
    return hashlib.blake2b("\0".join((source, url, text)).encode("utf-8", errors="replace"), digest_size=16).hexdigest()


def document_files(artifact: Artifact) -> list[Path]:
    """List the Parquet files of a documents artifact in their canonical order."""
    return [artifact.path / name for name in sorted(artifact.files) if name.startswith("documents/")]


def iter_rows(artifact: Artifact, columns: list[str]) -> Iterator[dict]:
    """Yield the given columns of every document as a dictionary, in order."""
    for file in document_files(artifact):
        for batch in pq.ParquetFile(file).iter_batches(columns=columns):
            yield from batch.to_pylist()


def iter_texts(artifact: Artifact) -> Iterator[str]:
    """Yield every document's text, in order."""
    for row in iter_rows(artifact, ["text"]):
        yield row["text"]


def count_bytes(artifact: Artifact) -> int:
    """Count the UTF-8 bytes of all texts."""
    return sum(len(text.encode()) for text in iter_texts(artifact))
