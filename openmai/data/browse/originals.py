"""The pages that documents were made of, as long as their files are there; nothing is downloaded."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from openmai.base.artifact import MANIFEST, Artifact
from openmai.base.errors import OpenmaiError
from openmai.data.document import Raw
from openmai.data.extract.html import decode
from openmai.data.read.config import Source
from openmai.data.read.sources import files_of, reread

# A page is shown without scripts and without network. A policy stops requests, but browsers connect in advance: for <link>, for frames, and
# for links that are clicked. So these are defused too, and with them what sends the frame elsewhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; sandbox"
_REACHING = re.compile(r"<(/?)(link|base|i?frame|object|embed|meta\s[^>]*http-equiv\s*=\s*[\"']?\s*refresh)\b", re.IGNORECASE)
_NO_CLICKS = "<style>a, area { pointer-events: none !important }</style>"


class Originals:
    """Finds the original of a document through the sources of the builds that an artifact comes from."""

    def __init__(self, artifact: Artifact) -> None:
        self.sources = dict(_sources(artifact))

    def find(self, source: str, url: str, meta: dict[str, Any]) -> Raw:
        """Return the record that a document was made of. Raises OpenmaiError if it is gone or was never here."""
        if "file" not in meta or "record" not in meta:
            raise OpenmaiError("the document does not say which file it is from")
        return _find(self._source(source), url, str(meta["file"]), int(meta["record"]))

    def _source(self, name: str) -> Source:
        source = self.sources.get(name)
        if source is None:
            raise OpenmaiError(f"the artifact's manifest does not say what source '{name}' is")
        if source.path is None or source.is_remote:
            raise OpenmaiError(f"source '{name}' was downloaded for the build, and downloads are not kept")
        return source


@lru_cache(maxsize=2)
def _find(source: Source, url: str, file: str, record: int) -> Raw:
    files = [path for path in files_of(source, Path()) if path.name == file]
    if not files:
        raise OpenmaiError(f"{source.path}: holds no {file} any more")
    for path in files:  # folders of a source may hold files of the same name
        raw = reread(path, source, record) if len(files) == 1 else _reread_if_there(path, source, record)
        if raw and raw.url == url:
            return raw
    raise OpenmaiError(f"{file}: record {record} is another page now")


def _reread_if_there(path: Path, source: Source, record: int) -> Raw | None:
    try:
        return reread(path, source, record)
    except OpenmaiError:
        return None


def _sources(artifact: Artifact) -> list[tuple[str, Source]]:
    """Return the sources by name, of an artifact and of the documents that it was made of."""
    found: list[tuple[str, Source]] = []
    for plain in artifact.config.get("sources", []):
        try:
            source = Source.model_validate(plain)
        except (ValidationError, TypeError):
            continue  # another verb's sources, or another version's: originals are then not found
        found.append((source.name, source))
    for item in artifact.inputs:
        path = Path(item["path"])
        if (path / MANIFEST).exists():
            parent = Artifact.load(path, verify=False)
            found = (_sources(parent) if parent.kind == artifact.kind else []) + found
    return found


def is_html(raw: Raw) -> bool:
    """True if a browser can show the record as a page."""
    return "html" in raw.mime or raw.content[:512].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def source_text(raw: Raw) -> str:
    """Return the record as text."""
    return decode(raw.content, raw.charset)


def rendered(raw: Raw) -> str:
    """Return the record as a page that can be shown in a frame: what reaches for the network before any policy is defused."""
    return _REACHING.sub(r"<\1x-\2", source_text(raw)) + _NO_CLICKS


def facts(raw: Raw) -> dict[str, Any]:
    """Return what is known of a record besides its content."""
    known = {"type": raw.mime, "charset": raw.charset, "status": raw.status, "date": raw.date, "bytes": len(raw.content)}
    return known | ({"problem": raw.problem} if raw.problem else {}) | json.loads(raw.headers or "{}")
