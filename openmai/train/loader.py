"""The pretraining loader: which window of which source is row r of step s, as a pure function of seed and position.

Nothing is read ahead and nothing remembered, so resuming needs only the step, for any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openmai.base.artifact import Artifact
from openmai.base.errors import OpenmaiError
from openmai.tokenizer.shards import Shard
from openmai.train.mixture import MixtureFile

Batch = list[dict[str, Tensor]]
"micro-batches of one optimizer step"


def shuffle(index: np.ndarray, size: int, key: int, rounds: int = 4) -> np.ndarray:
    """Map `index` (values below `size`) through a pseudo-random permutation of range(size), without storing it.

    A Feistel network over the next even number of bits, repeated until the value falls inside (Black & Rogaway 2002, cycle walking).
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = np.random.SeedSequence(key).generate_state(rounds, np.uint64)
    value = index.astype(np.uint64)
    pending = np.ones(len(value), dtype=bool)
    while pending.any():
        left, right = value[pending] >> np.uint64(half), value[pending] & mask
        for round_key in keys:
            mixed = (right ^ round_key) * np.uint64(0x9E3779B97F4A7C15)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(29))) >> np.uint64(7) & mask)
        value[pending] = left << np.uint64(half) | right
        pending = value >= size
    return value.astype(np.int64)


def allot(weights: np.ndarray, start: int, count: int) -> list[tuple[int, int]]:
    """Return (source, running number within it) of samples start … start+count-1 of a mixture.

    The k-th sample of a source with weight w falls due at (k + 1/2) / w; samples are taken in the order in which they fall due, so after
    any number of them each source is within one sample of its exact share.
    """
    shares = weights / weights.sum()

    def taken(time: float) -> np.ndarray:
        return np.floor(shares * time + 0.5).astype(np.int64)

    first = taken(max(0.0, start - len(weights)))
    last = taken(start + count + len(weights))
    due = sorted(((k + 0.5) / shares[s], s, k) for s in range(len(shares)) if shares[s] > 0 for k in range(int(first[s]), int(last[s]) + 1))
    offset = start - int(first.sum())
    return [(source, k) for _, source, k in due[offset : offset + count]]


def drawn(weights: np.ndarray, count: int) -> np.ndarray:
    """Return how many of the first `count` samples of a mixture each source has: what surely fell due, and the last few as allotted."""
    shares = weights / weights.sum()
    counts = np.floor(shares * max(0.0, count - len(weights)) + 0.5).astype(np.int64)
    for source, _ in allot(weights, int(counts.sum()), count - int(counts.sum())):
        counts[source] += 1
    return counts


@dataclass(frozen=True)
class Phase:
    """A stretch of `samples` training samples with its own weights."""

    name: str
    samples: int
    weights: np.ndarray


@dataclass(frozen=True)
class Mixture:
    """Token streams with weights, or with phases that have weights of their own; after the last phase its weights go on."""

    names: list[str]
    streams: list[np.ndarray]
    weights: np.ndarray
    context: int
    seed: int
    phases: tuple[Phase, ...] = ()

    @classmethod
    def open(cls, shards: Artifact, context: int, upsample: dict[str, float], seed: int) -> Mixture:
        """Memory-map the training split; a source's weight is its size times its `upsample` factor."""
        counts = shards.metrics["splits"]["train"]
        unknown = set(upsample) - set(counts)
        if unknown:
            raise OpenmaiError(f"upsample.{min(unknown)}: no such source in {shards.path}; its sources: {', '.join(counts)}")
        names = [name for name in counts if counts[name]["tokens"] > context]
        if not names:
            raise OpenmaiError(f"{shards.path}: no source has more than context={context} training tokens; add data or lower the context")
        streams = [Shard(shards.path / f"train-{name}").tokens for name in names]
        weights = np.array([counts[name]["tokens"] * upsample.get(name, 1.0) for name in names])
        return cls(names, streams, weights, context, seed)

    @classmethod
    def open_phases(cls, shards: Artifact, context: int, recipe: MixtureFile, samples: int, seed: int) -> Mixture:
        """Memory-map the sources of a mixture.json; its phases divide the `samples` of the whole training.

        Raises OpenmaiError for sources that the shards lack, and for more epochs than the mixture allows.
        """
        names = recipe.sources_in(shards.metrics["splits"]["train"], context, shards.path)
        streams = [Shard(shards.path / f"train-{name}").tokens for name in names]
        ends = [round(samples * end) for end in recipe.ends()]
        phases = tuple(
            Phase(name, end - begin, np.array([weights.get(source, 0.0) for source in names]))
            for (name, weights), begin, end in zip(recipe.phases(), [0, *ends], ends, strict=False)
            if end > begin
        )
        mixture = cls(names, streams, phases[0].weights, context, seed, phases)
        recipe.check_epochs(dict(zip(names, mixture.epochs(samples), strict=True)))
        return mixture

    def epochs(self, samples: int) -> list[float]:
        """Return how often a training of `samples` samples sees each source."""
        used = np.zeros(len(self.names), np.int64)
        for phase, begin, end in self._stretches(0, samples):
            used += drawn(phase.weights, end) - drawn(phase.weights, begin)
        return [count / self._size(source) for source, count in enumerate(used.tolist())]

    def windows(self, start: int, count: int) -> np.ndarray:
        """Return samples start … start+count-1, each context + 1 tokens: (count, context + 1)."""
        rows = np.empty((count, self.context + 1), dtype=np.int64)
        for row, (source, number) in enumerate(self.allotted(start, count)):
            stream = self.streams[source]
            size = self._size(source)
            epoch, place = divmod(number, size)
            key = (self.seed * 1_000_003 + source) * 1_000_003 + epoch
            begin = int(shuffle(np.array([place]), size, key)[0]) * self.context
            rows[row] = stream[begin : begin + self.context + 1]
        return rows

    def allotted(self, start: int, count: int) -> list[tuple[int, int]]:
        """Return (source, running number within it) of samples start … start+count-1; a source's numbers go on from phase to phase."""
        samples = []
        for phase, begin, end in self._stretches(start, start + count):
            before = self._before(phase)
            samples += [(source, number + int(before[source])) for source, number in allot(phase.weights, begin, end - begin)]
        return samples

    def _stretches(self, start: int, end: int) -> Iterator[tuple[Phase, int, int]]:
        """Yield the phases that samples start … end-1 fall into, each with their first and last position, counted from its beginning."""
        offset = 0
        phases = self.phases or (Phase("", end, self.weights),)
        for number, phase in enumerate(phases):
            last = end if number == len(phases) - 1 else offset + phase.samples
            if start < last and end > offset:
                yield phase, max(start, offset) - offset, min(end, last) - offset
            offset = last

    def _before(self, phase: Phase) -> np.ndarray:
        """Return how many samples of each source the phases before `phase` have."""
        counts = np.zeros(len(self.names), np.int64)
        for earlier in self.phases:
            if earlier is phase:
                break
            counts += drawn(earlier.weights, earlier.samples)
        return counts

    def _size(self, source: int) -> int:
        """Return the number of windows of a source."""
        return (len(self.streams[source]) - 1) // self.context


@dataclass(frozen=True)
class PretrainBatches:
    """Batches of next-token prediction."""

    mixture: Mixture
    rows: int
    micro_rows: int
    rank: int = 0
    size: int = 1
    "of `size` processes, number `rank` takes its equal share of each batch; the samples of a step are the same for any number"

    def __call__(self, step: int) -> Batch:
        """Return this process's micro-batches of optimizer step `step`: ids and targets, each (micro_rows, context)."""
        share = self.rows // self.size
        windows = torch.from_numpy(self.mixture.windows(step * self.rows + self.rank * share, share))
        return [{"ids": part[:, :-1], "targets": part[:, 1:]} for part in windows.split(self.micro_rows)]
