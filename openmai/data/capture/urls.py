"""Addresses of pages: one spelling for each, and which of them belong to a site."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from urllib.parse import unquote_plus, urljoin

import httpx2

from openmai.base.errors import OpenmaiError

MAX_LENGTH = 2000
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
_HOST = re.compile(rb"[a-zA-Z0-9.:_-]+")
_SESSION = re.compile(r";jsessionid=[^/;]*", re.IGNORECASE)
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")


def canonical(link: str, base: str = "", drop: Sequence[str] = ()) -> str:
    """Return the one spelling of a web address, or "" if it is none (https://www.rfc-editor.org/rfc/rfc3986#section-6.2.2).

    Relative links are resolved against `base`; fragment, user name, default port, `drop`ped parameters and a bare `?` go; host and escapes
    get one case.
    """
    try:
        address = urljoin(base, re.sub(r"[\t\r\n]", "", link.strip()))
    except ValueError:
        return ""
    return _normal(address.partition("#")[0], tuple(drop))


@lru_cache(maxsize=1 << 16)  # pages of a site link to the same pages
def _normal(address: str, drop: tuple[str, ...]) -> str:
    if len(address) > MAX_LENGTH:
        return ""
    try:
        url = httpx2.URL(address)
    except (httpx2.InvalidURL, ValueError):
        return ""
    if url.scheme not in ("http", "https") or not _HOST.fullmatch(url.raw_host):
        return ""
    path = _SESSION.sub("", _ESCAPE.sub(_escape, url.raw_path.decode("ascii").partition("?")[0]))
    query = _ESCAPE.sub(_escape, url.query.decode("ascii"))
    kept = [item for item in query.split("&") if item and not _is_dropped(item, drop)]
    result = f"{url.scheme}://{url.netloc.decode('ascii')}{path or '/'}{'?' + '&'.join(kept) if kept else ''}"
    return result if len(result) <= MAX_LENGTH else ""


def origin(url: str) -> str:
    """Return scheme, host and port of a canonical address, without a default port: http://example.org, https://[::1]:8080."""
    return "/".join(url.split("/", 3)[:3])


def host(url: str) -> str:
    """Return host and port of a canonical address, without a default port."""
    return url.split("/", 3)[2]


def _escape(match: re.Match[str]) -> str:
    """Write an escaped character that needs no escape plainly, another in upper case."""
    character = chr(int(match[1], 16))
    return character if _UNRESERVED.fullmatch(character) else match[0].upper()


def _is_dropped(item: str, drop: Iterable[str]) -> bool:
    name = unquote_plus(item.partition("=")[0]).lower()
    return any(fnmatchcase(name, pattern.lower()) for pattern in drop)


class Scope:
    """The addresses that belong to a site: by host, by prefix, and by what is excluded."""

    def __init__(self, start: Sequence[str], hosts: Sequence[str], prefix: Sequence[str], exclude: Sequence[str]) -> None:
        self.hosts = {host(canonical(url)) for url in start} | {host(canonical(f"http://{name}/")) for name in hosts}
        self.prefix = tuple(prefix)
        try:
            self.exclude = [re.compile(pattern) for pattern in exclude]
        except re.error as error:
            raise OpenmaiError(f"exclude: '{error.pattern!s}' is not a regular expression ({error})") from None

    def holds(self, url: str) -> bool:
        """True if a canonical address belongs to the site."""
        if host(url) not in self.hosts or (self.prefix and not url.startswith(self.prefix)):
            return False
        return not any(pattern.search(url) for pattern in self.exclude)
