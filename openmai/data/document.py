"""The document: one row of text with its origin, the same Parquet schema from the first stage to the last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
REJECTED_SCHEMA = SCHEMA.append(pa.field("rule", pa.string())).append(pa.field("reason", pa.string()))


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
