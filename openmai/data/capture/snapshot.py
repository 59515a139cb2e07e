"""`openmai data snapshot`: the documentation pages of this machine as a web archive.

The crawl is breadth-first within each package and takes one page of each package in turn, so that any limit leaves a mixture. Limits count
pages and bytes, never time: a second snapshot holds the same pages. Every result goes into the archive at once, pages as `response` records
and failures as `metadata` records, one gzip member each; after a kill the good members are replayed and the crawl goes on from there.
"""

from __future__ import annotations

import io
import json
import re
import sys
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO
from uuid import NAMESPACE_URL, uuid5

from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from openmai import __version__
from openmai.base.artifact import Artifact, create
from openmai.base.files import write_json
from openmai.base.progress import Progress, say
from openmai.data.capture.config import SnapshotConfig
from openmai.data.capture.pydoc_server import PageError, PydocServer

ARCHIVE, SITE = "pages.warc.gz", "http://127.0.0.1/"
# Modules that do something on import, need a screen, or are tests or copies of other packages.
_LEFT_OUT = re.compile(
    r"(^|\.)(_.*|test|tests|testing|test_.*|.*_test|conftest|vendor|_vendor|vendored|extern|examples?|demos?|setup|cli|stubs|sphinxext)(\.|$)"
    r"|^(antigravity|this|idlelib|turtledemo|turtle|tkinter|lib2to3|ensurepip|pip|distutils|pydoc_data|nis|ossaudiodev|spwd|msilib|winreg|msvcrt"
    r"|crypt|cgitb|numpy\.matlib|matplotlib\.backends|torch\.utils\.tensorboard|torch\.onnx|torch\.distributed|torch\.ao|torch\.fx\.experimental)(\.|$)"
)
_LINK = re.compile(r'href="([\w.]+)\.html["#]')


@dataclass(frozen=True)
class Page:
    """A page of the server: its HTML, or the reason why it is left out; its links to modules lead on in both cases."""

    html: bytes = b""
    skipped: str = ""
    links: tuple[str, ...] = ()

    @classmethod
    def of(cls, html: bytes) -> Page:
        return cls(html, links=tuple(sorted(set(_LINK.findall(html.decode("utf-8", errors="replace"))))))


def snapshot(config: SnapshotConfig) -> Artifact:
    """Capture the documentation of the configured packages into `pages.warc.gz` of a snapshot artifact."""
    with create(config.out, kind="snapshot", version=1, config=config) as work:
        if work.finished:
            return work.finished
        known = _recover(work.path / ARCHIVE)
        with open(work.path / ARCHIVE, "ab") as file:
            crawl = _Crawl(config, file, known)
            crawl.run()
        write_json(work.path / "skipped.json", crawl.skipped)
        say(f"snapshot: {crawl.pages} pages, {crawl.bytes / 1e6:.1f} MB of HTML, {len(crawl.skipped)} pages skipped (skipped.json)")
        metrics = {
            "pages": crawl.pages,
            "html_bytes": crawl.bytes,
            "skipped": len(crawl.skipped),
            "packages": dict(sorted(crawl.taken.items())),
        }
        return work.finish(metrics)


class _Crawl:
    """One crawl: a queue of paths per package, the archive, and what an earlier attempt has already captured."""

    def __init__(self, config: SnapshotConfig, file: BinaryIO, known: dict[str, Page]) -> None:
        self.config, self.known = config, known
        self.file, self.writer = file, WARCWriter(file, gzip=True)
        self.servers = [PydocServer(config.page_timeout) for _ in range(config.servers)]
        self.pages, self.bytes = 0, 0
        self.skipped: dict[str, str] = {}
        self.taken: Counter[str] = Counter()
        if not known and file.tell() == 0:
            self._write_info()

    def run(self) -> None:
        """Take rounds of one page per package until the limits are reached or nothing is left."""
        missing = list(dict.fromkeys(name for name in self.config.packages if not _is_installed(name)))
        packages = [name for name in self.config.packages if name not in missing]
        if missing:
            say(f"snapshot: not installed here, left out: {', '.join(missing)}")
        try:
            with Progress("snapshot", 100, "%") as progress:
                queues = {name: deque(self._seeds(name)) for name in dict.fromkeys(packages)}
                seen = {path for queue in queues.values() for path in queue}
                while any(queues.values()) and not self._is_full():
                    turn = [(name, queues[name].popleft()) for name in packages if queues[name]]
                    for (name, path), page in zip(turn, self._fetch(turn, list(queues)), strict=True):
                        if self._is_full():
                            break
                        self._keep(path, page, progress, name)
                        new = [link for link in _paths(name, page.links) if link not in seen]
                        seen.update(new)
                        queues[name].extend(new)
        finally:
            for server in self.servers:
                server.close()

    def _is_full(self) -> bool:
        return self._share() >= 1

    def _share(self) -> float:
        """How much of the limit that is nearer has been used."""
        return max(self.pages / self.config.max_pages, self.bytes / (self.config.max_megabytes * 1e6))

    def _seeds(self, package: str) -> list[str]:
        if package == "stdlib":
            return _paths(package, self._page(0, "index.html").links)
        if package == "topics":
            pages = [self._page(0, path).html.decode() for path in ("topics.html", "keywords.html")]
            return list(dict.fromkeys(link for page in pages for link in sorted(re.findall(r'href="(topic\?key=[^"]+)"', page))))
        return [f"{package}.html"]

    def _fetch(self, turn: list[tuple[str, str]], packages: list[str]) -> list[Page]:
        """Return the pages of one turn, in its order; a package always asks the same server."""
        count = len(self.servers)
        shares = [[path for name, path in turn if packages.index(name) % count == number] for number in range(count)]
        with ThreadPoolExecutor(count) as threads:
            results = threads.map(lambda number: {path: self._page(number, path) for path in shares[number]}, range(count))
            pages = {path: page for result in results for path, page in result.items()}
        return [pages[path] for _, path in turn]

    def _page(self, number: int, path: str) -> Page:
        if path in self.known:
            return self.known[path]
        time.sleep(self.config.delay)
        try:
            page = Page.of(self.servers[number].get(path))
        except PageError as error:
            return Page(skipped=str(error))
        failure = re.search(rb"<title>Pydoc: Error.*<strong class=\"bigsection\">(.*)", page.html, re.S)
        if failure:
            return Page(skipped=" ".join(re.sub(r"<[^>]*>|&nbsp;", " ", failure[1].decode(errors="replace")).split()))
        if len(page.html) > self.config.max_page_megabytes * 1e6:
            reason = f"{len(page.html) / 1e6:.1f} MB of HTML, limit {self.config.max_page_megabytes:g}"
            return Page(skipped=reason, links=page.links)
        return page

    def _keep(self, path: str, page: Page, progress: Progress, package: str) -> None:
        if path not in self.known:
            self._write(path, page)
        if page.skipped:
            self.skipped[path] = page.skipped
            return
        self.pages, self.bytes = self.pages + 1, self.bytes + len(page.html)
        self.taken[package] += 1
        progress.advance(100 * self._share() - progress.done, pages=self.pages, MB=f"{self.bytes / 1e6:.1f}")

    def _write(self, path: str, page: Page) -> None:
        uri = SITE + path
        record_id = {"WARC-Record-ID": f"<urn:uuid:{uuid5(NAMESPACE_URL, uri)}>"}
        if page.skipped:
            body = io.BytesIO(json.dumps({"skipped": page.skipped, "links": page.links}).encode())
            record = self.writer.create_warc_record(
                uri, "metadata", body, warc_content_type="application/json", warc_headers_dict=record_id
            )
        else:
            headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(page.html)))]
            http = StatusAndHeaders("200 OK", headers, protocol="HTTP/1.0")
            record = self.writer.create_warc_record(uri, "response", io.BytesIO(page.html), http_headers=http, warc_headers_dict=record_id)
        self.writer.write_record(record)
        self.file.flush()

    def _write_info(self) -> None:
        facts = {
            "software": f"openmai {__version__}",
            "format": "WARC File Format 1.0",
            "description": f"pydoc pages of Python {sys.version.split()[0]}",
        }
        self.writer.write_record(self.writer.create_warcinfo_record(ARCHIVE, facts))
        self.file.flush()


def _is_installed(package: str) -> bool:
    if package in ("stdlib", "topics"):
        return True
    return find_spec(package.split(".")[0]) is not None  # of a dotted name the parent would be imported: its page tells


def _paths(package: str, links: Sequence[str]) -> list[str]:
    """Return the paths of a package's public modules among `links`, in order."""
    if package == "topics":
        return []
    mine = [name for name in links if not _LEFT_OUT.search(name)]
    if package == "stdlib":
        return [f"{name}.html" for name in mine if name.split(".")[0] in sys.stdlib_module_names]
    return [f"{name}.html" for name in mine if name.startswith(package + ".")]


def _recover(archive: Path) -> dict[str, Page]:
    """Return what an interrupted attempt captured, path -> page, and cut off a half-written last member."""
    known: dict[str, Page] = {}
    if not archive.exists():
        return known
    good = 0
    for content, end in _members(archive):
        good = end
        for record in ArchiveIterator(io.BytesIO(content)):
            path = record.rec_headers.get_header("WARC-Target-URI", "").removeprefix(SITE)
            if record.rec_type == "response":
                known[path] = Page.of(record.content_stream().read())
            elif record.rec_type == "metadata":
                facts = json.load(record.content_stream())
                known[path] = Page(skipped=facts["skipped"], links=tuple(facts["links"]))
    with open(archive, "r+b") as file:
        file.truncate(good)
    return known


def _members(archive: Path) -> Iterator[tuple[bytes, int]]:
    """Yield (content, offset of its end) of each whole gzip member; end silently at the first that is cut off."""
    with open(archive, "rb") as file:
        rest, end = b"", 0
        while rest or (rest := file.read(1 << 16)):
            member, content, size = zlib.decompressobj(wbits=31), [], 0
            try:
                while rest and not member.eof:
                    content.append(member.decompress(rest))
                    size += len(rest)
                    rest = member.unused_data if member.eof else file.read(1 << 16)
            except zlib.error:
                return
            if not member.eof:
                return
            end += size - len(member.unused_data)
            yield b"".join(content), end
