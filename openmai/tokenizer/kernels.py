"""The compiled loops of the fast encoder: classify bytes, split them into pieces, look pieces up, merge what is new.

Each loop is one function over whole texts: numba counts references whenever an array is handed on, which would cost more than the work.
"""

from __future__ import annotations

import heapq

import numpy as np
from numba import int64, njit, uint64

MEMO_BYTES, MEMO_IDS, MEMO_BITS = 15, 6, 20  # what a row of the memo can hold: bytes of a piece, ids, bits of an id
_LONG = 200  # symbols; from about here on the heap is faster


@njit(cache=True, nogil=True)
def classify(data, start, stop, classes, first_special, kinds):  # type: ignore[no-untyped-def]
    """Set kinds[i] to the class of the character that begins at data[start + i], or to one of three special kinds from `first_special` on.

    They are a further byte of a character, a byte that belongs to no well-formed one (Unicode 16.0, table 3-7), and the end.
    """
    stay, bad, end = first_special, first_special + 1, first_special + 2
    at = start
    while at < stop:
        first = data[at]
        if first < 0x80:
            kinds[at - start] = classes[first]
            at += 1
            continue
        size = 0
        if 0xC2 <= first <= 0xF4:
            size = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        if size == 0 or at + size > stop:
            kinds[at - start] = bad
            at += 1
            continue
        second = data[at + 1]
        low = 0xA0 if first == 0xE0 else 0x90 if first == 0xF0 else 0x80
        high = 0x9F if first == 0xED else 0x8F if first == 0xF4 else 0xBF
        is_good = low <= second <= high
        code = (first & (0x7F >> size)) << 6 | (second & 0x3F)
        for place in range(at + 2, at + size):
            is_good = is_good and data[place] & 0xC0 == 0x80
            code = code << 6 | (data[place] & 0x3F)
        if not is_good:
            kinds[at - start] = bad
            at += 1
            continue
        kinds[at - start] = classes[code]
        for place in range(1, size):
            kinds[at - start + place] = stay
        at += size
    kinds[stop - start] = end


@njit(cache=True, nogil=True)
def split(kinds, size, moves, starts, at, to, ends):  # type: ignore[no-untyped-def]
    """Write the ends of the pieces of kinds[:size] to `ends`; return their number. `at`, `to`: room for one number per expression.

    Each expression works on the pieces of the one before. What it does not cover is a piece too, and so is every byte outside a character.
    """
    stay = moves.shape[1] - 3
    bad, end, last = stay + 1, stay + 2, len(starts) - 1
    count, stage = 0, 0
    at[0], to[0] = 0, size
    while stage >= 0:
        begin, limit = at[stage], to[stage]
        if begin == limit:
            stage -= 1
            continue
        found = begin + 1 if kinds[begin] == bad else -1
        covered_from = begin
        while found < 0 and covered_from < limit:
            state, place = starts[stage], covered_from
            while state >= 0:
                move = moves[state, kinds[place] if place < limit else end]
                if move & 1:
                    found = place
                state = move >> 1
                place += 1
            if found < 0:
                covered_from += 1
                while covered_from < limit and kinds[covered_from] == stay:
                    covered_from += 1
                if covered_from < limit and kinds[covered_from] == bad:
                    break
        if covered_from > begin:
            found = covered_from
        at[stage] = found
        if stage == last:
            ends[count] = found
            count += 1
        else:
            stage += 1
            at[stage], to[stage] = begin, found
    return count


@njit(cache=True, nogil=True)
def look_up(data, start, ends, count, byte_ids, pairs, wholes, memo, symbols, rows, out, filled):  # type: ignore[no-untyped-def]
    """Write the ids of `count` pieces of data[start:] to `out` from `filled` on; return where they end.

    `memo` (rows, 4) uint64 remembers short pieces: 15 bytes and their number, 6 ids of 20 bits and their number; two rows are tried.
    """
    begin, mask = start, uint64(len(memo) - 1)
    for number in range(count):
        stop = start + ends[number]
        size = stop - begin
        low, high = uint64(0), uint64(size) << uint64(56)
        slot = -1
        if size <= MEMO_BYTES:
            for place in range(min(size, 8)):
                low |= uint64(data[begin + place]) << uint64(8 * place)
            for place in range(8, size):
                high |= uint64(data[begin + place]) << uint64(8 * place - 64)
            mixed = (low ^ (high * uint64(0x9E3779B97F4A7C15))) * uint64(0xD6E8FEB86659FD93)
            slot = int64((mixed ^ (mixed >> uint64(32))) & mask)
            row = slot if memo[slot, 0] == low and memo[slot, 1] == high else slot ^ 1
            if memo[row, 0] == low and memo[row, 1] == high:
                ids = memo[row, 2]
                found = int64(ids >> uint64(60))
                for place in range(found):
                    if place == 3:
                        ids = memo[row, 3]
                    out[filled + place] = ids & uint64(0xFFFFF)
                    ids >>= uint64(MEMO_BITS)
                filled += found
                begin = stop
                continue
        for place in range(size):
            symbols[place] = byte_ids[data[begin + place]]
        found = merge(symbols, rows, size, pairs)
        if found > 1 and len(wholes) > 2:
            found = _whole(symbols, found, wholes)
        for place in range(found):
            out[filled + place] = symbols[place]
        filled += found
        if slot >= 0 and found <= MEMO_IDS:
            memo[slot ^ 1] = memo[slot]
            memo[slot, 0], memo[slot, 1], memo[slot, 2], memo[slot, 3] = low, high, uint64(found) << uint64(60), uint64(0)
            for place in range(found):
                memo[slot, 2 + place // 3] |= uint64(symbols[place]) << uint64(MEMO_BITS * (place % 3))
        begin = stop
    return filled


@njit(cache=True, nogil=True)
def _find(pairs, left, right):  # type: ignore[no-untyped-def]
    """Return the row of a merge, -1 if there is none. `pairs` (rows, 3): key, rank, id of the result."""
    key = left << 32 | right
    row = int64((uint64(key) * uint64(0x9E3779B97F4A7C15)) >> uint64(40)) & (len(pairs) - 1)
    while pairs[row, 0] != key:
        if pairs[row, 0] < 0:
            return -1
        row = (row + 1) & (len(pairs) - 1)
    return row


@njit(cache=True, nogil=True)
def _merge_long(symbols, after, count, pairs):  # type: ignore[no-untyped-def]
    """Do what `merge` does for a piece of any length; `after` has room for `count` numbers."""
    before = np.arange(-1, count - 1)
    after[:count] = np.arange(1, count + 1)
    heap = [int64(0) for _ in range(0)]
    for place in range(count - 1):
        row = _find(pairs, symbols[place], symbols[place + 1])
        if row >= 0:
            heap.append(pairs[row, 1] << 32 | place)
    heapq.heapify(heap)
    while heap:
        first = heapq.heappop(heap)
        rank, left = first >> 32, first & 0xFFFFFFFF
        right = after[left] if symbols[left] >= 0 else count
        row = _find(pairs, symbols[left], symbols[right]) if right < count else -1
        if row < 0 or pairs[row, 1] != rank:
            continue  # one of the two has been merged meanwhile
        symbols[left], symbols[right] = pairs[row, 2], -1
        after[left] = after[right]
        if after[left] < count:
            before[after[left]] = left
        for pair in (before[left], left):
            if pair >= 0 and after[pair] < count:
                row = _find(pairs, symbols[pair], symbols[after[pair]])
                if row >= 0:
                    heapq.heappush(heap, pairs[row, 1] << 32 | pair)
    kept = 0
    for place in range(count):
        if symbols[place] >= 0:
            symbols[kept] = symbols[place]
            kept += 1
    return kept


@njit(cache=True, nogil=True)
def merge(symbols, rows, count, pairs):  # type: ignore[no-untyped-def]
    """Apply merges to symbols[:count], the lowest rank first and the leftmost among equals; return how many symbols are left.

    A round takes all places of the best merge, unless one that comes earlier becomes possible on the way. A long piece has a heap instead,
    since it may need as many rounds as there are merges.
    """
    if count > _LONG:
        return _merge_long(symbols, rows, count, pairs)
    none = 1 << 62
    for place in range(count - 1):
        rows[place] = _find(pairs, symbols[place], symbols[place + 1])
    while count > 1:
        best = none
        for place in range(count - 1):
            if rows[place] >= 0:
                best = min(best, pairs[rows[place], 1])
        if best == none:
            break
        source, target, is_hurried = 0, 0, False
        while source < count:
            row = rows[source] if source < count - 1 else -1
            if row < 0 or pairs[row, 1] != best or is_hurried:
                symbols[target], rows[target] = symbols[source], row
                source += 1
            else:
                symbols[target] = pairs[row, 2]
                source += 2
                if target > 0:
                    rows[target - 1] = _find(pairs, symbols[target - 1], symbols[target])
                    is_hurried |= rows[target - 1] >= 0 and pairs[rows[target - 1], 1] < best
                if source < count:
                    rows[target] = _find(pairs, symbols[target], symbols[source])
                    is_hurried |= rows[target] >= 0 and pairs[rows[target], 1] < best
            target += 1
        count = target
    return count


@njit(cache=True, nogil=True)
def _whole(symbols, count, wholes):  # type: ignore[no-untyped-def]
    """Replace the symbols of a piece that is a token, though merges do not lead to it; return how many are left."""
    row, node = 0, symbols[0]
    for place in range(1, count):
        row = _find(wholes, node, symbols[place])
        if row < 0:
            return count
        node = wholes[row, 2]
    if wholes[row, 1] < 0:
        return count
    symbols[0] = wholes[row, 1]
    return 1


@njit(cache=True, nogil=True)
def encode(data, spans, classes, moves, starts, byte_ids, pairs, wholes, memo, kinds, ends, symbols, rows, out, marks):  # type: ignore[no-untyped-def]
    """Encode the texts data[start:stop] of `spans` (n, 2) into `out`, a span (-1, id) as that id; marks[i]: where text i ends."""
    filled = 0
    at, to = starts.copy(), starts.copy()
    for number in range(len(spans)):
        start, stop = spans[number, 0], spans[number, 1]
        if start < 0:
            out[filled] = stop
            filled += 1
        else:
            classify(data, start, stop, classes, moves.shape[1] - 3, kinds)
            count = split(kinds, stop - start, moves, starts, at, to, ends)
            filled = look_up(data, start, ends, count, byte_ids, pairs, wholes, memo, symbols, rows, out, filled)
        marks[number] = filled
    return filled
