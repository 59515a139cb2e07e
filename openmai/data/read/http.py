"""HTTP answers as archives hold them: head and body, transfer and content encodings, character set, what a page says of its use."""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import zstandard
from fastwarc.stream_io import BrotliReader

from openmai.data.read.files import MAX_BYTES

# Headers that say how a page may be used, what it is written in and when it changed.
KEPT = ("x-robots-tag", "tdm-reservation", "tdm-policy", "content-language", "last-modified")
_MAX_HEAD, _MAX_FIELDS, _MAX_KEPT = 1 << 18, 1000, 2000
_MAX_ENCODINGS = 3
_PIECE, _SLICE = 1 << 16, 1 << 14
_STATUS = re.compile(rb"HTTP/[^\s]{0,8}[ \t]*(\d{3})?(?!\d)[^\n]*\n", re.I)
_EMPTY_LINE = re.compile(rb"\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,12})[ \t]*(?:;[^\r\n]*)?\r?\n")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([A-Za-z0-9_.:+-]{1,40})", re.I)
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")


class BodyError(Exception):
    """A body that cannot be used; the message is "rule: reason"."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer without its encodings. `fields` are its headers, names in lower case, values of the same name joined."""

    status: int
    body: bytes
    fields: dict[str, str] = field(default_factory=dict)


def parse_answer(data: bytes) -> Answer:
    """Split an answer into status, headers and body as it stands; bytes that are no HTTP answer are the body of status 200.

    Interim answers (1xx) before the answer are passed over. Raises BodyError with the rule extract.head for a head without end.
    """
    begin = 0
    while (status := _STATUS.match(data, begin, begin + _MAX_HEAD)) is not None:
        start = status.end()
        end = _EMPTY_LINE.match(data, start) or _HEAD_END.search(data, start, start + _MAX_HEAD)
        if end is None and len(data) > start + _MAX_HEAD:
            raise BodyError(f"extract.head: its HTTP head is larger than {_MAX_HEAD >> 10} KB")
        head_end, begin = end.span() if end is not None else (len(data), len(data))
        code = int(status[1] or 0)
        if not (100 <= code < 200 and data.startswith(b"HTTP/", begin)):
            return Answer(code, data[begin:], _fields(data[start:head_end]))
    return Answer(200, data[begin:])


def _fields(head: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    lines = re.sub(rb"\r?\n[ \t]+", b" ", head).decode("utf-8", errors="replace").split("\n")
    for line in lines[:_MAX_FIELDS]:
        name, colon, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        if colon and name:
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def mime_of(content_type: str) -> str:
    """Return the type without its parameters, in lower case."""
    return content_type.split(",")[0].split(";")[0].strip().lower()


def charset_of(content_type: str) -> str:
    """Return the declared character set in lower case, "" if there is none."""
    match = _CHARSET.search(content_type)
    return match[1].lower() if match else ""


def kept_headers(fields: dict[str, str]) -> str:
    """Return the headers that travel with a page, as a JSON object."""
    return json.dumps({name: fields[name][:_MAX_KEPT] for name in KEPT if name in fields}, ensure_ascii=False)


def decode_body(body: bytes, fields: dict[str, str]) -> bytes:
    """Return a body without its transfer and content encodings.

    Many writers store the body decoded and keep the headers that promise an encoding: what does not decode stays as it stands. Raises
    BodyError with the rule extract.size for a body that grows beyond MAX_BYTES, extract.encoding for one that remains compressed.
    """
    if "chunked" in fields.get("transfer-encoding", "").lower():
        body = _dechunk(body)
    names = [name.strip() for name in fields.get("content-encoding", "").lower().split(",")]
    for name in [name for name in reversed(names) if name in _DECODERS][:_MAX_ENCODINGS]:
        decoded = _decode(_DECODERS[name], body)
        if decoded is not None:
            body = decoded
        elif body.startswith(_PACKED) or b"\0" in body[:1024]:
            raise BodyError(f"extract.encoding: says {name}, which does not decode")
    return body


def _dechunk(body: bytes) -> bytes:
    """Return a chunked body in one piece; one that is not chunked, or wrongly, as it stands."""
    pieces, position = [], 0
    while position < len(body):
        head = _CHUNK.match(body, position, position + 256)
        if head is None:
            return body
        size = int(head[1], 16)
        if size == 0:
            break
        pieces.append(body[head.end() : head.end() + size])
        position = head.end() + size
        if body[position : position + 2] == b"\r\n":
            position += 2
        elif body[position : position + 1] == b"\n":
            position += 1
        elif position < len(body):
            return body
    return b"".join(pieces)


def _decode(decoder: Callable[[bytes], Iterator[bytes]], body: bytes) -> bytes | None:
    """Return the decoded body, as far as it goes if it breaks off; None if it is not encoded so. Raises BodyError if it grows too large."""
    pieces, size = [], 0
    try:
        for piece in decoder(body):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_BYTES:
                raise BodyError(f"extract.size: its body decodes to more than {MAX_BYTES >> 20} MB")
    except (zlib.error, zstandard.ZstdError):
        return None
    return b"".join(pieces) if pieces else None


def _gunzip(body: bytes) -> Iterator[bytes]:
    position = 0
    while body.startswith(b"\x1f\x8b", position):
        member = zlib.decompressobj(wbits=31)
        while not member.eof and position < len(body):
            data = body[position : position + _SLICE]
            yield member.decompress(data)
            position += len(data) - len(member.unused_data)


def _inflate(body: bytes) -> Iterator[bytes]:
    """Yield zlib data decoded, or raw deflate data, which many servers send instead."""
    has_head = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    member = zlib.decompressobj(wbits=15 if has_head else -15)
    for position in range(0, len(body), _SLICE):
        yield member.decompress(body[position : position + _SLICE])


def _unbrotli(body: bytes) -> Iterator[bytes]:
    reader = BrotliReader(io.BytesIO(body))
    try:
        while piece := reader.read(_PIECE):
            yield piece
    except OSError:  # broken off or not brotli at all, which it does not tell apart
        return


def _unzstd(body: bytes) -> Iterator[bytes]:
    reader = zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True)
    while True:
        piece = reader.read(_PIECE)
        yield piece
        if not piece:
            return


_DECODERS = {"gzip": _gunzip, "x-gzip": _gunzip, "deflate": _inflate, "br": _unbrotli, "zstd": _unzstd}
