"""Common Crawl: the pages that match a URL pattern, by its index and range requests, or whole files of a crawl.

The index (https://commoncrawl.org/cdxj-index) is asked page by page and its rows are kept in a file. The record of a row is one gzip member
of an archive, fetched by a range request, checked, and appended to a local archive in the index's order, a few downloads ahead. A ledger
beside it says how many rows are done, so that an interrupted attempt goes on there.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from openmai.base.errors import OpenmaiError
from openmai.base.files import atomic_file, hash_value, sync_folder
from openmai.base.progress import Progress, say
from openmai.data.read.config import CommonCrawl
from openmai.data.read.download import NotFound, describe, download, download_file, download_range

_MAX_RECORD = 64 << 20
Row = dict[str, Any]


def fetch_commoncrawl(config: CommonCrawl, downloads: Path) -> list[Path]:
    """Return local archives with what `config` asks for, downloading what is not there yet.

    Raises OpenmaiError if the servers cannot be reached, or nothing matches.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    if config.paths:
        return _fetch_files(config, downloads)
    name = hash_value(config.model_dump(exclude={"concurrency"}))[:16]
    target, rows = downloads / f"commoncrawl-{name}.warc.gz", downloads / f"commoncrawl-{name}.rows.jsonl"
    if not target.exists():
        if not rows.exists():
            _look_up(config, rows)
        _fetch_records(config, rows, target)
    return [target]


# --- the index ---


@dataclass(frozen=True)
class Query:
    """A URL pattern in the index's terms: what to ask for, and the pattern of the path where only we can compare it."""

    url: str
    match: str
    path: str = ""

    @classmethod
    def of(cls, pattern: str) -> Query:
        """Read example.org/x (one address), example.org/x* (all that begin so), *.example.org (its hosts), *.example.org/x* (both)."""
        bare = pattern.split("://", 1)[-1]
        if bare.startswith("*."):
            host, _, path = bare[2:].partition("/")
            return cls(host, "domain", "" if path in ("", "*") else f"/{path}")
        if "*" not in bare:
            return cls(bare, "exact")
        begin, _, rest = bare.partition("*")
        return cls(begin, "prefix", f"/{bare.partition('/')[2]}" if rest else "")

    def holds(self, url: str) -> bool:
        """True if an address that the index gave has the path that was asked for."""
        return not self.path or fnmatchcase("/" + url.split("://", 1)[-1].partition("/")[2], self.path)


def _look_up(config: CommonCrawl, target: Path) -> None:
    """Write the rows that match to `target`, each content once, in the index's order."""
    query = Query.of(config.url)
    facts = [("url", query.url), ("matchType", query.match), ("output", "json"), ("filter", "=status:200")]
    if config.languages:
        facts.append(("filter", f"~languages:({'|'.join(config.languages)})"))
    address = f"{config.index.rstrip('/')}/{config.crawl}-index?{urlencode(facts)}"
    count, seen = 0, set[str]()
    pages = _count_pages(config, address)
    with atomic_file(target, "w") as file, Progress("cc index", pages, "pages") as progress:
        for page in range(pages):
            for row in _rows(download(f"{address}&page={page}")):
                digest = str(row.get("digest", ""))
                if count < config.limit and digest not in seen and _is_wanted(row, config, query):
                    seen |= {digest} - {""}
                    file.write(json.dumps(row) + "\n")
                    count += 1
            progress.advance(rows=count)
            if count >= config.limit:
                break
        if not count:
            raise _nothing(config)


def _count_pages(config: CommonCrawl, address: str) -> int:
    try:
        answer = json.loads(download(f"{address}&showNumPages=true"))
    except NotFound:
        raise _nothing(config) from None
    except ValueError:
        raise OpenmaiError(f"{config.index}: its answer is no index of Common Crawl's; correct `index`") from None
    return int(answer["pages"] if isinstance(answer, dict) else answer)


def _nothing(config: CommonCrawl) -> OpenmaiError:
    return OpenmaiError(f"{config.crawl}: its index has no page for {config.url}; check crawl id, URL pattern, mimes and languages")


def _rows(answer: bytes) -> Iterator[Row]:
    for line in answer.splitlines():
        if line.strip():
            row = json.loads(line)
            if "filename" in row:
                yield row


def _is_wanted(row: Row, config: CommonCrawl, query: Query) -> bool:
    mime, language = row.get("mime-detected") or row.get("mime") or "", str(row.get("languages", "")).split(",")[0]
    return (
        str(row.get("status", "200")) == "200"
        and (not config.mimes or mime in config.mimes or not mime)
        and (not config.languages or language in config.languages)
        and query.holds(row["url"])
    )


# --- the records ---


def _fetch_records(config: CommonCrawl, rows: Path, target: Path) -> None:
    """Download the records of all rows into `target`, in order, going on after what an interrupted attempt brought."""
    part, ledger = target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.ledger")
    with open(rows, encoding="utf-8") as file:
        total = sum(1 for _ in file)
    done, end, damaged = _read_ledger(ledger, part)
    with (
        open(rows, encoding="utf-8") as file,
        open(part, "r+b" if part.exists() else "w+b") as archive,
        open(ledger, "a", encoding="utf-8") as log,
        Progress("common crawl", total, "records", start=done) as progress,
        ThreadPoolExecutor(config.concurrency) as threads,
    ):
        archive.truncate(end)
        archive.seek(end)
        waiting: deque[Future[tuple[bytes, str]]] = deque()
        lines = islice(file, done, None)
        while True:
            for line in islice(lines, 2 * config.concurrency - len(waiting)):
                waiting.append(threads.submit(_fetch_record, config, json.loads(line)))
            if not waiting:
                break
            try:
                data, problem = waiting.popleft().result()
            except OpenmaiError:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
            archive.write(data)
            archive.flush()
            log.write(json.dumps([archive.tell(), problem]) + "\n")
            log.flush()
            damaged += bool(problem)
            progress.advance(MB=f"{archive.tell() / 1e6:.1f}", damaged=damaged)
        os.fsync(archive.fileno())
    if damaged == total:
        raise OpenmaiError(f"{config.crawl}: all {total} records are damaged ({problem}); check `files` and run the command again")
    if damaged:
        say(f"common crawl: {damaged} of {total} records are damaged or are not what the index says; they are left out")
    os.replace(part, target)
    sync_folder(target.parent)
    ledger.unlink()


def _read_ledger(ledger: Path, part: Path) -> tuple[int, int, int]:
    """Return how many rows are done, where the archive then ended, and how many of them were damaged; cut off a half-written line."""
    done, end, damaged, good = 0, 0, 0, 0
    size = part.stat().st_size if part.exists() else 0
    for line in ledger.read_bytes().splitlines(keepends=True) if ledger.exists() else []:
        if not line.endswith(b"\n") or json.loads(line)[0] > size:
            break
        end, problem = json.loads(line)
        done, damaged, good = done + 1, damaged + bool(problem), good + len(line)
    if ledger.exists():
        os.truncate(ledger, good)
    return done, end, damaged


def _fetch_record(config: CommonCrawl, row: Row) -> tuple[bytes, str]:
    """Return a record as its gzip member, or (b"", what is wrong with it) if it is damaged twice."""
    problem = ""
    for _ in range(2):
        data = download_range(f"{config.files.rstrip('/')}/{row['filename']}", int(row["offset"]), int(row["length"]))
        problem = check_record(data, row)
        if not problem:
            return data, ""
    return b"", f"{row['url']}: {problem}"


def check_record(data: bytes, row: Row) -> str:
    """Return what is wrong with a gzip member that should be the record of an index row, or ""."""
    member = zlib.decompressobj(wbits=31)
    try:
        content = member.decompress(data, _MAX_RECORD)
    except zlib.error as error:
        return f"damaged gzip data ({error})"
    if not member.eof:
        return "gzip data that break off" if not member.unconsumed_tail else f"more than {_MAX_RECORD >> 20} MB"
    if member.unused_data.strip(b"\0"):
        return "more than one record"
    head, _, block = content.partition(b"\r\n\r\n")
    lines = [line.partition(":") for line in head.decode("utf-8", errors="replace").split("\r\n")[1:]]
    fields = {name.strip().lower(): value.strip() for name, _, value in lines}
    if not head.startswith(b"WARC/") or fields.get("warc-target-uri", "").strip("<>") != row["url"]:
        return f"another record ({fields.get('warc-target-uri', 'no web archive')})"
    length = int(fields["content-length"]) if fields.get("content-length", "").isdigit() else -1
    if len(block) != length + 4 or not block.endswith(b"\r\n\r\n"):
        return f"{max(0, len(block) - 4)} bytes, its head says {length}"
    digests = [_bare(fields.get("warc-payload-digest", "")), _bare(str(row.get("digest", "")))]
    if all(digests) and digests[0] != digests[1]:
        return f"content {digests[0]}, the index says {digests[1]}"
    promised = fields.get("warc-block-digest", "")
    if promised.startswith("sha1:") and promised != f"sha1:{base64.b32encode(hashlib.sha1(block[:-4]).digest()).decode()}":
        return "content that differs from its digest"
    return ""


def _bare(digest: str) -> str:
    return digest.rpartition(":")[2]


# --- whole files ---


def _fetch_files(config: CommonCrawl, downloads: Path) -> list[Path]:
    """Return some of a crawl's files, in the order of its list."""
    base = config.files.rstrip("/")
    try:
        listing = gzip.GzipFile(fileobj=io.BytesIO(download(f"{base}/crawl-data/{config.crawl}/{config.paths}.paths.gz")))
        names = listing.read().decode().split()
    except NotFound:
        raise OpenmaiError(f"{config.crawl}: no such crawl, or it has no {config.paths} files; check the crawl id") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise OpenmaiError(f"{base}: its list of {config.paths} files is damaged; check `files`") from None
    chosen = names[config.first_segment : config.first_segment + config.segments]
    if len(chosen) < config.segments:
        raise OpenmaiError(f"{config.crawl}: has {len(names)} {config.paths} files; lower segments or first_segment")
    folder = downloads / f"commoncrawl-{config.crawl}-{config.paths}"
    folder.mkdir(exist_ok=True)
    files = [folder / f"{config.first_segment + number:06d}-{name.rpartition('/')[2]}" for number, name in enumerate(chosen)]
    with Progress("common crawl", len(files), "files") as progress, ThreadPoolExecutor(config.concurrency) as threads:
        jobs = [threads.submit(_fetch_file, f"{base}/{name}", file) for name, file in zip(chosen, files, strict=True)]
        try:
            for job in jobs:
                progress.advance(MB=f"{job.result() / 1e6:.0f}")
        except OpenmaiError:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return files


def _fetch_file(url: str, target: Path) -> int:
    if not target.exists():
        download_file(url, target, describe(url))
    return target.stat().st_size
