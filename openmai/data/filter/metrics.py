"""All numbers that the quality rules look at, from one pass over a document's words and lines.

Rae et al. 2021 (Gopher, arXiv:2112.11446, appendix A.1), Raffel et al. 2020 (C4, arXiv:1910.10683, section 2.2), Penedo et al. 2024
(FineWeb, arXiv:2406.17557, section 3.6). Words are what white space separates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_BULLETS = ("-", "*", "•", "‣", "▪", "·", "–")
_LINE_ENDS = (".", "!", "?", '"', "'", "”", "’", ")", ":", ";", ",")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]?(?:\s|$)")
_MAX_NGRAM_WORDS = 100_000


def measure(text: str) -> dict[str, float]:
    """Return the metrics of a document by name; shares lie in 0..1."""
    words = text.split()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    return _word_metrics(text, words) | _line_metrics(words, lines, paragraphs) | ngram_metrics(words[:_MAX_NGRAM_WORDS])


def _word_metrics(text: str, words: Sequence[str]) -> dict[str, float]:
    count = max(1, len(words))
    lower = text.lower()
    return {
        "words": len(words),
        "mean_word": sum(map(len, words)) / count,
        "symbols": (text.count("#") + text.count("...") + text.count("…")) / count,
        "alpha_words": sum(any(map(str.isalpha, word)) for word in words) / count,
        "stop_words": len(STOP_WORDS.intersection(lower.split())),
        "sentences": len(_SENTENCE_END.findall(text)),
        "curly": text.count("{") + text.count("}"),
        "lorem": lower.count("lorem ipsum"),
    }


def _line_metrics(words: Sequence[str], lines: Sequence[str], paragraphs: Sequence[str]) -> dict[str, float]:
    count = max(1, len(lines))
    line_share, line_chars = _repeated(lines)
    paragraph_share, paragraph_chars = _repeated(paragraphs)
    return {
        "bullet_lines": sum(line.startswith(_BULLETS) for line in lines) / count,
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines) / count,
        "duplicate_lines": line_share,
        "duplicate_line_chars": line_chars,
        "duplicate_paragraphs": paragraph_share,
        "duplicate_paragraph_chars": paragraph_chars,
        "line_punctuation": sum(line.endswith(_LINE_ENDS) for line in lines) / count,
        "short_lines": sum(len(line) <= 30 for line in lines) / count,
        "newlines": len(lines) / max(1, len(words)),
    }


def _repeated(parts: Sequence[str]) -> tuple[float, float]:
    """Return which share of the parts, and of their characters, repeats an earlier part."""
    seen: set[str] = set()
    repeats = [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]
    return len(repeats) / max(1, len(parts)), sum(map(len, repeats)) / max(1, sum(map(len, parts)))


def ngram_metrics(words: Sequence[str]) -> dict[str, float]:
    """Return top_2gram..top_4gram (characters of the most frequent n-gram) and duplicate_5gram..duplicate_10gram (characters covered by
    n-grams that occurred before, each character once), as shares of the characters of all words."""
    vocabulary: dict[str, int] = {}
    ids = np.array([vocabulary.setdefault(word, len(vocabulary)) for word in words], dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum([len(word) for word in words], dtype=np.int64)])
    total, grams, metrics = max(1, int(ends[-1])), ids, {}
    for n in range(2, 11):
        name = f"{'top' if n < 5 else 'duplicate'}_{n}gram"
        if len(ids) < n:
            metrics[name] = 0.0
            continue
        # An n-gram is its (n-1)-gram's number and one more word: exact, no hash.
        _, first, grams, counts = np.unique(
            grams[:-1] * len(vocabulary) + ids[n - 1 :], return_index=True, return_inverse=True, return_counts=True
        )
        metrics[name] = (_top(first, counts, ends, n) if n < 5 else _covered(first, ends, n)) / total
    return metrics


def _top(first: NDArray[np.int64], counts: NDArray[np.int64], ends: NDArray[np.int64], n: int) -> float:
    if counts.max() == 1:
        return 0.0
    best = first[counts == counts.max()]
    return float(counts.max() * (ends[best + n] - ends[best]).max())


def _covered(first: NDArray[np.int64], ends: NDArray[np.int64], n: int) -> float:
    again = np.ones(len(ends) - n, dtype=np.int64)
    again[first] = 0
    cover = np.zeros(len(ends), dtype=np.int64)
    cover[:-n] += again
    cover[n:] -= again
    return float(np.diff(ends)[np.cumsum(cover)[:-1] > 0].sum())
