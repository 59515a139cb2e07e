"""Numbers and excerpts as people read them; a number and its unit stay on one line."""

from __future__ import annotations

import math
import re

NBSP = "\N{NO-BREAK SPACE}"


def count(number: float) -> str:
    """Format a count: 950, 12.3 k, 2.90 M, 1.5 B, 15.0 T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size and abs(number) >= 10_000:
            scaled = number / size
            return f"{scaled:.{2 if scaled < 10 else 1}f}{NBSP}{letter}"
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Format a number of bytes: 12 B, 3.4 kB, 5.60 MB."""
    for unit, letter in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.{2 if number < 10 * unit else 1}f}{NBSP}{letter}"
    return f"{number:.0f}{NBSP}B"


def percent(share: float, digits: int = 1) -> str:
    """Format a share of one; not-a-number becomes a dash."""
    return f"{100 * share:.{digits}f}{NBSP}%" if math.isfinite(share) else "–"


def figure(number: float | None, digits: int = 3) -> str:
    """Format a measured value; a missing one becomes a dash."""
    return f"{number:,.{digits}f}" if number is not None and math.isfinite(number) else "–"


def excerpt(text: str, limit: int) -> str:
    """Return the beginning of `text`, cut at a space; control characters and lone surrogates become visible."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text[: 2 * limit]).rstrip()
    if len(text) <= limit:
        return text
    head = text[:limit]
    return (head[: head.rfind(" ")] if " " in head[limit // 2 :] else head) + " …"


def words(name: str) -> str:
    """Turn an identifier into words."""
    return name.replace("_", " ")
