"""What a page says about itself: date, language, licence, the text of its article.

Read from the HTML that Lexbor has written out, by patterns that are linear in its size, and only where a quick look says there is
something.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from html import unescape
from typing import Any

_META = re.compile(r"<meta\b([^>]*)>")
_ATTRIBUTE = re.compile(r'([\w:-]+)="([^"]*)"')
_HTML = re.compile(r"<html\b([^>]*)>")
_JSON_LD = re.compile(r'<script\b[^>]*\btype="application/ld\+json"[^>]*>(.*?)</script>', re.S)
_TIME = re.compile(r'<time\b[^>]*\bdatetime="([^"]{8,60})"[^>]*>')
_PUBLISHED = re.compile(r'<(?:meta|span|abbr|div)\b(?=[^>]*"(?:datePublished|published)")[^>]*\b(?:content|datetime|title)="([^"]{8,60})"')
_JSON_DATE = re.compile(r'"datePublished"\s*:\s*"([^"]{8,60})"')
_CANONICAL = re.compile(r'<link\b(?=[^>]*\brel="canonical")[^>]*\bhref="([^"]*)"')
_DAY_IN_ADDRESS = re.compile(r"/((?:19|20)\d\d)[/-](\d\d)[/-](\d\d)(?:/|-|$)")
_IS_PUBLISHED = re.compile(r"\bpubdate\b|published|datePublished|entry-date|post-date", re.I)
_LICENSE_LINK = re.compile(r'<(?:a|link)\b(?=[^>]*\brel="(?:[^"]*\s)?license(?:\s[^"]*)?")[^>]*\bhref="([^"]*)"')
_CREATIVE_COMMONS = re.compile(
    r"(?:https?:)?//(?:www\.)?creativecommons\.org/(licenses|publicdomain)/(by(?:-nc)?(?:-nd|-sa)?|zero|mark)/(\d\.\d)", re.I
)
_LICENSE_METAS = ("dcterms.license", "dc.rights", "dcterms.rights", "dc.rights.license", "license", "copyright")
_FOOTER_SHARE = 5  # the last fifth of the page is its foot, where it has no footer element
_JSON_KEYS = ('"datePublished"', '"license"', '"articleBody"')
_MAX_NODES = 20_000  # of a page's JSON-LD
_DATE_METAS = (
    "article:published_time",
    "og:article:published_time",
    "og:published_time",
    "datepublished",
    "dc.date.issued",
    "dcterms.issued",
    "dc.date.created",
    "dcterms.created",
    "dc.date",
    "dcterms.date",
    "citation_publication_date",
    "citation_date",
    "parsely-pub-date",
    "sailthru.date",
    "article.published",
    "publishdate",
    "publish-date",
    "publish_date",
    "pubdate",
    "published",
    "publication_date",
    "originalpublicationdate",
    "cxenseparse:recs:publishtime",
    "date",
)
_MONTHS = "janfebmaraprmayjunjulaugsepoctnovdec"
_YEAR_FIRST = re.compile(r"\b((?:19|20)\d\d)[-/.]?(\d\d)[-/.]?(\d\d)(?!\d)")
_DAY_FIRST = re.compile(r"\b(\d{1,2})\. ?(\d{1,2})\. ?((?:19|20)\d\d)\b")
_DAY_MONTH = re.compile(r"\b(\d{1,2})(?:st|nd|rd|th)? ([A-Za-z]{3})[a-z]*\.?,? ((?:19|20)\d\d)\b")
_MONTH_DAY = re.compile(r"\b([A-Za-z]{3})[a-z]*\.? (\d{1,2})(?:st|nd|rd|th)?,? ((?:19|20)\d\d)\b")


@dataclass(frozen=True)
class Metadata:
    """`metas` are (name in lower case, content); `article` is the article's text as JSON-LD gives it; "" for what is not said."""

    metas: tuple[tuple[str, str], ...]
    date: str
    language: str
    license: str
    article: str


def read_metadata(html: str) -> Metadata:
    """Return what `html` (as written out by Lexbor) says about itself."""
    body = html.find("<body")
    head = html[: body if body >= 0 else len(html)]
    metas = tuple(_metas(head))
    nodes = list(_json_nodes(html)) if any(key in html for key in _JSON_KEYS) else []
    article = max((text for node in nodes if isinstance(text := node.get("articleBody"), str)), key=len, default="")
    return Metadata(metas, _date(html, metas, nodes), _language(html, metas), _license(html, metas, nodes), _plain(article))


def _metas(head: str) -> Iterator[tuple[str, str]]:
    for attributes in _META.findall(head):
        values = dict(_ATTRIBUTE.findall(attributes))
        name = values.get("name") or values.get("property") or values.get("http-equiv") or values.get("itemprop")
        if name and "content" in values:
            yield name.strip().lower(), unescape(values["content"]).strip()


def _json_nodes(html: str) -> Iterator[dict[str, Any]]:
    for script in _JSON_LD.findall(html):
        if not any(key in script for key in _JSON_KEYS):
            continue
        try:
            stack = [json.loads(script, strict=False)]
        except (ValueError, RecursionError):
            continue
        for _ in range(_MAX_NODES):
            if not stack:
                break
            node = stack.pop()
            if isinstance(node, dict):
                yield node
                stack += [value for value in reversed(node.values()) if isinstance(value, (dict, list))]
            elif isinstance(node, list):
                stack += [value for value in reversed(node) if isinstance(value, (dict, list))]


def _plain(text: str) -> str:
    text = re.sub(r"<[^<>]*>", " ", unescape(text)) if "<" in text or "&" in text else text
    return "\n".join(line for line in (" ".join(line.split()) for line in text.splitlines()) if line)


def _date(html: str, metas: tuple[tuple[str, str], ...], nodes: list[dict[str, Any]]) -> str:
    for node in nodes:
        found = _iso_day(node.get("datePublished"))
        if found:
            return found
    values = dict(reversed(metas))
    for name in _DATE_METAS:
        found = _iso_day(values.get(name))
        if found:
            return found
    loose = _JSON_DATE.search(html) if '"datePublished"' in html else None  # in JSON that is broken or stands elsewhere
    if loose and (found := _iso_day(loose[1])):
        return found
    if '"datePublished"' in html or '"published"' in html:
        found = next((day for text in _PUBLISHED.findall(html) if (day := _iso_day(text))), "")
        if found:
            return found
    times = list(_TIME.finditer(html)) if 'datetime="' in html else []
    published = [match for match in times if _IS_PUBLISHED.search(match[0])]
    if times and (found := _iso_day((published or times)[0][1])):
        return found
    canonical = _CANONICAL.search(html)
    address = _DAY_IN_ADDRESS.search(values.get("og:url") or (canonical[1] if canonical else ""))
    return _iso_day("-".join(address.groups())) if address else ""


def _iso_day(value: object) -> str:
    """Return the ISO day that a date in one of the usual ways of writing names, "" for anything else."""
    if not isinstance(value, str):
        return ""
    value = value[:100]
    if match := _YEAR_FIRST.search(value):
        year, month, day = match[1], match[2], match[3]
    elif match := _DAY_FIRST.search(value):
        year, month, day = match[3], match[2], match[1]
    elif match := _DAY_MONTH.search(value):
        year, month, day = match[3], _month(match[2]), match[1]
    elif match := _MONTH_DAY.search(value):
        year, month, day = match[3], _month(match[1]), match[2]
    else:
        return ""
    try:
        return date(int(year), int(month), int(day)).isoformat() if int(year) >= 1990 else ""
    except ValueError:
        return ""


def _month(name: str) -> str:
    place = _MONTHS.find(name.lower())
    return str(place // 3 + 1) if place >= 0 and place % 3 == 0 else "0"


def _language(html: str, metas: tuple[tuple[str, str], ...]) -> str:
    element, values = _HTML.search(html), dict(reversed(metas))
    attributes = dict(_ATTRIBUTE.findall(element[1])) if element else {}
    said = (attributes.get("lang"), attributes.get("xml:lang"), values.get("content-language"), values.get("og:locale"))
    for value in [*said, values.get("dc.language"), values.get("language")]:
        found = re.match(r"([a-zA-Z]{2,3})(?:$|[-_,;\s])", (value or "").strip())
        if found:
            return found[1].lower()
    return ""


def _license(html: str, metas: tuple[tuple[str, str], ...], nodes: list[dict[str, Any]]) -> str:
    """Return the licence of the page: SPDX's identifier for Creative Commons, else the address as it stands.

    A link to Creative Commons in the midst of a page speaks of a picture, so without rel=license only the foot of the page counts, and
    only if it names one licence.
    """
    linked = _LICENSE_LINK.search(html) if 'rel="license' in html or ' license"' in html else None
    if linked and linked[1].strip():
        return _license_name(unescape(linked[1]))
    for node in nodes:
        value = node.get("license")
        value = (value.get("url") or value.get("@id")) if isinstance(value, dict) else value
        if isinstance(value, str) and value.strip():
            return _license_name(value)
    for name, content in metas:
        if name in _LICENSE_METAS and (_CREATIVE_COMMONS.search(content) or name.endswith("license")):
            return _license_name(content)
    if "creativecommons.org/" not in html:
        return ""
    foot = html.rfind("<footer")
    start = foot if foot >= 0 else len(html) - len(html) // _FOOTER_SHARE
    found = {_license_name(match[0]) for match in _CREATIVE_COMMONS.finditer(html, start)}
    return found.pop() if len(found) == 1 else ""


def _license_name(value: str) -> str:
    match = _CREATIVE_COMMONS.search(value)
    if match is None:
        return value.strip()[:200]
    kind, version = match[2].lower(), match[3]
    return {"zero": f"CC0-{version}", "mark": f"CC-PDM-{version}"}.get(kind, f"CC-{kind.upper()}-{version}")
