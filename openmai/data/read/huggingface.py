"""Data sets of the Hugging Face Hub by name.

The Hub keeps a Parquet conversion of most data sets in a branch of their repositories
(https://huggingface.co/docs/dataset-viewer/parquet); of others, and where the conversion is cut off, the repository's own files are
named. With a limit, only the row groups or lines that it needs are downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.compression import compr
from fsspec.utils import infer_compression
from huggingface_hub import HfFileSystem

from openmai.base.errors import OpenmaiError
from openmai.base.files import atomic_file, hash_value
from openmai.base.progress import Progress, say
from openmai.data.read.config import HuggingFace
from openmai.data.read.remote import File, bring, explained, files_in

_CONVERTED = "refs/convert/parquet"
_LINES = (".jsonl", ".ndjson")
_BLOCK = 1 << 20


def fetch_huggingface(config: HuggingFace, downloads: Path) -> list[Path]:
    """Return local files with the rows of a split, or with those that `config.files` names, downloading what is not there yet.

    Raises OpenmaiError if the hub cannot be reached, refuses, or has no such data set, configuration, split or file.
    """
    with explained(f"hf://datasets/{config.name}"):
        store = HfFileSystem(endpoint=config.endpoint.rstrip("/"), skip_instance_cache=True)
        files = _named_files(store, config) if config.files else _converted_files(store, config)
    if config.limit is None:
        return bring(files, downloads)
    kinds = {_kind(file.path) for file in files}
    if kinds <= {".parquet"} or kinds <= set(_LINES):
        return [_limited(files, config.limit, downloads)]
    return bring(files[: config.limit], downloads)  # a file of another kind has one record or more


def _named_files(store: Any, config: HuggingFace) -> list[File]:
    root = f"datasets/{config.name}@{quote(config.revision, safe='')}"
    found: dict[str, dict[str, Any]] = {}
    for pattern in config.files:
        found |= {name: facts for name, facts in store.glob(f"{root}/{pattern}", detail=True).items() if facts["type"] == "file"}
    if not found:
        raise OpenmaiError(f"{config.name}: no file {' or '.join(config.files)} at {config.revision}; it has {_some_files(store, root)}")
    return files_in(store, found)


def _converted_files(store: Any, config: HuggingFace) -> list[File]:
    root = f"datasets/{config.name}@{quote(_CONVERTED, safe='')}"
    try:
        configurations = _folders(store, root)
    except FileNotFoundError:
        whole = f"datasets/{config.name}"
        if not store.exists(whole):
            raise
        names = _some_files(store, whole)
        raise OpenmaiError(f"{config.name}: not converted to Parquet by the hub; set files: [pattern]; it has {names}") from None
    if config.config not in configurations:
        raise OpenmaiError(f"{config.name}: no configuration '{config.config}'; it has {', '.join(configurations) or 'none'}")
    splits = _folders(store, f"{root}/{config.config}")
    split = config.split if config.split in splits else f"partial-{config.split}"
    if split not in splits:
        raise OpenmaiError(f"{config.name}: no split '{config.split}'; it has {', '.join(splits) or 'none'}")
    if split != config.split and config.limit is None:
        say(f"{config.name}: the hub converts only the first part of a large split; name the repository's own files for all of it")
    return files_in(store, store.glob(f"{root}/{config.config}/{split}/*.parquet", detail=True))


def _folders(store: Any, path: str) -> list[str]:
    return sorted(facts["name"].rpartition("/")[2] for facts in store.ls(path, detail=True) if facts["type"] == "directory")


def _some_files(store: Any, root: str) -> str:
    names = sorted(name.partition("/")[2].partition("/")[2].partition("/")[2] for name in store.find(root))
    return f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}" or "none"


def _kind(path: str) -> str:
    """Return the ending of a name that says what is inside: of x.jsonl.gz it is .jsonl."""
    name = Path(path.lower())
    return Path(name.stem).suffix if name.suffix in (".gz", ".zst") else name.suffix


def _limited(files: list[File], limit: int, downloads: Path) -> Path:
    """Return one local file with the first `limit` rows of `files`, which are all Parquet or all JSON lines."""
    is_parquet = _kind(files[0].path) == ".parquet"
    name = hash_value([[file.identity for file in files], limit])[:16]
    target = downloads / f"huggingface-{name}" / f"first-{limit}{'.parquet' if is_parquet else '.jsonl'}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with Progress("hugging face", limit, "rows") as progress, atomic_file(target) as out, explained(files[0].url):
            if is_parquet:
                _copy_rows(files, limit, out, progress)
            else:
                for line in islice((line for file in files for line in _read_lines(file)), limit):
                    out.write(line if line.endswith(b"\n") else line + b"\n")
                    progress.advance()
    return target


def _copy_rows(files: list[File], limit: int, out: IO[bytes], progress: Progress) -> None:
    writer: pq.ParquetWriter | None = None
    for batch in _read_batches(files, limit):
        writer = writer or pq.ParquetWriter(out, batch.schema, compression="zstd")
        try:
            writer.write_table(pa.Table.from_batches([batch]).cast(writer.schema))
        except (pa.ArrowInvalid, ValueError) as error:
            raise OpenmaiError(f"{files[0].url}: its files differ in their columns ({' '.join(str(error).split())[:200]})") from None
        progress.advance(batch.num_rows)
    if writer is None:
        raise OpenmaiError(f"{files[0].url}: has no rows")
    writer.close()


def _read_batches(files: list[File], limit: int) -> Iterator[pa.RecordBatch]:
    """Yield the first `limit` rows; a row group is asked for when the rows before it were not enough."""
    for file in files:
        with file.store.open(file.path, "rb", block_size=_BLOCK) as stream:
            table = pq.ParquetFile(stream)
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(batch_size=1000, row_groups=[group]):
                    yield batch.slice(0, limit)
                    limit -= min(limit, batch.num_rows)
                    if limit == 0:
                        return


def _read_lines(file: File) -> Iterator[bytes]:
    """Yield the lines that hold something, downloading a block at a time."""
    packed = infer_compression(file.path)
    with file.store.open(file.path, "rb", block_size=_BLOCK) as stream:
        content = compr[packed](stream, mode="rb") if packed else stream
        yield from (line for line in content if line.strip())
