"""`openmai data crawl`: the pages of one site as a web archive, taken politely.

Breadth first, the links of a page in their order of appearance, one request at a time with a pause between two. What becomes of an address
depends on the site, the configuration and what was visited before it, and all of that is in the log: after a kill the log is followed
without a request, and the crawl goes on after the last whole page.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from openmai import __version__
from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.files import write_json
from openmai.base.progress import Progress, say
from openmai.data.capture.archive import Archive, Log, Visit
from openmai.data.capture.config import CrawlConfig
from openmai.data.capture.fetch import BUSY, Fetched, Fetcher, FetchError
from openmai.data.capture.links import Marks, header_noindex, read_marks, same_page, sitemap_entries
from openmai.data.capture.robots import Rules, fetch_robots
from openmai.data.capture.urls import Scope, canonical, host, origin

ARCHIVE, LOG = "pages.warc.gz", "crawl.jsonl"
_HTML = {"text/html", "application/xhtml+xml"}
_SITEMAP_BYTES, _MAX_SITEMAPS = 50 << 20, 100


def crawl(config: CrawlConfig) -> Artifact:
    """Capture a site into `pages.warc.gz` of a snapshot artifact; `crawl.jsonl` tells of every address, `skipped.json` why one is missing.

    Raises OpenmaiError if no page can be had, or if the site stops answering: what was captured stays, the same command goes on.
    """
    with create(config.out, kind="snapshot", version=1, config=config) as work:
        if work.finished:
            return work.finished
        with _Crawl(config, work.path) as site:
            site.run()
        write_json(work.path / "skipped.json", site.skipped)
        metrics = site.metrics()
        say(f"crawl: {site.pages} pages, {site.bytes / 1e6:.1f} MB; {len(site.skipped)} addresses skipped (skipped.json), {_rest(site)}")
        return work.finish(metrics)


def sleep(seconds: float) -> None:
    """Pause between two requests."""
    if seconds > 0:
        time.sleep(seconds)


class _Crawl:
    """One crawl: the queue, what was seen, the archive and its log. A context."""

    def __init__(self, config: CrawlConfig, folder: Path) -> None:
        self.config = config
        self.scope = Scope(config.start, config.hosts, config.prefix, config.exclude)
        self.log = Log(folder / LOG, folder / ARCHIVE)
        info = {
            "software": f"openmai {__version__}",
            "format": "WARC File Format 1.1",
            "conformsTo": "https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/",
            "robots": "obey" if config.obey_robots else "ignore",
            "operator": config.contact,
            "description": f"crawl of {' '.join(config.start)}",
        }
        self.archive = Archive(folder / ARCHIVE, self.log.end, info)
        self.fetcher = Fetcher(config)
        self.head = self.log.next()
        self.queue: deque[tuple[str, int, int]] = deque()  # address, links from a start, redirects on the way
        self.seen: set[str] = set()
        self.rules: dict[str, Rules] = {}
        self.asked: dict[str, float] = {}  # host -> when its last answer ended
        self.contents: dict[str, str] = {}  # digest of a page -> its address
        self.taken: dict[str, str] = {}  # address, or the one that a page calls its canonical -> address of the page
        self.pending: list[Visit] = []  # failures in a row, not yet in the log
        self.skipped: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.hosts: Counter[str] = Counter()
        self.pages, self.bytes = 0, 0

    def __enter__(self) -> _Crawl:
        self.fetcher.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.fetcher.__exit__()
        self.archive.close()
        self.log.close()

    def run(self) -> None:
        """Visit addresses until a limit is reached or none is left."""
        for url in self.config.start:
            if not self.scope.holds(canonical(url, drop=self.config.drop_parameters)):
                raise OpenmaiError(f"start: {url} is outside `prefix`, or excluded; mend one of them")
            self._push(canonical(url, drop=self.config.drop_parameters), 0)
        if self.config.sitemap:
            for site in dict.fromkeys(origin(canonical(url)) for url in self.config.start):
                self._read_sitemaps(site)
        with Progress("crawl", None, "pages") as progress:
            while self.queue and not self._is_full():
                url, depth, hops = self.queue.popleft()
                is_known, pages = self._is_known(), self.pages
                self._take(self._visit(url, self._get_page), depth, hops)
                progress.total = min(self.config.max_pages, self.pages + len(self.queue))
                if is_known:
                    progress.start += self.pages - pages
                    progress.done += self.pages - pages
                else:
                    progress.advance(self.pages - pages, queue=len(self.queue), skipped=len(self.skipped))
        self._finish()

    def metrics(self) -> dict[str, Any]:
        """Return the figures for the manifest; `profile` tells `data build` by which thresholds to judge."""
        return {
            "profile": "web",
            "pages": self.pages,
            "html_bytes": self.bytes,
            "skipped": len(self.skipped),
            "redirects": self.counts["redirect"],
            "truncated": self.counts["truncated"],
            "visited": self.counts["visited"],
            "left_in_queue": len(self.queue),
            "hosts": dict(sorted(self.hosts.items())),
        }

    def _is_full(self) -> bool:
        limits = self.config
        return self.pages >= limits.max_pages or self.bytes >= limits.max_megabytes * 1e6 or self.counts["visited"] >= limits.max_requests

    def _push(self, url: str, depth: int, hops: int = 0) -> None:
        if url in self.seen:
            return
        if hops:
            self.queue.appendleft((url, depth, hops))
        elif len(self.queue) < self.config.max_requests:  # what stands behind so many is never visited
            self.queue.append((url, depth, hops))
        else:
            return
        self.seen.add(url)

    # --- the log: what an earlier attempt did is followed without a request ---

    def _is_known(self) -> bool:
        """True while the log has further visits; the robots.txt files on the way are learned."""
        while self.head is not None and self.head.kind == "robots":
            self._learn(self.head)
            self.head = self.log.next()
        return self.head is not None

    def _visit(self, url: str, make: Callable[[str], Visit]) -> Visit:
        """Return the visit of `url`, from the log or by asking the site; `make` asks."""
        if self._is_known():
            visit, self.head = self.head, self.log.next()
            if visit is None or visit.url != url:
                raise OpenmaiError(f"{self.config.out / LOG}: does not fit this crawl; delete {self.config.out} and start again")
            return visit
        visit = make(url)
        self._record(visit)
        return visit

    def _record(self, visit: Visit) -> None:
        """Write a visit to the log. Failures wait for an answer after them: if none comes, the next attempt tries them again."""
        if visit.kind == "failed":
            self.pending.append(visit)
            if len(self.pending) >= self.config.max_failures:
                raise OpenmaiError(
                    f"{host(visit.url)}: {len(self.pending)} addresses in a row failed, the last with '{visit.reason}'; "
                    f"{self.pages} pages are kept: run the same command again later to go on"
                )
            return
        for earlier in self.pending:
            self.log.add(earlier)
        self.pending = []
        self.log.add(replace(visit, end=self.archive.end))

    def _finish(self) -> None:
        if self.pages == 0:
            for path in (self.log.path, self.log.path.with_name(ARCHIVE)):
                path.unlink(missing_ok=True)
            reasons = "; ".join(f"{url}: {reason}" for url, reason in list(self.skipped.items())[:3])
            raise OpenmaiError(f"crawl: no page could be captured ({reasons or 'no address to visit'}); correct start, hosts or limits")
        for visit in self.pending:
            self.log.add(visit)

    # --- what a visit leads to ---

    def _take(self, visit: Visit, depth: int, hops: int) -> None:
        """Count a visit and queue what it leads to."""
        self.counts["visited"] += 1
        if visit.kind == "page":
            self.pages, self.bytes = self.pages + 1, self.bytes + visit.bytes
            self.counts["truncated"] += bool(visit.truncated)
            self.hosts[host(visit.url)] += 1
            self.contents[visit.digest] = visit.url
            self.taken[visit.url] = self.taken[visit.canonical or visit.url] = visit.url
        elif visit.kind == "redirect" and hops < self.config.max_redirects:
            self.counts["redirect"] += 1
            self._push(visit.links[0], depth, hops + 1)
        elif visit.kind == "redirect":
            self.skipped[visit.url] = f"more than {self.config.max_redirects} redirects in a row"
        else:
            self.skipped[visit.url] = visit.reason
        if visit.kind != "redirect" and depth < self.config.max_depth:
            for link in visit.links:
                self._push(link, depth + 1)

    def _get_page(self, url: str) -> Visit:
        """Ask for a page, and decide what becomes of it; a page that stays goes into the archive."""
        if self.config.obey_robots:
            rules = self._rules_of(origin(url))
            if rules.problem:
                return Visit(url, "failed", rules.problem)
            if not rules.allow(url):
                return Visit(url, "skipped", "robots.txt")
        try:
            page = self._ask(url, lambda answer: answer.status == 200 and answer.mime in self.config.content_types)
        except FetchError as error:
            return Visit(url, "failed" if error.again else "skipped", str(error))
        if page.status in BUSY:
            return Visit(url, "failed", f"HTTP {page.status}", page.status)
        if 300 <= page.status < 400 and page.header("location"):
            return self._redirect(page)
        if page.status != 200:
            return Visit(url, "skipped", f"HTTP {page.status}", page.status)
        if page.mime not in self.config.content_types:
            return Visit(url, "skipped", f"content type {page.mime or 'not given'}", page.status)
        return self._keep(page)

    def _redirect(self, page: Fetched) -> Visit:
        target = canonical(page.header("location"), page.url, self.config.drop_parameters)
        if not target or not self.scope.holds(target):
            return Visit(page.url, "skipped", f"redirect out of the site: {page.header('location')[:200]}", page.status)
        self.archive.add(page)
        return Visit(page.url, "redirect", status=page.status, links=(target,))

    def _keep(self, page: Fetched) -> Visit:
        obey, robots = self.config.obey_robots, page.all("x-robots-tag")
        if page.mime in _HTML:
            marks = read_marks(page.body, page.url, page.charset, robots, obey, self.config.drop_parameters)
        else:
            marks = Marks(noindex=obey and header_noindex(robots))
        links = tuple(link for link in marks.links if link != page.url and self.scope.holds(link))
        own = marks.canonical if marks.canonical and same_page(page.url, marks.canonical) else page.url
        digest = hashlib.blake2b(page.body, digest_size=16).hexdigest()
        if marks.noindex:
            return Visit(page.url, "skipped", "noindex", page.status, links=links)
        if digest in self.contents:  # its links too: a site that answers every address alike would lead on for ever
            return Visit(page.url, "skipped", f"same content as {self.contents[digest]}", page.status)
        if own in self.taken:
            return Visit(page.url, "skipped", f"same page as {self.taken[own]}, by its canonical mark", page.status, links=links)
        self.archive.add(page)
        return Visit(
            url=page.url,
            kind="page",
            status=page.status,
            bytes=len(page.body),
            digest=digest,
            canonical=own if own != page.url else "",
            truncated=page.truncated,
            links=links,
        )

    # --- the site's own wishes ---

    def _ask(self, url: str, wanted: Callable[[Fetched], bool], limit: int = 0) -> Fetched:
        """Ask for `url`, with the pause that its host wants before and retries with growing pauses after. Raises FetchError."""
        limit = limit or int(self.config.max_page_megabytes * 1e6)
        for attempt in range(self.config.retries + 1):
            is_last, wait = attempt == self.config.retries, 0.0
            if host(url) in self.asked:
                sleep(self.asked[host(url)] + self._delay(url) - time.monotonic())
            try:
                page = self.fetcher.get(url, wanted, limit)
                if page.status not in BUSY or is_last:
                    return page
                wait = page.retry_after()
            except FetchError as error:
                if is_last or not error.again:
                    raise
            finally:
                self.asked[host(url)] = time.monotonic()
            if wait > self.config.max_wait:
                raise OpenmaiError(f"{host(url)}: asks to come back in {wait:.0f} s; run the same command again then, it goes on from here")
            sleep(max(wait, min(self.config.max_wait, max(1.0, self.config.delay) * 2**attempt)))
        raise AssertionError("unreachable")

    def _delay(self, url: str) -> float:
        rules = self.rules.get(origin(url)) if self.config.obey_robots else None
        return max(self.config.delay, rules.delay if rules else 0.0)

    def _rules_of(self, site: str) -> Rules:
        """Return the rules of a host, asking for its robots.txt where they are not known or too old."""
        is_known = self._is_known()
        rules = self.rules.get(site)
        if rules is None or (rules.is_stale() and not is_known):
            visit = fetch_robots(site, lambda url: self._ask(url, lambda answer: answer.status == 200))
            if visit.kind == "robots":
                self._record(visit)
            rules = self._learn(visit)
        return rules

    def _learn(self, visit: Visit) -> Rules:
        site = origin(visit.url)
        rules = Rules(visit.text, visit.time, visit.reason)
        if self.config.obey_robots and rules.delay > self.config.delay and site not in self.rules:
            say(f"crawl: {site} asks for {rules.delay:g} s between two requests")
        self.rules[site] = rules
        return rules

    def _read_sitemaps(self, site: str) -> None:
        """Queue the pages that the sitemaps of a host list."""
        maps = deque(self._rules_of(site).sitemaps or [f"{site}/sitemap.xml"])
        asked: set[str] = set()
        while maps and len(asked) < _MAX_SITEMAPS:
            url = canonical(maps.popleft(), site)
            if not url or url in asked or host(url) not in self.scope.hosts:
                continue
            asked.add(url)
            visit = self._visit(url, self._get_sitemap)
            if visit.reason == "index":
                maps.extend(visit.links)
            else:
                for link in visit.links:
                    self._push(link, 0)

    def _get_sitemap(self, url: str) -> Visit:
        try:
            page = self._ask(url, lambda answer: answer.status == 200, _SITEMAP_BYTES)
        except FetchError as error:
            return Visit(url, "sitemap", str(error))
        if page.status != 200:
            return Visit(url, "sitemap", f"HTTP {page.status}", page.status)
        is_index, entries = sitemap_entries(page.body)
        links = [canonical(entry, url, self.config.drop_parameters) for entry in entries]
        if is_index:
            return Visit(url, "sitemap", "index", links=tuple(links))
        return Visit(url, "sitemap", links=tuple(link for link in dict.fromkeys(links) if link and self.scope.holds(link)))


def _rest(site: _Crawl) -> str:
    return f"{len(site.queue)} known but not visited" if site.queue else "none left"
