"""Words: where the quality rules see a word begin and end, and what they want to know of each.

English is cut by english.py. Other languages are cut by Unicode: a run of letters, digits and underscores is a word, so is a single sign
of a script that is written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese), and a run of anything else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from openmai.data.filter import english

SPACE, LINE = 0, 1  # the numbers of white space other than one blank, and of the end of a line; words begin at 2
LETTER, WORD, MARK, STOP = 1, 2, 4, 8  # flags of a word: has a letter; has more than punctuation; is all punctuation; may end a sentence
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Gopher; the n-th sets flag 16 << n

# Unicode's sentence terminals; spaCy's sentencizer knows those of version 8, datatrove's rules a few more.
_ENDS = (
    "21 2e 3f 589 61f 6d4 700-702 7f9 964-965 104a-104b 1362 1367-1368 166e 1735-1736 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f "
    "1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f "
    "aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df "
    "11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11a42-11a43 11a9b-11a9c 11c41-11c42 "
    "16a6e-16a6f 16af5 16b37-16b38 16b44 1bc9f 1da88"
)
_LATER_ENDS = (
    "61d-61e 837 839 83d-83e 17d4-17d6 17d9-17da 1b7d-1b7e 2e53-2e54 10f55-10f59 10f86-10f89 11944 11946 11ef7-11ef8 11f43-11f44 16e98"
)
_MARKS = (
    "0-8 b-1f 22-2d 2f 3a-3e 40 5b-60 7b-9f ab b4 bb 2013-2014 2019 201c-201e 2026 2236 2501 25ba 3001 3008-300d 3010-3011 ff05 "
    "ff08-ff09 ff0c ff11 ff1a-ff1b ff5e"
)  # what datatrove calls punctuation beside the terminals; ff11 is a typing error there, kept
SENTENCE_ENDS = frozenset(english.characters(_ENDS))
LINE_ENDS = SENTENCE_ENDS | set(english.characters(_LATER_ENDS))
_PUNCTUATION = LINE_ENDS | set(english.characters(_MARKS))
_MOST_CHARACTERS = 1 << 21  # of all chunks, about 230,000 different ones of real text
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
_UNICODE = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+|[^\\w\\s]+")


def words(text: str, language: str = "en") -> list[str]:
    """Return the words of a text, punctuation marks among them, in order."""
    book = vocabulary(language)
    return [book.words[number] for number in book.encode([text]).tolist() if number > LINE]


class Vocabulary(dict[str, tuple[int, ...]]):
    """Remembers the words of every chunk between blanks as numbers, and facts of every word; forgets all when it has grown too large.

    The numbers differ from process to process; what is measured with them does not.
    """

    def __init__(self, is_english: bool) -> None:
        self.is_english = is_english
        self._forget()

    def _forget(self) -> None:
        self.clear()
        self.characters = 0
        self.update({"": (SPACE,), "\n": (LINE,)})
        self.words = [" ", "\n"]
        self.numbers: dict[str, int] = {}
        self.lengths = np.zeros(1024, dtype=np.int64)
        self.flags = np.zeros(1024, dtype=np.int64)

    def encode(self, lines: list[str]) -> NDArray[np.int64]:
        """Return the numbers of the words of the lines, with LINE between lines and SPACE where there is more than one blank."""
        if self.characters > _MOST_CHARACTERS:
            self._forget()
        return np.fromiter(chain.from_iterable(map(self.__getitem__, " \n ".join(lines).split(" "))), dtype=np.int64)

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        numbers: list[int] = []
        for part in [chunk] if chunk.split() == [chunk] else re.findall(r"\s+|\S+", chunk):
            if part.isspace():
                numbers.append(SPACE)
            else:
                numbers += [self.numbers.get(word) or self._add(word) for word in self._pieces(part)]
        self.characters += len(chunk)
        self[chunk] = tuple(numbers)
        return self[chunk]

    def _pieces(self, part: str) -> Iterable[str]:
        return english.segment(part) if self.is_english else _UNICODE.findall(part)

    def _add(self, word: str) -> int:
        number = self.numbers[word] = len(self.words)
        self.words.append(word)
        if number == len(self.lengths):
            self.lengths, self.flags = (np.concatenate([facts, np.zeros_like(facts)]) for facts in (self.lengths, self.flags))
        self.lengths[number], self.flags[number] = len(word), _flags(word)
        return number


@cache
def vocabulary(language: str) -> Vocabulary:
    """Return the vocabulary of this process for a language (ISO 639-1)."""
    return _vocabulary(language == "en")


@cache
def _vocabulary(is_english: bool) -> Vocabulary:
    return Vocabulary(is_english)


def _flags(word: str) -> int:
    if word.isalpha() and word not in STOP_WORDS:
        return LETTER | WORD
    flags = LETTER * any(map(str.isalpha, word)) | WORD * (not _PUNCTUATION.issuperset(word))
    flags |= MARK * all(unicodedata.category(char)[0] == "P" for char in word) | STOP * (word in SENTENCE_ENDS)
    return flags | (16 << STOP_WORDS.index(word) if word in STOP_WORDS else 0)
