"""Readers for web archives: WARC, the text-only WET, and the older ARC; plain or gzip."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastwarc.stream_io import BrotliReader
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType
from warcio.archiveiterator import ArchiveIterator as WarcioIterator
from warcio.exceptions import ArchiveLoadFailed
from warcio.statusandheaders import StatusAndHeadersParserException

from openmai.data.document import Raw
from openmai.data.read.config import Source
from openmai.data.read.files import Damaged

_CHUNK = 1 << 16
_MAX_BODY = 1 << 26
_KINDS = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion


def read_warc(file: Path, source: Source) -> Iterator[Raw]:
    """Yield the pages of an archive. Raises Damaged after the last whole record if the file breaks off or its compression is broken."""
    with _Inflated(file) as stream:
        try:
            for record in ArchiveIterator(stream, record_types=_KINDS, parse_http=False):
                record.freeze()
                expected = int(record.headers.get("Content-Length") or record.content_length)
                if record.content_length < expected:
                    place = record.headers.get("WARC-Target-URI")
                    raise Damaged(f"the record at {place} breaks off after {record.content_length} of {expected} bytes")
                yield _raw(record)
        except OSError as error:
            raise Damaged(f"not readable as a web archive ({error})") from None
        if stream.problem:
            raise Damaged(stream.problem)


def read_arc(file: Path, source: Source) -> Iterator[Raw]:
    """Yield the pages of an archive in ARC, WARC's predecessor."""
    with open(file, "rb") as stream:
        try:
            for record in WarcioIterator(stream, arc2warc=True):
                http, day = record.http_headers, record.rec_headers.get_header("WARC-Date", "")[:10]
                if record.rec_type == "response" and http is not None:
                    head, _, charset = http.get_header("Content-Type", "text/html").partition("charset=")
                    status = int(http.get_statuscode()) if http.get_statuscode().isdigit() else 200
                    url = record.rec_headers.get_header("WARC-Target-URI", "")
                    yield Raw(record.content_stream().read(), url, _mime(head), charset.strip(' ";').lower(), status, day)
        except (ArchiveLoadFailed, StatusAndHeadersParserException, ValueError, EOFError) as error:
            raise Damaged(f"not readable as an ARC archive ({' '.join(str(error).split())})") from None


def _raw(record: WarcRecord) -> Raw:
    headers = record.headers
    url, day = headers.get("WARC-Target-URI") or "", record.record_date.date().isoformat() if record.record_date else ""
    if record.record_type == WarcRecordType.conversion:
        return Raw(record.reader.read(), url, date=day)
    if not record.is_http:
        return Raw(record.reader.read(), url, _mime(headers.get("Content-Type") or ""), charset="", date=day)
    record.parse_http()
    http = record.http_headers
    status = http.status_code if http is not None else None
    content = decode_body(record.reader.read(), dict(http.items()) if http is not None else {})
    return Raw(content, url, _mime(record.http_content_type or "text/html"), record.http_charset or "", status or 200, day)


def decode_body(body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return an HTTP body without its transfer and content encodings, at most 64 MB.

    Many writers store the body decoded and keep the headers that promise an encoding: what does not decode stays as it stands.
    """
    named = {name.lower(): value.lower().strip() for name, value in headers.items()}
    if "chunked" in named.get("transfer-encoding", ""):
        body = _dechunk(body)
    encoding = named.get("content-encoding", "")
    try:
        if encoding in ("gzip", "x-gzip", "deflate"):
            return zlib.decompressobj(wbits=47).decompress(body, _MAX_BODY)
        if encoding == "br":
            return BrotliReader(io.BytesIO(body)).read(_MAX_BODY)
    except (zlib.error, OSError):
        pass
    return body


def _dechunk(body: bytes) -> bytes:
    pieces, position = [], 0
    while (end := body.find(b"\r\n", position)) >= 0:
        try:
            size = int(body[position:end].split(b";")[0], 16)
        except ValueError:
            break
        if size <= 0:
            break
        pieces.append(body[end + 2 : end + 2 + size])
        position = end + 4 + size
    return b"".join(pieces) or body


def _mime(content_type: str) -> str:
    return content_type.split(";")[0].strip().lower()


class _Inflated:
    """A file as a stream of decompressed bytes that tells where gzip data break off, which the archive parser would pass over silently."""

    def __init__(self, file: Path) -> None:
        self.file = open(file, "rb")  # noqa: SIM115 (closed by __exit__)
        self.is_gzip = self.file.read(2) == b"\x1f\x8b"
        self.file.seek(0)
        self.member = zlib.decompressobj(wbits=31)
        self.in_member = False
        self.rest = b""
        self.position = 0
        self.problem = ""

    def __enter__(self) -> _Inflated:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def close(self) -> None:
        """Do nothing: the context closes the file."""

    def seek(self, offset: int, whence: int = 0) -> int:
        """Refuse: a stream only goes on."""
        raise OSError("the stream cannot be rewound")

    def tell(self) -> int:
        """Return the position in the decompressed data."""
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes; b"" at the end."""
        size = _CHUNK if size < 0 else size
        piece = self._inflate(size) if self.is_gzip else self.file.read(size)
        self.position += len(piece)
        return piece

    def _inflate(self, size: int) -> bytes:
        piece = b""
        while not piece and not self.problem:
            data = self.rest or self.file.read(_CHUNK)
            if not self.in_member:
                data = data.lstrip(b"\0")  # some writers pad with zeros between members
            if not data:
                self.problem = "its gzip data break off" if self.in_member else ""
                return b""
            try:
                piece = self.member.decompress(data, size)
            except zlib.error as error:
                self.problem = f"its gzip data are damaged ({error})"
                return b""
            self.in_member = not self.member.eof
            self.rest = self.member.unconsumed_tail if self.in_member else self.member.unused_data
            if self.member.eof:
                self.member = zlib.decompressobj(wbits=31)
        return piece
