"""The main text of a web page with its structure, and what the page says about itself.

Lexbor parses (resiliparse), one compiled pass over the tree as it writes it out makes blocks of text (scan.py), and a small model of
decision trees (model.py) judges each block by what it holds and where it stands (features.py). Time is linear in the size of the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from resiliparse.parse.html import HTMLParserException, HTMLTree

from openmai.data.extract.depth import is_deep
from openmai.data.extract.encoding import decode
from openmai.data.extract.features import features
from openmai.data.extract.formula import expand_formulas
from openmai.data.extract.metadata import read_metadata
from openmai.data.extract.model import is_content
from openmai.data.extract.names import BITS, HIDDEN
from openmai.data.extract.render import Format, render
from openmai.data.extract.scan import CHARS, ELEMENT, GROUPS, HINT, LEVEL, LINKS, PARENT, TAG, TAGS, Scanned, scan
from openmai.data.extract.signals import opt_out
from openmai.data.extract.text import CODE, block_text

__all__ = ["ExtractError", "Hint", "Page", "decode", "extract", "no_hint"]

Hint = Callable[[str, str], int | None]
_OPENING = re.compile(r"<([a-zA-Z][^\s/>]*)([^>]*)>")
_SMALL = 1000  # characters; a page of less says too little for the model
_LINK_SHARE = 60  # percent of a block's characters
_FURNITURE_TAGS = frozenset(TAGS[tag] for tag in ("nav", "menu", "footer", "aside", "form", "dialog", "noscript", "search"))
_FURNITURE_NAMES = sum(BITS[name] for name in ("nav", "foot", "share", "comment"))
_HEADING_TAGS = frozenset(TAGS[f"h{level}"] for level in range(1, 7))
_MAIN_TAGS, _NAV = (TAGS["main"], TAGS["article"]), TAGS["nav"]
_BODY_START = 200  # characters of a block that are looked for in the article's text that JSON-LD gives
_SEEN = 5  # the part of the text that a page shows at first and outside its navigation
_BODY_LACK = 3  # the article's text replaces ours if it is so many times as long


class ExtractError(Exception):
    """A page that is not to be extracted; `rule` names the limit, the message says what was found."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


@dataclass(frozen=True)
class Page:
    """What a page holds; "" for what it does not say.

    `date` is the ISO day of publication, `language` the declared ISO 639 code, `license` an SPDX identifier (Creative Commons) or an
    address, `opt_out` why the page is not to be trained on.
    """

    title: str
    text: str
    date: str = ""
    language: str = ""
    license: str = ""
    opt_out: str = ""


def no_hint(tag: str, attributes: str) -> int | None:
    """Say nothing about any element."""
    return None


def extract(html: str, max_depth: int, hint: Hint = no_hint, format: Format = "text") -> Page:
    """Return what the page `html` holds.

    `hint(tag, attributes)` knows a site: 1-6 makes the block element a heading of that level, 0 leaves it out, None says nothing; with a
    hint, all but links and navigation is kept. Raises ExtractError for elements nested deeper than `max_depth`.
    """
    if is_deep(html, max_depth):
        raise ExtractError("extract.depth", f"elements nested deeper than {max_depth}")
    tree = _parse(html)
    title, whole = " ".join((tree.title or "").split()), str(tree)
    facts = read_metadata(whole)
    whole = expand_formulas(whole)
    if hint is not no_hint:
        whole = _OPENING.sub(partial(_with_hint, hint), whole.replace(HINT, ""))
    page = scan(whole, title, max_depth)
    if page.too_deep:
        raise ExtractError("extract.depth", f"elements nested deeper than {max_depth}")
    known = hint is not no_hint or page.blocks[:, CHARS].sum() < _SMALL
    kept = _by_rules(page) if known else is_content(page, features(page.blocks, page.elements, _in_article(page, facts.article)))
    if not kept.any():
        kept = _by_rules(page)
    text = render(page, np.flatnonzero(_as_read(page, kept)).tolist(), format)
    if len(facts.article) > _BODY_LACK * len(text):
        text = facts.article
    return Page(title, text, facts.date, facts.language, facts.license, opt_out(facts.metas, {}))


def _parse(html: str) -> HTMLTree:
    """Raises MemoryError where Lexbor gets none: a text that thousands of misplaced tags cut is copied as often."""
    try:
        return HTMLTree.parse(html)
    except UnicodeEncodeError:  # half a surrogate pair, which no decoder returns
        return HTMLTree.parse(html.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except HTMLParserException:  # it fails for no other reason
        raise MemoryError("the parser ran out of memory") from None


def _with_hint(hint: Hint, match: re.Match[str]) -> str:
    level = hint(match[1], match[2])
    return match[0] if level is None else f'<{match[1]} {HINT}="{level}"{match[2]}>'


def _in_article(page: Scanned, article: str) -> np.ndarray:
    """Say for each block whether it stands in the article's text that the metadata give: 0 there is none, 1 no, 2 yes."""
    result = np.zeros(len(page.blocks), dtype=np.int64)
    if article:
        article = " ".join(article.split())
        for number, block in enumerate(page.blocks):
            start = " ".join(block_text(page, block).replace(CODE, "")[: 2 * _BODY_START].split())[:_BODY_START]
            result[number] = 2 if start in article else 1
    return result


def _as_read(page: Scanned, kept: np.ndarray) -> np.ndarray:
    """Drop what the page hides in itself and what stands in <nav>, unless that is nearly all: a script would have shown it, or a list of
    links is what the page is for. The model likes the end of a breadcrumb trail, which says what the heading says."""
    apart = np.zeros(len(page.elements), dtype=bool)
    for number, (parent, tag, groups) in enumerate(page.elements[:, [PARENT, TAG, GROUPS]].tolist()):
        apart[number] = bool(groups & HIDDEN) or tag == _NAV or apart[parent]
    read, chars = kept & ~apart[page.blocks[:, ELEMENT]], page.blocks[:, CHARS]
    return read if chars[read].sum() * _SEEN >= chars[kept].sum() else kept


def _by_rules(page: Scanned) -> np.ndarray:
    """Keep what stands in the only <main> or <article>, if there is one, and is neither links nor in an element for other things. The
    names of a heading do not count: `toc` says that it is listed there."""
    elements, blocks = page.elements, page.blocks
    mains = [np.flatnonzero(elements[:, TAG] == tag) for tag in _MAIN_TAGS]
    root = next((int(found[0]) for found in mains if len(found) == 1), 0)
    inside, furniture = np.zeros(len(elements), dtype=bool), np.zeros(len(elements), dtype=bool)
    for number, (parent, tag, groups) in enumerate(elements[:, [PARENT, TAG, GROUPS]].tolist()):
        inside[number] = number == root or inside[parent]
        named = bool(groups & _FURNITURE_NAMES) and tag not in _HEADING_TAGS
        furniture[number] = tag in _FURNITURE_TAGS or named or furniture[parent]
    linked = (blocks[:, LINKS] * 100 > _LINK_SHARE * blocks[:, CHARS]) & (blocks[:, LEVEL] == 0)
    return inside[blocks[:, ELEMENT]] & ~furniture[blocks[:, ELEMENT]] & ~linked
