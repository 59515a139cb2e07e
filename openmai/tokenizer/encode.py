"""`tokenizer encode`: documents to token shards `train-<source>` and `val-<source>`.

Beside each shard lies a Parquet table that leads from its sequences back to their documents.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.progress import Progress, say
from openmai.data.document import count_bytes, iter_rows
from openmai.tokenizer.config import EncodeConfig
from openmai.tokenizer.shards import write_shard
from openmai.tokenizer.tokenizer import Tokenizer

SPLITS = ("train", "val")
_BATCH = 512


def encode(config: EncodeConfig) -> Artifact:
    """Encode all documents; each ends with the end-of-text token."""
    sources = [Artifact.load(path, "documents") for path in config.documents]
    vocabulary = Artifact.load(config.tokenizer, "tokenizer")
    with create(config.out, kind="shards", version=1, config=config, inputs=[*sources, vocabulary]) as work:
        if work.finished:
            return work.finished
        os.environ["RAYON_NUM_THREADS"] = str(config.workers or os.cpu_count())
        tokenizer = Tokenizer.load(vocabulary.path)
        names = sorted({row["source"] for source in sources for row in iter_rows(source, ["source"])})
        total = sum(count_bytes(source) for source in sources)
        counts: dict[str, dict[str, dict[str, int]]] = {split: {} for split in SPLITS}
        with Progress("encode", total / 1e6, "MB") as progress:
            for split, name in product(SPLITS, names):
                rows = _rows(sources, split, name, config.validation)
                counts[split][name] = _write(work.path / f"{split}-{name}", rows, tokenizer, progress)
        tokens = {split: sum(count["tokens"] for count in counts[split].values()) for split in SPLITS}
        if not tokens["train"]:
            raise OpenmaiError(f"{config.documents[0]}: no documents to encode")
        say(f"shards: {tokens['train']:,} training tokens, {tokens['val']:,} for validation, from {', '.join(names)}")
        return work.finish({"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint, "splits": counts})


def is_validation(document_id: str, share: float) -> bool:
    """Decide by the hash of a document's id whether it belongs to the validation split."""
    number = int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "big")
    return number < share * 2**64


def _rows(sources: list[Artifact], split: str, name: str, share: float) -> Iterator[dict]:
    for source in sources:
        for row in iter_rows(source, ["id", "source", "text"]):
            if row["source"] == name and is_validation(row["id"], share) == (split == "val"):
                yield row


def _write(prefix: Path, rows: Iterator[dict], tokenizer: Tokenizer, progress: Progress) -> dict[str, int]:
    """Write one shard and the table of its documents; return its counts."""
    table: list[dict] = []

    def sequences() -> Iterator[list[int]]:
        while batch := list(islice(rows, _BATCH)):
            for row, ids in zip(batch, tokenizer.encode_batch([row["text"] for row in batch]), strict=True):
                size = len(row["text"].encode())
                progress.advance(size / 1e6)
                table.append({"id": row["id"], "tokens": len(ids) + 1, "bytes": size})
                yield [*ids, tokenizer.end_of_text]

    documents, tokens = write_shard(prefix, sequences(), tokenizer.vocab_size)
    schema = pa.schema([("id", pa.string()), ("tokens", pa.int32()), ("bytes", pa.int64())])
    pq.write_table(pa.Table.from_pylist(table, schema), prefix.with_suffix(".parquet"), compression="zstd")
    return {"documents": documents, "tokens": tokens, "bytes": sum(row["bytes"] for row in table)}
