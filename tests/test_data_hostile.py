"""pytest tests/test_data_hostile.py: pages and archives made to harm are rejected with the reason, and the pages between them are kept."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from openmai.base.config import validate
from openmai.base.errors import OpenmaiError
from openmai.data.build import build
from openmai.data.config import Annotation, BuildConfig, Limits
from openmai.data.document import Raw, raw_batch
from openmai.data.engine import pool, steps
from openmai.data.read import files, http, records, stream
from openmai.data.read.config import Source
from openmai.data.read.sources import Damaged, Gap, read, reread

PROSE = (
    "The garden behind the school was made by the children who came here after the flood. They have planted beans, peas and roses, and in "
    "the spring of every year they measure how far the roots have gone. A teacher of the town wrote a small book about it. It says that "
    "nobody should hurry a tree, and that the best soil is often found where the old road used to be."
)
HTML = "Content-Type: text/html\r\n"
LARGEST = 4 << 20  # instead of MAX_BYTES, so that the suite stays quick
TOWNS = (
    "Ashford",
    "Brimley",
    "Corwen",
    "Dunmore",
    "Elstow",
    "Fenwick",
    "Garth",
    "Hale",
    "Irby",
    "Jarrow",
    "Kelso",
    "Lydd",
    "Marlow",
    "Nairn",
)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, http, records):
        monkeypatch.setattr(module, "MAX_BYTES", LARGEST)
    monkeypatch.setattr(stream, "_BOMB_BYTES", 2 * LARGEST)


def record(url: str, body: bytes, head: str = HTML, length: int | None = None, kind: str = "response") -> bytes:
    """Return a WARC record of an HTTP answer, with the Content-Length that it should claim."""
    http = f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + body
    claim = len(http) if length is None else length
    warc = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-03-01T12:00:00Z\r\nContent-Length: {claim}\r\n\r\n"
    return warc.encode() + http + b"\r\n\r\n"


def good(number: int) -> bytes:
    """Return a page that passes every rule, unlike the others by a word in seven."""
    words = " ".join(f"{word}{TOWNS[number].lower()}" if place % 7 == 3 else word for place, word in enumerate(PROSE.split()))
    return record(f"http://good/{number}", f"<h1>{TOWNS[number]}</h1><p>{words}</p>".encode())


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> tuple[list[str], dict[str, tuple[str, str]], dict]:
    """Build documents of what lies in the folder; return the kept URLs, (rule, reason) of the rejected, and the funnel."""
    monkeypatch.setattr(pool, "_CONTEXT", "fork")  # so that the workers see a step that the test adds, and models that are loaded here
    steps.annotate(raw_batch([("", 0, Raw(b"<p>load", "", "text/html"))], "", ""), Annotation())
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") >> 20  # forked workers have it all
    limits = {"megabytes": mapped + 4096, **limits}
    facts = {"sources": [{"name": "web", "path": str(folder), "on_error": "skip"}], "workers": 2, "limits": limits, "languages": []}
    out = folder.parent / "out"
    build(validate(BuildConfig, {"out": out, "part_records": 8, **facts}, "test"))
    rejected = {row["url"]: (row["rule"], row["reason"]) for row in pq.read_table(out / "rejected").to_pylist()}
    return pq.read_table(out / "documents")["url"].to_pylist(), rejected, json.loads((out / "funnel.json").read_text())


def between(pages: dict[str, bytes]) -> bytes:
    """Return an archive with a good page before each of `pages`, each record compressed by itself."""
    pieces = [piece for number, page in enumerate(pages.values()) for piece in (good(number), page)]
    return b"".join(gzip.compress(piece, 1) for piece in [*pieces, good(len(pages))])


def test_hostile_pages_cost_only_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(rows: list[steps.Row], config: Annotation) -> None:
        for row in rows:
            while "evil evil" in row["text"]:
                pass
            if "greedy greedy" in row["text"]:
                row["text"] *= 1 << 32

    monkeypatch.setattr(steps, "STEPS", [explode, *steps.STEPS])
    noise = random.Random(0).randbytes(100_000)
    pages = {
        "extract.size gzip": record("http://bad/gzip", gzip.compress(bytes(LARGEST + 1)), HTML + "Content-Encoding: gzip\r\n"),
        "extract.size zstd": record("http://bad/zstd", zstandard.compress(bytes(LARGEST + 1)), HTML + "Content-Encoding: zstd\r\n"),
        "extract.size page": record("http://bad/page", b"<p>large</p>\n" * (LARGEST // 12)),
        "extract.size html": record("http://bad/html", b"<p>rather large</p>\n" * 80_000),
        "extract.depth nest": record("http://bad/nest", b"<div>" * 180_000),
        "any utf8": record("http://bad/utf8", b"<p>" + b"\xff\xfe\xc3(" * 9000, HTML.replace("html", "html; charset=utf-8")),
        "extract.length short": record("http://bad/short", b"<p>The answer is longer than it says, " * 20, length=200),
        "extract.length huge": record("http://bad/huge", b"<p>The answer is shorter than it says.", length=10**12),
        "extract.length none": record("http://bad/none", b"<p>How long it is, it does not say.", length=-1),
        "extract.head head": record("http://bad/head", b"", "X-Bomb: " + "x" * 300_000 + "\r\n"),
        "extract.deadline evil": record("http://bad/evil", f"<p>evil evil {PROSE}</p>".encode()),
        "extract.memory greedy": record("http://bad/greedy", f"<p>greedy greedy {PROSE}</p>".encode()),
        "extract.encoding noise": record("http://bad/noise", noise),
    }
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.warc.gz").write_bytes(between(pages))
    kept, rejected, funnel = run(tmp_path / "in", monkeypatch, seconds=0.5, html_megabytes=1.0)
    assert kept == [f"http://good/{number}" for number in range(len(pages) + 1)]
    for what in pages:
        rule, name = what.split()
        assert rejected[f"http://bad/{name}"][0] == rule or rule == "any", rejected[f"http://bad/{name}"]
    assert len(rejected) == len(pages)
    assert "says 200 bytes" in rejected["http://bad/short"][1]
    assert funnel["damaged"] == []


def test_a_page_that_only_waits_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(rows: list[steps.Row], config: Annotation) -> None:
        time.sleep(1000 * any("idle" in row["text"] for row in rows))

    monkeypatch.setattr(steps, "STEPS", [wait])
    monkeypatch.setattr(pool, "_CONTEXT", "fork")
    monkeypatch.setattr(pool, "_PATIENCE", 1)
    with pool.Pool(1, Annotation(limits=Limits(seconds=1))) as workers:
        row = next(workers.run([raw_batch([("f", 0, Raw(b"idle", "http://x/"))], "s", "")])).to_pylist()[0]
    assert (row["rule"], row["reason"]) == ("extract.deadline", "took more than 1 seconds, mostly of waiting")


def test_a_page_that_the_parser_has_no_memory_for_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lexbor copies a text as often as a second <body> cuts it: half a megabyte of them takes more than 400 MB (found by fuzzing)."""
    steps.annotate(raw_batch([("", 0, Raw(b"<p>load", "", "text/html"))], "", ""), Annotation())
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") >> 20
    monkeypatch.setattr(pool, "_CONTEXT", "fork")
    page = Raw(b"a garden of words <body lang=en>" * 16_000, "http://x/", "text/html")
    with pool.Pool(1, Annotation(limits=Limits(megabytes=mapped + 200))) as workers:
        row = next(workers.run([raw_batch([("f", 0, page)], "s", "")])).to_pylist()[0]
    assert row["rule"] == "extract.memory", row["reason"]


def test_records_that_lie_in_a_plain_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = record("http://bad/long", b"<p>shorter than it says", length=3000)
    huge = record("http://bad/huge", b"<p>much shorter than it says", length=10**12)
    headless = b"WARC/1.0\r\nWARC-Type: response\r\n" + b"X" * 5000
    request = record("http://bad/request", b"", length=100, kind="request")
    pieces = [b"junk before", good(0), long, good(1), huge, good(2), headless, b"\n", good(3), request, good(4), good(5)[:-100]]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.warc").write_bytes(b"".join(pieces))
    kept, rejected, funnel = run(tmp_path / "in", monkeypatch)
    assert kept == [f"http://good/{number}" for number in range(5)]
    assert {url: rule for url, (rule, _) in rejected.items()} == dict.fromkeys(
        ("http://bad/long", "http://bad/huge", "http://good/5"), "extract.length"
    )
    damaged = " ".join(funnel["damaged"])
    for words in ("11 bytes before the first record", "head without end", "the next record begins after", "the file breaks off"):
        assert words in damaged


def test_damaged_members_cost_only_themselves(tmp_path: Path) -> None:
    members = [gzip.compress(good(number)) for number in range(8)]
    wrong_sum, cut, bomb = bytearray(members[2]), members[4][:-100], gzip.compress(bytes(3 * LARGEST))
    wrong_sum[-6] ^= 1
    path = tmp_path / "a.warc.gz"
    path.write_bytes(
        members[0] + b"no gzip" + members[1] + wrong_sum + members[3] + cut + members[5] + bomb + members[6] + members[7][:-300]
    )
    good_ones, gaps, ends = look(path)
    assert good_ones == [f"http://good/{number}" for number in (0, 1, 3, 5, 6)]
    assert len(gaps) >= 4
    assert "expand more than 250-fold" in " ".join(gaps)
    assert "break off" in ends


def look(path: Path) -> tuple[list[str], list[str], str]:
    """Return the URLs of usable records, the gaps, and how reading ended."""
    urls, gaps, ends = [], [], ""
    try:
        for item in read(path, Source(name="s", path=str(path))):
            if isinstance(item, Gap) or item.problem:
                gaps.append(item.message if isinstance(item, Gap) else item.problem)
            else:
                urls.append(item.url)
    except Damaged as error:
        ends = str(error)
    return urls, gaps, ends


def test_a_length_that_covers_exactly_the_next_record_of_a_compressed_archive_is_a_lie(tmp_path: Path) -> None:
    """Found by fuzzing: it ends where a record may end, but a member of the archive begins within it."""
    hidden, *others = (record(f"http://good/{number}", b"<p>short") for number in range(1, 12))  # more must be read to see how one begins
    body = b"<p>A page that ends early."
    liar = record("http://bad/liar", body, length=len(f"HTTP/1.1 200 OK\r\n{HTML}\r\n".encode() + body + b"\r\n\r\n" + hidden) - 4)
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(gzip.compress(piece) for piece in (*[good(0)] * 300, liar[:-20], liar[-20:], hidden, *others)))
    urls, gaps, _ = look(path)
    assert urls == 299 * ["http://good/0"] + [f"http://good/{number}" for number in range(12)]
    assert len(gaps) == 1
    assert "the next record begins after" in gaps[0]


def test_a_megabyte_of_heads_without_end_takes_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(b"WARC/1.0\r\nA: b\r\n" * 60_000 + good(0))
    urls, gaps, _ = look(path)
    assert urls == ["http://good/0"]
    assert len(gaps) == 60_000


def test_every_record_of_every_damaged_copy_is_whole_or_reported(tmp_path: Path) -> None:
    members = [gzip.compress(good(number)) for number in range(6)]
    path, rng, wanted = tmp_path / "a.warc.gz", random.Random(1), [f"http://good/{number}" for number in range(6)]
    for _ in range(60):
        data = bytearray(b"".join(members))
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        urls, gaps, ends = look(path)
        assert urls == wanted or ((gaps or ends) and len(urls) >= 4 and set(urls) < set(wanted))


def test_hostile_wacz(tmp_path: Path) -> None:
    path, members = tmp_path / "a.wacz", [gzip.compress(good(number)) for number in range(4)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/1.warc.gz", members[0] + members[1])
        archive.writestr("archive/2.warc", b"\0" * (2 << 20), zipfile.ZIP_DEFLATED)
        archive.writestr("archive/3.warc.gz", members[2][:-200])
        archive.writestr("archive/4.warc", good(3), zipfile.ZIP_DEFLATED)
        archive.writestr("indexes/index.cdx.gz", gzip.compress(b"no archive"))
    urls, gaps, ends = look(path)
    assert urls == [f"http://good/{number}" for number in (0, 1, 3)]
    assert "zip bomb" in " ".join(gaps)
    assert "archive/3.warc.gz" in " ".join(gaps)
    assert not ends
    path.write_bytes(path.read_bytes()[:-300])  # without its table of contents
    urls, gaps, ends = look(path)
    assert urls == [f"http://good/{number}" for number in (0, 1)]
    assert "not a whole zip file" in gaps[0]


def test_hostile_tables(tmp_path: Path) -> None:
    deep, bracket = (b'{"text": "deep", "x": ' + b"[" * depth + b"]" * depth + b', "y": 1}' for depth in (100_000, 200))
    lines = [
        b'{"text": "a", "url": "\\ud800"}',
        b'{"text": "b"',
        deep,
        bracket,
        b'{"text": null}',
        b"7",
        b'{"text": 5}',
        b'{"other": 1}',
        b"\xff\xfe",
        b'{"text": "z"}',
    ]
    long = b'{"text": "' + b"x" * (17 << 20) + b'"}'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n".join([*lines, long, lines[-1]]), 1))
    items = list(read(tmp_path / "a.jsonl.gz", Source(name="s", path="x")))
    found = Counter("gap" if isinstance(item, Gap) else item.problem.partition(":")[0] or "text" for item in items)
    assert found == {"text": 5, "gap": 3, "extract.empty": 3, "extract.size": 1}
    assert reread(tmp_path / "a.jsonl.gz", Source(name="s", path="x"), 6).content == b"z"
    assert json.loads(reread(tmp_path / "a.jsonl.gz", Source(name="s", path="x"), 1).meta) == {"y": 1}
    with pytest.raises(OpenmaiError, match="no record 99"):
        reread(tmp_path / "a.jsonl.gz", Source(name="s", path="x"), 99)
    pq.write_table(pa.table({"text": [b"bytes", None], "day": pa.array([2**62, 0], pa.timestamp("us"))}), tmp_path / "a.parquet")
    with pytest.raises(Damaged, match="not readable as Parquet"):
        list(read(tmp_path / "a.parquet", Source(name="s", path="x")))
