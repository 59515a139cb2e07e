"""Sources into raw records: which files a source has, and the reader for each kind of file."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from openmai.base.artifact import MANIFEST, Artifact
from openmai.base.errors import OpenmaiError
from openmai.data.document import Raw
from openmai.data.read.commoncrawl import fetch_commoncrawl
from openmai.data.read.config import Source
from openmai.data.read.files import Damaged, read_html, read_json, read_parquet, read_text
from openmai.data.read.huggingface import fetch_huggingface
from openmai.data.read.warc import read_arc, read_warc

# By the end of the file name; the longest that fits counts.
READERS: dict[str, Callable[[Path, Source], Iterator[Raw]]] = {
    **dict.fromkeys((".warc", ".warc.gz", ".wet", ".wet.gz"), read_warc),
    **dict.fromkeys((".arc", ".arc.gz"), read_arc),
    **dict.fromkeys((".jsonl", ".jsonl.gz", ".jsonl.zst", ".json"), read_json),
    ".parquet": read_parquet,
    **dict.fromkeys((".txt", ".md"), read_text),
    **dict.fromkeys((".html", ".htm"), read_html),
}
SNAPSHOT_LICENSE = "PSF and the packages' own licences"


def local_input(source: Source) -> list[Artifact | Path]:
    """Return what a source reads from this machine, for the artifact's key: a snapshot, or its files; nothing for a remote source.

    Raises OpenmaiError if there is nothing at its path.
    """
    if source.path is None:
        return []
    path = Path(source.path)
    if (path / MANIFEST).exists():
        return [Artifact.load(path, kind="snapshot")]
    if path.exists():
        return [path]
    found = [Path(name) for name in sorted(glob.glob(source.path, recursive=True))]
    if not found:
        raise OpenmaiError(f"{source.path}: no such file or folder (source '{source.name}'); correct its path")
    return list(found)


def files_of(source: Source, downloads: Path) -> list[Path]:
    """Return the files of a source in canonical order; what is remote is first brought to `downloads`."""
    if source.commoncrawl is not None:
        return [fetch_commoncrawl(source.commoncrawl, downloads)]
    if source.huggingface is not None:
        return fetch_huggingface(source.huggingface, downloads)
    files = []
    for item in local_input(source):
        if isinstance(item, Artifact):
            files += [item.path / name for name in sorted(item.files) if name.endswith(".warc.gz")]
        else:
            files += [item] if item.is_file() else [file for file in sorted(item.rglob("*")) if file.is_file() and reader_of(file)]
    unknown = [file for file in files if reader_of(file) is None]
    if unknown or not files:
        found = f"{unknown[0].name} is of an unknown kind" if unknown else "holds no file of a known kind"
        raise OpenmaiError(f"{source.path}: {found} (source '{source.name}'); known: {' '.join(READERS)}")
    return files


def reader_of(file: Path) -> Callable[[Path, Source], Iterator[Raw]] | None:
    """Return the reader for a file, by its name."""
    ends = [end for end in READERS if file.name.lower().endswith(end)]
    return READERS[max(ends, key=len)] if ends else None


def profile_of(source: Source) -> str:
    """Return "docs" or "web", or "trusted" for a source whose quality is not judged."""
    if source.trusted:
        return "trusted"
    if source.profile != "auto":
        return source.profile
    is_snapshot = source.path is not None and (Path(source.path) / MANIFEST).exists()
    return "docs" if is_snapshot else "web"


def license_of(source: Source) -> str:
    """Return the licence of a source; a snapshot holds pages of many packages."""
    is_snapshot = source.path is not None and (Path(source.path) / MANIFEST).exists()
    return source.license or (SNAPSHOT_LICENSE if is_snapshot else "")


def read(file: Path, source: Source) -> Iterator[Raw]:
    """Yield the records of one file. Raises Damaged where it cannot be read on."""
    reader = reader_of(file)
    assert reader is not None, file
    limit = source.huggingface.limit if source.huggingface else None
    yield from islice(reader(file, source), limit)


__all__ = ["Damaged", "files_of", "license_of", "local_input", "profile_of", "read", "reader_of"]
