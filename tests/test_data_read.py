"""pytest tests/test_data_read.py: every kind of source, whole and damaged."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

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
from openmai.data.read.http import decode_body
from openmai.data.read.sources import Damaged, files_of, read

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
        path.write_bytes(gzip.compress("".join(json.dumps({"text": str(n)}) + "\n" for n in range(40_000)).encode()))
    path.write_bytes(path.read_bytes()[:-25])
    source, good = Source(name="s", path=str(path)), []
    with pytest.raises(Damaged):
        collect(read(path, source), good)
    if "warc" in name:
        assert good.pop().problem.startswith("extract.length: record 3 at byte ")
        assert [raw.content[:1] for raw in good] == [b"0", b"1", b"2"]
    else:
        assert 30_000 < len(good) < 40_000


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
