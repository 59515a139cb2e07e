"""All numbers that the quality rules look at, from one pass over a document's words and lines.

Rae et al. 2021 (Gopher, arXiv:2112.11446, appendix A.1), Raffel et al. 2020 (C4, JMLR 21(140), section 2.2), Penedo et al. 2024
(FineWeb, arXiv:2406.17557, section 3.6), each as datatrove 0.10.1 computes it, down to which characters a share is taken of.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from openmai.data.filter.config import LineRules
from openmai.data.filter.lines import clean_lines
from openmai.data.filter.repetition import DUPLICATE, TOP, count_sentences, repeated_ngrams
from openmai.data.filter.words import LETTER, LINE, LINE_ENDS, MARK, STOP, WORD, Vocabulary, vocabulary

SHORT_LINE = 30  # characters, FineWeb
_HEADING_MARK = re.compile(r"^#{1,6} (?=\S)", re.MULTILINE)


def measure(text: str, language: str = "en") -> dict[str, float]:
    """Return the metrics of a document by name; shares lie in 0..1, `language` is ISO 639-1 and decides what a word is."""
    return _measure(text, text, language)


def clean_and_measure(text: str, language: str, rules: LineRules) -> tuple[str, dict[str, float]]:
    """Return the text without the lines that `rules` drop, and its metrics; those of repetition are the original's, as in FineWeb."""
    cleaned, counts = clean_lines(text, rules)
    return cleaned, _measure(text, cleaned, language) | counts


def measure_page(text: str, language: str, rules: LineRules | None) -> tuple[str, dict[str, float]]:
    """Return a page's text, without the lines that `rules` drop if there are any, and its metrics. The # before a heading is ours and not
    the page's: the limits were set on text without them, and each of them would be a word without a letter."""
    cleaned, counts = clean_lines(text, rules) if rules else (text, {})
    original = _HEADING_MARK.sub("", text)
    return cleaned, _measure(original, _HEADING_MARK.sub("", cleaned) if rules else original, language) | counts


def _measure(original: str, text: str, language: str) -> dict[str, float]:
    lines = text.splitlines()
    book = vocabulary(language)
    metrics = {} if text == original else _repetition_metrics(original, book.encode(original.splitlines()), book)
    tokens = book.encode(lines)
    metrics = metrics or _repetition_metrics(text, tokens, book)
    words = tokens[tokens > LINE]
    metrics |= _word_metrics(text, words, book) | _line_metrics(text, lines, len(words)) | {"sentences": _sentences(tokens, book)}
    if language != "en":
        del metrics["stop_words"]
    return metrics


def _word_metrics(text: str, words: NDArray[np.int64], book: Vocabulary) -> dict[str, float]:
    flags = book.flags[words]
    lengths = book.lengths[words][flags & WORD > 0]
    stop_words = int(np.bitwise_or.reduce(flags)) // 16 if len(flags) else 0
    every, count = max(1, len(words)), len(lengths)
    return {
        "words": count,
        "mean_word": int(lengths.sum()) / max(1, count),
        "hashes": text.count("#") / every,
        "ellipses": (text.count("...") + text.count("…")) / every,
        "alpha_words": int(np.count_nonzero(flags & LETTER)) / every,
        "stop_words": stop_words.bit_count(),
        "curly": text.count("{"),
        "lorem": text.lower().count("lorem ipsum"),
    }


def _sentences(tokens: NDArray[np.int64], book: Vocabulary) -> int:
    flags = book.flags[tokens]
    kinds = np.where(flags & STOP, 4, np.where(flags & MARK, 3, 2))
    return count_sentences(np.where(tokens <= LINE, LINE - tokens, kinds).astype(np.int8))


def _line_metrics(text: str, lines: Sequence[str], num_words: int) -> dict[str, float]:
    count, filled = max(1, len(lines)), [line for line in text.split("\n") if line and not line.isspace()]
    num_filled = max(1, len(filled))
    return {
        "bullet_lines": sum([line.lstrip().startswith(("•", "-")) for line in lines]) / count,
        "ellipsis_lines": sum([line.rstrip().endswith(("...", "…")) for line in lines]) / count,
        "line_punctuation": sum([line[-1] in LINE_ENDS for line in filled]) / num_filled,
        "short_lines": sum([len(line) <= SHORT_LINE for line in filled]) / num_filled,
        "repeated_line_chars": _repeated(filled)[1] / max(1, len(text) - text.count("\n")),
        "newlines": text.count("\n") / max(1, num_words),
    }


def _repetition_metrics(text: str, tokens: NDArray[np.int64], book: Vocabulary) -> dict[str, float]:
    words, chars = tokens[tokens > LINE], max(1, len(text))
    paragraphs, lines = _split(text.strip(), "\n\n"), _split(text, "\n")
    paragraph_repeats, line_repeats = _repeated(paragraphs), _repeated(lines)
    ngrams = repeated_ngrams(words, book.lengths[words]) / chars
    names = [f"top_{n}gram" for n in TOP] + [f"duplicate_{n}gram" for n in DUPLICATE]
    return {
        "duplicate_paragraphs": paragraph_repeats[0] / len(paragraphs),
        "duplicate_paragraph_chars": paragraph_repeats[1] / chars,
        "duplicate_lines": line_repeats[0] / len(lines),
        "duplicate_line_chars": line_repeats[1] / chars,
        **dict(zip(names, ngrams.tolist(), strict=True)),
    }


def _split(text: str, mark: str) -> list[str]:
    """Return what `re.split` gives at one `mark` and any further line ends, several times faster: empty only at the ends of the text."""
    parts = [part.lstrip("\n") if len(mark) > 1 else part for part in text.split(mark)]
    return parts[:1] + [part for part in parts[1:-1] if part] + parts[1:][-1:]


def _repeated(parts: Sequence[str]) -> tuple[int, int]:
    """Return how many of the parts repeat an earlier part, and their characters."""
    if len(set(parts)) == len(parts):
        return 0, 0
    seen: set[str] = set()
    repeats = [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]
    return len(repeats), sum(map(len, repeats))
