"""A split's regular expressions as one table that is read a character at a time.

The engine of `tokenizers` backtracks and takes most of the encoder's time. The expressions that tokenizers use are regular but for one
character of look-ahead, so a deterministic automaton finds the same pieces. It keeps the order of alternatives (leftmost, then
first, as in Perl) by treating a state as an ordered list of threads: Cox 2009, https://swtch.com/~rsc/regexp/regexp2.html. What counts
as a letter, digit or space is asked of the engine itself, so both know the same edition of Unicode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

PROPERTIES = (r"\p{L}", r"\p{N}", r"\p{M}", r"\p{P}", r"\p{S}", r"\s")
_ESCAPES = {"r": "\r", "n": "\n", "t": "\t"}
_CODE_POINTS = 0x110000
# Planes that hold, or may come to hold, anything but private use: 0 to 3 and the first rows of 14.
_ASSIGNED = (range(0xD800), range(0xE000, 0x40000), range(0xE0000, 0xE1000))

Set = frozenset[tuple[int, int]] | str  # inclusive ranges, or the name of a property
Build = Callable[[int], int]  # takes the node that follows, returns the node that begins


@dataclass(frozen=True)
class Automaton:
    """`classes` (0x110000,) uint8: the class of a code point. `moves` (states, classes + 3) int16: what to do on the next class; twice the
    next state, or -2 where there is none, plus 1 if a piece may end before this character. The last three columns are for the second and
    further bytes of a character (stay), a byte that belongs to no character, and the end. `starts`: the first state of each expression.
    """

    classes: NDArray[np.uint8]
    moves: NDArray[np.int16]
    starts: NDArray[np.int64]


def compile_split(patterns: tuple[str, ...]) -> Automaton:
    """Compile expressions that are applied one after the other, each to the pieces that the one before left.

    Knows alternatives, groups `(?:)`, classes, properties, `? * + {m,n}`, look-ahead for one character; else raises ValueError.
    """
    programs = [_Parser(pattern).program() for pattern in patterns]
    sets = sorted({item.set for program in programs for item in program.nodes if item.set is not None}, key=repr)
    classes, members = _classes(sets)
    tables: list[list[list[int]]] = []
    starts = []
    for program in programs:
        starts.append(sum(len(table) for table in tables))
        tables.append(_determinize(program, [members[sets.index(item.set)] if item.set else None for item in program.nodes], starts[-1]))
    moves = np.array([row for table in tables for row in table], np.int16)
    stay, end = 2 * np.arange(len(moves), dtype=np.int16)[:, None], moves[:, -1:]
    return Automaton(classes, np.hstack([moves[:, :-1], stay, end, end]), np.array(starts, np.int64))


@dataclass(frozen=True)
class _Class:
    """A set of characters: what its parts hold together, or everything else."""

    parts: tuple[Set, ...]
    negated: bool = False


@dataclass(frozen=True)
class _Node:
    """One step of a thread: take a character of `set`, or look at it (`look`: must it be in the set, or must it not), or fork in order."""

    set: _Class | None = None
    look: bool | None = None
    next: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Program:
    nodes: list[_Node]
    start: int


_END = 0  # the node that ends a piece


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.text, self.at, self.nodes = pattern, 0, [_Node()]

    def program(self) -> _Program:
        start = self._alternatives()(_END)
        if self.at < len(self.text):
            raise self._error()
        return _Program(self.nodes, start)

    def _error(self) -> ValueError:
        return ValueError(f"{self.text!r}: not understood at character {self.at}")

    def _take(self, text: str) -> bool:
        found = self.text.startswith(text, self.at)
        self.at += len(text) * found
        return found

    def _add(self, node: _Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _alternatives(self) -> Build:
        ways = [self._sequence()]
        while self._take("|"):
            ways.append(self._sequence())
        return ways[0] if len(ways) == 1 else lambda after: self._add(_Node(next=tuple(way(after) for way in ways)))

    def _sequence(self) -> Build:
        items = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            items.append(self._repeated())

        def build(after: int) -> int:
            for item in reversed(items):
                after = item(after)
            return after

        return build

    def _repeated(self) -> Build:
        item = self._item()
        if self._take("?"):
            return self._times(item, 0, 1)
        if self._take("*"):
            return self._times(item, 0, None)
        if self._take("+"):
            return self._times(item, 1, None)
        if self._take("{"):
            stop = self.text.index("}", self.at)
            least, _, most = self.text[self.at : stop].partition(",")
            self.at = stop + 1
            return self._times(item, int(least), int(most or least))
        return item

    def _times(self, item: Build, least: int, most: int | None) -> Build:
        def build(after: int) -> int:
            if most is None:
                loop = self._add(_Node())
                self.nodes[loop] = _Node(next=(item(loop), after))
                after = loop
            else:
                end = after
                for _ in range(most - least):
                    after = self._add(_Node(next=(item(after), end)))
            for _ in range(least):
                after = item(after)
            return after

        return build

    def _item(self) -> Build:
        for opening, look in (("(?=", True), ("(?!", False)):
            if self._take(opening):
                return self._closed(self._one(self._class(), look))
        if self._take("(?:"):
            return self._closed(self._alternatives())
        if self.text[self.at : self.at + 1] in tuple("()*+?{^$."):
            raise self._error()
        return self._one(self._class(), None)

    def _one(self, found: _Class, look: bool | None) -> Build:
        return lambda after: self._add(_Node(found, look, (after,)))

    def _closed(self, build: Build) -> Build:
        if not self._take(")"):
            raise self._error()
        return build

    def _class(self) -> _Class:
        if not self._take("["):
            if self._take(r"\S"):
                return _Class((r"\s",), negated=True)
            return _Class((self._part(),))
        negated, parts = self._take("^"), []
        while not self._take("]"):
            parts.append(self._part())
        return _Class(tuple(sorted(parts, key=repr)), negated)

    def _part(self) -> Set:
        """One property, character or range."""
        for name in PROPERTIES:
            if self._take(name):
                return name
        first = self._character()
        if self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
            self.at += 1
            return frozenset({(first, self._character())})
        return frozenset({(first, first)})

    def _character(self) -> int:
        letter = self.text[self.at : self.at + 1]
        self.at += 1
        if letter == "\\":
            letter = self.text[self.at : self.at + 1]
            self.at += 1
            if letter.isalnum() and letter not in _ESCAPES:
                raise self._error()
            letter = _ESCAPES.get(letter, letter)
        if not letter:
            raise self._error()
        return ord(letter)


def _determinize(program: _Program, members: list[NDArray[np.bool_] | None], first: int) -> list[list[int]]:
    """Return the rows of `moves` for one expression, whose states are numbered from `first` on."""
    nodes, width = program.nodes, next(len(member) for member in members if member is not None)
    numbers: dict[tuple[int, ...], int] = {(program.start,): 0}
    waiting = list(numbers)
    rows = []
    while waiting:
        state = waiting.pop(0)
        row = []
        for kind in range(width):
            threads, ends = _step(nodes, members, state, kind)
            if threads and threads not in numbers:
                numbers[threads] = len(numbers)
                waiting.append(threads)
            row.append(2 * (first + numbers[threads] if threads else -1) + ends)
        rows.append(row)
    return rows


def _step(nodes: list[_Node], members: list[NDArray[np.bool_] | None], state: tuple[int, ...], kind: int) -> tuple[tuple[int, ...], bool]:
    """Follow the threads of `state` in order over a character of class `kind`; a thread that ends cuts off those after it."""
    left, seen = list(reversed(state)), set()
    after: list[int] = []
    while left:
        place = left.pop()
        if place in seen:
            continue
        seen.add(place)
        if place == _END:
            return tuple(dict.fromkeys(after)), True
        node, member = nodes[place], members[place]
        if member is None:
            left.extend(reversed(node.next))
        elif node.look is not None:
            if bool(member[kind]) == node.look:
                left.extend(node.next)
        elif member[kind]:
            after.extend(node.next)
    return tuple(dict.fromkeys(after)), False


def _classes(sets: list[_Class]) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """Sort code points into classes that no set tells apart; return them, and for each set which classes it holds (never the end)."""
    held = np.zeros((len(sets), _CODE_POINTS), bool)
    for row, item in zip(held, sets, strict=True):
        for part in item.parts:
            if isinstance(part, str):
                row |= properties()[part]
            else:
                for low, high in part:
                    row[low : high + 1] = True
        row ^= item.negated
    packed = np.zeros(_CODE_POINTS, np.int64)
    for number, row in enumerate(held):
        packed |= row.astype(np.int64) << number
    _, example, classes = np.unique(packed, return_index=True, return_inverse=True)
    assert len(example) < 250, "a class must fit into a byte, beside three special kinds"
    assert len(sets) < 63
    members = [np.append(row[example], False) for row in held]
    return classes.astype(np.uint8), members


@cache
def properties() -> dict[str, NDArray[np.bool_]]:
    """Return for each of PROPERTIES which code points have it, as the engine of `tokenizers` says."""
    letters = "".join(chr(number) for numbers in _ASSIGNED for number in numbers)
    numbers = np.concatenate([np.arange(part.start, part.stop) for part in _ASSIGNED])
    runs = [span for _, span in Split(Regex("|".join(f"{name}+" for name in PROPERTIES)), "isolated").pre_tokenize_str(letters)]
    firsts = "".join(letters[start] for start, _ in runs)  # a run has one property alone, or none
    found = {}
    for name in PROPERTIES:
        has = np.ones(len(runs), bool)
        for _, (start, stop) in Split(Regex(name), "removed").pre_tokenize_str(firsts):
            has[start:stop] = False
        member = np.zeros(_CODE_POINTS, bool)
        member[numbers] = np.repeat(has, [stop - start for start, stop in runs])
        found[name] = member
    return found
