"""Downloads over HTTP: patient with busy servers, resumed where they broke off, checked against the length that was promised."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2

from openmai import __version__
from openmai.base.errors import OpenmaiError
from openmai.base.files import sync_folder

TRIES = 7  # with pauses of 1, 2, 4 … s a server may be busy for a minute
_UNREACHABLE_TRIES = 3
_MAX_WAIT = 120.0
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_PACKED = (".gz", ".zst", ".lz4", ".xz", ".bz2")

T = TypeVar("T")


@dataclass(frozen=True)
class Facts:
    """What a server says of a file: its bytes (None: unknown) and a mark that changes with its content ("" where there is none)."""

    size: int | None
    mark: str


class NotFound(OpenmaiError):
    """There is nothing at an address (404, 410)."""


class _Again(Exception):
    """Try again, after the pause that the server asked for."""

    def __init__(self, problem: str, wait: float = 0.0) -> None:
        super().__init__(problem)
        self.wait = wait


def sleep(seconds: float) -> None:
    """Pause before the next try."""
    time.sleep(seconds)


@cache
def client() -> httpx2.Client:
    """Return the client that all downloads of this process share, from any thread."""
    timeout = httpx2.Timeout(60.0, connect=15.0)
    return httpx2.Client(timeout=timeout, follow_redirects=True, headers={"User-Agent": f"openmai/{__version__}"})


def download(url: str, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the body of `url`. A busy server is asked again; raises OpenmaiError if it cannot be had."""

    def attempt() -> bytes:
        response = client().get(url, headers=headers)
        _check(url, response)
        return response.content

    return patiently(url, attempt)


def download_range(url: str, first: int, length: int) -> bytes:
    """Return `length` bytes of `url` from byte `first`, all of them. Raises OpenmaiError, also where the server knows no ranges."""

    def attempt() -> bytes:
        headers = {"Range": f"bytes={first}-{first + length - 1}", "Accept-Encoding": "identity"}
        with client().stream("GET", url, headers=headers) as response:
            _check(url, response)
            if response.status_code != 206:
                raise OpenmaiError(f"{urlsplit(url).netloc}: gives only whole files, not the asked range of {url}; name another server")
            data = response.read()
        if len(data) != length:
            raise _Again(f"{len(data)} of {length} bytes")
        return data

    return patiently(url, attempt)


def describe(url: str) -> Facts:
    """Return size and mark (ETag, else Last-Modified) of `url`."""

    def attempt() -> Facts:
        response = client().head(url, headers={"Accept-Encoding": "identity"})
        if response.status_code in (403, 405, 501):  # some servers, and addresses signed for GET, refuse HEAD
            with client().stream("GET", url, headers={"Accept-Encoding": "identity"}) as response:
                _check(url, response)
        _check(url, response)
        length = response.headers.get("Content-Length", "") if "Content-Encoding" not in response.headers else ""
        return Facts(int(length) if length.isdigit() else None, response.headers.get("ETag") or response.headers.get("Last-Modified") or "")

    return patiently(url, attempt)


def download_file(url: str, target: Path, facts: Facts, on_bytes: Callable[[int], None] = lambda count: None) -> None:
    """Bring `url` to `target`, which appears when it is whole; what an interrupted attempt brought is kept if it is still the same file.

    `facts` are those of `describe`; `target`'s name must be of this content alone (hold the mark's hash), as the unfinished neighbour's is.
    """
    part = target.with_name(f".{target.name}.part")
    if not _is_strong(facts.mark):
        part.unlink(missing_ok=True)

    def attempt() -> None:
        have = part.stat().st_size if part.exists() and _is_strong(facts.mark) else 0
        if facts.size is None or have < facts.size:
            _append(url, part, have, facts, on_bytes)
        size = part.stat().st_size
        if facts.size is not None and size != facts.size:
            if size > facts.size:
                part.unlink()
            raise _Again(f"{size} of {facts.size} bytes")

    patiently(url, attempt)
    with open(part, "ab") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    sync_folder(target.parent)


def _append(url: str, part: Path, have: int, facts: Facts, on_bytes: Callable[[int], None]) -> None:
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": facts.mark}
    with client().stream("GET", url, headers=headers) as response:
        _check(url, response)
        goes_on = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        is_packed = urlsplit(url).path.endswith(_PACKED)  # such a file is sometimes called its own encoding
        with open(part, "ab" if goes_on else "wb") as file:
            for piece in response.iter_raw() if is_packed else response.iter_bytes():
                file.write(piece)
                on_bytes(len(piece))


def patiently(url: str, attempt: Callable[[], T]) -> T:
    """Return what `attempt` returns, tried again with growing pauses while the server is busy or breaks off."""
    tries, problem = 0, ""
    while True:
        wait = min(_MAX_WAIT, 2.0**tries)
        tries += 1
        try:
            return attempt()
        except _Again as error:
            problem, wait, allowed = str(error), max(wait, error.wait), TRIES
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            problem, allowed = f"cannot be reached ({_text(error)})", _UNREACHABLE_TRIES
        except httpx2.TransportError as error:
            problem, allowed = _text(error), TRIES
        except (httpx2.TooManyRedirects, httpx2.DecodingError, httpx2.InvalidURL) as error:
            raise OpenmaiError(f"{url}: {_text(error)}; check the address") from None
        if tries >= allowed:
            raise OpenmaiError(f"{urlsplit(url).netloc}: {problem}, {tries} times; go online or try later, or name local files")
        if wait > _MAX_WAIT:
            raise OpenmaiError(f"{urlsplit(url).netloc}: {problem}, asks to come back in {wait:.0f} s; run the same command again then")
        sleep(wait)


def _check(url: str, response: httpx2.Response) -> None:
    """Raise _Again for a busy server, OpenmaiError for any other refusal."""
    code = response.status_code
    if code in _BUSY:
        raise _Again(f"the server answers {code} {response.reason_phrase}", _retry_after(response))
    if code in (401, 403, 407):
        raise OpenmaiError(f"{url}: the server answers {code} {response.reason_phrase}; it wants credentials, or the address is wrong")
    if code in (404, 410):
        raise NotFound(f"{url}: the server answers {code} {response.reason_phrase}; check the name")
    if code >= 400:
        raise OpenmaiError(f"{url}: the server answers {code} {response.reason_phrase}; check the address")


def _retry_after(response: httpx2.Response) -> float:
    value = response.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _is_strong(mark: str) -> bool:
    """True for a mark that stands for these very bytes, so that a broken-off download can go on (RFC 9110, 8.8.1)."""
    return bool(mark) and not mark.startswith("W/")


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
