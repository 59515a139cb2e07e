"""Blocks as text: the spans of a block joined, white space as a browser shows it, marks turned into what they stand for."""

from __future__ import annotations

import re

import numpy as np

from openmai.data.extract.scan import (
    CELL_FIRST,
    CELL_LAST,
    FIRST,
    LAST,
    MARK_BREAK,
    MARK_CODE,
    MARK_QUOTE,
    MARK_SUB,
    MARK_SUP,
    MARK_UNQUOTE,
    MARK_UNRAISE,
    PREFORMATTED,
    Scanned,
)

CODE = "\x01"  # stands around inline code until it is known whether the text becomes Markdown
_BREAK, _SUP, _SUB, _UNRAISE = "\x02", "\x03", "\x04", "\x05"
_MARKS = {MARK_BREAK: _BREAK, MARK_CODE: CODE, MARK_QUOTE: "“", MARK_UNQUOTE: "”", MARK_SUP: _SUP, MARK_SUB: _SUB, MARK_UNRAISE: _UNRAISE}
_WHITE = re.compile(r"[ \t\n\r\f]+")
_BREAKS = re.compile(f" ?{_BREAK} ?")
_POWER = re.compile(f"{_SUP} ?([0-9+\\-−=()n]{{1,6}}) ?{_UNRAISE}")
_RAISING = str.maketrans("", "", _SUP + _SUB + _UNRAISE)
_SUPERSCRIPTS = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")


def block_text(page: Scanned, block: np.ndarray) -> str:
    """Return the text of a block; a line break is a newline, a no-break space stays one, cells of a row have | between."""
    if block[CELL_LAST]:
        return " | ".join(cell_texts(page, block)).strip(" |")
    return _tidy(_join(page, int(block[FIRST]), int(block[LAST])), bool(block[PREFORMATTED]))


def cell_texts(page: Scanned, block: np.ndarray) -> list[str]:
    """Return the texts of the cells of a table row; [] for any other block."""
    starts = page.cells[int(block[CELL_FIRST]) : int(block[CELL_LAST])].tolist()
    ends = [*starts[1:], int(block[LAST])]
    return [_tidy(_join(page, start, end), False).replace("\n", " ") for start, end in zip(starts, ends, strict=False)]


def _join(page: Scanned, first: int, last: int) -> str:
    html = page.html
    text = "".join([html[start:end] if start >= 0 else _MARKS[end] for start, end in page.spans[first:last].tolist()])
    if "&" in text:  # what Lexbor writes out has only these
        text = text.replace("&nbsp;", "\xa0").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return text


def _tidy(text: str, preformatted: bool) -> str:
    if preformatted:
        text = text.replace(_BREAK, "\n").translate(_RAISING)
        return text.strip("\n").rstrip()
    text = _WHITE.sub(" ", text)
    if _BREAK in text:
        text = _BREAKS.sub("\n", text)
    if _SUP in text or _SUB in text or _UNRAISE in text:
        text = _POWER.sub(lambda match: match[1].translate(_SUPERSCRIPTS), text).translate(_RAISING)
    text = text.strip(" \n")
    return text if "\n" in text else text.strip()
