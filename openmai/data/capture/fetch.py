"""One HTTP request with limits on everything: silence, the whole time, the size before and after decompression, and where it may lead."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import httpx2

from openmai import __version__
from openmai.data.capture.config import CrawlConfig, is_loopback
from openmai.data.capture.links import AGENT
from openmai.data.capture.urls import canonical

BUSY = {408, 425, 429, 500, 502, 503, 504}
_HOP = {"transfer-encoding", "content-encoding"}


class FetchError(Exception):
    """A page that could not be had; the message says why. `again` is False where another try would end the same."""

    def __init__(self, problem: str, again: bool = True) -> None:
        super().__init__(problem)
        self.again = again


@dataclass
class Fetched:
    """An answer; its body is decompressed, and `truncated` says by which limit it was cut off: "length", "time" or not ("")."""

    url: str
    status: int
    phrase: str
    headers: list[tuple[str, str]]
    request: list[tuple[str, str]]
    ip: str = ""
    body: bytes = b""
    truncated: str = ""
    decoded: set[str] = field(default_factory=set)

    def header(self, name: str) -> str:
        """Return the first header of that name, or ""."""
        return next(iter(self.all(name)), "")

    def all(self, name: str) -> list[str]:
        """Return all headers of that name."""
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def mime(self) -> str:
        return self.header("content-type").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str:
        found = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", self.header("content-type"), re.IGNORECASE)
        return found[1].lower() if found else "utf-8"

    def retry_after(self) -> float:
        """Return the seconds after which the server asks to come again; 0 if it does not say."""
        value = self.header("retry-after").strip()
        if value.isdigit():
            return float(value)
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            return 0.0

    def stored_headers(self) -> list[tuple[str, str]]:
        """Return the headers as they fit the body that is kept: undone encodings are renamed as Common Crawl does, the length is true."""
        kept = []
        for name, value in self.headers:
            changed = name.lower() in self.decoded or (name.lower() == "content-length" and value.strip() != str(len(self.body)))
            kept.append((f"X-Crawler-{name}" if changed else name, value))
        if not any(name.lower() == "content-length" for name, _ in kept):
            kept.append(("Content-Length", str(len(self.body))))
        return kept


class Fetcher:
    """Asks one page at a time, without cookies; a context."""

    def __init__(self, config: CrawlConfig) -> None:
        self.config = config
        agent = f"{AGENT}/{__version__} (+{config.contact})" if config.contact else f"{AGENT}/{__version__}"
        self.headers = {
            "User-Agent": agent,
            "Accept": "text/html,application/xhtml+xml,text/plain;q=0.8,*/*;q=0.1",
            "Accept-Encoding": "gzip",
        }
        self.is_local = all(is_loopback(httpx2.URL(canonical(url)).host) for url in config.start)
        self.depths: dict[str, int] = {}
        self.runner = asyncio.Runner()
        self.client: httpx2.AsyncClient | None = None

    def __enter__(self) -> Fetcher:
        limit = httpx2.Timeout(self.config.read_timeout, connect=self.config.connect_timeout)
        self.client = httpx2.AsyncClient(timeout=limit, headers=self.headers, trust_env=not self.is_local)  # no proxy for loopback
        self.start = max(self._reach(httpx2.URL(canonical(url)).host) for url in self.config.start)
        return self

    def __exit__(self, *error: object) -> None:
        assert self.client is not None
        self.runner.run(self.client.aclose())
        self.runner.close()

    def get(self, url: str, wanted: Callable[[Fetched], bool], limit: int) -> Fetched:
        """Ask for `url`; the body is read only where `wanted` says so of status and headers, up to `limit` bytes. Raises FetchError."""
        name = httpx2.URL(url).host
        if self._reach(name) > self.start:
            raise FetchError(f"{name} is an address inside this network, the site is not", again=False)
        try:
            return self.runner.run(self._get(url, wanted, limit))
        except TimeoutError:
            raise FetchError(f"no answer in {self.config.page_timeout:g} s", again=False) from None
        except httpx2.TimeoutException as error:
            seconds = self.config.connect_timeout if isinstance(error, httpx2.ConnectTimeout) else self.config.read_timeout
            raise FetchError(f"silent for {seconds:g} s") from None
        except httpx2.TransportError as error:
            raise FetchError(" ".join(str(error).split()) or type(error).__name__) from None
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise FetchError(f"not a usable address ({error})", again=False) from None

    async def _get(self, url: str, wanted: Callable[[Fetched], bool], limit: int) -> Fetched:
        assert self.client is not None
        self.client.cookies.clear()
        answer = None
        try:
            async with asyncio.timeout(self.config.page_timeout), self.client.stream("GET", url) as response:
                answer = _answer(url, response)
                if wanted(answer):
                    await self._read(response, answer, limit)
                return answer
        except TimeoutError:
            if answer is None or not answer.body:
                raise
            answer.truncated = "time"
            return answer

    async def _read(self, response: httpx2.Response, answer: Fetched, limit: int) -> None:
        """Read the body into `answer`, which has all that came when time runs out."""
        encoding = answer.header("content-encoding").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise FetchError(f"encoded as {encoding}, though only gzip was asked for", again=False)
        inflate = zlib.decompressobj(wbits=31) if "gzip" in encoding else None
        answer.decoded = {name for name in _HOP if answer.header(name)}
        pieces, left = bytearray(), limit
        try:
            async for data in response.aiter_raw():
                piece = inflate.decompress(data, left + 1) if inflate else data
                pieces += piece[:left]
                if len(piece) > left:
                    answer.truncated = "length"
                    break
                left -= len(piece)
            else:
                if inflate and not inflate.eof:
                    raise FetchError("its gzip data break off")
        except zlib.error as error:
            raise FetchError(f"its gzip data are damaged ({error})", again=False) from None
        finally:
            answer.body = bytes(pieces)

    def _reach(self, name: str) -> int:
        """Return how far inside a host lies: 0 in the public internet, 1 in a private network, 2 on this machine or its link.

        So a public site cannot lead the crawl to a service of this machine. A name that only a proxy can resolve counts as public.
        """
        if name not in self.depths:
            try:
                found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                found = []
            self.depths[name] = max((_depth(str(entry[4][0])) for entry in found), default=2 if is_loopback(name) else 0)
        return self.depths[name]


def _depth(address: str) -> int:
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback or ip.is_link_local or ip.is_unspecified:
        return 2
    return 1 if ip.is_private else 0


def _answer(url: str, response: httpx2.Response) -> Fetched:
    stream = response.extensions.get("network_stream")
    address = stream.get_extra_info("server_addr") if stream is not None else None
    return Fetched(
        url=url,
        status=response.status_code,
        phrase=response.reason_phrase,
        headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw],
        request=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.request.headers.raw],
        ip=str(address[0]) if address else "",
    )
