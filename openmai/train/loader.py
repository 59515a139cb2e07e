"""The pretraining loader: which tokens of which source are row r of step s, as a pure function of seed and position.

Nothing depends on what was read before, so resuming needs only the step, for any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from openmai.base.artifact import Artifact
from openmai.base.errors import OpenmaiError
from openmai.model.loss import IGNORE
from openmai.tokenizer.shards import Shard
from openmai.train.mixture import MixtureFile
from openmai.train.packing import Packer
from openmai.train.shuffle import shuffle

Packing = Literal["none", "best-fit"]

Batch = list[dict[str, Tensor]]
"micro-batches of one optimizer step"


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
    """Token streams with weights, or with phases that have weights of their own; after the last phase its weights go on.

    A sample is `context` tokens and the targets after them. Without `packers` it is a window of the stream, else a packed row.
    """

    names: list[str]
    streams: list[np.ndarray]
    weights: np.ndarray
    context: int
    seed: int
    phases: tuple[Phase, ...] = ()
    packers: tuple[Packer, ...] = ()
    masks: bool = False
    "number the documents of each sample, so that no token sees another's"

    @classmethod
    def open(
        cls, shards: Artifact, context: int, upsample: dict[str, float], seed: int, packing: Packing = "none", masks: bool = False
    ) -> Mixture:
        """Memory-map the training split; a source's weight is its size times its `upsample` factor."""
        counts = shards.metrics["splits"]["train"]
        unknown = set(upsample) - set(counts)
        if unknown:
            raise OpenmaiError(f"upsample.{min(unknown)}: no such source in {shards.path}; its sources: {', '.join(counts)}")
        least = context if packing == "none" else 0
        names = [name for name in counts if counts[name]["tokens"] > least]
        if not names:
            raise OpenmaiError(f"{shards.path}: no source has more than {least} training tokens; add data or lower the context")
        found = cls._of(shards, names, context, seed, packing, masks, weights=np.ones(len(names)))
        sizes = [found._size(source) if found.packers else counts[name]["tokens"] for source, name in enumerate(names)]
        factors = [upsample.get(name, 1.0) for name in names]
        return replace(found, weights=np.array(sizes) * np.array(factors))

    @classmethod
    def open_phases(
        cls, shards: Artifact, context: int, recipe: MixtureFile, samples: int, seed: int, packing: Packing = "none", masks: bool = False
    ) -> Mixture:
        """Memory-map the sources of a mixture.json; its phases divide the `samples` of the whole training.

        Raises OpenmaiError for sources that the shards lack, and for more epochs than the mixture allows.
        """
        least = context if packing == "none" else 0
        names = recipe.sources_in(shards.metrics["splits"]["train"], least, shards.path)
        ends = [round(samples * end) for end in recipe.ends()]
        phases = tuple(
            Phase(name, end - begin, np.array([weights.get(source, 0.0) for source in names]))
            for (name, weights), begin, end in zip(recipe.phases(), [0, *ends], ends, strict=False)
            if end > begin
        )
        mixture = cls._of(shards, names, context, seed, packing, masks, weights=phases[0].weights, phases=phases)
        recipe.check_epochs(dict(zip(names, mixture.epochs(samples), strict=True)))
        return mixture

    @classmethod
    def _of(cls, shards: Artifact, names: list[str], context: int, seed: int, packing: Packing, masks: bool, **fields: Any) -> Mixture:
        files = [Shard(shards.path / f"train-{name}") for name in names]
        streams, packers = [file.tokens for file in files], []
        if packing == "best-fit":
            keys = [seed * 1_000_003 + source for source in range(len(files))]
            packers = [
                Packer(file.begins, len(file.tokens), context, key, file.tokens.itemsize) for file, key in zip(files, keys, strict=True)
            ]
        return cls(names, streams, context=context, seed=seed, packers=tuple(packers), masks=masks, **fields)

    def epochs(self, samples: int) -> list[float]:
        """Return how often a training of `samples` samples sees each source."""
        used = np.zeros(len(self.names), np.int64)
        for phase, begin, end in self._stretches(0, samples):
            used += drawn(phase.weights, end) - drawn(phase.weights, begin)
        return [count / self._size(source) for source, count in enumerate(used.tolist())]

    def samples(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Return samples start … start+count-1: ids and targets (count, context), and documents with `masks`.

        Every token of a source is a target once in an epoch, its document's first one after the end-of-text before it. What pads a packed
        row has targets of -100 and a number of its own.
        """
        if not self.packers:
            windows = self.windows(start, count)
            found = {"ids": windows[:, :-1], "targets": windows[:, 1:]}
            if self.masks:
                found["documents"] = (found["ids"] == self.streams[0][-1]).cumsum(axis=1)
            return found
        end = int(self.streams[0][-1])
        ids, targets = np.full((2, count, self.context), end, dtype=np.int64)
        documents = np.zeros((count, self.context), dtype=np.int64)
        for row, (source, number) in enumerate(self.allotted(start, count)):
            stream, at = self.streams[source], 0
            pieces = self.packers[source].row(*divmod(number, self._size(source)))
            for document, (first, size) in enumerate(pieces, start=1):
                targets[row, at : at + size] = stream[first : first + size]
                ids[row, at + 1 : at + size] = targets[row, at : at + size - 1]
                if first:  # else the end-of-text before the first document, which is there already
                    ids[row, at] = stream[first - 1]
                documents[row, at : at + size] = document
                at += size
            targets[row, at:] = IGNORE
        return {"ids": ids, "targets": targets} | ({"documents": documents} if self.masks else {})

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
        """Return the number of samples of a source in one epoch."""
        return self.packers[source].rows if self.packers else (len(self.streams[source]) - 1) // self.context


@dataclass(frozen=True)
class PretrainBatches:
    """Batches of next-token prediction."""

    mixture: Mixture
    rows: int
    micro_rows: int
    rank: int = 0
    size: int = 1
    "of `size` processes, number `rank` takes its equal share of each batch; the samples of a step are the same for any number"
    ramp: tuple[tuple[int, int], ...] = ()
    "(steps, rows) of smaller batches before those of `rows`"

    def __call__(self, step: int) -> Batch:
        """Return this process's micro-batches of optimizer step `step`: ids, targets and perhaps documents, each (micro_rows, context)."""
        start, rows = batch_span(self.ramp, self.rows, step)
        share = rows // self.size
        found = self.mixture.samples(start + self.rank * share, share)
        parts = {name: torch.from_numpy(values).split(self.micro_rows) for name, values in found.items()}
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def batch_span(ramp: tuple[tuple[int, int], ...], rows: int, step: int) -> tuple[int, int]:
    """Return the first sample of `step`, and how many it has, when batches of `rows` follow a ramp of (steps, rows)."""
    before = 0
    for steps, fewer in ramp:
        if step < steps:
            return before + step * fewer, fewer
        before, step = before + steps * fewer, step - steps
    return before + step * rows, rows


class Ahead:
    """Makes the batch after the one that is asked for in a thread, while the model works."""

    def __init__(self, batches: Callable[[int], Batch]) -> None:
        self.batches = batches
        self.pool = ThreadPoolExecutor(1, "loader")
        self.coming: tuple[int, Future[Batch]] | None = None

    def __call__(self, step: int) -> Batch:
        """Return the batch of `step`."""
        number, coming = self.coming or (None, None)
        batch = coming.result() if coming else []  # one at a time: a loader keeps what it packed
        if number != step:
            batch = self.batches(step)
        self.coming = step + 1, self.pool.submit(self.batches, step + 1)
        return batch
