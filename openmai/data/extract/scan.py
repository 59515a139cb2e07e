"""A page as blocks of text and the elements that hold them, in one compiled pass over its tags.

Lexbor parses (resiliparse) and writes the tree out again as well-formed HTML: every tag is closed, `<` and `>` in text and attributes are
escaped, names are in lower case and values in double quotes. The pass over that is linear in the size of the page whatever its depth,
and takes a fraction of the time of the parser. Text stays where it is: blocks hold spans of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from openmai.data.extract.names import BITS, FORMULA, HIDDEN, LEFT_OUT, NAMES, UNREAD
from openmai.data.extract.vocabulary import CHROME, STOP
from openmai.data.extract.words import add_to_hash, look_up, start_hash, table

HINT = "openmai-level"  # attribute that carries the answer of a hint

# What an element does to the text. Those of no kind (b, em, ...) do nothing.
INLINE, BLOCK, CELL, LINK, BREAK, SKIPPED, VOID, RAISED, CODE, QUOTE, SPAN, RAW, RULE = range(13)
_OF_KIND = {
    BLOCK: "p h1 h2 h3 h4 h5 h6 ul ol dl table pre blockquote figure section article div li dt dd tr main header body address center"
    " fieldset details summary figcaption tbody thead tfoot caption nav footer aside form dialog legend hgroup menu search frameset"
    " noscript",
    CELL: "td th",
    LINK: "a",
    BREAK: "br",
    SKIPPED: "head template svg math button select textarea object video audio canvas datalist map rt rp",
    VOID: "img input meta link source track wbr area base col embed param frame",
    RAISED: "sup sub",
    CODE: "code kbd samp tt",
    QUOTE: "q",
    SPAN: "span",
    RAW: "script style iframe xmp noembed noframes plaintext",
    RULE: "hr",
}
TAGS = {tag: code for code, tag in enumerate((tag for tags in _OF_KIND.values() for tag in tags.split()), 1)}
_KINDS = np.array([INLINE, *(kind for kind, tags in _OF_KIND.items() for _ in tags.split())])
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_SPACED_TAGS = {*_HEADINGS, "p", "ul", "ol", "dl", "table", "pre", "blockquote", "figure", "section", "article"}
_SPACED = np.array([tag in _SPACED_TAGS for tag in ["", *TAGS]])
_LEVELS = np.array([_HEADINGS.get(tag, 0) for tag in ["", *TAGS]])
_PRE, _DD, _LI, _UL, _OL, _TR, _SUP = (TAGS[tag] for tag in ("pre", "dd", "li", "ul", "ol", "tr", "sup"))
_TAG_TABLE = table(TAGS)

_IS_NAME, _IS_STYLE, _IS_HIDDEN, _IS_HREF, _IS_START, _IS_HINT = range(1, 7)
_ATTRIBUTES = table(
    {"class": _IS_NAME, "id": _IS_NAME, "role": _IS_NAME, "itemprop": _IS_NAME, "style": _IS_STYLE, "hidden": _IS_HIDDEN}
    | {"aria-hidden": _IS_HIDDEN, "href": _IS_HREF, "start": _IS_START, HINT: _IS_HINT}
)
_NAME_TABLE, _UNREAD_TABLE = table(NAMES), table(dict.fromkeys(UNREAD, 1))
_HIDING = table({"none": 1, "hidden": 1})
_WORD_TABLE = table({word: (1 if word in STOP else 0) + (2 if word in CHROME else 0) for word in STOP | CHROME})
_NOTE_BIT = BITS["note"]

# Columns of a block. FIRST to LAST are its spans, INDENT counts <dd> around it and LISTS open lists, CELL_FIRST to CELL_LAST are the starts
# of its cells (if it is a table row); CHARS and all after it are sums over its text, white space counted as one character.
FIRST, LAST, ELEMENT, LEVEL, GAP, INDENT, LISTS, BULLET, PREFORMATTED, CELL_FIRST, CELL_LAST = range(11)
CHARS, WORDS, LINKS, ANCHORS, COMMAS, SENTENCES, DIGITS, UPPER, STOPS, CHROMES, SEPARATORS, TITLES, WIDE, SIGNS = range(11, 25)
ENDING, BEGINNING, HASH, NUM_COLUMNS = range(25, 29)
NO_BULLET, DASH = 0, -1  # other bullets are the item's number

# Columns of an element. SHAPE is a hash of its tag and the groups of its names.
PARENT, TAG, GROUPS, SHAPE = range(4)

# A span with a negative start is a mark, its end says which.
MARK_BREAK, MARK_CODE, MARK_QUOTE, MARK_UNQUOTE, MARK_SUP, MARK_UNRAISE, MARK_SUB = range(1, 8)

_MAX_ROW = 1000  # characters; a longer table row is layout rather than data
_MAX_NAME = 400  # characters of a class attribute that are read

# The running state: the columns of the block in the making, then what follows.
_WORD, _IN_WORD, _SPACE, _IN_LINK, _PRE_DEPTH, _NUM_SPANS, _NUM_BLOCKS, _NUM_ELEMENTS, _ENDED = range(NUM_COLUMNS, NUM_COLUMNS + 9)
_NUM_STATE = NUM_COLUMNS + 9


@dataclass(frozen=True)
class Scanned:
    """What `scan` found: `html[start:end]` of `spans` [S, 2], `blocks` [N, NUM_COLUMNS], `cells` [C] (spans), `elements` [E, 4]."""

    html: str
    spans: np.ndarray
    blocks: np.ndarray
    cells: np.ndarray
    elements: np.ndarray
    too_deep: bool


def scan(html: str, title: str, max_depth: int) -> Scanned:
    """Return the blocks and elements of `html`, which Lexbor has written out; `title` is compared with each block."""
    text = np.frombuffer(html.encode("utf-32-le", "surrogatepass"), dtype=np.int32)
    title_table = table(dict.fromkeys(_title_words(title), 1))
    spans, blocks, cells, elements, too_deep = _scan(
        text, max_depth, _TAG_TABLE, _ATTRIBUTES, _NAME_TABLE, _UNREAD_TABLE, _HIDING, _WORD_TABLE, title_table
    )
    return Scanned(html, spans, blocks, cells, elements, bool(too_deep))


def _title_words(title: str) -> list[str]:
    return ["".join(c for c in word if c.isalnum()) for word in title.lower().split()[:40]]


@njit(cache=True)
def _is_word(c: int) -> bool:
    if c < 0xAA:
        return 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122
    return not (c == 0xAB or c == 0xBB or c == 0xB7 or 0x2000 <= c <= 0x206F or 0x3000 <= c <= 0x303F or 0xFF00 <= c <= 0xFF0F)


@njit(cache=True)
def _end_word(state: np.ndarray, words: np.ndarray, title: np.ndarray) -> None:
    if state[_IN_WORD]:
        word = state[_WORD]
        found = look_up(words, word)
        state[STOPS] += found & 1
        state[CHROMES] += found >> 1
        state[TITLES] += look_up(title, word)
        state[WORDS] += 1
        state[HASH] = state[HASH] * 31 + word
        state[_IN_WORD] = 0


@njit(cache=True)
def _entity(text: np.ndarray, i: int, end: int) -> tuple[int, int]:
    """Return the character whose name follows the & before `i`, and where it ends; Lexbor writes only these."""
    if i + 2 >= end:
        return 38, i
    if text[i] == 110:  # nbsp;
        return 0xA0, i + 5
    if text[i] == 108:  # lt;
        return 60, i + 3
    if text[i] == 103:  # gt;
        return 62, i + 3
    return 38, i + 4  # amp;


@njit(cache=True)
def _add_text(state: np.ndarray, text: np.ndarray, start: int, end: int, words: np.ndarray, title: np.ndarray) -> None:
    i, chars, space, ended, in_word, word = start, state[CHARS], state[_SPACE], state[_ENDED], state[_IN_WORD], state[_WORD]
    before, last = chars, state[ENDING]
    while i < end:
        c = text[i]
        i += 1
        if c == 38:  # &
            c, i = _entity(text, i, end)
        if c == 32 or 9 <= c <= 13 or c == 0xA0:
            if in_word:
                state[_IN_WORD], state[_WORD], in_word = 1, word, 0
                _end_word(state, words, title)
            space = 1
            if ended:
                state[SENTENCES] += 1
                ended = 0
            continue
        if not chars:
            state[BEGINNING] = c
        chars += 2 if space and chars else 1
        space, last = 0, c
        if _is_word(c):
            if not in_word:
                in_word, word = 1, start_hash()
            word, ended = add_to_hash(word, c), 0
            if c < 58:
                state[DIGITS] += 1
            elif c < 91 or 0xC0 <= c <= 0xDE or 0x410 <= c <= 0x42F:
                state[UPPER] += 1
            elif c >= 0x3040:
                state[WIDE] += c <= 0x9FFF or 0xAC00 <= c <= 0xD7AF
            continue
        if in_word:
            state[_IN_WORD], state[_WORD], in_word = 1, word, 0
            _end_word(state, words, title)
        ended = 1 if c == 46 or c == 33 or c == 63 else ended if c == 34 or c == 41 or c == 0x201D else 0
        _count_sign(state, c)
    if state[_IN_LINK]:
        state[LINKS] += chars - before
    state[CHARS], state[_SPACE], state[_ENDED], state[_IN_WORD], state[_WORD], state[ENDING] = chars, space, ended, in_word, word, last


@njit(cache=True)
def _count_sign(state: np.ndarray, c: int) -> None:
    state[HASH] = state[HASH] * 31 + c
    if c == 44 or c == 0xFF0C or c == 0x3001 or c == 0x60C:
        state[COMMAS] += 1
    elif c == 0x3002 or c == 0x964 or c == 0xFF01 or c == 0xFF1F:
        state[SENTENCES] += 1
    elif c == 124 or c == 0xBB or c == 0x203A or c == 0xB7 or c == 47 or c == 0x2022:  # | » › · / •
        state[SEPARATORS] += 1
    elif c == 40 or c == 61 or c == 95 or c == 123 or c == 59 or c == 60 or c == 91:  # ( = _ { ; < [
        state[SIGNS] += 1


@njit(cache=True)
def _mark(state: np.ndarray, spans: np.ndarray, mark: int) -> None:
    spans[state[_NUM_SPANS], 0], spans[state[_NUM_SPANS], 1] = -1, mark
    state[_NUM_SPANS] += 1


@njit(cache=True)
def _flush(state: np.ndarray, blocks: np.ndarray, words: np.ndarray, title: np.ndarray) -> None:
    """End the running block; without text it leaves no trace."""
    _end_word(state, words, title)
    if state[CHARS]:
        state[LAST] = state[_NUM_SPANS]
        state[PREFORMATTED] = state[_PRE_DEPTH] > 0
        state[SENTENCES] += state[_ENDED]
        for column in range(NUM_COLUMNS):
            blocks[state[_NUM_BLOCKS], column] = state[column]
        state[_NUM_BLOCKS] += 1
        state[GAP], state[BULLET] = 0, NO_BULLET
    else:
        state[_NUM_SPANS] = state[FIRST]
    state[FIRST] = state[_NUM_SPANS]
    for column in range(CHARS, NUM_COLUMNS):
        state[column] = 0
    state[_SPACE] = state[_ENDED] = 0


@njit(cache=True)
def _names(text: np.ndarray, start: int, end: int, names: np.ndarray, unread: np.ndarray) -> int:
    """Return the groups of the words in a class attribute: parts between white space whole, and split at signs and inner capitals."""
    groups, whole, part = 0, start_hash(), start_hash()
    lower = False
    for i in range(start, min(end, start + _MAX_NAME) + 1):
        c = text[i] if i < min(end, start + _MAX_NAME) else 32
        letter = 97 <= c <= 122 or 65 <= c <= 90 or c >= 0xC0
        if not letter or (lower and 65 <= c <= 90):
            groups |= look_up(names, part)
            part = start_hash()
        if letter:
            part = add_to_hash(part, c)
        lower = 97 <= c <= 122
        if c == 32 or 9 <= c <= 13:
            groups |= look_up(names, whole)
            if look_up(unread, whole):
                groups |= LEFT_OUT
            whole = start_hash()
        else:
            whole = add_to_hash(whole, c)
    return groups


@njit(cache=True)
def _hides(text: np.ndarray, start: int, end: int, hiding: np.ndarray) -> bool:
    """Tell whether a style attribute holds `display: none` or `visibility: hidden`."""
    word, after, property_letter = start_hash(), False, 0
    for i in range(start, end + 1):
        c = text[i] if i < end else 59
        if 97 <= c <= 122 or 65 <= c <= 90:
            if not after and word == start_hash():
                property_letter = c | 32
            word = add_to_hash(word, c)
        elif c == 58 or c == 59 or c == 33:  # : ; !
            if after and (property_letter == 100 or property_letter == 118) and look_up(hiding, word):  # d or v
                return True
            word, after = start_hash(), c == 58
        elif c != 32:
            word = add_to_hash(word, c)
    return False


@njit(cache=True)
def _attributes(text: np.ndarray, i: int, known: np.ndarray, names: np.ndarray, unread: np.ndarray, hiding: np.ndarray) -> tuple:
    """Read attributes from `i` to the end of the tag: (position of its >, groups of names, has href, start, hint or -1)."""
    groups, href, number, hint, n = 0, False, 1, -1, len(text)
    while i < n and text[i] != 62:
        if text[i] == 32 or 9 <= text[i] <= 13 or text[i] == 47:
            i += 1
            continue
        name = start_hash()
        while i < n and text[i] != 61 and text[i] != 32 and text[i] != 62:
            name = add_to_hash(name, text[i])
            i += 1
        start = end = i
        if i + 1 < n and text[i] == 61 and text[i + 1] == 34:
            start = end = i + 2
            while end < n and text[end] != 34:
                end += 1
            i = end + 1
        elif i < n and text[i] == 61:
            i += 1
        what = look_up(known, name)
        if what == _IS_NAME:
            groups |= _names(text, start, end, names, unread)
        elif what == _IS_STYLE:
            groups |= HIDDEN if _hides(text, start, end, hiding) else 0
        elif what == _IS_HIDDEN:
            groups |= HIDDEN if end == start or text[start] != 102 else 0  # anything but "false"
        elif what == _IS_HREF:
            href = True
        elif what in (_IS_START, _IS_HINT) and start < end <= start + 6:
            value = 0
            for k in range(start, end):
                value = value * 10 + max(0, min(9, text[k] - 48))
            if what == _IS_START:
                number = value
            else:
                hint = value
    return i, groups, href, number, hint


@njit(cache=True)
def _join_row(state: np.ndarray, blocks: np.ndarray, element: int, starts: np.ndarray, cells: np.ndarray, num_cells: int) -> int:
    """Make one block of the cells of a data row, where each holds at most one plain block; return the number of cells known.

    A row with a single filled cell is one only below a row of as many cells.
    """
    first, last = starts[0, 0], state[_NUM_BLOCKS]
    goes_on = first > 0 and last > first and blocks[first - 1, CELL_LAST] - blocks[first - 1, CELL_FIRST] == len(starts)
    if len(starts) < 2 or last - first < (1 if goes_on and not blocks[first, GAP] else 2):
        return num_cells
    chars = 0
    for k in range(first, last):
        chars += blocks[k, CHARS]
        if blocks[k, LEVEL] or blocks[k, PREFORMATTED] or blocks[k, BULLET] != NO_BULLET or blocks[k, CELL_LAST]:
            return num_cells
    for k in range(len(starts)):
        if (starts[k + 1, 0] if k + 1 < len(starts) else last) - starts[k, 0] > 1:
            return num_cells
    if chars > _MAX_ROW:
        return num_cells
    for k in range(first + 1, last):
        for column in range(CHARS, ENDING):
            blocks[first, column] += blocks[k, column]
        blocks[first, HASH] = blocks[first, HASH] * 31 + blocks[k, HASH]
    blocks[first, CHARS] += 3 * (last - first - 1)
    blocks[first, ENDING], blocks[first, LAST] = blocks[last - 1, ENDING], blocks[last - 1, LAST]
    blocks[first, ELEMENT], blocks[first, CELL_FIRST], blocks[first, CELL_LAST] = element, num_cells, num_cells + len(starts)
    for k in range(len(starts)):
        cells[num_cells + k] = starts[k, 1]
    state[_NUM_BLOCKS] = first + 1
    return num_cells + len(starts)


@njit(cache=True)
def _find(text: np.ndarray, i: int, character: int) -> int:
    while i < len(text) and text[i] != character:
        i += 1
    return i


@njit(cache=True)
def _after_comment(text: np.ndarray, i: int) -> int:
    while i + 2 < len(text) and not (text[i] == 45 and text[i + 1] == 45 and text[i + 2] == 62):
        i += 1
    return i + 3


@njit(cache=True)
def _after_raw(text: np.ndarray, i: int, name_start: int, name_end: int) -> int:
    """Return where the closing tag of a raw text element starts whose name is `text[name_start:name_end]`."""
    size = name_end - name_start
    while i + size + 1 < len(text):
        if text[i] == 60 and text[i + 1] == 47:
            same = True
            for k in range(size):
                same = same and text[i + 2 + k] == text[name_start + k]
            if same:
                return i
        i += 1
    return len(text)


@njit(cache=True)
def _scan(
    text: np.ndarray,
    max_depth: int,
    tags: np.ndarray,
    known: np.ndarray,
    names: np.ndarray,
    unread: np.ndarray,
    hiding: np.ndarray,
    words: np.ndarray,
    title: np.ndarray,
) -> tuple:
    num_tags = 2
    for i in range(len(text)):
        num_tags += text[i] == 60
    spans = np.empty((2 * num_tags, 2), np.int32)
    blocks = np.empty((num_tags, NUM_COLUMNS), np.int64)
    elements = np.zeros((num_tags, 4), np.int64)
    cells, starts, num_cells, num_starts = np.empty(num_tags, np.int32), np.empty((num_tags, 2), np.int64), 0, 0
    depth_limit = min(max_depth, num_tags) + 2
    # tag, element, indent, level, list number before it, first cell of the row, gap wanted after it
    stack, height = np.empty((depth_limit, 7), np.int64), 0
    state = np.zeros(_NUM_STATE, np.int64)
    state[_NUM_ELEMENTS] = 1
    depth, left_out, number = 0, 0, 0
    broken = False  # the last thing was a <br>
    i, n = 0, len(text)
    while i < n:
        if text[i] != 60:
            end = _find(text, i, 60)
            if not left_out:
                before = state[CHARS]
                _add_text(state, text, i, end, words, title)
                spans[state[_NUM_SPANS], 0], spans[state[_NUM_SPANS], 1] = i, end
                state[_NUM_SPANS] += 1
                broken = broken and state[CHARS] == before
            i = end
            continue
        closing = i + 1 < n and text[i + 1] == 47
        if i + 3 < n and text[i + 1] == 33:
            i = _after_comment(text, i + 4) if text[i + 2] == 45 else _find(text, i, 62) + 1
            continue
        i += 2 if closing else 1
        name_start, name = i, start_hash()
        while i < n and text[i] != 32 and text[i] != 47 and text[i] != 62:
            name = add_to_hash(name, text[i])
            i += 1
        name_end = i
        tag = look_up(tags, name)
        kind = _KINDS[tag]
        groups, href, first_number, hint = 0, False, 1, -1
        if not closing and not left_out and (kind in (BLOCK, CELL, LINK, SPAN, RAISED)):
            i, groups, href, first_number, hint = _attributes(text, i, known, names, unread, hiding)
        i = _find(text, i, 62) + 1

        if kind == RAW:
            if not closing:
                i = _after_raw(text, i, name_start, name_end)
            continue
        if kind != VOID and kind != BREAK and kind != RULE:
            if closing:
                depth = max(0, depth - 1)
                if depth < left_out:
                    left_out = 0
                    continue
            else:
                depth += 1
                if depth > max_depth:
                    break
        if left_out:
            continue
        if kind == BREAK:
            if broken and not state[_PRE_DEPTH]:
                _flush(state, blocks, words, title)
                state[GAP] = 1
                broken = False
            else:
                _mark(state, spans, MARK_BREAK)
                _end_word(state, words, title)
                state[_SPACE] = 1
                broken = True
            continue
        if kind == RULE:
            _flush(state, blocks, words, title)
            state[GAP] = 1
            continue
        if closing:
            if kind == LINK:
                state[_IN_LINK] = max(0, state[_IN_LINK] - 1)
            elif kind == RAISED:
                _mark(state, spans, MARK_UNRAISE)
            elif kind == CODE and not state[_PRE_DEPTH]:
                _mark(state, spans, MARK_CODE)
            elif kind == QUOTE:
                _mark(state, spans, MARK_UNQUOTE)
            elif (kind in (BLOCK, CELL)) and height and stack[height - 1, 0] == tag:
                _flush(state, blocks, words, title)
                height -= 1
                if tag == _TR and num_starts > stack[height, 5]:
                    num_cells = _join_row(state, blocks, state[ELEMENT], starts[stack[height, 5] : num_starts], cells, num_cells)
                    num_starts = stack[height, 5]
                elif tag == _LI:
                    state[BULLET] = NO_BULLET
                elif tag in (_UL, _OL):
                    state[LISTS] -= 1
                    number = stack[height, 4]
                elif tag == _PRE:
                    state[_PRE_DEPTH] -= 1
                state[ELEMENT], state[INDENT], state[LEVEL] = stack[height, 1], stack[height, 2], stack[height, 3]
                state[GAP] |= stack[height, 6]
            continue
        if kind == SKIPPED or hint == 0 or groups & LEFT_OUT:
            left_out = depth
            if kind in (BLOCK, CELL):
                _flush(state, blocks, words, title)
        elif kind == LINK:
            if href:
                state[_IN_LINK] += 1
                state[ANCHORS] += 1
        elif kind == SPAN:
            if groups & HIDDEN and not groups & FORMULA:
                left_out = depth
        elif kind == RAISED:
            if groups & _NOTE_BIT:
                left_out = depth
            else:
                _mark(state, spans, MARK_SUP if tag == _SUP else MARK_SUB)
        elif kind == CODE:
            if not state[_PRE_DEPTH]:
                _mark(state, spans, MARK_CODE)
        elif kind == QUOTE:
            _mark(state, spans, MARK_QUOTE)
        elif kind in (BLOCK, CELL):
            if height == depth_limit:  # end tags without a beginning, which Lexbor writes out where it does not escape: <plaintext>
                depth = max_depth + 1
                break
            _flush(state, blocks, words, title)
            spaced = 1 if _SPACED[tag] or hint > 0 else 0
            stack[height, 0], stack[height, 1], stack[height, 2], stack[height, 3] = tag, state[ELEMENT], state[INDENT], state[LEVEL]
            stack[height, 4], stack[height, 5], stack[height, 6] = number, num_starts, spaced
            height += 1
            state[GAP] |= spaced
            element = state[_NUM_ELEMENTS]
            elements[element, PARENT], elements[element, TAG], elements[element, GROUPS] = state[ELEMENT], tag, groups
            elements[element, SHAPE] = groups * 256 + tag
            state[_NUM_ELEMENTS] += 1
            state[ELEMENT] = element
            state[LEVEL] = hint if hint > 0 else _LEVELS[tag]
            if tag == _PRE:
                state[_PRE_DEPTH] += 1
            elif tag == _DD:
                state[INDENT] += 1
            elif tag == _LI:
                state[BULLET] = DASH if number < 0 or not state[LISTS] else number
                number += 1 if number >= 0 and state[LISTS] else 0
            elif tag in (_UL, _OL):
                state[LISTS] += 1
                number = first_number if tag == _OL else -1
            elif kind == CELL:
                starts[num_starts, 0], starts[num_starts, 1] = state[_NUM_BLOCKS], state[_NUM_SPANS]
                num_starts += 1
        broken = False
    _flush(state, blocks, words, title)
    num_blocks, num_elements = state[_NUM_BLOCKS], state[_NUM_ELEMENTS]
    return spans[: state[_NUM_SPANS]], blocks[:num_blocks], cells[:num_cells], elements[:num_elements], depth > max_depth


# numba compiles constants and functions of other files in, but looks only at this one when it decides whether to compile anew:
# a test keeps this hash of those files up to date, and with it the compiled code.
COMPILED_FROM = ("words.py", "names.py")
COMPILED_WITH = "edc7182a1e7c97d9"
