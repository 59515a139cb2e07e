"""What deduplication has to know about one text: keys of the whole, of its MinHash bands, of its paragraphs and lines.

Everything here looks at one document at a time, so that it runs in the workers; what compares documents (exact.py, near.py,
repeated.py) sees nothing but these keys. A text is what its words are: case, layout and punctuation make no difference. Scripts that put
no spaces between words count every character as a word. All arithmetic is on integers modulo 2^64, the same in every process.

Texts are in Unicode form C, as extract/clean.py leaves them.

Broder 1997, "On the resemblance and containment of documents"; linear permutations: Bohman, Cooper, Frieze 2000, "Min-wise independent
linear permutations" (here modulo 2^32; the test compares the variance with that of independent ones); 14 bands of 8 rows: FineWeb
(arXiv:2406.17557); 26 of 11: Dolma 3.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from openmai.data.dedup.config import Dedup

Keys = NDArray[np.uint64]

_KNOWN = 0x20000  # characters from here on are ideographs
_ALONE = np.uint32(1 << 31)  # marks a character that is a word by itself, in scripts without spaces
_ALONE_RANGES = (
    (0x0E00, 0x0EFF),
    (0x0F00, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
)
_NEWLINE, _SPACE, _TAB, _RETURN, _TICK, _BAR = (np.uint32(code) for code in b"\n \t\r`|")
_SEED, _FACTOR, _OTHER_FACTOR = np.uint64(0xCBF29CE484222325), np.uint64(0x9FB21C651E98DF25), np.uint64(0xD6E8FEB86659FD93)
_ZERO, _ONE, _HALF = np.uint64(0), np.uint64(1), np.uint64(32)


@dataclass(frozen=True)
class Lists:
    """One list of keys per document: `values[offsets[i] : offsets[i + 1]]` is document i's. A key of 0 stands for what may repeat."""

    values: Keys
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Fingerprints:
    """Keys of N documents: exact (N, 2), bands (N, bands), words (N,), paragraphs and lines. All keys of a text without words are 0."""

    exact: Keys
    bands: Keys
    words: NDArray[np.int64]
    paragraphs: Lists
    lines: Lists

    def columns(self) -> dict[str, pa.Array]:
        """Return them as Arrow columns, one row per document; `read_columns` is the way back."""
        return {
            "exact": pa.FixedSizeListArray.from_arrays(pa.array(self.exact.reshape(-1)), 2),
            "bands": pa.FixedSizeListArray.from_arrays(pa.array(self.bands.reshape(-1)), self.bands.shape[1]),
            "words": pa.array(self.words),
            "paragraphs": pa.LargeListArray.from_arrays(self.paragraphs.offsets, self.paragraphs.values),
            "lines": pa.LargeListArray.from_arrays(self.lines.offsets, self.lines.values),
        }


def schema(config: Dedup) -> pa.Schema:
    """Return the fields of `Fingerprints.columns`."""
    keys = pa.large_list(pa.uint64())
    return pa.schema(
        [
            ("exact", pa.list_(pa.uint64(), 2)),
            ("bands", pa.list_(pa.uint64(), config.bands)),
            ("words", pa.int64()),
            ("paragraphs", keys),
            ("lines", keys),
        ]
    )


def fixed_keys(column: pa.Array) -> Keys:
    """Return a column of fixed-size lists (`exact`, `bands`) as an array of shape (N, size)."""
    size = column.type.list_size
    return column.flatten().to_numpy(zero_copy_only=False).astype(np.uint64, copy=False).reshape(-1, size)


def list_keys(column: pa.Array) -> Lists:
    """Return a column of lists (`paragraphs`, `lines`) as `Lists`."""
    offsets = column.offsets.to_numpy()
    return Lists(column.flatten().to_numpy(zero_copy_only=False), (offsets - offsets[0]).astype(np.int64))


def fingerprint(texts: list[str], config: Dedup) -> Fingerprints:
    """Compute the keys of some documents."""
    exact, bands = np.zeros((len(texts), 2), np.uint64), np.zeros((len(texts), config.bands), np.uint64)
    permutations = _permutations(config.bands * config.rows if config.near else 0)
    paragraph_chars = config.paragraph_chars if config.paragraph_copies else -1
    line_chars = config.line_chars if config.line_copies else -1
    words, paragraphs, lines = _fingerprints(
        *_joined(texts), _folds(), config.ngram, *permutations, paragraph_chars, line_chars, exact, bands
    )
    return Fingerprints(exact, bands, words, Lists(*paragraphs), Lists(*lines))


def shingles(text: str, ngram: int) -> Keys:
    """Return the sorted distinct hashes of a text's word n-grams; a shorter text is one shingle, one without words none."""
    return shingle_sets([text], ngram).values


def shingle_sets(texts: list[str], ngram: int) -> Lists:
    """Return the shingles of several texts, computed without the interpreter's lock."""
    hashes, offsets = _all_hashes(*_joined(texts), _folds(), ngram)
    for start, end in pairwise(offsets.tolist()):
        hashes[start:end].sort()
    return Lists(*_squeeze(hashes, offsets))


def drop(text: str, paragraphs: NDArray[np.int64], lines: NDArray[np.int64]) -> str:
    """Return `text` without the paragraphs and lines of these numbers, which `fingerprint` has keys of at these places.

    A paragraph is what stands between blank lines; a fenced block of code is never torn apart.
    """
    codes = _codes(text)
    belongs, _ = _layout(codes, _words(codes, _folds())[1])
    gone = np.isin(belongs, paragraphs) | np.isin(np.arange(len(belongs)), lines)
    kept: list[str] = []
    for line, number, away in zip(text.split("\n"), belongs.tolist(), gone.tolist(), strict=True):
        if not away and (number >= 0 or (kept and kept[-1])):
            kept.append(line if number >= 0 else "")
    return "\n".join(kept).rstrip("\n")


def jaccard(a: Keys, b: Keys) -> float:
    """Return |a and b| / |a or b| of two sorted sets of distinct hashes; 0 if both are empty."""
    common = _common(a, b)
    return common / max(1, len(a) + len(b) - common)


def mix(values: Keys) -> Keys:
    """Scramble 64-bit values (the finalizer of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_mix = njit(cache=True)(mix)


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _joined(texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the characters of all texts, and where each text begins and ends."""
    return _codes("".join(texts)), np.fromiter(accumulate(map(len, texts), initial=0), np.int64, len(texts) + 1)


@cache
def _folds() -> NDArray[np.uint32]:
    """Return for each character below _KNOWN 0 if it stands between words, else itself in lower case; the last entry is for all others."""
    folds = np.zeros(_KNOWN + 1, np.uint32)
    for code in range(_KNOWN):
        if chr(code) == "_" or unicodedata.category(chr(code))[0] in "LMN":
            lower = chr(code).casefold()
            folds[code] = ord(lower) if len(lower) == 1 else code
    for first, last in _ALONE_RANGES:
        folds[first : last + 1] |= np.where(folds[first : last + 1] > 0, _ALONE, np.uint32(0))
    folds[_KNOWN] = _ALONE
    return folds


@cache
def _permutations(count: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    multipliers, offsets = np.random.Generator(np.random.PCG64(1)).integers(0, 2**32, (2, count), dtype=np.uint32)
    return multipliers | np.uint32(1), offsets


@njit(cache=True)
def _words(codes, folds):  # type: ignore[no-untyped-def]
    """Return the hashes of the words, and for each line its end and how many words there are up to it."""
    lines = 1
    for code in codes:
        lines += code == _NEWLINE
    words, ends, until = np.empty(len(codes) + 1, np.uint64), np.empty(lines, np.int64), np.empty(lines, np.int64)
    count, line, word, inside = _ZERO, 0, _SEED, _ZERO
    for position in range(len(codes)):
        code = codes[position]
        fold = folds[code] if code < _KNOWN else _ALONE | code
        words[count] = word  # stays if the word ends here; no branch, for where words end cannot be predicted
        if fold >= _ALONE:
            count += inside
            words[count] = (_SEED ^ np.uint64(fold)) * _FACTOR
            count, word, inside = count + _ONE, _SEED, _ZERO
            continue
        goes_on = np.uint64(fold > 0)
        count += inside & ~goes_on
        mask = _ZERO - goes_on
        word = ((word ^ np.uint64(fold)) * _FACTOR & mask) | (_SEED & ~mask)
        inside = goes_on
        if code == _NEWLINE:
            ends[line], until[line] = position, count
            line += 1
    words[count] = word
    count += inside
    ends[line], until[line] = len(codes), count
    for number in range(count):
        words[number] = _mix(words[number])
    return words[:count], ends, until


@njit(cache=True)
def _layout(codes, ends):  # type: ignore[no-untyped-def]
    """Return for each line its paragraph (-1: blank, between paragraphs), and whether it is prose: neither code nor a table."""
    belongs, prose = np.empty(len(ends), np.int64), np.empty(len(ends), np.bool_)
    start, paragraph, inside, fenced = 0, -1, False, False
    for line in range(len(ends)):
        end = ends[line]
        while start < end and (codes[start] == _SPACE or codes[start] == _TAB or codes[start] == _RETURN):
            start += 1
        fence = end - start >= 3 and codes[start] == _TICK and codes[start + 1] == _TICK and codes[start + 2] == _TICK
        blank = start == end and not fenced
        if not blank and not inside:
            paragraph += 1
        inside = not blank
        belongs[line] = -1 if blank else paragraph
        prose[line] = not (blank or fenced or fence or codes[start] == _BAR)
        fenced ^= fence
        start = end + 1
    return belongs, prose


@njit(cache=True)
def _fingerprints(codes, starts, folds, ngram, multipliers, offsets, paragraph_chars, line_chars, exact, bands):  # type: ignore[no-untyped-def]
    """Write the exact and band keys; return the numbers of words, the keys of the paragraphs and those of the lines as in `Lists`."""
    lengths, most = np.zeros(len(exact), np.int64), len(exact)
    for code in codes:
        most += code == _NEWLINE
    paragraphs, paragraph_starts = np.empty(most, np.uint64), np.zeros_like(starts)
    lines, line_starts = np.empty(most, np.uint64), np.zeros_like(starts)
    for text in range(len(exact)):
        own = codes[starts[text] : starts[text + 1]]
        words, ends, until = _words(own, folds)
        belongs, prose = _layout(own, ends)
        lengths[text] = len(words)
        if len(words):
            exact[text] = _exact(words)
            if len(multipliers):
                _bands(_shingles(words, ngram), multipliers, offsets, bands[text])
        _append(paragraphs, paragraph_starts, text, _paragraphs(words, until, ends, belongs, paragraph_chars))
        _append(lines, line_starts, text, _lines(words, until, ends, prose, line_chars))
    return lengths, (paragraphs[: paragraph_starts[-1]], paragraph_starts), (lines[: line_starts[-1]], line_starts)


@njit(cache=True, nogil=True)
def _all_hashes(codes, starts, folds, ngram):  # type: ignore[no-untyped-def]
    """Return the hashes of the word n-grams of texts, as in `Lists`."""
    hashes, offsets = np.empty(len(codes), np.uint64), np.zeros_like(starts)
    for text in range(len(starts) - 1):
        _append(hashes, offsets, text, _shingles(_words(codes[starts[text] : starts[text + 1]], folds)[0], ngram))
    return hashes[: offsets[-1]], offsets


@njit(cache=True)
def _append(values, offsets, number, found):  # type: ignore[no-untyped-def]
    """Write the list of this number behind those before it."""
    offsets[number + 1] = offsets[number] + len(found)
    values[offsets[number] : offsets[number + 1]] = found


@njit(cache=True)
def _exact(words):  # type: ignore[no-untyped-def]
    """Return two independent hashes of the sequence of words."""
    first, second = _SEED, np.uint64(len(words))
    for word in words:
        first, second = (first + word) * _FACTOR, (second ^ word) * _OTHER_FACTOR
        second ^= second >> _HALF
    return _mix(first), _mix(second)


@njit(cache=True)
def _key(words, start, end):  # type: ignore[no-untyped-def]
    """Return the hash of some words; 0 if there are none."""
    key = _ZERO
    for position in range(start, end):
        key = (key + words[position]) * _FACTOR
    return max(_mix(key), _ONE) if end > start else _ZERO


@njit(cache=True)
def _paragraphs(words, until, ends, belongs, min_chars):  # type: ignore[no-untyped-def]
    """Return each paragraph's key, 0 for those of fewer than `min_chars` characters; none if `min_chars` is negative."""
    if min_chars < 0:
        return np.empty(0, np.uint64)
    keys = np.zeros(belongs.max() + 1, np.uint64)
    line = 0
    while line < len(ends):
        last = line
        while last + 1 < len(ends) and belongs[last + 1] == belongs[line]:
            last += 1
        start = ends[line - 1] + 1 if line else 0
        if belongs[line] >= 0 and ends[last] - start >= min_chars:
            keys[belongs[line]] = _key(words, until[line - 1] if line else 0, until[last])
        line = last + 1
    return keys


@njit(cache=True)
def _lines(words, until, ends, prose, min_chars):  # type: ignore[no-untyped-def]
    """Return each line's key, 0 for blank ones, those of fewer than `min_chars` characters, code and tables; none if it is negative."""
    if min_chars < 0:
        return np.empty(0, np.uint64)
    keys = np.zeros(len(ends), np.uint64)
    for line in range(len(ends)):
        start = ends[line - 1] + 1 if line else 0
        if prose[line] and ends[line] - start >= min_chars:
            keys[line] = _key(words, until[line - 1] if line else 0, until[line])
    return keys


@njit(cache=True)
def _shingles(words, ngram):  # type: ignore[no-untyped-def]
    """Return the hashes of the word n-grams in their order; a shorter text is one, one without words none."""
    size = min(ngram, len(words))
    if size == 0:
        return words
    hashes = np.empty(len(words) - size + 1, np.uint64)
    total, highest = _ZERO, _ONE  # a polynomial in _FACTOR, and its highest power
    for position in range(size):
        total, highest = total * _FACTOR + words[position], highest * _FACTOR
    hashes[0] = _mix(total)
    for start in range(1, len(hashes)):
        total = total * _FACTOR + words[start + size - 1] - words[start - 1] * highest
        hashes[start] = _mix(total)
    return hashes


@njit(cache=True)
def _bands(hashes, multipliers, offsets, keys):  # type: ignore[no-untyped-def]
    """Write the keys of the bands: hashes of their rows, the minima of the shingles under one permutation each."""
    short = (hashes >> _HALF).astype(np.uint32)
    rows = len(multipliers) // len(keys)
    for band in range(len(keys)):
        key = np.uint64(band + 1)
        for row in range(band * rows, (band + 1) * rows):
            lowest = np.uint32(0xFFFFFFFF)
            for value in short:
                lowest = min(lowest, np.uint32(value * multipliers[row] + offsets[row]))
            key = _mix(key * _FACTOR + np.uint64(lowest))
        keys[band] = max(key, _ONE)


@njit(cache=True, nogil=True)
def _squeeze(hashes, offsets):  # type: ignore[no-untyped-def]
    """Move the distinct ones of each text's sorted hashes to the front; return them as in `Lists`."""
    starts, count = np.zeros_like(offsets), 0
    for text in range(len(offsets) - 1):
        for position in range(offsets[text], offsets[text + 1]):
            value = hashes[position]
            hashes[count] = value
            count += position + 1 == offsets[text + 1] or value != hashes[position + 1]
        starts[text + 1] = count
    return hashes[:count], starts


@njit(cache=True)
def _common(a, b):  # type: ignore[no-untyped-def]
    """Count the values that two sorted sets share."""
    i, j, count = 0, 0, 0
    while i < len(a) and j < len(b):
        x, y = a[i], b[j]
        count += x == y
        i += x <= y
        j += y <= x
    return count
