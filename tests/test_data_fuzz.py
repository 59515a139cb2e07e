"""pytest tests/test_data_fuzz.py: any bytes at all, to every reader, the HTTP decoder, the extractor and the per-document steps.

Short; benchmarks/fuzz_readers.py does the same for hours on real files, in a process that may crash.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import lz4.frame
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openmai.base.errors import OpenmaiError
from openmai.data.config import Annotation
from openmai.data.document import Raw, raw_batch
from openmai.data.engine.steps import annotate
from openmai.data.extract.html import ExtractError, decode, extract
from openmai.data.read.config import Source
from openmai.data.read.http import BodyError, decode_body, kept_headers, parse_answer
from openmai.data.read.sources import COMPRESSIONS, READERS, Damaged, Gap, read

settings.register_profile("short", max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
settings.load_profile("short")

PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".lz4": lz4.frame.compress}
PIECES = st.sampled_from(
    [
        *(
            b"WARC/1.0\r\n",
            b"WARC-Type: response\r\n",
            b"Content-Length: 9\r\n",
            b"Content-Length: 99999999999\r\n",
            b"\r\n\r\n",
            b"PK\x03\x04",
        ),
        *(b"filedesc://a 0.0.0.0 20200101000000 text/plain 3\n", b"http://x/ 1.1.1.1 20200101000000 text/html 5\n", b"\x1f\x8b\x08\x00"),
        *(
            b"HTTP/1.1 200 OK\r\n",
            b"Content-Encoding: gzip\r\n",
            b"5\r\nhello\r\n",
            b'{"text": "a"}\n',
            b"[" * 2000,
            b"PAR1",
            b"\x28\xb5\x2f\xfd",
        ),
    ]
)
SOUP = st.lists(st.one_of(PIECES, st.binary(max_size=30)), max_size=12).map(b"".join)
TAGS = [
    "div",
    "p",
    "table",
    "tr",
    "td",
    "a",
    "script",
    "svg",
    "template",
    "pre",
    "li",
    "h1",
    "title",
    "body",
    "select",
    "math",
    "main",
    "nav",
]
HTML = st.lists(
    st.one_of(
        st.sampled_from([f"<{tag}>" for tag in TAGS] + [f"</{tag}>" for tag in TAGS]),
        st.sampled_from(
            ["<!--", "-->", "<![CDATA[", "<a href='x", "&#0;", "&amp", "\0", "<td colspan=99999>", "<div>" * 500, "<p hidden class=ad>"]
        ),
        st.text(max_size=20),
    ),
    max_size=60,
).map("".join)


def look(name: str, data: bytes) -> tuple[list[Raw], bool]:
    """Return what a file holds, and whether its reader reports damage; whatever else it raises fails the test."""
    records, reported = [], False
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            for item in read(path, Source(name="s", path="x")):
                reported |= isinstance(item, Gap) or bool(item.problem)
                records += [] if isinstance(item, Gap) or item.problem else [item]
        except (Damaged, OpenmaiError):
            reported = True
    return records, reported


def warc(bodies: list[bytes]) -> list[bytes]:
    """Return a record for each body."""
    head = b"WARC/1.0\r\nWARC-Type: resource\r\nWARC-Target-URI: http://x/%d\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    head += b"%s\r\n\r\n"
    return [head % (number, len(body), body) for number, body in enumerate(bodies)]


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=15)
@given(data=SOUP, packing=st.sampled_from(["", *COMPRESSIONS]))
def test_readers_take_any_bytes(kind: str, data: bytes, packing: str) -> None:
    for content in (data, PACK[packing](data)):
        assert look(f"a{kind}", content) == look(f"a{kind}", content)


@given(bodies=st.lists(SOUP, min_size=1, max_size=5), packing=st.sampled_from(list(PACK)), one_member=st.booleans())
def test_whole_archives_come_out_as_they_went_in(bodies: list[bytes], packing: str, one_member: bool) -> None:
    members = [b"".join(warc(bodies))] if one_member else warc(bodies)
    records, reported = look(f"a.warc{packing}", b"".join(PACK[packing](member) for member in members))
    assert [record.content for record in records] == bodies
    assert not reported


@given(bodies=st.lists(st.binary(min_size=1, max_size=60), min_size=2, max_size=5), data=st.data())
def test_flipped_bits_are_noticed(bodies: list[bytes], data: st.DataObject) -> None:
    packed = bytearray(b"".join(gzip.compress(member) for member in warc(bodies)))
    for place in data.draw(st.lists(st.integers(0, 8 * len(packed) - 1), min_size=1, max_size=3)):
        packed[place // 8] ^= 1 << place % 8
    records, reported = look("a.warc.gz", bytes(packed))
    contents = [record.content for record in records]
    assert contents == bodies or reported
    assert set(contents) <= set(bodies)


@given(junk=SOUP, bodies=st.lists(st.binary(max_size=60), min_size=1, max_size=4), packing=st.sampled_from(list(PACK)))
def test_records_behind_junk_are_found(junk: bytes, bodies: list[bytes], packing: str) -> None:
    first, *others = warc([b"first", *bodies])
    packed = b"".join(PACK[packing](member) for member in others)
    broken = PACK[packing](first) + (b"\xff" + junk if packing else junk)
    records, _ = look(f"a.warc{packing}", broken + packed)
    assert [record.content for record in records][-len(bodies) :] == bodies


@given(bodies=st.lists(st.binary(max_size=80), min_size=2, max_size=5), number=st.integers(0, 4), length=st.integers(0, 10**12))
def test_a_wrong_length_costs_one_record(bodies: list[bytes], number: int, length: int) -> None:
    records = warc(bodies)
    number %= len(bodies)
    right = b"Content-Length: %d\r\n" % len(bodies[number])
    records[number] = records[number].replace(right, b"Content-Length: %d\r\n" % length, 1)
    found, reported = look("a.warc", b"".join(records))
    others = [body for place, body in enumerate(bodies) if place != number]
    if reported:
        assert [record.content for record in found] == others
    else:  # it happens to be right, but for blank space, or for whole records that it takes in
        assert all(body in b"".join(record.content for record in found) for body in others)


@given(
    body=st.binary(max_size=300),
    names=st.lists(st.sampled_from(["gzip", "deflate", "zstd"]), max_size=2),
    size=st.integers(1, 50),
    chunked=st.booleans(),
)
def test_encoded_bodies_decode(body: bytes, names: list[str], size: int, chunked: bool) -> None:
    packed = body
    for name in names:
        packed = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.compress}[name](packed)
    fields = {"content-encoding": ", ".join(names)}
    if chunked:
        pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
        packed = b"".join(b"%X;a=b\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        fields["transfer-encoding"] = "chunked"
    decoded = decode_body(packed, fields)
    assert decoded == body or not body


@given(
    data=SOUP,
    fields=st.dictionaries(
        st.sampled_from(["content-encoding", "transfer-encoding"]), st.sampled_from(["gzip", "br", "zstd, deflate", "chunked"])
    ),
)
def test_answers_of_any_bytes(data: bytes, fields: dict[str, str]) -> None:
    with contextlib.suppress(BodyError):
        answer = parse_answer(data)
        assert isinstance(json.loads(kept_headers(answer.fields)), dict)
        decode_body(answer.body, answer.fields | fields)


@settings(max_examples=20)
@given(
    html=HTML,
    encoding=st.sampled_from(["utf-8", "utf-16", "shift_jis"]),
    charset=st.sampled_from(["", "utf-8", "x-none", "utf-16"]),
    junk=st.binary(max_size=20),
)
def test_pages_of_any_bytes(html: str, encoding: str, charset: str, junk: bytes) -> None:
    content = html.encode(encoding, errors="replace") + junk
    with contextlib.suppress(ExtractError):
        extract(decode(content, charset), 400)
    raws = [Raw(content, "http://x/", "text/html", charset), Raw(junk, "http://y/", "text/plain", "")]
    batch, config = raw_batch([("f", number, raw) for number, raw in enumerate(raws)], "s", ""), Annotation()
    first = annotate(batch, config)
    assert first.equals(annotate(batch, config))
    assert first.num_rows == 2
