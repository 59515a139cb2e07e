"""Sources into annotated parts: files are read here, their records annotated by a pool of workers, and every finished part is kept."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from openmai.base.artifact import Artifact
from openmai.base.config import Config
from openmai.base.errors import OpenmaiError
from openmai.base.files import hash_file, hash_value
from openmai.base.progress import say
from openmai.data.config import Annotation, BuildConfig
from openmai.data.document import Raw, raw_batch
from openmai.data.engine.parts import Part, Parts, part_code
from openmai.data.engine.pool import Pool
from openmai.data.engine.steps import part_schema
from openmai.data.read.config import Source
from openmai.data.read.files import Damaged, Gap
from openmai.data.read.sources import license_of, read

_BATCH_ROWS, _BATCH_BYTES = 64, 1 << 20
_SMALL_FILE, _SMALL_FILES = 1 << 18, 1 << 24  # bytes of a file that is annotated together with others, and of all of them
_MAX_DAMAGES = 20

Placed = tuple[str, int, Raw]  # name of the file, number of the record in it, the record


@dataclass(frozen=True)
class Unit:
    """What is annotated as one: a file, or some small files of a source."""

    source: Source
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.files[0]) if len(self.files) == 1 else f"{self.files[0]} to {self.files[-1].name}"


def units_of(source: Source, files: Sequence[Path], most: int) -> list[Unit]:
    """Group the small files of a source, at most `most` together.

    A group ends where the hash of a file's name says so, so that a new file changes one group and leaves the others as they are.
    """
    units: list[Unit] = []
    group: list[Path] = []
    size = 0
    for file in files:
        small = file.stat().st_size <= _SMALL_FILE
        if group and (not small or len(group) == most or size > _SMALL_FILES):
            units.append(Unit(source, tuple(group)))
            group, size = [], 0
        if small:
            group.append(file)
            size += file.stat().st_size
            ends = hashlib.blake2b(file.name.encode(), digest_size=1).digest()[0] < 4  # one in 64
        if not small or ends:
            units.append(Unit(source, tuple(group) if small else (file,)))
            group, size = [], 0
    return [*units, Unit(source, tuple(group))] if group else units


def annotate_units(config: BuildConfig, units: Sequence[Unit], parts: Parts, pool: Pool) -> Iterator[tuple[int, Part]]:
    """Yield (number of its unit, part) of all parts in order, annotating those that are not there yet.

    The workers go on with the next part while one is being finished. Raises OpenmaiError for a file that cannot be read or is damaged,
    unless its source says `on_error: skip`.
    """
    queue: deque[_Pending] = deque()
    annotation = _annotation_key(config)
    batches = pool.run(
        batch for number, unit in enumerate(units) for batch in _unit_batches(config, annotation, number, unit, parts, queue)
    )
    for batch in batches:
        next(pending for pending in queue if not pending.is_complete).batches.append(batch)
        yield from _finished(config, units, parts, queue)
    yield from _finished(config, units, parts, queue)


def annotate_unit(config: BuildConfig, unit: Unit, folder: Path) -> list[Part]:
    """Annotate a unit: a task on a cluster. Its workers stay for the next task of this process and end with it."""
    return [part for _, part in annotate_units(config, [unit], Parts(folder), _pool_of(config.model_dump_json()))]


@lru_cache(maxsize=1)
def _pool_of(plain: str) -> Pool:
    config = BuildConfig.model_validate_json(plain)
    return Pool(config.workers, config)


@dataclass
class _Pending:
    """A part that is there, or whose batches are on their way."""

    unit: int
    key: str
    part: Part | None = None
    expected: int | None = None
    batches: list[pa.RecordBatch] = field(default_factory=list)
    is_last: bool = False
    damages: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return self.part is not None or len(self.batches) == self.expected


def _finished(config: BuildConfig, units: Sequence[Unit], parts: Parts, queue: deque[_Pending]) -> Iterator[tuple[int, Part]]:
    """Yield the parts that are complete, up to the first that is not; store those that are new."""
    while queue and queue[0].is_complete:
        pending = queue.popleft()
        unit, part = units[pending.unit], pending.part
        if part is None:
            _check_damages(pending.damages, unit)
            text_bytes = sum(batch["text"].nbytes for batch in pending.batches)
            records = sum(batch.num_rows for batch in pending.batches)
            part = Part(pending.key, unit.files[0].name, unit.source.name, records, text_bytes, pending.is_last, pending.damages)
            parts.add(part, pending.batches, part_schema(config))
        if part.is_last and part.damages:
            say(f"{unit.name}: {'; '.join(part.damages)}; the rest is kept (on_error: skip)")
        yield pending.unit, part


def _check_damages(damages: list[str], unit: Unit) -> None:
    if damages and unit.source.on_error == "fail":
        raise OpenmaiError(
            f"{unit.name}: {damages[0]}; get the file again, or keep the good records with on_error: skip in source '{unit.source.name}'"
        )


def _unit_batches(
    config: BuildConfig, annotation: str, number: int, unit: Unit, parts: Parts, queue: deque[_Pending]
) -> Iterator[pa.RecordBatch]:
    """Put the unit's parts into the queue; yield the raw batches of those that are not there yet."""
    base, records = _key(config, annotation, unit), None
    for index in range(1 << 62):
        pending = _Pending(number, hash_value([base, index]))
        pending.part = parts.load(pending.key)
        queue.append(pending)
        if pending.part is None:
            if records is None:
                records = _Records(unit, index * config.part_records)
            count = 0
            for batch in _batches(records.take(config.part_records), unit.source):
                count += 1
                yield batch
            pending.is_last, pending.damages, pending.expected = records.is_at_end, list(records.damages), count
        if pending.part.is_last if pending.part else pending.is_last:
            return


class _Records:
    """The records of a unit, taken in parts; looks one record ahead to know the last part as such."""

    def __init__(self, unit: Unit, skip: int) -> None:
        self.damages: list[str] = []
        self.unlisted = 0
        self.records = self._read(unit)
        for _ in range(skip):
            next(self.records, None)
        self.ahead = next(self.records, None)

    @property
    def is_at_end(self) -> bool:
        return self.ahead is None

    def take(self, count: int) -> Iterator[Placed]:
        """Yield up to `count` records."""
        for _ in range(count):
            if self.ahead is None:
                return
            yield self.ahead
            self.ahead = next(self.records, None)

    def _read(self, unit: Unit) -> Iterator[Placed]:
        for file in unit.files:
            name = f"{file.name}: " if len(unit.files) > 1 else ""
            count = 0
            try:
                for record in read(file, unit.source):
                    if isinstance(record, Gap):
                        self._note(name + record.message)
                    else:
                        yield file.name, count, record
                        count += 1
            except Damaged as error:
                self._note(f"{name}{error}; {count} good records before")

    def _note(self, damage: str) -> None:
        if len(self.damages) < _MAX_DAMAGES:
            self.damages.append(damage)
        else:
            self.unlisted += 1
            self.damages[_MAX_DAMAGES:] = [f"and {self.unlisted} more places"]


def _batches(records: Iterator[Placed], source: Source) -> Iterator[pa.RecordBatch]:
    """Group records so that a batch is worth its way to a worker and a lost one costs little."""
    group: list[Placed] = []
    size = 0
    for record in records:
        group.append(record)
        size += len(record[2].content)
        if len(group) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield raw_batch(group, source.name, license_of(source))
            group, size = [], 0
    if group:
        yield raw_batch(group, source.name, license_of(source))


def _annotation_key(config: BuildConfig) -> str:
    return hash_value([{name: _plain(getattr(config, name)) for name in Annotation.model_fields}, part_code(), config.part_records])


def _key(config: BuildConfig, annotation: str, unit: Unit) -> str:
    """Return the identity of a unit's parts: everything that their content depends on."""
    source = unit.source
    facts: dict[str, Any] = source.model_dump(include={"name", "license", "text_field", "on_error"})
    limit = source.huggingface.limit if source.huggingface else None
    return hash_value([[(hash_file(file), file.name) for file in unit.files], facts, license_of(source), limit, annotation])


def _plain(value: Any) -> Any:
    """Return a setting as plain values; a path stands for what it holds."""
    if isinstance(value, Path):
        return hash_file(value) if value.is_file() else Artifact.load(value).digest
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value} if isinstance(value, Config) else value
