"""Sources into raw records: which files a source has, and the reader for each kind of file."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from openmai.base.artifact import MANIFEST, Artifact, Remote
from openmai.base.errors import OpenmaiError
from openmai.data.document import Raw
from openmai.data.read.config import Source
from openmai.data.read.files import Damaged, Gap, read_html, read_json, read_lines, read_parquet, read_text
from openmai.data.read.warc import read_archive

Reader = Callable[[Path, Source], Iterator[Raw | Gap]]
# By the end of the file name, which one of COMPRESSIONS may follow; how a file is really compressed, its first bytes say.
READERS: dict[str, Reader] = {
    **dict.fromkeys((".warc", ".wet", ".wat", ".arc", ".wacz"), read_archive),
    **dict.fromkeys((".jsonl", ".ndjson"), read_lines),
    ".json": read_json,
    ".parquet": read_parquet,
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst"), read_text),
    **dict.fromkeys((".html", ".htm", ".xhtml"), read_html),
}
COMPRESSIONS = (".gz", ".zst", ".lz4")
SNAPSHOT_LICENSE = "PSF and the packages' own licences"


def local_input(source: Source) -> list[Artifact | Path | Remote]:
    """Return what a source reads, for the artifact's key: a snapshot, files, or a remote path with what its store says of it.

    Nothing for Common Crawl and Hugging Face, whose names stand for their content. Raises OpenmaiError if there is nothing at its path.
    """
    if source.path is None:
        return []
    if source.is_remote:
        from openmai.data.read import remote  # HTTP and object stores: slow to import, and not always needed

        return [Remote(source.path, remote.digest(remote.find(source.path)))]
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
        from openmai.data.read.commoncrawl import fetch_commoncrawl

        return fetch_commoncrawl(source.commoncrawl, downloads)
    if source.huggingface is not None:
        from openmai.data.read.huggingface import fetch_huggingface

        return fetch_huggingface(source.huggingface, downloads)
    if source.path is not None and source.is_remote:
        from openmai.data.read.remote import fetch

        files = fetch(source.path, downloads, reader_of)
    else:
        files = [file for item in local_input(source) for file in _files_in(item)]
    unknown = [file for file in files if reader_of(file) is None]
    if unknown or not files:
        found = f"{unknown[0].name} is of an unknown kind" if unknown else "holds no file of a known kind"
        raise OpenmaiError(
            f"{source.path}: {found} (source '{source.name}'); known: {' '.join(READERS)}, also followed by {' '.join(COMPRESSIONS)}"
        )
    return files


def _files_in(item: Artifact | Path | Remote) -> list[Path]:
    if isinstance(item, Artifact):
        return [item.path / name for name in sorted(item.files) if name.endswith(".warc.gz")]
    path = Path(item.path) if isinstance(item, Remote) else item
    return [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file() and reader_of(file)]


def reader_of(file: Path) -> Reader | None:
    """Return the reader for a file, by its name."""
    name = file.name.lower()
    packed = next((end for end in COMPRESSIONS if name.endswith(end)), "")
    return READERS.get(Path(name.removesuffix(packed)).suffix)


def profile_of(source: Source) -> str:
    """Return "docs" or "web", or "trusted" for a source whose quality is not judged."""
    if source.trusted:
        return "trusted"
    if source.profile != "auto":
        return source.profile
    return _snapshot_facts(source).get("profile", "web")


def license_of(source: Source) -> str:
    """Return the licence of a source; a snapshot of documentation holds pages of many packages."""
    return source.license or (SNAPSHOT_LICENSE if _snapshot_facts(source).get("profile") == "docs" else "")


def _snapshot_facts(source: Source) -> dict[str, Any]:
    """Return the metrics of a snapshot, {} for another source; a crawled site says `profile: web`, documentation nothing."""
    if source.path is None or not (Path(source.path) / MANIFEST).exists():
        return {}
    return {"profile": "docs"} | Artifact.load(Path(source.path), verify=False).metrics


def read(file: Path, source: Source) -> Iterator[Raw | Gap]:
    """Yield the records of one file, and what of it is lost. Raises Damaged where it cannot be read on."""
    reader = reader_of(file)
    assert reader is not None, file
    left = source.huggingface.limit if source.huggingface else None
    try:
        for item in reader(file, source):
            yield item
            left = left - isinstance(item, Raw) if left is not None else None
            if left == 0:
                return
    except OSError as error:
        raise Damaged(f"cannot be read ({error.strerror or error})") from None


def reread(file: Path, source: Source, number: int) -> Raw:
    """Return record `number` (from 0, gaps not counted) of a file, with its original bytes. Raises OpenmaiError if there is none."""
    try:
        found = next(islice((item for item in read(file, source) if isinstance(item, Raw)), number, None), None)
    except Damaged:
        found = None
    if found is None:
        raise OpenmaiError(f"{file}: has no record {number}; it has changed since it was read")
    return found


__all__ = ["Damaged", "Gap", "files_of", "license_of", "local_input", "profile_of", "read", "reader_of", "reread"]
