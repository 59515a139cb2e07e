"""Adult and abusive words: which share of a document's words they are.

Lists of bad words are known to throw out sex education, medicine and the speech of minorities when one word is enough (Dodge et al. 2021 on
C4, arXiv:2104.08758). So here a share decides, words with innocent uses count only beside words that have none, and they do not count in
texts of medicine, law or teaching.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Lexicon:
    """The words of one language by level; `phrases` by their first word, and `keys`, any of which makes a closer look worthwhile."""

    hard: frozenset[str]
    soft: frozenset[str]
    context: frozenset[str]
    phrases: dict[str, tuple[tuple[str, ...], ...]]
    keys: frozenset[str]


@cache
def lexicon(language: str) -> Lexicon | None:
    """Return the lexicon of a language by its ISO 639-1 code, None if there is none."""
    file = _FOLDER / f"lexicon_{language}.csv"
    if not language.isalpha() or not file.exists():
        return None
    rows = [row for row in csv.reader(file.read_text(encoding="utf-8").splitlines()) if not row[0].startswith("#")][1:]
    words = {
        level: frozenset(word for kind, text in rows if kind == level for word in text.split()) for level in ("hard", "soft", "context")
    }
    phrases: dict[str, tuple[tuple[str, ...], ...]] = {}
    for phrase in (tuple(phrase.split()) for kind, text in rows if kind == "phrase" for phrase in text.split(";")):
        phrases[phrase[0]] = (*phrases.get(phrase[0], ()), phrase)
    return Lexicon(words["hard"], words["soft"], words["context"], phrases, words["hard"] | phrases.keys())


def toxic_words(words: Sequence[str], language: str = "en") -> float:
    """Return the share of `words` (as written, without punctuation of their own) that are adult or abusive; 0 for a language without list.

    Hard words and phrases always count; soft words count beside one of these, if they outnumber words of medicine, law and teaching.
    """
    known = lexicon(language)
    if known is None or known.keys.isdisjoint(map(str.lower, set(words))):
        return 0.0
    lower = [word.lower() for word in words]
    hard = sum(word in known.hard for word in lower) + _phrase_words(lower, known)
    if not hard:
        return 0.0
    soft = sum(word in known.soft for word in lower)
    context = sum(word in known.context for word in lower)
    return min(1.0, (hard + (soft if soft > context else 0)) / len(lower))


def _phrase_words(words: Sequence[str], known: Lexicon) -> int:
    """Count the words of phrases."""
    count = 0
    for place, word in enumerate(words):
        if word in known.phrases:
            count += max((len(phrase) for phrase in known.phrases[word] if tuple(words[place : place + len(phrase)]) == phrase), default=0)
    return count
