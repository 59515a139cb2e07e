"""Which evaluation items a text holds.

Three ways, by what an item is made of (after Brown et al. 2020, arXiv:2005.14165, appendix C, and the decontamination of OLMo 2):
*long* questions by the share of their n-grams in the text, each weighted by 1 / (items that have it), so that boilerplate of a benchmark
counts little; a *passage* with a short question by the passage's n-grams and the whole question; *short* questions whole, with the answer
near, and with all choices where several items ask in the same words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmai.data.decontaminate.config import Overlap
from openmai.data.decontaminate.items import Item
from openmai.data.decontaminate.words import Hashes, Keys, Phrases, Places, Words, grams, split

_LONGEST_PHRASE = 63


@dataclass(frozen=True)
class Hit:
    """An item that a text holds: `score` is the share of it that was found, `start` and `end` the longest stretch of the text, in bytes.

    `item` is its number among the items given; `words` says how many words the stretch has; `answer`, whether the answer stands near.
    """

    item: int
    task: str
    id: str
    score: float
    start: int
    end: int
    words: int
    answer: bool


@dataclass(frozen=True)
class _Short:
    """What must stand near a short question of `length` words, in the `window` of words after it: its answer, or all its choices."""

    item: int
    length: int
    window: int
    parts: tuple[Hashes, ...]


class Contamination:
    """An index of evaluation items; only their n-grams are in memory, and their texts for the report."""

    def __init__(self, items: Iterable[Item], overlap: Overlap | None = None) -> None:
        self.overlap = overlap or Overlap()
        self.items = list(items)
        self.by_char = self.overlap.unit == "char"
        self.unchecked: list[int] = []
        self._passages: dict[int, int] = {}  # item -> number of its question among the phrases
        long: list[tuple[int, Hashes]] = []
        short: list[tuple[int, Hashes]] = []
        for number, item in enumerate(self.items):
            self._sort(number, item, long, short)
        self._index_long(long)
        self._index_short(short)

    def _sort(self, number: int, item: Item, long: list[tuple[int, Hashes]], short: list[tuple[int, Hashes]]) -> None:
        """Decide how an item is looked for."""
        overlap, question = self.overlap, split(item.question).hashes
        units = split(item.question, True).hashes if self.by_char else question
        if len(units) >= overlap.n and len(question) >= overlap.short:
            long.append((number, grams(units, overlap.n)))
            return
        context = split(item.context, self.by_char).hashes
        answer = len(split(item.answer))
        fits = 2 <= len(question) <= _LONGEST_PHRASE
        if fits and len(context) >= overlap.n:
            long.append((number, grams(context, overlap.n)))
            self._passages[number] = -1
            short.append((number, question))
        elif fits and len(question) + answer >= (overlap.min_words if answer else overlap.min_words_alone):
            short.append((number, question))
        else:
            self.unchecked.append(number)

    def _index_long(self, long: list[tuple[int, Hashes]]) -> None:
        """Build the postings: n-gram -> items, with the weight 1 / (number of items), as a share of the item's total."""
        owners = np.repeat(np.array([number for number, _ in long], dtype=np.int64), [len(keys) for _, keys in long])
        hashes = np.concatenate([np.empty(0, np.uint64), *(keys for _, keys in long)])
        order = np.lexsort((owners, hashes))
        hashes, owners = hashes[order], owners[order]
        first = np.ones(len(hashes), dtype=bool)
        first[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
        hashes, self._owners = hashes[first], owners[first]
        keys, begins, counts = np.unique(hashes, return_index=True, return_counts=True)
        weights = np.repeat(1.0 / counts, counts)
        totals = np.bincount(self._owners, weights, minlength=len(self.items))
        self._weights = weights / totals[self._owners] if len(weights) else weights
        self._begins = np.append(begins, len(hashes)).astype(np.int64)
        self._keys = Keys.of(keys)

    def _index_short(self, short: list[tuple[int, Hashes]]) -> None:
        self._phrases = Phrases(question for _, question in short)
        asked: dict[int, list[tuple[int, Hashes]]] = defaultdict(list)
        for number, question in short:
            asked[self._phrases.index(question)].append((number, question))
        self._short: dict[int, list[_Short]] = {}
        for phrase, same in asked.items():
            answers = {split(self.items[number].answer).hashes.tobytes() for number, _ in same}
            self._short[phrase] = [self._near(number, len(question), len(answers) > 1) for number, question in same]
            self._passages |= {number: phrase for number, _ in same if number in self._passages}

    def _near(self, number: int, length: int, is_common: bool) -> _Short:
        item = self.items[number]
        parts = (item.answer, *item.choices) if is_common else (item.answer,)
        window = self.overlap.answer_window + sum(len(split(choice)) + 1 for choice in item.choices)
        return _Short(number, length, window, tuple(words for part in parts if len(words := split(part).hashes)))

    def check(self, text: str | bytes | NDArray[np.uint8]) -> list[Hit]:
        """Return the items that `text` (UTF-8 if bytes) holds, the best first."""
        words = split(text)
        units = split(text, True) if self.by_char else words
        found, places = self._keys.find(units.hashes, self.overlap.n)
        phrases, begins = self._phrases.find(words.hashes) if len(self._phrases.keys) else (found[:0], places[:0])
        if not len(found) and not len(phrases):
            return []
        hits = self._long_hits(words, units, found, places, set(phrases.tolist())) + self._short_hits(words, phrases, begins)
        return sorted(hits, key=lambda hit: (-hit.score, -hit.words, hit.item))

    def _long_hits(self, words: Words, units: Words, found: Places, places: Places, phrases: set[int]) -> list[Hit]:
        keys = np.unique(found)
        sizes = self._begins[keys + 1] - self._begins[keys]
        rows = np.repeat(self._begins[keys] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        items, inverse = np.unique(self._owners[rows], return_inverse=True)
        scores = np.bincount(inverse, self._weights[rows], minlength=len(items))
        hits = []
        for item, score in zip(items.tolist(), scores.tolist(), strict=True):
            if score >= self.overlap.threshold - 1e-9 and (item not in self._passages or self._passages[item] in phrases):
                own = np.isin(found, keys[np.isin(keys, self._keys_of(item, keys))])
                hits.append(self._hit(item, min(1.0, score), words, units, *_longest(places[own], self.overlap.n)))
        return hits

    def _keys_of(self, item: int, keys: Places) -> Places:
        """Return those of `keys` that are n-grams of `item`."""
        return keys[[item in self._owners[self._begins[key] : self._begins[key + 1]] for key in keys.tolist()]]

    def _short_hits(self, words: Words, phrases: Places, begins: Places) -> list[Hit]:
        best: dict[int, Hit] = {}
        for phrase, begin in zip(phrases.tolist(), begins.tolist(), strict=True):
            for short in self._short[phrase]:
                end = begin + short.length
                near = words.hashes[end : end + short.window]
                if short.item not in best and short.item not in self._passages and all(_contains(near, part) for part in short.parts):
                    best[short.item] = self._hit(short.item, 1.0, words, words, begin, short.length)
        return list(best.values())

    def _hit(self, number: int, score: float, words: Words, units: Words, begin: int, length: int) -> Hit:
        item = self.items[number]
        start, end = int(units.starts[begin]), int(units.ends[begin + length - 1])
        after = int(np.searchsorted(words.starts, end))
        answer = split(item.answer).hashes
        near = words.hashes[max(0, after - self.overlap.n) : after + self.overlap.answer_window]
        size = int(np.searchsorted(words.starts, end) - np.searchsorted(words.starts, start))
        return Hit(number, item.task, item.id, score, start, end, size, len(answer) > 0 and _contains(near, answer))


def _contains(words: Hashes, part: Hashes) -> bool:
    """Tell whether `part` stands in `words` without a gap."""
    size = len(part)
    return any(np.array_equal(words[i : i + size], part) for i in np.flatnonzero(words[: len(words) - size + 1] == part[0]).tolist())


def _longest(places: Places, n: int) -> tuple[int, int]:
    """Return begin and length of the longest run of words that n-grams at the sorted `places` cover, gaps below n words closed."""
    cuts = np.flatnonzero(np.diff(places) > 2 * n) + 1
    begins, ends = places[np.concatenate(([0], cuts))], places[np.concatenate((cuts - 1, [len(places) - 1]))]
    best = int(np.argmax(ends - begins))
    return int(begins[best]), int(ends[best] - begins[best]) + n
