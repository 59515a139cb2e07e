"""pytest tests/test_data_read.py: every kind of source, whole and damaged."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from openmai.base.config import validate
from openmai.base.errors import OpenmaiError
from openmai.data.config import BuildConfig
from openmai.data.document import Raw
from openmai.data.read.config import Source
from openmai.data.read.files import Gap
from openmai.data.read.http import decode_body, parse_answer
from openmai.data.read.sources import Damaged, files_of, read
from openmai.data.read.warc import count_records

TEXTS = [f"Text number {number}: naïve café." for number in range(5)]


def write_warc(path: Path, pages: dict[str, bytes], content_type: str = "text/html", kind: str = "response") -> list[tuple[int, int]]:
    """Write `pages` (url -> body) and return (offset, length) of each record."""
    places = []
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=path.suffix == ".gz")
        for url, body in pages.items():
            start = file.tell()
            http = StatusAndHeaders("200 OK", [("Content-Type", content_type)], protocol="HTTP/1.1") if kind == "response" else None
            headers = {"WARC-Date": "2024-03-01T12:00:00Z"}
            mime = "text/plain" if kind == "conversion" else "application/http; msgtype=response"
            record = writer.create_warc_record(
                url, kind, io.BytesIO(body), http_headers=http, warc_headers_dict=headers, warc_content_type=mime
            )
            writer.write_record(record)
            places.append((start, file.tell() - start))
    return places


def records(path: Path, **facts: object) -> list[str]:
    source = validate(Source, {"name": "s", "path": str(path), **facts}, "test")
    found = [record for file in files_of(source, path.parent) for record in read(file, source)]
    return [record.content.decode(record.charset or "utf-8") for record in found if isinstance(record, Raw)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.parquet"])
def test_tables_of_text(tmp_path: Path, name: str) -> None:
    path, lines = tmp_path / name, "".join(json.dumps({"body": text, "n": 1}) + "\n" for text in TEXTS).encode()
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"body": TEXTS}), path)
    elif name.endswith(".json"):
        path.write_text(json.dumps([{"body": text} for text in TEXTS]))
    else:
        compress = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(name.split(".")[-1], bytes)
        path.write_bytes(compress(lines))
    assert records(path, text_field="body") == TEXTS
    with pytest.raises(OpenmaiError, match=r"no text in 'text'.*found body"):
        records(path)


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_warc(tmp_path: Path, name: str) -> None:
    write_warc(tmp_path / name, {f"http://x/{number}": text.encode() for number, text in enumerate(TEXTS)})
    assert records(tmp_path / name) == TEXTS
    source = Source(name="s", path=str(tmp_path / name))
    first = next(read(tmp_path / name, source))
    assert (first.url, first.mime, first.status, first.date) == ("http://x/0", "text/html", 200, "2024-03-01")


@pytest.mark.parametrize("name", ["a.warc.zst", "a.warc.lz4", "a.warc.gz", "misnamed.warc"])
def test_compressed_warc(tmp_path: Path, name: str) -> None:
    write_warc(tmp_path / "plain.warc", {f"http://x/{number}": text.encode() for number, text in enumerate(TEXTS)})
    plain = (tmp_path / "plain.warc").read_bytes()
    compress = {".zst": zstandard.compress, ".lz4": lz4.frame.compress}.get(Path(name).suffix, gzip.compress)
    (tmp_path / name).write_bytes(compress(plain[:700]) + compress(plain[700:]) + b"\0" * 10 * name.endswith(".gz"))
    assert records(tmp_path / name) == TEXTS


def test_zstd_with_a_dictionary(tmp_path: Path) -> None:
    write_warc(tmp_path / "plain.warc", {f"http://x/{number}": text.encode() for number, text in enumerate(TEXTS)})
    plain = (tmp_path / "plain.warc").read_bytes()
    dictionary = zstandard.ZstdCompressionDict(plain[:1000])
    packed = zstandard.compress(plain[:1000])
    head = b"\x5d\x2a\x4d\x18" + len(packed).to_bytes(4, "little") + packed
    (tmp_path / "a.warc.zst").write_bytes(head + zstandard.ZstdCompressor(dict_data=dictionary).compress(plain))
    assert records(tmp_path / "a.warc.zst") == TEXTS


def test_wacz(tmp_path: Path) -> None:
    write_warc(tmp_path / "a.warc.gz", {"http://x/0": TEXTS[0].encode()})
    write_warc(tmp_path / "b.warc", {"http://x/1": TEXTS[1].encode()})
    with zipfile.ZipFile(tmp_path / "c.wacz", "w") as archive:
        archive.write(tmp_path / "b.warc", "archive/2.warc", zipfile.ZIP_DEFLATED)
        archive.write(tmp_path / "a.warc.gz", "archive/1.warc.gz")
        archive.writestr("pages/pages.jsonl", '{"text": "no page"}')
    assert records(tmp_path / "c.wacz") == TEXTS[:2]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_broken_member_of_a_wacz_is_told_and_the_next_is_read(tmp_path: Path, method: int) -> None:
    for number in (0, 1):
        write_warc(tmp_path / f"{number}.warc", {f"http://x/{number}": TEXTS[number].encode()})
    with zipfile.ZipFile(tmp_path / "c.wacz", "w", method) as archive:
        archive.write(tmp_path / "0.warc", "archive/0.warc")
        archive.write(tmp_path / "1.warc", "archive/1.warc")
    whole = (tmp_path / "c.wacz").read_bytes()
    begin = whole.index(b"archive/0.warc") + len("archive/0.warc")
    for place in range(begin, begin + 40):
        (tmp_path / "c.wacz").write_bytes(whole[:place] + bytes(byte ^ 255 for byte in whole[place : place + 8]) + whole[place + 8 :])
        found = list(read(tmp_path / "c.wacz", Source(name="s", path="x")))
        assert any(isinstance(item, Gap) and "archive/0.warc: " in item.message for item in found)
        assert found[-1].url == "http://x/1"


def test_what_is_no_page_is_counted_and_left_out(tmp_path: Path) -> None:
    path, url = tmp_path / "a.warc", "http://x/"
    kinds = {
        "warcinfo": "",
        "request": url,
        "metadata": url,
        "revisit": url,
        "resource": "urn:pageinfo:x",
        "conversion": url,
        "unheard-of": url,
    }
    with open(path, "wb") as file:
        for kind, target in [*kinds.items(), ("response", "dns:x"), ("response", "https://x/robots.txt"), ("resource", "http://x/page")]:
            head = f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Target-URI: <{target}>\r\nContent-Type: text/plain; charset=latin-1\r\n"
            file.write(f"{head}WARC-Truncated: length\r\nContent-Length: 3\r\n\r\n{kind[:3]}\r\n\r\n".encode())
    found = list(read(path, Source(name="s", path="x")))
    assert [(raw.url, raw.content, raw.charset) for raw in found] == [(url, b"con", "utf-8"), ("http://x/page", b"res", "latin-1")]
    assert json.loads(found[1].meta) == {"truncated": "length"}
    known = {kind: 1 for kind in kinds if kind != "unheard-of"}
    assert count_records(path) == known | {"resource": 2, "response": 2, "unknown": 1}


def test_http_headers(tmp_path: Path) -> None:
    http = [
        ("Content-Type", 'text/html; Charset="ISO-8859-1"'),
        ("X-Robots-Tag", "noai"),
        ("x-robots-tag", "noindex"),
        ("TDM-Reservation", "1"),
    ]
    with open(tmp_path / "a.warc", "wb") as file:
        writer = WARCWriter(file, gzip=False)
        answer = StatusAndHeaders("404 Gone", [*http, ("Content-Language", "da"), ("Set-Cookie", "secret")], protocol="HTTP/2")
        writer.write_record(writer.create_warc_record("http://x/", "response", io.BytesIO(b"\xe6"), http_headers=answer))
        for body in (b"<p>no type", b"plain", b"\x89PNG\0"):
            answer = StatusAndHeaders("200 OK", [], protocol="HTTP/1.1")
            writer.write_record(writer.create_warc_record("http://x/", "response", io.BytesIO(body), http_headers=answer))
    raw, *others = (item for item in read(tmp_path / "a.warc", Source(name="s", path="x")) if isinstance(item, Raw))
    assert (raw.status, raw.mime, raw.charset, raw.content) == (404, "text/html", "iso-8859-1", b"\xe6")
    assert json.loads(raw.headers) == {"x-robots-tag": "noai, noindex", "tdm-reservation": "1", "content-language": "da"}
    assert [other.mime for other in others] == ["text/html", "text/plain", "application/octet-stream"]


def test_interim_answers_are_passed_over() -> None:
    answer = parse_answer(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200\r\nA: b\r\n  c\r\n\r\nbody")
    assert (answer.status, answer.fields, answer.body) == (200, {"a": "b c"}, b"body")
    assert parse_answer(b"no answer at all").body == b"no answer at all"


def test_body_without_the_encoding_that_its_headers_promise(tmp_path: Path) -> None:
    body = b"<html>plain after all</html>"
    for name, value in (("Transfer-Encoding", "chunked"), ("Content-Encoding", "gzip")):
        http = StatusAndHeaders("200 OK", [("Content-Type", "text/html"), (name, value)], protocol="HTTP/1.1")
        with open(tmp_path / "a.warc", "wb") as file:
            writer = WARCWriter(file, gzip=False)
            writer.write_record(writer.create_warc_record("http://x/", "response", io.BytesIO(body), http_headers=http))
        assert records(tmp_path / "a.warc") == [body.decode()]


def test_decode_body() -> None:
    body = b"<html>" + b"text " * 1000
    packed = {
        "gzip": gzip.compress(body),
        "deflate": zlib.compress(body),
        "br": bytes.fromhex("1b8d13f8a541cae8f05421af55012659cc9e05803c00"),
        "identity": body,
    }
    for encoding, data in packed.items():
        chunked = b"".join(b"%x;note=1\r\n%s\r\n" % (len(part), part) for part in (data[:50], data[50:]) if part) + b"0\r\n\r\n"
        assert decode_body(chunked, {"transfer-encoding": "Chunked", "content-encoding": encoding}) == body
        assert decode_body(body, {"transfer-encoding": "chunked", "content-encoding": encoding}) == body


def test_wet_and_folder_and_glob(tmp_path: Path) -> None:
    write_warc(tmp_path / "b.wet.gz", {"http://x/0": TEXTS[0].encode()}, kind="conversion")
    (tmp_path / "c.txt").write_text(TEXTS[1])
    (tmp_path / "a.md").write_text(TEXTS[2])
    (tmp_path / "ignored.bin").write_bytes(b"\0")
    assert records(tmp_path) == [TEXTS[2], TEXTS[0], TEXTS[1]]
    assert records(tmp_path / "*.[tm]*") == [TEXTS[2], TEXTS[1]]


@pytest.mark.parametrize("packed", [False, True])
def test_arc_of_both_versions(tmp_path: Path, packed: bool) -> None:
    bodies = [f"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n{text}".encode() for text in TEXTS[:3]]
    lines = [
        "http://x/a b?c=d e 1.1.1.1 20200102000000 text/html {}",
        "http://x/2 ::1 20200102000000 text/html 200 checksum - 77 a.arc {}",
        "http://x/3 1.1.1.1 20200102000000  {}",
    ]
    pieces = [f"filedesc://a.arc 0.0.0.0 20200101000000 text/plain {len(TEXTS[0].encode())}\n{TEXTS[0]}\n".encode()]
    pieces += [line.format(len(body)).encode() + b"\n" + body + b"\n" for line, body in zip(lines, bodies, strict=True)]
    (tmp_path / "a.arc.gz").write_bytes(b"".join(gzip.compress(piece) if packed else piece for piece in pieces))
    found = list(read(tmp_path / "a.arc.gz", Source(name="s", path="x")))
    assert [(raw.url, raw.content.decode(), raw.date) for raw in found] == [
        (url, text, "2020-01-02") for url, text in zip(("http://x/a b?c=d e", "http://x/2", "http://x/3"), TEXTS, strict=False)
    ]
    assert count_records(tmp_path / "a.arc.gz") == {"warcinfo": 1, "response": 3}


@pytest.mark.parametrize("name", ["a.txt", "a.md.gz", "a.html.zst", "a.xhtml", "a.ndjson.lz4", "a.json.gz"])
def test_other_names_and_compressions(tmp_path: Path, name: str) -> None:
    content = json.dumps({"text": TEXTS[0]}).encode() if "json" in name else TEXTS[0].encode()
    compress = {".gz": gzip.compress, ".zst": zstandard.compress, ".lz4": lz4.frame.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(compress(content))
    assert records(tmp_path / name) == [TEXTS[0]]


def test_arc(tmp_path: Path) -> None:
    body = b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\nhello"
    info = b"1 0 openmai\nURL IP-address Archive-date Content-type Archive-length\n"
    head = b"filedesc://a.arc 0.0.0.0 20200101000000 text/plain %d\n" % len(info) + info + b"\n"
    (tmp_path / "a.arc").write_bytes(head + b"http://x/ 1.1.1.1 20200101000000 text/html %d\n" % len(body) + body + b"\n")
    assert records(tmp_path / "a.arc") == ["hello"]


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc", "a.jsonl.gz"])
def test_truncated_file_keeps_the_good_prefix(tmp_path: Path, name: str) -> None:
    path, pages = tmp_path / name, {f"http://x/{number}": f"{number}".encode() * 50_000 for number in range(4)}
    if "warc" in name:
        write_warc(path, pages)
    else:
        path.write_bytes(gzip.compress("".join(json.dumps({"text": str(n)}) + "\n" for n in range(8_000)).encode()))
    path.write_bytes(path.read_bytes()[:-25])
    source, good = Source(name="s", path=str(path)), []
    with pytest.raises(Damaged):
        collect(read(path, source), good)
    if "warc" in name:
        assert good.pop().problem.startswith("extract.length: record 3 at byte ")
        assert [raw.content[:1] for raw in good] == [b"0", b"1", b"2"]
    else:
        assert 6_000 < len(good) < 8_000


def collect(items: Iterator, into: list) -> None:
    for item in items:
        into.append(item)


def test_missing_unknown_and_contradictory_sources(tmp_path: Path) -> None:
    with pytest.raises(OpenmaiError, match=r"nowhere.warc: no such file.*source 's'"):
        records(tmp_path / "nowhere.warc")
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(OpenmaiError, match=r"a.bin is of an unknown kind"):
        records(tmp_path / "a.bin")
    for origins in ({}, {"path": "x", "huggingface": {"name": "y"}}):
        with pytest.raises(OpenmaiError, match="exactly one of path, commoncrawl, huggingface"):
            validate(BuildConfig, {"out": "o", "sources": [{"name": "s", **origins}]}, "test")
