"""Texts to train a quality score on: from the sources of `data build`, or from artifacts of documents and of grades."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openmai.base.artifact import MANIFEST, Artifact, Remote
from openmai.base.errors import OpenmaiError
from openmai.base.files import hash_value, read_json
from openmai.base.progress import Progress, say
from openmai.data.document import KIND, Raw, iter_rows
from openmai.data.extract.clean import clean
from openmai.data.extract.html import ExtractError, decode, extract
from openmai.data.read.config import Source
from openmai.data.read.sources import Damaged, files_of, local_input, read

GRADES_KIND, GRADES_FILE = "grades", "grades.jsonl"
_DEPTH = 400  # of nested elements in a page


def inputs_of(source: Source) -> list[Artifact | Path | Remote]:
    """Return what a source reads, for an artifact's key."""
    kind = _artifact_kind(source)
    return [Artifact.load(Path(str(source.path)), kind=kind)] if kind in (KIND, GRADES_KIND) else local_input(source)


def take(source: Source, count: int, downloads: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return up to `count` (text, meta) of a source, those with the smallest hashes in their own order; equal texts only once."""
    with Progress(source.name, None, "texts") as progress:
        found: dict[str, tuple[str, dict[str, Any]]] = {}
        for text, meta in iterate(source, downloads):
            progress.advance()
            if text.strip():
                found.setdefault(hash_value(text), (text, meta))
    chosen = set(sorted(found)[:count])
    if not chosen:
        raise OpenmaiError(f"source '{source.name}': holds no text; correct its path or text_field")
    return [item for key, item in found.items() if key in chosen]


def iterate(source: Source, downloads: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (text, meta) of all texts of a source; what cannot be read or extracted is passed over."""
    kind = _artifact_kind(source)
    if kind == KIND:
        artifact = Artifact.load(Path(str(source.path)), kind=KIND, verify=False)
        yield from ((row["text"], json.loads(row["meta"])) for row in iter_rows(artifact, ["text", "meta"]))
        return
    if kind == GRADES_KIND:
        source = source.model_copy(update={"path": str(Path(str(source.path)) / GRADES_FILE)})
    for file in files_of(source, downloads):
        try:
            for record in read(file, source):
                if isinstance(record, Raw):
                    yield _text(record), json.loads(record.meta)
        except Damaged as error:
            if source.on_error == "fail":
                raise OpenmaiError(f"{file}: {error}; get the file again, or set on_error: skip in source '{source.name}'") from None
            say(f"{file}: {error}; the rest of it is left out")


def _artifact_kind(source: Source) -> str:
    manifest = Path(source.path or "") / MANIFEST
    return str(read_json(manifest).get("kind", "")) if source.path and manifest.exists() else ""


def _text(record: Raw) -> str:
    if record.mime.startswith("text/") and record.mime != "text/html":
        return clean(decode(record.content, record.charset))
    try:
        return clean(extract(decode(record.content, record.charset), _DEPTH).text) if "html" in record.mime else ""
    except ExtractError:
        return ""
