"""python benchmarks/hostile.py: pages and records made to harm, at full size, through the whole build with its ordinary limits.

Each is rejected with a reason and the good pages between them stay, or the status is 1. Prints what became of each, time and memory.
tests/test_data_hostile.py holds the same for smaller ones.
"""

from __future__ import annotations

import gzip
import random
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from openmai.base.config import validate
from openmai.data.build import build
from openmai.data.config import BuildConfig

GIGABYTE = 1 << 30
PROSE = (
    "The garden behind the school was made by the children who came here after the flood. They have planted beans, peas and roses, and in "
    "the spring of every year they measure how far the roots have gone. A teacher of the town wrote a small book about it. It says that "
    "nobody should hurry a tree, and that the best soil is often found where the old road used to be."
)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        archive, count = Path(folder) / "a.warc.gz", 0
        with open(archive, "wb") as file:
            for name, member in hostile():
                file.write(gzip.compress(good(count), 1) + member)
                count += 1
                print(f"{name:<40} {len(member):>12,} bytes")
            file.write(gzip.compress(good(count), 1))
        started = time.monotonic()
        source = {"name": "web", "path": str(archive), "on_error": "skip"}
        out = Path(folder) / "out"
        build(validate(BuildConfig, {"out": out, "sources": [source], "workers": 1, "languages": [], "dedup": {"near": False}}, "hostile"))
        kept = set(pq.read_table(out / "documents")["url"].to_pylist())
        rejected = pq.read_table(out / "rejected").to_pylist()
        for row in rejected:
            print(f"{row['url']:<24} {row['rule']}: {row['reason']}"[:140])
        own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        largest = max(own.ru_maxrss, workers.ru_maxrss) >> 10
        print(f"{time.monotonic() - started:.1f} s, {largest} MB in the largest process;", end=" ")
        print(f"{len(kept)} of {count + 1} good pages kept, {len(rejected)} rejected")
        return int(kept != {f"http://good/{number}" for number in range(count + 1)} or len(rejected) < count)


def hostile() -> Iterator[tuple[str, bytes]]:
    """Yield names and gzip members."""
    zipped = "Content-Type: text/html\r\nContent-Encoding: gzip\r\n"
    yield "a body of 2 GB in gzip", gzip.compress(record("http://bad/bomb", zeros(2 * GIGABYTE), zipped), 1)
    yield "a page of 105 MB", gzip.compress(record("http://bad/105", b"<p>large</p>\n" * 8_100_000), 1)
    yield "a page of 50 MB", gzip.compress(record("http://bad/50", b"<p>large</p>\n" * 3_900_000), 1)
    for name, piece, times in (
        ("div", b"<div>", 10**6),
        ("table", b"<table><tr><td>", 500_000),
        ("rt", b"(x<rt>", 10**6),
        ("b", b"<b><i>", 10**6),
    ):
        yield f"{times:,} {name} in each other", gzip.compress(record(f"http://bad/{name}", piece * times), 1)
    yield "a million ends without a beginning", gzip.compress(record("http://bad/end", b"<span>" * 2000 + b"</x>" * 10**6), 1)
    yield (
        "invalid UTF-8",
        gzip.compress(record("http://bad/utf8", b"<p>" + b"\xff\xfe\xc3(" * 250_000, "Content-Type: text/html; charset=utf-8\r\n"), 1),
    )
    yield "no character set", gzip.compress(record("http://bad/noise", random.Random(0).randbytes(10**6)), 1)
    yield "a record of 10^12 bytes", gzip.compress(record("http://bad/long", b"<p>x", length=10**12), 1)
    yield "a gzip member of 2 GB", zeros(2 * GIGABYTE)


def record(url: str, body: bytes, head: str = "Content-Type: text/html\r\n", length: int | None = None) -> bytes:
    """Return a WARC record of an HTTP answer, with the Content-Length that it should claim."""
    http = f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + body
    claim = len(http) if length is None else length
    warc = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-03-01T12:00:00Z\r\nContent-Length: {claim}\r\n\r\n"
    )
    return warc.encode() + http + b"\r\n\r\n"


def good(number: int) -> bytes:
    """Return a page that passes every rule."""
    return record(f"http://good/{number}", f"<h1>Page {number}</h1><p>{PROSE} This is page number {number}.</p>".encode())


def zeros(size: int) -> bytes:
    """Return a gzip stream of so many zero bytes."""
    packer, pieces = zlib.compressobj(9, zlib.DEFLATED, 31), []
    for _ in range(size >> 24):
        pieces.append(packer.compress(bytes(1 << 24)))
    return b"".join(pieces) + packer.flush()


if __name__ == "__main__":
    sys.exit(main())
