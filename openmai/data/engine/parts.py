"""The per-document half of `data build`: each part of a source is annotated once and kept until the build is finished."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openmai.base.errors import OpenmaiError
from openmai.base.files import atomic_file, hash_file, hash_value
from openmai.base.progress import Progress, say
from openmai.data.config import BuildConfig
from openmai.data.document import REJECTED_SCHEMA, Raw, raw_batch
from openmai.data.engine.pool import Pool
from openmai.data.engine.steps import VERSION
from openmai.data.read.config import Source
from openmai.data.read.sources import Damaged, files_of, license_of, read

_BATCH_ROWS, _BATCH_BYTES = 64, 1 << 20


@dataclass(frozen=True)
class Part:
    """A finished part: its key, its records, and whether it is the last of its file, with the file's damage if there is any."""

    key: str
    source: int
    file: str
    records: int
    is_last: bool
    damage: str = ""


class Ledger:
    """Finished parts by key, in a file that only grows; a half-written last line is a part that is not finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "ledger.jsonl"
        self.parts: dict[str, Part] = {}
        for line in self.file.read_text().splitlines() if self.file.exists() else []:
            try:
                part = Part(**json.loads(line))
            except json.JSONDecodeError:
                continue
            if self.path(part.key).exists():
                self.parts[part.key] = part

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.parquet"

    def add(self, part: Part, batches: list[pa.RecordBatch]) -> None:
        """Store a part's documents, then its line."""
        with atomic_file(self.path(part.key)) as file:
            pq.write_table(pa.Table.from_batches(batches, schema=REJECTED_SCHEMA), file, compression="zstd")
        with open(self.file, "a") as ledger:
            ledger.write("\n" * _is_cut(self.file) + json.dumps(asdict(part)) + "\n")
            ledger.flush()
            os.fsync(ledger.fileno())
        self.parts[part.key] = part


def _is_cut(file: Path) -> bool:
    data = file.read_bytes()[-1:]
    return data not in (b"", b"\n")


def annotate_sources(config: BuildConfig, folder: Path) -> list[tuple[Part, Path]]:
    """Return all parts of all sources in canonical order, annotating those that the ledger in `folder` does not have.

    Raises OpenmaiError for a source that cannot be read, unless it says `on_error: skip`.
    """
    ledger, parts = Ledger(folder / "parts"), []
    files = [(number, file) for number, source in enumerate(config.sources) for file in files_of(source, folder / "downloads")]
    with Pool(config.workers, config.limits) as pool, Progress("documents", None, "records") as progress:
        for done, (number, file) in enumerate(files):
            for part in _file_parts(config, number, file, ledger, pool):
                parts.append((part, ledger.path(part.key)))
                progress.advance(part.records, files=f"{done + part.is_last}/{len(files)}")
    return parts


def _file_parts(config: BuildConfig, number: int, file: Path, ledger: Ledger, pool: Pool) -> Iterator[Part]:
    source, index, records = config.sources[number], 0, None
    base = _key(config, source, file)
    while True:
        key = hash_value([base, index])
        if key not in ledger.parts:
            if records is None:
                records = _Records(read(file, source), index * config.part_records)
            batches = list(pool.run(_batches(records.take(config.part_records), source)))
            part = Part(key, number, file.name, sum(batch.num_rows for batch in batches), records.is_at_end)
            ledger.add(_finished(part, records, file, source), batches)
        part = ledger.parts[key]
        if part.damage and records is None:
            say(f"data build: {file}: {part.damage}")
        yield part
        if part.is_last:
            return
        index += 1


def _finished(part: Part, records: _Records, file: Path, source: Source) -> Part:
    """Return the part with its file's damage; raises OpenmaiError for damage that the source does not allow."""
    if not records.damage:
        return part
    damage = f"{records.damage}; {records.count} good records before"
    if source.on_error == "fail":
        raise OpenmaiError(f"{file}: {damage}; get the file again, or keep the good records with on_error: skip in source '{source.name}'")
    say(f"data build: {file}: {damage}; they are kept, the rest is lost (on_error: skip)")
    return Part(**asdict(part) | {"damage": damage})


class _Records:
    """The records of one file, taken in parts; looks one record ahead to know the last part as such."""

    def __init__(self, records: Iterator[Raw], skip: int) -> None:
        self.records, self.damage, self.count = records, "", 0
        for _ in range(skip):
            self._next()
        self.ahead = self._next()

    @property
    def is_at_end(self) -> bool:
        return self.ahead is None

    def take(self, count: int) -> Iterator[Raw]:
        """Yield up to `count` records."""
        for _ in range(count):
            if self.ahead is None:
                return
            yield self.ahead
            self.ahead = self._next()

    def _next(self) -> Raw | None:
        try:
            record = next(self.records, None)
        except Damaged as error:
            self.damage = str(error)
            return None
        self.count += record is not None
        return record


def _batches(records: Iterator[Raw], source: Source) -> Iterator[pa.RecordBatch]:
    """Group records so that a batch is worth its way to a worker and a lost one costs little."""
    group: list[Raw] = []
    size = 0
    for record in records:
        group.append(record)
        size += len(record.content)
        if len(group) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield raw_batch(group, source.name, license_of(source))
            group, size = [], 0
    if group:
        yield raw_batch(group, source.name, license_of(source))


def _key(config: BuildConfig, source: Source, file: Path) -> str:
    """Return the identity of a file's parts: everything that their content depends on."""
    facts: dict[str, Any] = source.model_dump(include={"name", "license", "text_field", "on_error"})
    limit = source.huggingface.limit if source.huggingface else None
    return hash_value(
        [hash_file(file), file.name, facts, license_of(source), limit, config.part_records, config.limits.model_dump(), VERSION]
    )


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the documents of a Parquet file, a bounded number in memory."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=200):
        yield from batch.to_pylist()
