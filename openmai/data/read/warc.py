"""Readers for web archives: WARC, the text-only WET, the metadata-only WAT, the older ARC, and WACZ, a zip of them."""

from __future__ import annotations

import json
import lzma
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from openmai.data.document import Raw
from openmai.data.read.config import Source
from openmai.data.read.files import Damaged, Gap
from openmai.data.read.http import BodyError, charset_of, decode_body, kept_headers, mime_of, parse_answer
from openmai.data.read.records import Arc, Form, Record, Warc, read_records
from openmai.data.read.stream import GZIP, Stream, codec_named

_PAGES = {"response", "resource", "conversion"}
# What crawlers file beside pages: look-ups, their own notes, screenshots, extracted text of pages that are there as well.
_NO_PAGES = {"dns", "whois", "filedesc", "metadata", "urn", "warcinfo"}
_ZIP = b"PK\x03\x04"
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, ValueError, OSError, EOFError)
_MAX_RATIO = 250
_ARCHIVES = tuple(f"{end}{packed}" for end in (".warc", ".wet", ".wat", ".arc") for packed in ("", ".gz", ".zst", ".lz4"))


def read_archive(file: Path, source: Source) -> Iterator[Raw | Gap]:
    """Yield the pages of an archive, and what of it is lost. Raises Damaged where it cannot be read on."""
    for item in _items(file):
        if isinstance(item, Gap):
            yield item
        elif _is_page(item):
            yield _page(item)
        elif item.problem:
            yield Gap(item.problem)


def count_records(file: Path) -> Counter[str]:
    """Count the records of an archive by their WARC type, and as "lost" the places where something is lost or not as it should be.

    In an ARC, the head of the file counts as warcinfo, all else as response.
    """
    counts: Counter[str] = Counter()
    try:
        for item in _items(file):
            counts["lost" if isinstance(item, Gap) else item.head.kind] += 1
            counts["lost"] += isinstance(item, Record) and bool(item.problem)
    except Damaged:
        counts["lost"] += 1
    return +counts


def _items(file: Path) -> Iterator[Record | Gap]:
    with open(file, "rb") as data:
        if data.read(4) == _ZIP:
            yield from _zipped(data)
        else:
            data.seek(0)
            yield from _archived(data, file.name)


def _archived(file: IO[bytes], name: str) -> Iterator[Record | Gap]:
    stream = Stream(file)
    form = _form(stream, name)
    if stream.codec is None and not form.landing.match(stream.buffer) and codec_named(name):
        file.seek(0)  # its very beginning is damaged: members may follow
        stream = Stream(file, codec=codec_named(name))
    stream.start = form.start
    yield from read_records(stream, form)


def _form(stream: Stream, name: str) -> Form:
    """Tell WARC from ARC by the first bytes, or by the name if these are neither's."""
    stream.ensure(Arc.overlap)
    if Warc.landing.match(stream.buffer):
        return Warc
    return Arc if stream.buffer.startswith(b"filedesc:") or ".arc" in name.lower() else Warc


def _zipped(file: IO[bytes]) -> Iterator[Record | Gap]:
    """Yield the records of the archives in a WACZ (https://specs.webrecorder.net/wacz/1.1.1/), in the order of their names."""
    try:
        folder = zipfile.ZipFile(file)
    except _ZIP_ERRORS as error:
        yield Gap(f"not a whole zip file ({error}): only the compressed records that can be found in it are read")
        stream = Stream(file, Warc.start, GZIP)
        stream.problem = "no compressed record found"
        if stream.resume():
            yield from read_records(stream, Warc)
            return
        raise Damaged(stream.problem) from None
    members = sorted((info for info in folder.infolist() if info.filename.lower().endswith(_ARCHIVES)), key=lambda info: info.filename)
    if sum(info.compress_size for info in members) > file.seek(0, 2):
        raise Damaged("its members overlap, which only a zip bomb does")
    for info in members:
        if info.file_size > _MAX_RATIO * info.compress_size:
            yield Gap(f"{info.filename}: expands more than {_MAX_RATIO}-fold, which only a zip bomb does")
            continue
        try:
            with folder.open(info) as member:
                yield from (_within(info.filename, item) for item in _archived(member, info.filename))
        except (Damaged, *_ZIP_ERRORS) as error:
            yield Gap(f"{info.filename}: {error}")


def _within(name: str, item: Record | Gap) -> Record | Gap:
    return Gap(f"{name}: {item.message}") if isinstance(item, Gap) else item


def _is_page(record: Record) -> bool:
    if record.head.kind not in _PAGES:
        return False
    scheme, _, rest = record.head.url.partition(":")
    return scheme.lower() not in _NO_PAGES and not rest.partition("?")[0].endswith("/robots.txt")


def _page(record: Record) -> Raw:
    head, content = record.head, record.content
    meta = json.dumps({"truncated": head.truncated}) if head.truncated else "{}"
    if record.problem:
        return Raw(b"", head.url, date=head.day, meta=meta, problem=record.problem)
    if head.kind == "conversion":
        return Raw(content, head.url, mime_of(head.mime) or "text/plain", date=head.day, meta=meta)
    if head.kind == "resource" or not content.startswith(b"HTTP/"):
        return Raw(content, head.url, _mime(head.mime, content), charset_of(head.mime), date=head.day, meta=meta)
    try:
        answer = parse_answer(content)
        body = decode_body(answer.body, answer.fields)
    except BodyError as error:
        return Raw(b"", head.url, date=head.day, meta=meta, problem=str(error))
    declared = answer.fields.get("content-type", "")
    mime = _mime(declared or head.mime, body)
    return Raw(body, head.url, mime, charset_of(declared), answer.status, head.day, meta=meta, headers=kept_headers(answer.fields))


def _mime(declared: str, content: bytes) -> str:
    """Return the declared type, or what the first bytes look like."""
    mime = mime_of(declared)
    if mime and mime not in ("application/http", "unknown", "no-type"):
        return mime
    if b"\0" in content[:1024]:
        return "application/octet-stream"
    return "text/html" if content[:512].lstrip().startswith(b"<") else "text/plain"
