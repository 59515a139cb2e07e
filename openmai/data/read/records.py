"""Records of a web archive, WARC or ARC, with every byte accounted for: it belongs to a record, or a gap says that it does not.

WARC: https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/; ARC 1 and 2: https://archive.org/web/researcher/ArcFileFormat.php.
A reader that trusts Content-Length loses what a wrong one hides. Here the next record must begin where this one ends; if it does not, the
length is a lie, and the true end is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date

from openmai.data.read.files import MAX_BYTES, Damaged, Gap
from openmai.data.read.stream import Stream

_MAX_HEAD = 1 << 20
_KINDS = {"warcinfo", "response", "resource", "request", "metadata", "revisit", "conversion", "continuation"}
_WARC = rb"WARC/\d\.\d\d?[ \t]*\r{0,2}\n(?=[A-Za-z][A-Za-z-]*[ \t]*:)"
_HEAD_END = re.compile(rb"(\r{0,2}\n\r{0,2}\n)|" + _WARC)  # a text-mode copy makes \r\n to \r\r\n
_BLANK_END = re.compile(rb"[\r\n\0 \t]*\Z")
_ARC = rb"([A-Za-z][A-Za-z0-9+.-]*:[^\n]{0,8192}?) [0-9A-Fa-f.:-]{1,45} (\d{8})\d{0,12} ([^\n]{0,1024})\n"


@dataclass(frozen=True)
class Head:
    """What stands before a record's content: `size` bytes that promise `length` bytes (-1: they do not say)."""

    kind: str
    url: str
    day: str
    mime: str
    truncated: str
    size: int
    length: int


@dataclass(frozen=True)
class Record:
    """A record; `problem` is "rule: reason" if its content is not what its head promises."""

    head: Head
    content: bytes
    problem: str = ""


class Warc:
    """How a WARC record begins."""

    start = re.compile(_WARC)
    landing = re.compile(rb"[\r\n\0 \t]*(?:" + _WARC + rb"|\Z)")
    overlap = 128

    @staticmethod
    def head(stream: Stream) -> Head | None:
        """Return the head at the front of the stream, None if it has no end."""
        seen = 1
        while (end := _HEAD_END.search(stream.buffer, seen)) is None and len(stream.buffer) < _MAX_HEAD:
            seen = max(1, len(stream.buffer) - Warc.overlap)
            if not stream.more():
                break
        if end is None or end[1] is None:  # another record begins first
            return None
        text = re.sub(rb"\r*\n[ \t]+", b" ", stream.buffer[: end.start()]).decode("utf-8", errors="replace")
        fields: dict[str, str] = {}
        for line in text.split("\n")[1:]:
            name, _, value = line.partition(":")
            fields.setdefault(name.strip().lower(), value.strip())
        kind = fields.get("warc-type", "").lower()
        return Head(
            kind=kind if kind in _KINDS else "unknown",
            url=fields.get("warc-target-uri", "").removeprefix("<").removesuffix(">"),
            day=_day(fields.get("warc-date", "")[:10]),
            mime=fields.get("content-type", ""),
            truncated=fields.get("warc-truncated", ""),
            size=end.end(),
            length=_length(fields.get("content-length", "")),
        )


class Arc:
    """How an ARC record begins: a line with URL, IP address, date, type and length, and in version 2 five more fields before the length."""

    start = re.compile(rb"(?m)^" + _ARC)
    landing = re.compile(rb"[\r\n\0 \t]*(?:" + _ARC + rb"|\Z)")
    overlap = 1 << 14

    @staticmethod
    def head(stream: Stream) -> Head | None:
        """Return the head at the front of the stream."""
        match = Arc.start.match(stream.buffer)
        assert match is not None
        url, day, rest = (part.decode("utf-8", errors="replace") for part in match.groups())
        *others, length = rest.strip("\r").split(" ")
        return Head(
            kind="warcinfo" if url.startswith("filedesc:") else "response",
            url=url,
            day=_day(f"{day[:4]}-{day[4:6]}-{day[6:]}"),
            mime=others[0] if others else "",
            truncated="",
            size=match.end(),
            length=_length(length),
        )


Form = type[Warc] | type[Arc]


def read_records(stream: Stream, form: Form) -> Iterator[Record | Gap]:
    """Yield the records, and what is lost between them. Raises Damaged where the file breaks off, or if it holds no record at all."""
    number = 0
    lost = stream.skip_to(form.start, form.overlap)
    if lost:
        yield Gap(f"{lost} bytes before the first record belong to none")
    while stream.buffer or stream.problem:
        place = f"record {number} at byte {stream.position}"
        if not stream.buffer:
            item: Record | Gap = _broken(stream, place)
        elif (head := form.head(stream)) is None:
            stream.drop(1)  # so that the search finds the next one
            item = Gap(f"{place} has a head without end")
        else:
            item = _take(stream, form, head, f"{place} ({head.url[:200] or head.kind})")
            number += 1
        lost = stream.skip_to(form.start, form.overlap)
        if lost and isinstance(item, Record):
            claim = item.problem or f"extract.length: {place} says {item.head.length} bytes"
            item = replace(item, problem=f"{claim}; {lost} more precede the next record")
        elif lost and isinstance(item, Gap):
            item = Gap(f"{item.message}; {lost} bytes belong to no record")
        yield item
    if not number and stream.position:
        raise Damaged("not a web archive: no record found")


def _take(stream: Stream, form: Form, head: Head, place: str) -> Record:
    """Take a record off the stream. Its content is judged before it is copied, so a lie is cheap whatever it claims."""
    stream.drop(head.size)
    if head.length < 0:
        return Record(head, b"", f"extract.length: {place} does not say its length")
    if head.length > MAX_BYTES:
        return _pass_over(stream, head, place)
    stream.ensure(head.length + form.overlap)
    there, end = len(stream.buffer), stream.next_record(stream.position, stream.position + head.length)
    if end is None and (there < head.length or not form.landing.match(stream.buffer, head.length)):
        inner = form.start.search(stream.buffer, 0, head.length + form.overlap)
        end = inner.start() if inner is not None and inner.start() < head.length else None
    if end is not None:
        return Record(head, stream.take(end), f"extract.length: {place} says {head.length} bytes, the next record begins after {end}")
    if there < head.length:
        stream.drop(there)
        stream.cut()
        return Record(head, b"", f"extract.length: {place} breaks off after {there} of {head.length} bytes")
    ends_in_break = stream.problem and _BLANK_END.match(stream.buffer, head.length)
    if ends_in_break and not stream.is_cut and stream.position + head.length > stream.member_position:
        stream.drop(len(stream.buffer))
        return Record(head, b"", f"extract.damaged: {place}: {stream.problem}")  # the checksum of its own member is wrong
    return Record(head, stream.take(head.length))


def _pass_over(stream: Stream, head: Head, place: str) -> Record:
    """Pass over a record too large to be read."""
    if stream.skip(head.length):
        return Record(head, b"", f"extract.size: {place} has {head.length} bytes, at most {MAX_BYTES}")
    if not stream.buffer:
        stream.cut()
    return Record(head, b"", f"extract.length: {place} says {head.length} bytes, there are fewer")


def _broken(stream: Stream, message: str) -> Gap:
    """Return the gap up to where the stream goes on. Raises Damaged if it does not."""
    message = f"{message}: {stream.problem}" if stream.problem else message
    if not stream.resume():
        raise Damaged(message)
    return Gap(message)


def _length(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else -1


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat() if len(text) == 10 else ""
    except ValueError:
        return ""
