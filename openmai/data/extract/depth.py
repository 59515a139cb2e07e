"""How deep a page is nested, before it is parsed.

Lexbor looks through all open elements for many a tag (`</li>`, `<option>`, `<rt>`), so its time is quadratic where elements are nested
without end: 1 MB of `<rt>` take 9 s. One compiled pass over the tags follows the open elements as the HTML standard does, roughly, and
stops at the limit. Elements that end by themselves are not counted; they cannot nest without others between them.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from openmai.data.extract.words import add_to_hash, hash_word, look_up, start_hash, table

_SLACK = 4, 1000  # times the limit and on top of it: real pages leave elements open that the standard closes

_UNCOUNTED, _RAW, _SPECIAL, _SINGLE, _FORMATTING = 1, 2, 3, 4, 5
_VOID = "area base basefont bgsound br col embed frame hr img input keygen link meta param source track wbr"
_ENDS_ITSELF = "html head body p li dd dt td th tr tbody thead tfoot colgroup option form"
_OF_KIND = {
    _UNCOUNTED: f"{_VOID} {_ENDS_ITSELF}",
    _RAW: "script style textarea title xmp iframe noembed noframes",
    _SPECIAL: "address applet article aside blockquote caption center details dir div dl fieldset figcaption figure footer frameset"
    " h1 h2 h3 h4 h5 h6 header hgroup listing main marquee menu nav noscript object ol plaintext pre search section summary table"
    " template ul",
    _SINGLE: "button select optgroup",  # what is left open in these may stay open behind them
    _FORMATTING: "a b big code em font i nobr s small strike strong tt u",  # taken out of the elements that are open above them
}
_KINDS = table({tag: kind for kind, tags in _OF_KIND.items() for tag in tags.split()})
_FOREIGN = np.array([hash_word(tag) for tag in ("svg", "math")])  # in which `<x/>` has no content
_AGAIN_LIST = "foreignobject desc title mi mo mn ms mtext annotation-xml"
_HTML_AGAIN = np.array([hash_word(tag) for tag in _AGAIN_LIST.split()])
# What ends the SVG or formula around it: https://html.spec.whatwg.org/#parsing-main-inforeign
_ENDS_LIST = (
    "b big blockquote body br center code dd div dl dt em embed font h1 h2 h3 h4 h5 h6 head hr i img li listing menu meta nobr ol p pre"
    " ruby s small span strong strike sub sup table tt u ul var"
)
_ENDS_FOREIGN = table(dict.fromkeys(_ENDS_LIST.split(), 1))
_TABLES = _KINDS, _FOREIGN, _HTML_AGAIN, _ENDS_FOREIGN
_SLOTS = 4096  # of the counters of open elements by name; names that share one only cost a look through the stack


def is_deep(html: str, max_depth: int) -> bool:
    """Tell whether `html` is nested so much deeper than `max_depth` that it should not be parsed; linear in its size."""
    limit = _SLACK[0] * max_depth + _SLACK[1]
    if html.count("<") <= limit:
        return False
    return bool(_height(np.frombuffer(html.encode("utf-8", "surrogatepass"), dtype=np.uint8), limit, *_TABLES) > limit)


@njit(cache=True)
def _after_tag(text: np.ndarray, i: int) -> int:
    """Return where the tag ends in which `i` stands; a quoted value may hold `>`."""
    before = 0
    while i < len(text):
        c = text[i]
        if c == 62:
            return i + 1
        if (c == 34 or c == 39) and before == 61:
            i += 1
            while i < len(text) and text[i] != c:
                i += 1
        if c != 32 and not 9 <= c <= 13:
            before = c
        i += 1
    return i


@njit(cache=True)
def _after_comment(text: np.ndarray, i: int) -> int:
    while i + 2 < len(text) and not (text[i] == 45 and text[i + 1] == 45 and text[i + 2] == 62):
        i += 1
    return i + 3


@njit(cache=True)
def _raw_end(text: np.ndarray, i: int, start: int, end: int) -> int:
    """Return where the end tag of the element starts whose name is `text[start:end]`."""
    size = end - start
    while i + size + 1 < len(text):
        if text[i] == 60 and text[i + 1] == 47:
            same = True
            for k in range(size):
                same = same and (text[i + 2 + k] | 32) == (text[start + k] | 32)
            if same:
                return i
        i += 1
    return len(text)


@njit(cache=True)
def _is_open(counts: np.ndarray, names: np.ndarray) -> bool:
    found = False
    for name in names:
        found = found or counts[name & (_SLOTS - 1)] > 0
    return found


@njit(cache=True)
def _close(stack: np.ndarray, special: np.ndarray, counts: np.ndarray, height: int, name: int, kind: int, is_foreign: bool) -> int:
    """Close the element `name` if its end tag may do that, and return the new height."""
    at, specials = height - 1, 0
    while at >= 0 and stack[at] != name:
        specials += special[at]
        at -= 1
    if at < 0 or (kind == _SINGLE and at < height - 1):
        return height
    if not specials or kind == _SPECIAL or is_foreign:
        for k in range(at, height):
            counts[stack[k] & (_SLOTS - 1)] -= 1
        return at
    if kind == _FORMATTING:
        counts[name & (_SLOTS - 1)] -= 1
        stack[at : height - 1], special[at : height - 1] = stack[at + 1 : height].copy(), special[at + 1 : height].copy()
        return height - 1
    return height


@njit(cache=True)
def _height(text: np.ndarray, limit: int, kinds: np.ndarray, foreign: np.ndarray, again: np.ndarray, ends: np.ndarray) -> int:
    """Return the largest number of open elements, at most `limit` + 1."""
    stack, special, height, most = np.zeros(limit + 1, np.int64), np.zeros(limit + 1, np.bool_), 0, 0
    counts = np.zeros(_SLOTS, np.int64)
    i, n = 0, len(text)
    while i + 1 < n and height <= limit:
        if text[i] != 60:
            i += 1
            continue
        closing = text[i + 1] == 47
        start = i + 2 if closing else i + 1
        if start >= n or not 97 <= (text[start] | 32) <= 122:
            if text[i + 1] == 33 and i + 3 < n and text[i + 2] == 45 and text[i + 3] == 45:
                i = _after_comment(text, i + 4)
            elif closing or text[i + 1] == 33 or text[i + 1] == 63:  # a comment in the eyes of HTML
                while i < n and text[i] != 62:
                    i += 1
            else:
                i += 1
            continue
        i, name = start, start_hash()
        while i < n and text[i] != 32 and not 9 <= text[i] <= 13 and text[i] != 47 and text[i] != 62:
            name = add_to_hash(name, text[i])
            i += 1
        end = i
        i = _after_tag(text, i)
        kind, slot = look_up(kinds, name), name & (_SLOTS - 1)
        is_foreign = _is_open(counts, foreign) and not _is_open(counts, again)
        if is_foreign and not closing and look_up(ends, name):
            while _is_open(counts, foreign):
                height -= 1
                counts[stack[height] & (_SLOTS - 1)] -= 1
            is_foreign = False
        if kind == _UNCOUNTED:
            continue
        if closing:
            if counts[slot]:
                height = _close(stack, special, counts, height, name, kind, is_foreign)
        elif kind == _RAW and not _is_open(counts, foreign):
            i = _raw_end(text, i, start, end)
        elif text[i - 2] != 47 or not (is_foreign or name == foreign[0] or name == foreign[1]):
            stack[height], special[height] = name, kind in (_SPECIAL, _SINGLE)
            height += 1
            counts[slot] += 1
            most = max(most, height)
    return most


# As in scan.py: a test keeps this hash of the files that are compiled in up to date, and with it the compiled code.
COMPILED_FROM = ("words.py",)
COMPILED_WITH = "5a8d17ca09149c19"
