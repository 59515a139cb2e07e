"""Documents that are nearly the same: candidates that share a MinHash band, checked by the true Jaccard similarity of their shingles.

Among candidates that are connected, the most preferred stays, then each further one that is not similar to one that stays. So a document
goes only if one that stays is similar to it, and two that go for the same one have at least 2 * jaccard - 1 in common (the Jaccard
distance is a metric); chains of candidates cannot join what is not alike. A document is compared with those that stay, not with those
that go: thousands of copies of one template cost one comparison each.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from openmai.data.dedup.config import Dedup
from openmai.data.dedup.exact import Dropped, in_order
from openmai.data.dedup.fingerprint import Keys, Lists, jaccard, mix, shingle_sets
from openmai.data.dedup.spill import Spill, numbered, run_starts

Rows = NDArray[np.int64]
# Of one bucket, documents are compared with so many that stay: bounds the time where a template's filling differs.
_RIVALS = 64
_CHUNK = 1 << 16
_CACHED = 64  # sets of shingles
_BUFFER = 1 << 23  # shingles of the components that are looked at together: 64 MB
_THREADS, _BATCH, _AHEAD = 4, 64, 9  # threads (more would wait for the interpreter's lock), texts of a batch, batches under way


def near(
    bands: Iterable[Keys],
    takes_part: NDArray[np.bool_],
    preference: NDArray[np.floating],
    texts: Callable[[Rows], Iterator[str]],
    config: Dedup,
    scratch: Path,
    earlier: int = 0,
) -> Dropped:
    """Find the near-duplicates: each document that goes with the similar one that stays, which also names its cluster.

    `bands` are `Fingerprints.bands` in chunks, in the documents' order; rows that do not take part are passed over. Of similar documents
    the one of the highest `preference` stays, of equals the first; the first `earlier` rows stay whatever happens. `texts` is called once,
    with the rows whose texts must be compared, in order. Files in the folder `scratch` bound the memory to some numbers per document.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    buckets = scratch / "buckets"
    roots, is_candidate = _components(bands, takes_part, config, buckets, earlier)
    found = [Dropped(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    with (
        ShingleSets(scratch / "shingles", is_candidate, texts, config.ngram) as sets,
        Spill(scratch / "components", 3, buckets.stat().st_size // 16) as spill,
    ):
        for chunk in _chunks(buckets):
            spill.add(np.column_stack([roots[chunk[:, 1].astype(np.int64)].astype(np.uint64), chunk]))
        for part in spill.parts():
            found.extend(_choose_all(_distinct(part), preference, sets, config.jaccard, earlier))
    buckets.unlink()
    rows, kept = (np.concatenate(numbers).astype(np.uint64) for numbers in zip(*((one.rows, one.kept) for one in found), strict=True))
    return in_order(rows, kept, np.concatenate([one.similarity for one in found]))


def choose(
    keys: Keys, rows: Keys, preference: Mapping[int, float] | NDArray[np.floating], sets: Callable[[int], Keys], least: float, earlier: int
) -> Iterator[tuple[int, int, float]]:
    """Yield (row that goes, row that stays, similarity) of connected candidates; row `rows[i]` lies in the bucket `keys[i]`.

    A row is compared with those that stay in its buckets, in the order of preference, up to the first that is similar. This is the readable
    twin of `choose_many`, for what does not fit its buffer.
    """
    buckets: dict[int, list[int]] = defaultdict(list)
    for key, row in zip(keys.tolist(), rows.tolist(), strict=True):
        buckets[row].append(key)
    order = sorted(buckets, key=lambda row: (row >= earlier, -preference[row], row))
    place = {row: number for number, row in enumerate(order)}
    stays: dict[int, list[int]] = defaultdict(list)
    for row in order:
        rivals = sorted({other for key in buckets[row] for other in stays[key]}, key=place.__getitem__) if row >= earlier else []
        match = next(((other, alike) for other in rivals if (alike := jaccard(sets(row), sets(other))) >= least), None)
        if match:
            yield row, *match
        else:
            for key in buckets[row]:
                if len(stays[key]) < _RIVALS:
                    stays[key].append(row)


def choose_many(
    keys: Keys, rows: Rows, preference: NDArray[np.floating], sets: Callable[[Rows], Lists], least: float, earlier: int
) -> tuple[Dropped, int]:
    """Choose as `choose` does, by compiled code, in any number of components; return the choice and how many pairs were compared for it.

    Equal keys stand side by side. `sets` is called once, with all distinct rows in order.
    """
    numbers, inverse = np.unique(rows, return_inverse=True)
    order = np.lexsort((numbers, -preference[numbers], numbers >= earlier))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    places = place[inverse]
    starts = run_starts(keys)
    buckets = np.repeat(np.arange(len(starts) - 1), np.diff(starts))[np.argsort(places, kind="stable")]
    ends = np.cumsum(np.bincount(places, minlength=len(order)))
    found = sets(numbers)
    kept, similarity, compared = _choose(
        buckets, ends, starts, order, np.searchsorted(numbers, earlier), found.values, found.offsets, least, _RIVALS
    )
    goes = np.flatnonzero(kept >= 0)
    return Dropped(numbers[order[goes]], numbers[order[kept[goes]]], similarity[goes]), compared


def preferences(
    keep: str, words: NDArray[np.int64], scores: NDArray[np.floating] | None = None, dates: list[str] | None = None
) -> NDArray[np.floating]:
    """Return what `near` prefers for the setting `Dedup.keep`: more words, a higher score, a newer ISO date, or none ("first")."""
    if keep == "longest":
        return words.astype(np.float64)
    if keep == "quality" and scores is not None:
        return np.nan_to_num(scores, nan=-np.inf)
    if keep == "newest" and dates is not None:
        return np.array([float(re.sub(r"\D", "", date[:10]).ljust(8, "0")) for date in dates])
    return np.zeros(len(words))


class ShingleSets:
    """The sorted shingles of the candidates, in a file, so that they need no memory. Use as a context; called with a row."""

    def __init__(self, path: Path, is_candidate: NDArray[np.bool_], texts: Callable[[Rows], Iterator[str]], ngram: int) -> None:
        self.path, self.ends = path, np.zeros(len(is_candidate) + 1, np.int64)
        rows = np.flatnonzero(is_candidate)
        with path.open("wb", buffering=1 << 20) as file:
            done = 0
            for found in _all_shingles(texts(rows), ngram):
                self.ends[rows[done : done + len(found)] + 1] = 8 * np.diff(found.offsets)
                file.write(found.values.data)
                done += len(found)
        np.cumsum(self.ends, out=self.ends)

    def __enter__(self) -> ShingleSets:
        self.file, self.read = self.path.open("rb"), lru_cache(_CACHED)(self._read)
        return self

    def __call__(self, row: int) -> Keys:
        return self.read(row)

    def sizes(self, rows: Rows) -> NDArray[np.int64]:
        return (self.ends[rows + 1] - self.ends[rows]) // 8

    def many(self, rows: Rows) -> Lists:
        """Return the shingles of rows in order; what lies side by side in the file is read at once."""
        offsets = np.concatenate([[0], np.cumsum(self.sizes(rows))])
        values = np.empty(offsets[-1], np.uint64)
        apart = np.flatnonzero(self.ends[rows[1:]] != self.ends[rows[:-1] + 1]) + 1
        for first, last in pairwise([0, *apart.tolist(), len(rows)]):
            os.preadv(self.file.fileno(), [values[offsets[first] : offsets[last]].data], self.ends.item(rows[first]))
        return Lists(values, offsets)

    def _read(self, row: int) -> Keys:
        start, end = self.ends.item(row), self.ends.item(row + 1)
        return np.frombuffer(os.pread(self.file.fileno(), end - start, start), np.uint64)

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.path.unlink()


def _all_shingles(texts: Iterator[str], ngram: int) -> Iterator[Lists]:
    """Yield the shingles of some texts at a time, in order; one thread reads texts ahead, others compute shingles."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:

        def next_one() -> Future[Lists]:
            batch = reader.submit(lambda: list(islice(texts, _BATCH)))
            return pool.submit(lambda: shingle_sets(batch.result(), ngram))

        ahead = deque(next_one() for _ in range(_AHEAD))
        while len(found := ahead.popleft().result()):
            ahead.append(next_one())
            yield found


def _components(
    bands: Iterable[Keys], takes_part: NDArray[np.bool_], config: Dedup, buckets: Path, earlier: int
) -> tuple[Rows, NDArray[np.bool_]]:
    """Write the buckets that matter to a file, as pairs (key, row); return each row's component and whether it lies in a bucket."""
    roots, is_candidate = np.arange(len(takes_part)), np.zeros(len(takes_part), np.bool_)
    with Spill(buckets.with_name("bands"), 2, int(takes_part.sum()) * config.bands) as spill, buckets.open("wb") as file:
        for numbers, chunk in numbered(bands, takes_part):
            spill.add(np.column_stack([chunk.reshape(-1), np.repeat(numbers, chunk.shape[1])]))
        for part in spill.parts():
            shared = _shared(part, earlier)
            rows = shared[:, 1].astype(np.int64)
            _join(roots, shared[:, 0], rows)
            is_candidate[rows] = True
            file.write(shared.data)
    _flatten(roots)
    return roots, is_candidate


def _shared(part: Keys, earlier: int) -> Keys:
    """Return the rows (key, row) of buckets that hold several documents, not all of them earlier ones."""
    starts = run_starts(part[:, 0])
    sizes = np.diff(starts)
    matters = (sizes > 1) & (part[starts[1:] - 1, 1] >= earlier)
    return np.ascontiguousarray(part[np.repeat(matters, sizes)])


def _chunks(path: Path) -> Iterator[Keys]:
    with path.open("rb") as file:
        while len(piece := np.fromfile(file, np.uint64, 2 * _CHUNK)):
            yield piece.reshape(-1, 2)


def _choose_all(part: Keys, preference: NDArray[np.floating], sets: ShingleSets, least: float, earlier: int) -> Iterator[Dropped]:
    """Choose among rows (component, key, row), as many components at a time as `_BUFFER` holds the shingles of."""
    starts, keys, rows = run_starts(part[:, 0]), part[:, 1], part[:, 2].astype(np.int64)
    for start, end, fits in _batches(starts, rows, sets):
        if fits:
            yield choose_many(keys[start:end], rows[start:end], preference, sets.many, least, earlier)[0]
        else:
            found = list(choose(keys[start:end], part[start:end, 2], preference, sets, least, earlier))
            goes, kept = (np.array([row[side] for row in found], np.int64) for side in (0, 1))
            yield Dropped(goes, kept, np.array([alike for _, _, alike in found]))


def _batches(starts: NDArray[np.int64], rows: Rows, sets: ShingleSets) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, end) of neighbouring components, and whether their shingles fit; where not, it is one component."""
    numbers, first = np.unique(rows, return_index=True)
    sizes = np.bincount(np.searchsorted(starts, first, "right") - 1, sets.sizes(numbers), len(starts) - 1)
    until = np.concatenate([[0], np.cumsum(sizes)])
    component = 0
    while component < len(sizes):
        after = int(np.searchsorted(until, until[component] + _BUFFER, "right")) - 1
        fits, after = after > component, max(after, component + 1)
        yield int(starts[component]), int(starts[after]), fits
        component = after


def _distinct(part: Keys) -> Keys:
    """Return the rows (component, key, row) without the buckets that hold the same documents as another one, which change nothing."""
    starts = run_starts(part[:, 1])
    _, first = np.unique(np.add.reduceat(mix(part[:, 2]), starts[:-1]), return_index=True)
    is_first = np.zeros(len(starts) - 1, np.bool_)
    is_first[first] = True
    return part[np.repeat(is_first, np.diff(starts))]


_jaccard = njit(cache=True)(jaccard)


@njit(cache=True)
def _choose(buckets, ends, starts, order, earlier, values, offsets, least, most):  # type: ignore[no-untyped-def]
    """Return for each place the place that stays for it (-1: it stays itself) and their similarity; and the number of comparisons.

    The row of place p lies in the buckets `buckets[ends[p - 1] : ends[p]]`, and its shingles are number `order[p]`; the first `earlier`
    places stay. Of bucket b, at most `most` that stay are written behind `starts[b]`, in order.
    """
    kept, similarity, compared = np.full(len(order), -1), np.zeros(len(order)), 0
    stays, counts, cursors = np.empty(starts[-1], np.int64), np.zeros(len(starts) - 1, np.int64), np.zeros(len(starts) - 1, np.int64)
    start = 0
    for place in range(len(order)):
        own = buckets[start : ends[place]]
        start = ends[place]
        mine = values[offsets[order[place]] : offsets[order[place] + 1]]
        for bucket in own:
            cursors[bucket] = 0
        last = -1
        while place >= earlier:
            rival = place
            for bucket in own:
                while cursors[bucket] < counts[bucket] and stays[starts[bucket] + cursors[bucket]] <= last:
                    cursors[bucket] += 1
                if cursors[bucket] < counts[bucket]:
                    rival = min(rival, stays[starts[bucket] + cursors[bucket]])
            if rival == place:
                break
            alike = _jaccard(mine, values[offsets[order[rival]] : offsets[order[rival] + 1]])
            compared += 1
            if alike >= least:
                kept[place], similarity[place] = rival, alike
                break
            last = rival
        if kept[place] < 0:
            for bucket in own:
                if counts[bucket] < most:
                    stays[starts[bucket] + counts[bucket]] = place
                    counts[bucket] += 1
    return kept, similarity, compared


@njit(cache=True)
def _find(roots, row):  # type: ignore[no-untyped-def]
    while roots[row] != row:
        roots[row] = roots[roots[row]]
        row = roots[row]
    return row


@njit(cache=True)
def _join(roots, keys, rows):  # type: ignore[no-untyped-def]
    """Connect neighbouring rows of equal keys."""
    for position in range(1, len(rows)):
        if keys[position] == keys[position - 1]:
            a, b = _find(roots, rows[position - 1]), _find(roots, rows[position])
            roots[max(a, b)] = min(a, b)


@njit(cache=True)
def _flatten(roots):  # type: ignore[no-untyped-def]
    """Let every row point at the smallest row of its component."""
    for row in range(len(roots)):
        roots[row] = roots[roots[row]]
