"""Which documents are held out, and which a tokenizer learns from: an even, repeatable sample, weighted by source."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openmai.base.artifact import Artifact
from openmai.base.errors import OpenmaiError
from openmai.data.document import document_files

_COLUMNS = ["id", "source", "language", "text"]
Keep = Callable[[str], bool]


def is_validation(document_id: str, share: float) -> bool:
    """Decide by the hash of a document's id whether it belongs to the validation split; a larger share holds all of a smaller one."""
    number = int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "big")
    return number < share * 2**64


def count_sources(documents: list[Artifact], keep: Keep = lambda document_id: True) -> dict[str, int]:
    """Count the bytes of text by source, of the documents whose id `keep` accepts; sources in alphabetical order."""
    sizes: Counter[str] = Counter()
    for batch in _batches(documents):
        lengths = pc.binary_length(batch["text"]).to_pylist()
        for document_id, source, size in zip(batch["id"].to_pylist(), batch["source"].to_pylist(), lengths, strict=True):
            sizes[source] += size if keep(document_id) else 0
    return dict(sorted(sizes.items()))


def rates(sizes: dict[str, int], weights: dict[str, float], max_bytes: float) -> dict[str, float]:
    """Return how often to take each document of a source, so that the sources' bytes stand in the ratio of `weights`.

    Together they give at most `max_bytes` and at most what the named sources hold. Raises OpenmaiError for a source that has no text.
    """
    missing = sorted(source for source in weights if not sizes.get(source))
    if missing:
        raise OpenmaiError(f"weights.{missing[0]}: no text of this source in the documents; known: {', '.join(sizes)}")
    weights = weights or {source: size for source, size in sizes.items() if size}
    budget, total = min(max_bytes, sum(sizes[source] for source in weights)), sum(weights.values())
    return {source: budget * weight / total / sizes[source] for source, weight in weights.items()}


def take(documents: list[Artifact], rate: dict[str, float], keep: Keep = lambda document_id: True) -> Iterator[tuple[str, str, str]]:
    """Yield source, language and text of a sample: every 1/rate-th document of a source, or each one several times."""
    due: dict[str, float] = defaultdict(float)
    for batch in _batches(documents):
        rows: list[int] = []
        for row, (document_id, source) in enumerate(zip(batch["id"].to_pylist(), batch["source"].to_pylist(), strict=True)):
            if source in rate and keep(document_id):
                due[source] += rate[source]
                times = int(due[source] + 1e-9)
                due[source] -= times
                rows += [row] * times
        for chosen in batch.select(_COLUMNS[1:]).take(rows).to_pylist():
            yield chosen["source"], chosen["language"], chosen["text"]


def _batches(documents: list[Artifact]) -> Iterator[pa.RecordBatch]:
    for file in (file for artifact in documents for file in document_files(artifact)):
        yield from pq.ParquetFile(file).iter_batches(256, columns=_COLUMNS)
