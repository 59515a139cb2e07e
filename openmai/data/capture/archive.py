"""The web archive of a crawl and its log: what was visited, in order, so that a killed crawl goes on where it stood."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from openmai.data.capture.fetch import Fetched


@dataclass(frozen=True)
class Visit:
    """What became of one address; everything that the crawl's further course depends on.

    kind: page (in the archive), redirect (in the archive), skipped, failed (no answer, or a busy server), robots, sitemap.
    """

    url: str
    kind: str
    reason: str = ""
    status: int = 0
    bytes: int = 0
    digest: str = ""
    canonical: str = ""
    truncated: str = ""
    links: tuple[str, ...] = ()
    text: str = ""
    time: float = 0.0
    end: int = 0

    def to_line(self) -> str:
        facts = {name: value for name, value in asdict(self).items() if value}
        return json.dumps(facts, ensure_ascii=False) + "\n"

    @classmethod
    def of_line(cls, line: str) -> Visit:
        facts = json.loads(line)
        return cls(**facts | {"links": tuple(facts.get("links", ()))})


class Log:
    """`crawl.jsonl`: one line per visit; an earlier attempt's lines are given out again, in order, before new ones are added.

    A line is written after what it tells of has been handed to the operating system, and holds where the archive then ended: bytes beyond
    the last line's `end` are of a page that was not finished.
    """

    def __init__(self, path: Path, archive: Path) -> None:
        self.path, self.end, good = path, 0, 0
        size = archive.stat().st_size if archive.exists() else 0
        for line in _lines(path):
            visit = _parse(line)
            if visit is None or visit.end > size:
                break
            self.end, good = max(self.end, visit.end), good + len(line)
        if path.exists():
            with open(path, "r+b") as file:
                file.truncate(good)
        self.known = (visit for line in _lines(path, good) if (visit := _parse(line)) is not None)
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def next(self) -> Visit | None:
        """Return the next visit of an earlier attempt."""
        return next(self.known, None)

    def add(self, visit: Visit) -> None:
        self.file.write(visit.to_line())
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _lines(path: Path, end: int | None = None) -> Iterator[bytes]:
    """Yield the whole lines of a file, up to a place in it."""
    if not path.exists():
        return
    position = 0
    with open(path, "rb") as file:
        for line in file:
            position += len(line)
            if not line.endswith(b"\n") or (end is not None and position > end):
                return
            yield line


def _parse(line: bytes) -> Visit | None:
    try:
        return Visit.of_line(line.decode("utf-8"))
    except (ValueError, TypeError):
        return None


class Archive:
    """A `.warc.gz` of WARC 1.1 (https://iipc.github.io/warc-specifications/), one gzip member per record."""

    def __init__(self, path: Path, end: int, info: dict[str, str]) -> None:
        """Open `path`, keep its first `end` bytes and go on after them; a new one begins with `info`."""
        self.file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 (closed by close)
        self.file.truncate(end)
        self.file.seek(end)
        self.writer = WARCWriter(self.file, gzip=True, warc_version="1.1")
        if end == 0:
            self.writer.write_record(self.writer.create_warcinfo_record(path.name, info))
            self.file.flush()

    @property
    def end(self) -> int:
        return self.file.tell()

    def add(self, page: Fetched) -> None:
        """Write an answer and its request."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        response_id = _record_id("response", page.url)
        facts = {"WARC-Record-ID": response_id, "WARC-Date": now} | ({"WARC-IP-Address": page.ip} if page.ip else {})
        if page.truncated:
            facts["WARC-Truncated"] = page.truncated
        status = f"{page.status} {page.phrase}".strip()
        self._write(page.url, "response", StatusAndHeaders(status, page.stored_headers(), protocol="HTTP/1.1"), page.body, facts)
        parts = urlsplit(page.url)
        target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        head = StatusAndHeaders(f"GET {target} HTTP/1.1", page.request, is_http_request=True)
        facts = {"WARC-Record-ID": _record_id("request", page.url), "WARC-Date": now, "WARC-Concurrent-To": response_id}
        self._write(page.url, "request", head, b"", facts)
        self.file.flush()

    def _write(self, url: str, kind: str, http: StatusAndHeaders, body: bytes, facts: dict[str, Any]) -> None:
        self.writer.write_record(
            self.writer.create_warc_record(url, kind, io.BytesIO(body), length=len(body), http_headers=http, warc_headers_dict=facts)
        )

    def close(self) -> None:
        self.file.close()


def _record_id(kind: str, url: str) -> str:
    return f"<urn:uuid:{uuid5(NAMESPACE_URL, f'{kind} {url}')}>"
