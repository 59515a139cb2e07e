"""The per-document half of `data build`: each part of a source is annotated once and kept.

A part is a run of records of one file. Its name is the hash of all that decides about its content: the file's bytes, the source's
settings, the annotation's settings and the code that annotates. So a second build, with other thresholds or after a kill, annotates
exactly what is new; and since a part appears under its name only when it is whole, any number of processes may share the folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openmai.base.artifact import Artifact
from openmai.base.config import Config
from openmai.base.errors import OpenmaiError
from openmai.base.files import atomic_file, hash_file, hash_inputs, hash_value
from openmai.base.progress import say
from openmai.data.config import Annotation, BuildConfig
from openmai.data.document import Raw, raw_batch
from openmai.data.engine.pool import Pool
from openmai.data.engine.steps import part_schema
from openmai.data.read.config import Source
from openmai.data.read.files import Damaged, Gap
from openmai.data.read.sources import license_of, read

_BATCH_ROWS, _BATCH_BYTES = 64, 1 << 20
_ABOUT = b"openmai.part"
# What decides about a part's content, and what besides about a build's.
_PART_CODE = ("document.py", "engine/steps.py", "read", "extract", "filter", "dedup/fingerprint.py")
_BUILD_CODE = ("build.py", "dedup", "engine")
_NOT_PART_CODE = ("filter/rules.py", "filter/config.py")
_LIBRARIES = ("resiliparse", "fastwarc", "py3langid")
_MAX_DAMAGES = 20


@dataclass(frozen=True)
class Part:
    """An annotated part: where it comes from, how much it holds, and what was damaged in its file up to its end."""

    key: str
    file: str
    source: str
    start: int
    records: int
    text_bytes: int
    is_last: bool
    damages: list[str]


class Parts:
    """The folder of annotated parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Return the file of a part."""
        return self.folder / f"{key}.parquet"

    def load(self, key: str) -> Part | None:
        """Return what is known of a part, None if it is not there."""
        try:
            about = pq.read_schema(self.path(key)).metadata[_ABOUT]
        except FileNotFoundError:
            return None
        except (pa.ArrowInvalid, KeyError, TypeError):
            raise OpenmaiError(f"{self.path(key)}: damaged; delete it, and it is made again") from None
        return Part(**json.loads(about))

    def add(self, part: Part, batches: list[pa.RecordBatch], schema: pa.Schema) -> None:
        """Store a part's documents, whole or not at all."""
        table = pa.Table.from_batches(batches, schema=schema).replace_schema_metadata({_ABOUT: json.dumps(asdict(part))})
        with atomic_file(self.path(part.key)) as file:
            pq.write_table(table, file, compression="zstd", compression_level=1)


def annotate_file(config: BuildConfig, source: Source, file: Path, parts: Parts, pool: Pool) -> Iterator[Part]:
    """Yield the parts of a file in order, annotating those that are not there yet.

    Raises OpenmaiError for a file that cannot be read or is damaged, unless its source says `on_error: skip`.
    """
    base, index, records = _key(config, source, file), 0, None
    while True:
        key = hash_value([base, index])
        part = parts.load(key)
        if part is None:
            start = index * config.part_records
            if records is None:
                records = _Records(read(file, source), start)
            batches = list(pool.run(_batches(records.take(config.part_records), source, file, start)))
            _check_damages(records.damages, file, source)
            text_bytes = sum(batch["text"].nbytes for batch in batches)
            count = sum(batch.num_rows for batch in batches)
            part = Part(key, file.name, source.name, start, count, text_bytes, records.is_at_end, records.damages)
            parts.add(part, batches, part_schema(config))
        yield part
        if part.is_last:
            if part.damages:
                say(f"{file}: {'; '.join(part.damages)}; the rest is kept (on_error: skip)")
            return
        index += 1


def annotate_whole_file(config: BuildConfig, source: Source, file: Path, folder: Path) -> list[Part]:
    """Annotate a file: a task on a cluster. Its workers stay for the next task of this process and end with it."""
    return list(annotate_file(config, source, file, Parts(folder), _pool_of(config.model_dump_json())))


@lru_cache(maxsize=1)
def _pool_of(plain: str) -> Pool:
    config = BuildConfig.model_validate_json(plain)
    return Pool(config.workers, config)


def _check_damages(damages: list[str], file: Path, source: Source) -> None:
    if damages and source.on_error == "fail":
        raise OpenmaiError(
            f"{file}: {damages[0]}; get the file again, or keep the good records with on_error: skip in source '{source.name}'"
        )


class _Records:
    """The records of one file, taken in parts; looks one record ahead to know the last part as such."""

    def __init__(self, records: Iterator[Raw | Gap], skip: int) -> None:
        self.records, self.count, self.unlisted = records, 0, 0
        self.damages: list[str] = []
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
            while isinstance(record := next(self.records, None), Gap):
                self._note(record.message)
        except Damaged as error:
            self._note(f"{error}; {self.count} good records before")
            return None
        self.count += record is not None
        return record

    def _note(self, damage: str) -> None:
        if len(self.damages) < _MAX_DAMAGES:
            self.damages.append(damage)
        else:
            self.unlisted += 1
            self.damages[_MAX_DAMAGES:] = [f"and {self.unlisted} more places"]


def _batches(records: Iterator[Raw], source: Source, file: Path, start: int) -> Iterator[pa.RecordBatch]:
    """Group records so that a batch is worth its way to a worker and a lost one costs little."""
    group: list[Raw] = []
    size = 0
    for record in records:
        group.append(record)
        size += len(record.content)
        if len(group) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield raw_batch(group, source.name, license_of(source), file.name, start)
            start, group, size = start + len(group), [], 0
    if group:
        yield raw_batch(group, source.name, license_of(source), file.name, start)


def _key(config: BuildConfig, source: Source, file: Path) -> str:
    """Return the identity of a file's parts: everything that their content depends on."""
    facts: dict[str, Any] = source.model_dump(include={"name", "license", "text_field", "on_error"})
    limit = source.huggingface.limit if source.huggingface else None
    annotation = hash_value([{name: _plain(getattr(config, name)) for name in Annotation.model_fields}])
    return hash_value([hash_file(file), file.name, facts, license_of(source), limit, config.part_records, annotation, part_code()])


def _plain(value: Any) -> Any:
    """Return a setting as plain values; a path stands for what it holds."""
    if isinstance(value, Path):
        return hash_file(value) if value.is_file() else Artifact.load(value).digest
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value} if isinstance(value, Config) else value


@cache
def part_code() -> str:
    """Return the hash of the code and the libraries that decide about a part's content."""
    return hash_value([_hash_code(_PART_CODE, _NOT_PART_CODE), [version(name) for name in _LIBRARIES]])


def build_code() -> str:
    """Return the hash of the code that decides about a build."""
    return hash_value([part_code(), _hash_code(_NOT_PART_CODE + _BUILD_CODE)])


def _hash_code(names: tuple[str, ...], without: tuple[str, ...] = ()) -> str:
    root = Path(__file__).parents[1]
    files = [file for name in names for file in ([root / name] if name.endswith(".py") else sorted((root / name).rglob("*.py")))]
    return hash_inputs([file for file in files if str(file.relative_to(root)) not in without])


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the documents of a Parquet file, a bounded number in memory."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=200, columns=columns):
        yield from batch.to_pylist()


def parts_folder(config: BuildConfig) -> Path:
    """Return where the parts of a build lie."""
    return config.parts or Path(f"{os.path.normpath(config.out)}.parts")
