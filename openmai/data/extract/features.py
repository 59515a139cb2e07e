"""What the block classifier looks at: whole numbers about each block, what stands around it, and the elements above it.

All are integers, so the verdict is the same on every machine; decision trees (model.py) need no scaling. What tells text from furniture
has been found out by many: length, links, punctuation (Kohlschütter et al. 2010, "Boilerplate detection using shallow text features"),
containers that collect the points of their paragraphs (Readability), names of classes (Dragnet, Peters and Lecocq 2013).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from openmai.data.extract.names import BITS
from openmai.data.extract.scan import (
    ANCHORS,
    BEGINNING,
    BULLET,
    CELL_FIRST,
    CELL_LAST,
    CHARS,
    CHROMES,
    COMMAS,
    DIGITS,
    ELEMENT,
    ENDING,
    GAP,
    GROUPS,
    HASH,
    LEVEL,
    LINKS,
    PARENT,
    PREFORMATTED,
    SENTENCES,
    SEPARATORS,
    SHAPE,
    SIGNS,
    STOPS,
    TAG,
    TAGS,
    TITLES,
    UPPER,
    WIDE,
    WORDS,
)

_LEVELS = 12  # how far up an element is looked for
_FAR = 20  # the distance of what is not there
_NEAR_LEVELS = 7  # of the elements above whose sums are features
_TAG_GROUP_LIST = (
    "article,main,aside,nav menu,footer,header hgroup,form fieldset search,ul ol,li,table,blockquote,figure figcaption,dl dt dd,section,p"
    ",pre,details dialog,noscript,h1 h2 h3 h4 h5 h6,address"
)
_TAG_GROUPS = _TAG_GROUP_LIST.split(",")
_NUM_NAMES = len(BITS) + 1  # and hidden
_NUM_GROUPS = _NUM_NAMES + len(_TAG_GROUPS)
_TAG_BITS = np.array(
    [0, *(sum(1 << (_NUM_NAMES + at) for at, group in enumerate(_TAG_GROUPS) if tag in group.split()) for tag in TAGS)], dtype=np.int64
)

_OWN_LIST = (
    "chars words links link_share anchors commas sentences ending digits upper level tag pre cells bullet gap stops stop_share chromes"
    " chrome_share separators in_title title_share repeated beginning comma_rate word_length wide signs in_body"
)
_OWN = _OWN_LIST.split()
_PAGE_LIST = (
    "index index_share chars_share blocks_of_page chars_of_page links_of_page good_of_page num_good since_h1 since_title since_last_title"
    " since_heading heading_level good_before since_good until_good articles_of_page body_of_page"
)
_PAGE = _PAGE_LIST.split()
_AROUND_STEPS, _WINDOWS = (-3, -2, -1, 1, 2, 3), ((3, 0), (0, 3), (8, 0), (0, 8))
_AROUND = ["chars", "link_share", "level", "ending", "stops", "chromes", "tag", "in_title"]
_CONTAINER = ["chars", "link_share", "blocks", "good_share", "chars_share", "same_shape", "siblings", "num_good", "points"]
NAMES = (
    _OWN
    + _PAGE
    + [f"{name}@{step}" for step in _AROUND_STEPS for name in _AROUND]
    + [f"{name}@{before}..{after}" for before, after in _WINDOWS for name in ("chars", "link_share", "stops", "chromes")]
    + [f"up_{group}" for group in [*BITS, "hidden", *_TAG_GROUPS]]
    + [f"tag^{level}" for level in range(1, 5)]
    + ["up_best", "after_best_start", "after_best_end", "points"]
    + [f"{name}^{level}" for level in range(_NEAR_LEVELS) for name in _CONTAINER]
)
_STEPS, _WINDOW_ARRAY = np.array(_AROUND_STEPS), np.array(_WINDOWS)
_ARTICLE = TAGS["article"]


def features(blocks: np.ndarray, elements: np.ndarray, in_body: np.ndarray) -> np.ndarray:
    """Return int32 [blocks, len(NAMES)]; `in_body` says whether a block stands in the text that the metadata call the article:
    0 not known, 1 no, 2 yes."""
    result = np.zeros((len(blocks), len(NAMES)), dtype=np.int32)
    if len(blocks):
        _own(result, blocks, in_body)
        at = len(_OWN)
        at = _page(result, at, blocks, elements)
        at = _around(result, at, blocks, _STEPS, _WINDOW_ARRAY)
        _above(result, at, blocks, elements, _TAG_BITS)
    return result


@njit(cache=True)
def _ending(c: int) -> int:
    if c == 46 or c == 33 or c == 63 or c == 0x3002 or c == 0xFF01 or c == 0xFF1F or c == 0x964:
        return 1
    if c == 34 or c == 0x201C or c == 0x201D or c == 0xBB or c == 0x2019:
        return 2
    if c == 41 or c == 93:
        return 3
    if c == 58:
        return 4
    if c == 0x2026:
        return 5
    return 6 if c == 44 or c == 59 else 0


@njit(cache=True)
def _is_good(block: np.ndarray) -> bool:
    """Tell whether a block looks like running text."""
    if block[LINKS] * 100 >= 40 * block[CHARS] or block[CHARS] + 3 * block[WIDE] < 80:
        return False
    return block[STOPS] >= 4 or block[COMMAS] + block[SENTENCES] >= 2


@njit(cache=True)
def _counts(keys: np.ndarray) -> np.ndarray:
    """Return for each key how often it occurs."""
    order, result, start = np.argsort(keys), np.empty(len(keys), np.int64), 0
    for i in range(1, len(keys) + 1):
        if i == len(keys) or keys[order[i]] != keys[order[start]]:
            for k in range(start, i):
                result[order[k]] = i - start
            start = i
    return result


@njit(cache=True)
def _own(result: np.ndarray, blocks: np.ndarray, in_body: np.ndarray) -> None:
    repeated = _counts(blocks[:, HASH].copy())
    for i in range(len(blocks)):
        b, row = blocks[i], result[i]
        chars, words = b[CHARS], max(1, b[WORDS])
        row[0], row[1], row[2], row[3] = chars, b[WORDS], b[LINKS], b[LINKS] * 100 // chars
        row[4], row[5], row[6], row[7] = b[ANCHORS], b[COMMAS], b[SENTENCES], _ending(b[ENDING])
        row[8], row[9], row[10] = b[DIGITS] * 100 // chars, b[UPPER] * 100 // chars, b[LEVEL]
        row[12], row[13], row[14], row[15] = b[PREFORMATTED], b[CELL_LAST] - b[CELL_FIRST], b[BULLET] != 0, b[GAP]
        row[16], row[17], row[18], row[19] = b[STOPS], b[STOPS] * 100 // words, b[CHROMES], b[CHROMES] * 100 // words
        row[20], row[21], row[22], row[23] = b[SEPARATORS], b[TITLES], b[TITLES] * 100 // words, repeated[i]
        c = b[BEGINNING]
        row[24] = 1 if 97 <= c <= 122 or 0xDF <= c <= 0xFF else 2 if 65 <= c <= 90 or 0xC0 <= c <= 0xDE else 3 if 48 <= c <= 57 else 0
        row[25], row[26], row[27], row[28] = b[COMMAS] * 1000 // chars, chars * 10 // words, b[WIDE] * 100 // chars, b[SIGNS] * 100 // chars
        row[29] = in_body[i]


@njit(cache=True)
def _page(result: np.ndarray, at: int, blocks: np.ndarray, elements: np.ndarray) -> int:
    count, total, links, good_chars, num_good, in_body = len(blocks), 0, 0, 0, 0, 0
    first_h1, first_title, last_title = -1, -1, -1
    for i in range(count):
        total += blocks[i, CHARS]
        links += blocks[i, LINKS]
        good_chars += blocks[i, CHARS] if _is_good(blocks[i]) else 0
        num_good += _is_good(blocks[i])
        in_body = max(in_body, result[i, 29])
        if blocks[i, LEVEL] == 1 and first_h1 < 0:
            first_h1 = i
        if blocks[i, TITLES] >= 2 and blocks[i, TITLES] * 100 >= 60 * blocks[i, WORDS]:
            first_title = i if first_title < 0 else first_title
            last_title = i
    articles = 0
    for e in range(len(elements)):
        articles += elements[e, TAG] == _ARTICLE
    chars, good, last_good, last_heading, level = 0, 0, -1, -1, 0
    for i in range(count):
        row = result[i]
        row[at], row[at + 1], row[at + 2], row[at + 3] = i, i * 100 // count, chars * 100 // total, count
        row[at + 4], row[at + 5], row[at + 6], row[at + 7] = total, links * 100 // total, good_chars, num_good
        row[at + 8] = i - first_h1 if first_h1 >= 0 else 9999
        row[at + 9] = i - first_title if first_title >= 0 else 9999
        row[at + 10] = i - last_title if last_title >= 0 else 9999
        if blocks[i, LEVEL]:
            last_heading, level = i, blocks[i, LEVEL]
        row[at + 11], row[at + 12], row[at + 13] = i - last_heading, level, good * 100 // max(1, good_chars)
        if _is_good(blocks[i]):
            good += blocks[i, CHARS]
            last_good = i
        row[at + 14] = i - last_good if last_good >= 0 else 9999
        row[at + 16], row[at + 17] = articles, in_body
        chars += blocks[i, CHARS]
    next_good = count + 9999
    for i in range(count - 1, -1, -1):
        if _is_good(blocks[i]):
            next_good = i
        result[i, at + 15] = min(9999, next_good - i)
        result[i, 11] = elements[blocks[i, ELEMENT], TAG]
    return at + 18


@njit(cache=True)
def _around(result: np.ndarray, at: int, blocks: np.ndarray, steps: np.ndarray, windows: np.ndarray) -> int:
    count = len(blocks)
    for step in steps:
        for i in range(count):
            k = i + step
            for column in range(8):
                result[i, at + column] = -1
            if 0 <= k < count:
                result[i, at], result[i, at + 1], result[i, at + 2] = result[k, 0], result[k, 3], result[k, 10]
                result[i, at + 3], result[i, at + 4], result[i, at + 5] = result[k, 7], result[k, 16], result[k, 18]
                result[i, at + 6], result[i, at + 7] = result[k, 11], result[k, 21]
        at += 8
    sums = np.zeros((count + 1, 4), np.int64)
    for i in range(count):
        sums[i + 1, 0], sums[i + 1, 1] = sums[i, 0] + blocks[i, CHARS], sums[i, 1] + blocks[i, LINKS]
        sums[i + 1, 2], sums[i + 1, 3] = sums[i, 2] + blocks[i, STOPS], sums[i, 3] + blocks[i, CHROMES]
    for w in range(len(windows)):
        for i in range(count):
            low, high = max(0, i - windows[w, 0]), min(count, i + windows[w, 1] + 1)
            chars = sums[high, 0] - sums[low, 0]
            result[i, at], result[i, at + 1] = chars, (sums[high, 1] - sums[low, 1]) * 100 // max(1, chars)
            result[i, at + 2], result[i, at + 3] = sums[high, 2] - sums[low, 2], sums[high, 3] - sums[low, 3]
        at += 4
    return at


@njit(cache=True)
def _above(result: np.ndarray, at: int, blocks: np.ndarray, elements: np.ndarray, tag_bits: np.ndarray) -> None:
    count, num = len(blocks), len(elements)
    sums = np.zeros((num, 6), np.int64)  # characters, in links, blocks, characters of good blocks, good blocks, points
    for i in range(count):
        b, e = blocks[i], blocks[i, ELEMENT]
        sums[e, 0] += b[CHARS]
        sums[e, 1] += b[LINKS]
        sums[e, 2] += 1
        if _is_good(b):
            sums[e, 3] += b[CHARS]
            sums[e, 4] += 1
            points = 2 + 2 * b[COMMAS] + 2 * min(b[CHARS] // 100, 3)
            parent = elements[e, PARENT]
            sums[parent, 5] += points
            sums[elements[parent, PARENT], 5] += points // 2
    for e in range(num - 1, 0, -1):
        for column in range(5):
            sums[elements[e, PARENT], column] += sums[e, column]
    best, best_points = 0, 1
    for e in range(1, num):
        sums[e, 5] *= 100 - sums[e, 1] * 100 // max(1, sums[e, 0])
        if sums[e, 5] > best_points:
            best, best_points = e, sums[e, 5]
    shapes = _counts(elements[:, SHAPE].copy())
    siblings = _counts(elements[:, SHAPE] * 1_000_003 + elements[:, PARENT])
    total, total_good = max(1, sums[0, 0]), max(1, sums[0, 3])
    first, last = count, -1
    for i in range(count):
        row, e, seen = result[i], blocks[i, ELEMENT], 0
        for group in range(_NUM_GROUPS):
            row[at + group] = _FAR
        places = at + _NUM_GROUPS
        row[places + 4] = _FAR
        highest = 0
        for level in range(_LEVELS):
            new = (elements[e, GROUPS] & ((1 << _NUM_NAMES) - 1) | tag_bits[elements[e, TAG]]) & ~seen
            seen |= new
            group = 0
            while new:
                if new & 1:
                    row[at + group] = level
                new >>= 1
                group += 1
            if 1 <= level <= 4:
                row[places + level - 1] = elements[e, TAG]
            if e == best and best and row[places + 4] == _FAR:
                row[places + 4] = level
            if level < 4:
                highest = max(highest, sums[e, 5])
            if level < _NEAR_LEVELS:
                k = places + 8 + 9 * level
                row[k], row[k + 1], row[k + 2] = sums[e, 0], sums[e, 1] * 100 // max(1, sums[e, 0]), sums[e, 2]
                row[k + 3], row[k + 4] = sums[e, 3] * 100 // total_good, sums[e, 0] * 100 // total
                row[k + 5], row[k + 6], row[k + 7] = shapes[e], siblings[e], sums[e, 4]
                row[k + 8] = sums[e, 5] * 100 // best_points if e else -1
            e = elements[e, PARENT]
        row[places + 7] = highest * 100 // best_points
        if row[places + 4] < _FAR:
            first, last = min(first, i), i
    for i in range(count):
        result[i, at + _NUM_GROUPS + 5], result[i, at + _NUM_GROUPS + 6] = i - first, i - last


COMPILED_FROM = ("scan.py", "names.py")  # see the end of scan.py
COMPILED_WITH = "2910105905aeb525"
