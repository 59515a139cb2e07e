"""The work of `tokenizer encode` in pieces: a row group of the documents is encoded into a folder of its own; folders are joined in order.

The order of pieces is that of the documents, so the shards are the same for any number of workers, and a kill costs the pieces in hand.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openmai.base.artifact import Artifact
from openmai.base.files import atomic_file, sync_folder
from openmai.data.document import document_files
from openmai.tokenizer import fim
from openmai.tokenizer.fast import Encoder
from openmai.tokenizer.shards import write_index

TABLE = pa.schema([("id", pa.string()), ("tokens", pa.int32()), ("bytes", pa.int64()), ("fim", pa.string())])
_BATCH_ROWS = 256


@dataclass(frozen=True)
class Piece:
    """One row group of a Parquet file of documents; `bytes` is about the size of its texts."""

    number: int
    file: Path
    group: int
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What decides about the ids of a document: `split` names the one it belongs to, `fim` rates are by source."""

    split: Callable[[str], str]
    fim: dict[str, float]
    spm: float
    tokens: Sequence[int]  # fim prefix, middle, suffix, end of text
    dtype: type[np.generic]


def pieces_of(sources: list[Artifact]) -> list[Piece]:
    """List the row groups of all documents in order."""
    pieces: list[Piece] = []
    for file in (file for source in sources for file in document_files(source)):
        metadata = pq.ParquetFile(file).metadata
        column = metadata.schema.names.index("text")
        for group in range(metadata.num_row_groups):
            pieces.append(Piece(len(pieces), file, group, metadata.row_group(group).column(column).total_uncompressed_size))
    return pieces


def encode_piece(piece: Piece, folder: Path, encoder: Encoder, plan: Plan, advance: Callable[[int], None]) -> None:
    """Write ids and tables of a piece's documents, by split and source, into `folder`, which appears when it is whole."""
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    files: dict[str, IO[bytes]] = {}
    tables: dict[str, list[pa.RecordBatch]] = defaultdict(list)
    with ExitStack() as stack:
        for batch in pq.ParquetFile(piece.file).iter_batches(_BATCH_ROWS, row_groups=[piece.group], columns=["id", "source", "text"]):
            for name, ids, table in _encode_batch(batch, encoder, plan):
                if name not in files:
                    files[name] = stack.enter_context(open(unfinished / f"{name}.bin", "wb"))
                files[name].write(ids.data)
                tables[name].append(table)
                advance(sum(table["bytes"].to_pylist()))
        for name, file in files.items():
            file.flush()
            os.fsync(file.fileno())
            with atomic_file(unfinished / f"{name}.parquet") as target:
                pq.write_table(pa.Table.from_batches(tables[name], TABLE), target, compression="zstd")
    os.replace(unfinished, folder)
    sync_folder(folder.parent)


def _encode_batch(batch: pa.RecordBatch, encoder: Encoder, plan: Plan) -> Iterator[tuple[str, NDArray[np.generic], pa.RecordBatch]]:
    """Yield shard name, ids and table for each split and source in a batch."""
    data, offsets = _text_of(batch["text"])
    names, sources = batch["id"].to_pylist(), batch["source"].to_pylist()
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, (name, source) in enumerate(zip(names, sources, strict=True)):
        groups[plan.split(name), source].append(row)
    for (split, source), rows in groups.items():
        rate = plan.fim.get(source, 0.0) if split == "train" else 0.0
        choices = [fim.choose(names[row], rate, plan.spm) if rate else ("", 0.0, 0.0) for row in rows]
        spans, lasts = [], []
        for row, choice in zip(rows, choices, strict=True):
            spans += fim.rearrange(data, offsets[row], offsets[row + 1], choice, plan.tokens)
            lasts.append(len(spans) - 1)
        ids, marks = encoder.encode(data, np.array(spans, np.int64))
        columns: dict[str, Any] = {
            "id": [names[row] for row in rows],
            "tokens": np.diff(marks[lasts], prepend=0).astype(np.int32),
            "bytes": [offsets[row + 1] - offsets[row] for row in rows],
            "fim": [choice[0] for choice in choices],
        }
        yield f"{split}-{source}", ids.astype(plan.dtype), pa.RecordBatch.from_pydict(columns, TABLE)


def _text_of(column: pa.Array) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the bytes of a text column as they lie in memory, and where each text begins and the last ends."""
    column = column.cast(pa.large_string())
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8), ends.tolist()


def join(folders: list[Path], prefix: Path, dtype: type[np.generic]) -> dict[str, int]:
    """Join the pieces' files named like `prefix` to one shard and its table; return its counts. Memory does not grow with the corpus."""
    parts = [folder / prefix.name for folder in folders if (folder / f"{prefix.name}.bin").exists()]
    with atomic_file(prefix.with_name(f"{prefix.name}.bin")) as target:
        for part in parts:
            with open(f"{part}.bin", "rb") as file:
                shutil.copyfileobj(file, target, 1 << 22)
    counts = {"documents": 0, "tokens": 0, "bytes": 0}
    with atomic_file(prefix.with_name(f"{prefix.name}.parquet")) as target, pq.ParquetWriter(target, TABLE, compression="zstd") as writer:
        for part in parts:
            table = pq.read_table(f"{part}.parquet", schema=TABLE)
            writer.write_table(table)
            counts["documents"] += table.num_rows
            for column in ("tokens", "bytes"):
                counts[column] += int(table[column].to_numpy().sum())
            rearranged = table.num_rows - table["fim"].to_pylist().count("")
            if rearranged:
                counts["fim"] = counts.get("fim", 0) + rearranged

    def lengths() -> Iterator[NDArray[np.int32]]:
        for part in parts:
            yield pq.read_table(f"{part}.parquet", columns=["tokens"])["tokens"].to_numpy()

    write_index(prefix, lengths, counts["documents"], dtype)
    return counts
