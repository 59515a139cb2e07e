"""Blocks as a document: plain text that keeps the structure, or Markdown.

Both have headings with #, lists with "- " or numbers, table rows with "|", formulas between dollar signs, and code as it stands. Markdown
adds fences and backticks around code, rulers to tables and > before quotations; plain text indents definitions. Links and emphasis go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import numpy as np

from openmai.data.extract.scan import (
    BULLET,
    CELL_LAST,
    DASH,
    ELEMENT,
    GAP,
    INDENT,
    LEVEL,
    LISTS,
    NO_BULLET,
    PARENT,
    PREFORMATTED,
    TAG,
    TAGS,
    Scanned,
)
from openmai.data.extract.text import CODE, block_text, cell_texts

Format = Literal["text", "markdown"]
_QUOTE = TAGS["blockquote"]
_LEVELS = 30  # how far up a quotation is looked for
_MAX_INDENT = 10  # lists and definitions in one another; deeper ones would make the text quadratic in size


def render(page: Scanned, kept: Iterable[int], form: Format) -> str:
    """Return the blocks numbered `kept`, in their order, as one text."""
    lines: list[str] = []
    gap, item, columns = False, (NO_BULLET, 0), 0  # what the block before asks for; columns of the table that goes on
    for number in kept:
        block = page.blocks[number]
        cells = cell_texts(page, block) if form == "markdown" and block[CELL_LAST] else []
        bullet, nesting = int(np.sign(block[BULLET])), int(block[LISTS])
        tight = bullet and item[0] and (bullet == item[0] or nesting > item[1])  # items of one list, though each may hold a paragraph
        goes_on = bool(cells) and columns > 0 and not block[GAP]
        if lines and (gap or (block[GAP] and not tight) or bool(cells) != (columns > 0)) and not goes_on:
            lines.append("")
        new = _row(cells, 0 if goes_on else len(cells)) if cells else _lines(block_text(page, block), block, form)
        lines += _quoted(new, page, block) if form == "markdown" else new
        gap, item, columns = bool(block[LEVEL] or (form == "markdown" and block[PREFORMATTED])), (bullet, nesting), len(cells)
    return "\n".join(lines)


def _row(cells: list[str], ruler: int) -> list[str]:
    line = "| " + " | ".join(cell.replace("|", "\\|").replace(CODE, "`") for cell in cells) + " |"
    return [line, "|" + " --- |" * ruler] if ruler else [line]


def _lines(text: str, block: np.ndarray, form: Format) -> list[str]:
    text = _code(text, form).replace("\xa0", " ")
    if block[LEVEL]:
        return ["#" * int(block[LEVEL]) + " " + " ".join(text.split())]
    lines = [line.rstrip() for line in text.split("\n")]
    nesting, indent = min(max(0, int(block[LISTS]) - 1), _MAX_INDENT), min(int(block[INDENT]), _MAX_INDENT)
    bullet = "" if block[BULLET] == NO_BULLET else "- " if block[BULLET] == DASH else f"{int(block[BULLET])}. "
    if form == "markdown":
        if block[PREFORMATTED]:
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
            return [bullet + fence, *lines, fence]
        pad = " " * (4 * nesting) if bullet else ""
        return [pad + bullet + lines[0].lstrip(), *(line.lstrip() for line in lines[1:])]
    pad = " " * (2 * nesting + 4 * indent)
    first = pad + bullet + (lines[0].lstrip() if bullet else lines[0])
    return [first.rstrip(), *(pad + line if line else "" for line in lines[1:])]


def _code(text: str, form: Format) -> str:
    if form == "text" or text.count(CODE) % 2:
        return text.replace(CODE, "")
    return re.sub(
        f"{CODE}([^{CODE}]*){CODE}", lambda match: f"`{match[1]}`" if match[1].strip() and "`" not in match[1] else match[1], text
    )


def _quoted(lines: list[str], page: Scanned, block: np.ndarray) -> list[str]:
    element, depth = int(block[ELEMENT]), 0
    for _ in range(_LEVELS):
        depth += page.elements[element, TAG] == _QUOTE
        element = int(page.elements[element, PARENT])
    return ["> " * depth + line for line in lines] if depth else lines
