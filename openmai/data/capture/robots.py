"""robots.txt as RFC 9309 says: fetched once per host and day; an error of the site's own forbids everything, a missing file nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from protego import Protego

from openmai.data.capture.archive import Visit
from openmai.data.capture.fetch import Fetched, FetchError
from openmai.data.capture.links import AGENT
from openmai.data.capture.urls import canonical

_MAX_CHARS = 512_000  # RFC 9309, 2.5: at least 500 KiB must be read
_DAY = 24 * 3600.0  # 2.4: not used for longer than a day
_HOPS = 5  # 2.3.1.2
_RETRY = 600.0  # how long an unreachable file is taken as such


class Rules:
    """The rules of one host: which addresses may be fetched, and how often."""

    def __init__(self, text: str, fetched: float, problem: str = "") -> None:
        self.parsed, self.problem, self.fetched = Protego.parse(text[:_MAX_CHARS]), problem, fetched

    def allow(self, url: str) -> bool:
        return not self.problem and self.parsed.can_fetch(url, AGENT)

    @property
    def delay(self) -> float:
        """Seconds between two requests that the site asks for, by crawl-delay or request-rate."""
        rate = self.parsed.request_rate(AGENT)
        asked = max(self.parsed.crawl_delay(AGENT) or 0.0, rate.seconds / rate.requests if rate and rate.requests else 0.0)
        return max(0.0, float(asked))

    @property
    def sitemaps(self) -> list[str]:
        return list(self.parsed.sitemaps)

    def is_stale(self) -> bool:
        return time.time() - self.fetched > (_RETRY if self.problem else _DAY)


def fetch_robots(origin: str, ask: Callable[[str], Fetched]) -> Visit:
    """Return the visit of a host's robots.txt: kind robots with its text ("" where there is none), or failed where it cannot be had."""
    first = url = f"{origin}/robots.txt"
    for _ in range(_HOPS + 1):
        try:
            page = ask(url)
        except FetchError as error:
            return Visit(first, "failed", f"robots.txt unreachable: {error}", time=time.time())
        if page.status == 429 or page.status >= 500:
            return Visit(first, "failed", f"robots.txt unreachable: HTTP {page.status}", page.status, time=time.time())
        target = canonical(page.header("location"), url) if 300 <= page.status < 400 else ""
        if not target:
            break
        url = target
    text = page.body.decode("utf-8", errors="replace")[:_MAX_CHARS] if page.status == 200 else ""
    return Visit(first, "robots", status=page.status, text=text, time=time.time())
