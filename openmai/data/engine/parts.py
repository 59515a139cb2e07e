"""The per-document half of `data build`: each part of a source is annotated once and kept.

A part is a run of records of one file, or of some small files. Its name is the hash of all that decides about its content: the files'
bytes, the source's settings, the annotation's settings and the code that annotates. So a second build, with other thresholds or after a
kill, annotates exactly what is new; and since a part appears under its name only when it is whole, any number of processes may share the
folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openmai.base.errors import OpenmaiError
from openmai.base.files import atomic_file, hash_inputs, hash_value
from openmai.data.config import BuildConfig
from openmai.data.document import PARQUET

_ABOUT = b"openmai.part"
# What decides about a part's content, and what besides about a build's.
_PART_CODE = ("document.py", "engine/steps.py", "read", "extract", "filter", "dedup/fingerprint.py")
_BUILD_CODE = ("build.py", "dedup", "engine")
_NOT_PART_CODE = ("filter/rules.py", "filter/config.py", "read/commoncrawl.py", "read/download.py", "read/huggingface.py", "read/remote.py")
_LIBRARIES = ("resiliparse", "fastwarc", "py3langid")


@dataclass(frozen=True)
class Part:
    """An annotated part: where it comes from, how much it holds, and what was damaged in its files up to its end."""

    key: str
    file: str
    source: str
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
            pq.write_table(table, file, compression_level=1, **PARQUET)


@cache
def part_code() -> str:
    """Return the hash of the code and the libraries that decide about a part's content."""
    return hash_value([_hash_code(_PART_CODE, _NOT_PART_CODE), [version(name) for name in _LIBRARIES]])


def build_code() -> str:
    """Return the hash of the code that decides about a build."""
    return hash_value([part_code(), _hash_code(_NOT_PART_CODE + _BUILD_CODE)])


def _hash_code(names: tuple[str, ...], without: tuple[str, ...] = ()) -> str:
    root = Path(__file__).parents[1]
    found = [file for name in names for file in ([root / name] if name.endswith(".py") else sorted((root / name).rglob("*")))]
    files = [file for file in found if file.is_file() and file.parent.name != "__pycache__"]
    return hash_inputs([file for file in files if str(file.relative_to(root)) not in without])


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the documents of a Parquet file, a bounded number in memory."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=200, columns=columns):
        yield from batch.to_pylist()


def parts_folder(config: BuildConfig) -> Path:
    """Return where the parts of a build lie."""
    return config.parts or Path(f"{os.path.normpath(config.out)}.parts")
