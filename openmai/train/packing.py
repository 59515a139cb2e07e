"""Best-fit packing: documents into rows of one length with nothing thrown away, as a pure function of seed, epoch and row.

"Fewer Truncations Improve Language Modeling" (Ding et al. 2024, arXiv:2404.10830) packs what is left of documents longer than a row with
the short ones, the longest first, each into the fullest row with room for it. Here the number of rows is fixed beforehand at the fewest
that can hold everything: what finds no room is cut to fill the emptiest row, so that no row but the last ones of a window has padding, and
the place of every row is known without packing those before it.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from openmai.train.shuffle import shuffle

WINDOW = 512
"rows that are packed together; less than one row in a window is padding"
BLOCK = 8
"windows among which rows are shuffled"

Piece = tuple[int, int]
"first token in the stream, tokens"


def pack(pieces: list[Piece], context: int) -> list[list[Piece]]:
    """Put pieces of up to `context` tokens into the fewest rows that can hold them, the longest first, each where it fits best.

    Rows with equal room are filled in order, so the result depends on the order of equal pieces only.
    """
    total = sum(size for _, size in pieces)
    rows: list[list[Piece]] = [[] for _ in range(-(-total // context))]
    with_room: list[list[int]] = [[] for _ in range(context)] + [list(range(len(rows) - 1, -1, -1))]
    rooms = 1 << context if rows else 0  # bit n: some row has room for exactly n tokens
    rests: list[tuple[int, int]] = []  # of cut pieces: minus size, start

    def put(start: int, size: int, room: int) -> None:
        nonlocal rooms
        row = with_room[room].pop()
        if not with_room[room]:
            rooms ^= 1 << room
        rows[row].append((start, size))
        if room > size:
            with_room[room - size].append(row)
            rooms |= 1 << (room - size)

    ordered = sorted(pieces, key=lambda piece: -piece[1])
    position = 0
    while position < len(ordered) or rests:
        if rests and (position == len(ordered) or -rests[0][0] >= ordered[position][1]):
            negative, start = heapq.heappop(rests)
            size = -negative
        else:
            start, size = ordered[position]
            position += 1
        fitting = rooms >> size
        if fitting:
            put(start, size, size + (fitting & -fitting).bit_length() - 1)
        else:
            room = rooms.bit_length() - 1
            put(start, room, room)
            heapq.heappush(rests, (room - size, start + room))
    return rows


@dataclass
class Packer:
    """The rows of one source of `tokens` tokens, whose documents begin at `begins` (documents,) x `unit`.

    A window is the documents that begin within WINDOW rows' worth of stream; its number of rows follows from its tokens alone. An epoch
    takes the windows in a new order, and the rows of BLOCK of them in a new order. Of several epochs, every second one cuts long documents
    at other places. Holds a few windows' pieces at a time.
    """

    begins: np.ndarray
    tokens: int
    context: int
    key: int
    unit: int = 1
    _packed: OrderedDict[tuple[int, int], list[list[Piece]]] = field(default_factory=OrderedDict)
    _orders: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        stretch = WINDOW * self.context
        starts = np.arange(max(1, -(-self.tokens // stretch)), dtype=np.int64) * stretch
        self.first = np.append(_search(self.begins, starts * self.unit), len(self.begins))
        "first document of each window, and their number"
        self.counts = -(-np.diff(np.append(self._offsets(self.first[:-1]), self.tokens)) // self.context)
        "rows of each window"

    def _offsets(self, documents: np.ndarray) -> np.ndarray:
        """Return where documents begin, in tokens; the one after the last begins where that ends."""
        inside = documents < len(self.begins)
        found = np.full(len(documents), self.tokens, dtype=np.int64)
        found[inside] = self.begins[documents[inside]] // self.unit
        return found

    @property
    def rows(self) -> int:
        """Rows of one epoch."""
        return int(self.counts.sum())

    def row(self, epoch: int, place: int) -> list[Piece]:
        """Return the pieces of row `place` of an epoch."""
        order, ends = self._order(epoch)
        block = int(np.searchsorted(ends, place, side="right"))
        begin = int(ends[block - 1]) if block else 0
        size = int(ends[block]) - begin
        place = int(shuffle(np.array([place - begin]), size, self.key + 7919 * epoch + block + 1)[0])
        for window in order[block * BLOCK : (block + 1) * BLOCK].tolist():
            if place < self.counts[window]:
                return self._pack(epoch, window)[place]
            place -= int(self.counts[window])
        raise AssertionError("a block has as many rows as its windows together")

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an epoch's order of windows, and where each block of them ends, in rows."""
        if epoch not in self._orders:
            order = shuffle(np.arange(len(self.counts)), len(self.counts), self.key + 7919 * epoch)
            ends = np.cumsum(self.counts[order])
            last = np.append(np.arange(BLOCK - 1, len(order) - 1, BLOCK), len(order) - 1)
            self._orders[epoch] = order, ends[last]
            while len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[epoch]

    def _pack(self, epoch: int, window: int) -> list[list[Piece]]:
        found = (epoch, window)
        if found in self._packed:
            self._packed.move_to_end(found)
            return self._packed[found]
        offsets = self._offsets(np.arange(self.first[window], self.first[window + 1] + 1)).tolist()
        random = np.random.default_rng([self.key, epoch, window])
        pieces = []
        for number in random.permutation(len(offsets) - 1).tolist():
            start, end = offsets[number], offsets[number + 1]
            rest = (end - start) % self.context
            if rest and epoch % 2 == 1:
                pieces.append((start, rest))
                start += rest
            pieces += [(at, min(self.context, end - at)) for at in range(start, end, self.context)]
        self._packed[found] = pack(pieces, self.context)
        while len(self._packed) > 2 * BLOCK:
            self._packed.popitem(last=False)
        return self._packed[found]


def _search(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the first place of rising `values` (mapped, not to be read as a whole) with at least each of `wanted`."""
    low, high = np.zeros(len(wanted), np.int64), np.full(len(wanted), len(values), np.int64)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        below = open_ & (values[np.minimum(middle, len(values) - 1)] < wanted)
        low, high = np.where(below, middle + 1, low), np.where(open_ & ~below, middle, high)
    return low
