"""What a page says to a crawler: its links, whether they may be followed, and whether it may be kept."""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from resiliparse.parse.html import HTMLTree

from openmai.data.capture.urls import canonical

AGENT = "openmai"
_MAX_SITEMAP = 50 << 20  # https://www.sitemaps.org/protocol.html


@dataclass(frozen=True)
class Marks:
    """The links of a page in their order of appearance, each once; empty where it asks not to follow them."""

    links: tuple[str, ...] = ()
    canonical: str = ""
    noindex: bool = False


def read_marks(body: bytes, url: str, charset: str, robots_headers: Sequence[str], obey: bool, drop: Sequence[str]) -> Marks:
    """Return the marks of an HTML page at `url`; with `obey`, robots meta tags, X-Robots-Tag headers and rel=nofollow count."""
    document: Any = HTMLTree.parse(body.decode(_known(charset), errors="replace")).document
    if document is None:
        return Marks()
    base, directives = url, {word for value in robots_headers for word in _header_directives(value)}
    for tag in document.get_elements_by_tag_name("base")[:1]:
        base = canonical(tag.getattr("href") or "", url) or url
    for tag in document.get_elements_by_tag_name("meta")[:]:
        if (tag.getattr("name") or "").strip().lower() in ("robots", AGENT):
            directives |= _directives(tag.getattr("content") or "")
    nofollow, noindex = obey and bool(directives & {"nofollow", "none"}), obey and bool(directives & {"noindex", "none"})
    found = [] if nofollow else [canonical(link, base, drop) for link in _links(document, obey)]
    return Marks(tuple(dict.fromkeys(link for link in found if link)), _canonical_mark(document, base, drop), noindex)


def header_noindex(robots_headers: Sequence[str]) -> bool:
    """True if X-Robots-Tag headers ask not to keep a document, of whatever kind."""
    return any(_header_directives(value) & {"noindex", "none"} for value in robots_headers)


def same_page(url: str, other: str) -> bool:
    """True if `other` is `url` but for its query and a slash at its end: only then is a canonical mark plainly meant."""
    return url.partition("?")[0].rstrip("/") == other.partition("?")[0].rstrip("/")


def sitemap_entries(body: bytes) -> tuple[bool, list[str]]:
    """Return whether a sitemap lists further sitemaps, and the addresses it lists; plain, gzip, or one address a line."""
    if body[:2] == b"\x1f\x8b":
        try:
            body = zlib.decompressobj(wbits=31).decompress(body, _MAX_SITEMAP)
        except zlib.error:
            return False, []
    text = body.decode("utf-8", errors="replace")
    found = [html.unescape(place.strip()) for place in re.findall(r"<loc>\s*(?:<!\[CDATA\[)?([^<\]]+)", text)]
    if not found and "<" not in text:
        found = [line.strip() for line in text.splitlines() if line.strip().startswith("http")]
    return "<sitemapindex" in text, found


def _links(document: Any, obey: bool) -> Iterator[str]:
    for name in ("a", "area"):
        for tag in document.get_elements_by_tag_name(name)[:]:  # iterated without [:], it is quadratic
            link = tag.getattr("href")
            if link and not (obey and "nofollow" in (tag.getattr("rel") or "").lower().split()):
                yield link


def _canonical_mark(document: Any, base: str, drop: Sequence[str]) -> str:
    for tag in document.get_elements_by_tag_name("link")[:]:
        if "canonical" in (tag.getattr("rel") or "").lower().split():
            return canonical(tag.getattr("href") or "", base, drop)
    return ""


def _directives(content: str) -> set[str]:
    return {word.strip().lower() for word in content.split(",")}


def _header_directives(value: str) -> set[str]:
    """Return the directives of one X-Robots-Tag header that concern us; it may begin with a crawler's name and a colon."""
    agent, colon, rest = value.partition(":")
    if not colon or agent.strip().lower() in ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"):
        return _directives(value)
    return _directives(rest) if agent.strip().lower() == AGENT else set()


def _known(charset: str) -> str:
    """Return a character set that Python knows; links are ASCII in nearly all pages, so any superset of it will do."""
    try:
        b"a".decode(charset, errors="replace")
        return charset
    except (LookupError, ValueError):
        return "utf-8"
