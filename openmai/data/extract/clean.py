"""Text as it should stand in a document: one Unicode form, no control characters, tidy blank lines, no addresses of one process."""

from __future__ import annotations

import re
import unicodedata

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff\u200b\u200e\u200f\u2028\u2029\ud800-\udfff]")
# repr() of functions and objects shows where they lie in memory, which differs from run to run and means nothing.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,16}\b")
_HEADING = re.compile(r"^(#{1,6}) \S")


def clean(text: str) -> str:
    """Return `text` in NFC with `\\n` line ends, at most one blank line in a row, and without what only one process knows."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROL.sub("", unicodedata.normalize("NFC", text))
    text = _ADDRESS.sub("", text)
    text = re.sub(r"[ \t\xa0]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n").rstrip()


def drop_empty_headings(text: str) -> str:
    """Return `text` without headings that nothing follows before the next heading of the same or a higher level."""
    kept: list[str] = []
    below = 7  # level of the heading below with nothing between; 0 for text, 7 for the end
    for line in reversed(text.split("\n")):
        heading = _HEADING.match(line)
        if heading and below > 0 and (below == 7 or below <= len(heading[1])):
            continue
        if line.strip():
            below = len(heading[1]) if heading else 0
        kept.append(line)
    return clean("\n".join(reversed(kept)))


def drop_repeated_paragraphs(text: str, min_chars: int) -> str:
    """Return `text` with each paragraph of at least `min_chars` characters only where it stands first."""
    seen: set[str] = set()
    kept = []
    for paragraph in text.split("\n\n"):
        if len(paragraph) >= min_chars:
            if paragraph in seen:
                continue
            seen.add(paragraph)
        kept.append(paragraph)
    return "\n\n".join(kept)
