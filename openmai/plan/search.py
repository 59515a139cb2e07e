"""The best layouts of a model on a cluster: all that are possible, by memory first, then by time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from openmai.base.errors import OpenmaiError
from openmai.model.config import ModelConfig
from openmai.plan.layout import CHECKPOINTING, Array, Grid, Layout, fits
from openmai.plan.memory import MIXED, Kept, StageMemory, State, stage_memory
from openmai.plan.step import Machine, StepTime, step_seconds

FULL = 0.96
"share of a GPU's memory that a plan may fill; context and fragmentation are counted besides"
ROUNDING = 1.2
"a layout may make the batch this much larger or smaller, so that it divides"
SHORTEST = 1024
"tokens of a sequence that one process of context parallelism keeps at least"


@dataclass(frozen=True)
class Workload:
    """What is to be trained."""

    model: ModelConfig
    sequence: int
    batch_rows: int
    "sequences per optimizer step that are wanted; layouts may round it by ROUNDING"
    state: State = MIXED
    kept: Kept = field(default_factory=lambda: Kept(logit_copies=0.0, sums_apart=False))


@dataclass(frozen=True)
class Choices:
    """What a search may choose; None leaves it free."""

    pp: int | None = None
    virtual: int | None = None
    dp_replicate: int | None = None
    cp: int | None = None
    tp: int | None = None
    ep: int | None = None
    micro_rows: int | None = None
    checkpointing: str | None = None
    zero: tuple[int, ...] = (1, 3)
    schedules: tuple[str, ...] = ("1f1b", "interleaved")
    "zero-bubble and zbv only where they are asked for: no published row says how they do"
    strict: bool = False
    "only what training can do: no stage without a layer, and a vocabulary that tp divides"
    quick: bool = False
    "look at fewer stages, chunks, micro-batches and no replicas: for trying many clusters"


@dataclass(frozen=True)
class Candidate:
    """One layout with what it takes."""

    layout: Layout
    batch_rows: int
    seconds: float
    "of a step"
    parts: dict[str, float]
    tokens_per_second: float
    memory: float
    "bytes of the fullest stage"
    micro_batches: float


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    best: list[Candidate]
    "fastest first, unlike in more than a detail"
    searched: int
    fitting: int
    lightest: float
    "bytes that the layout with the least memory needs"
    lightest_layout: Layout


def search(work: Workload, gpus: int, machine: Machine, choices: Choices | None = None, keep: int = 8) -> Found:
    """Try every layout of at most `gpus` processes; keep the fastest that fit.

    Raises OpenmaiError when none fits, naming the one that needs least, and when the choices leave none.
    """
    searched = fitting = 0
    room = machine.gpu.memory_gb * 1e9 * FULL
    lightest: tuple[float, Layout | None] = (float("inf"), None)
    kept: list[Candidate] = []
    for grid, rows in grids(work, gpus, machine, choices or Choices()):
        searched += len(grid)
        peak = stage_memory(work.model, grid, work.sequence, rows, work.state, work.kept).peak
        least = int(peak.argmin())
        if peak[least] < lightest[0]:
            lightest = float(peak[least]), grid.layout(least)
        places = np.flatnonzero(peak <= room)
        fitting += len(places)
        if not len(places):
            continue
        fit, fit_rows = grid.take(places), rows[places]
        times = step_seconds(work.model, fit, work.sequence, fit_rows, machine)
        speed = fit_rows * work.sequence / times.total
        for place in np.argsort(-speed, kind="stable")[: 4 * keep]:
            kept.append(_candidate(fit, int(place), fit_rows, times, speed, peak[places]))
    if lightest[1] is None:
        raise OpenmaiError(f"no layout of {gpus:,} GPUs agrees with the settings that are fixed; leave more of layout free")
    if not kept:
        raise OpenmaiError(
            f"{gpus:,} {machine.gpu.name} hold no layout: the lightest ({lightest[1].describe()}, "
            f"checkpointing {lightest[1].checkpointing}) needs {lightest[0] / 1e9:,.0f} GB of each GPU's "
            f"{machine.gpu.memory_gb:,.0f}; take {_enough(work, gpus, machine, choices)}"
        )
    kept.sort(key=lambda one: -one.tokens_per_second)
    return Found(_unlike(kept, keep), searched, fitting, lightest[0], lightest[1])


def _candidate(grid: Grid, place: int, rows: Array, times: StepTime, speed: Array, peak: Array) -> Candidate:
    parts = {name: float(np.broadcast_to(values, len(grid))[place]) for name, values in times.parts.items()}
    micro = float(times.micro_batches[place])
    return Candidate(grid.layout(place), int(rows[place]), float(times.total[place]), parts, float(speed[place]), float(peak[place]), micro)


def _unlike(candidates: Sequence[Candidate], keep: int) -> list[Candidate]:
    """Keep the fastest of those that differ only in recomputation, micro-batch or how the state is divided."""
    fastest: dict[tuple[int, ...], Candidate] = {}
    for one in candidates:
        fastest.setdefault((one.layout.pp, one.layout.tp, one.layout.cp, one.layout.ep), one)
    return list(fastest.values())[:keep]


def _enough(work: Workload, gpus: int, machine: Machine, choices: Choices | None) -> str:
    """Say how many GPUs hold a layout, doubling the number."""
    room = machine.gpu.memory_gb * 1e9 * FULL
    for more in (gpus * 2**power for power in range(1, 13)):
        for grid, rows in grids(work, more, machine, choices or Choices()):
            if (stage_memory(work.model, grid, work.sequence, rows, work.state, work.kept).peak <= room).any():
                return f"{more:,} of them, shorter sequences or larger GPUs"
    return "larger GPUs or a smaller model" + ("" if choices in (None, Choices()) else ", or leave more of layout free")


def grids(work: Workload, gpus: int, machine: Machine, choices: Choices) -> Iterator[tuple[Grid, Array]]:
    """Yield all possible layouts in groups of equal stages, with the batch of each."""
    model = work.model
    for pp, virtual, schedule in _pipelines(model, gpus, choices):
        axes = [
            _tensor(model, machine, choices),
            _context(work.sequence, choices),
            _experts(model, choices),
            [choices.dp_replicate] if choices.dp_replicate else [1] if choices.quick else [1, 2, 4, 8, 16, 32],
            list(choices.zero),
            [choices.micro_rows] if choices.micro_rows else [1, 2] if choices.quick else [1, 2, 4, 8],
            [CHECKPOINTING.index(choices.checkpointing)] if choices.checkpointing else [0, 1, 2],
            [0, 1],
        ]
        tp, cp, ep, replicate, zero, micro, kept, fewer = (np.array(values) for values in zip(*product(*axes), strict=True))
        step = np.maximum(1, ep // (cp * tp)) * replicate  # dp must be a multiple
        dp = gpus // (pp * tp * cp) // step * step
        unit = pp if schedule in ("interleaved", "zero-bubble") else 1  # they run micro-batches in groups of pp
        rounds = np.ceil(work.batch_rows / (np.maximum(dp, 1) * micro * unit)) * unit
        exact = (work.batch_rows * ROUNDING / (rounds * micro) // step * step).astype(int)  # GPUs are left over, but the batch comes out
        all_of_them, dp = dp, np.where(fewer == 1, np.minimum(exact, dp), dp)
        safe = np.maximum(dp, 1)
        rounds = np.maximum(1, np.round(work.batch_rows / (safe * micro * unit))) * unit
        rows = (rounds * safe * micro).astype(int)
        good = (dp > 0) & ((fewer == 0) | (dp < all_of_them)) & (rows >= work.batch_rows / ROUNDING) & (rows <= work.batch_rows * ROUNDING)
        good &= (dp // replicate * cp * tp) % ep == 0
        good &= (zero == 3) | (replicate == 1)  # ZeRO-1 within replicas is HSDP without its use
        good &= (rounds >= (2 if schedule == "zbv" else 1) * pp) | (pp == 1)
        if choices.strict and schedule in ("zero-bubble", "zbv"):
            good &= kept == 0  # training cannot compute again what it passes backwards in two halves
        if not good.any():
            continue
        arrays = (replicate, dp // replicate, cp, tp, ep, np.ones_like(tp), zero, micro, kept)
        yield Grid(pp, virtual, schedule, *(values[good] for values in arrays)), rows[good]


def _pipelines(model: ModelConfig, gpus: int, choices: Choices) -> Iterator[tuple[int, int, str]]:
    usual = (1, 2, 4, 6, 8, 16) if choices.quick else (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
    stages = [choices.pp] if choices.pp else [p for p in usual if p <= model.num_layers]
    for pp in stages:
        if pp > gpus:
            continue
        if pp == 1:
            yield 1, 1, "1f1b"
            continue
        depths = [choices.virtual] if choices.virtual else [1, 4, 8] if choices.quick else [1, 2, 3, 4, 6, 8, 12]
        for virtual in depths:
            if pp * virtual <= model.num_layers + (0 if choices.strict else 2):
                yield from ((pp, virtual, schedule) for schedule in choices.schedules if fits(schedule, virtual))


def _tensor(model: ModelConfig, machine: Machine, choices: Choices) -> list[int]:
    if choices.tp:
        return [choices.tp]
    most = min(machine.gpu.domain, 16)
    sizes = [model.num_heads, model.ffn_width]
    if choices.strict:
        sizes += [model.vocab_size, model.moe.num_shared * model.moe.expert_width if model.moe else 0]
    fitting = [tp for tp in (1, 2, 4, 8, 16) if tp <= most and all(size % tp == 0 for size in sizes)]
    return [tp for tp in fitting if not choices.strict or model.mla or model.kv_heads % tp == 0 or tp % model.kv_heads == 0]


def _context(sequence: int, choices: Choices) -> list[int]:
    return [choices.cp] if choices.cp else [cp for cp in (1, 2, 4, 8, 16, 32) if cp == 1 or sequence // cp >= 4 * SHORTEST]


def _experts(model: ModelConfig, choices: Choices) -> list[int]:
    if model.moe is None:
        return [1]
    if choices.ep:
        return [choices.ep]
    return [ep for ep in (1, 2, 4, 8, 16, 32, 64, 128) if model.moe.num_experts % ep == 0]


def why_slower(one: Candidate, best: Candidate) -> str:
    """Say what one layout loses to the best: the costs per token that differ most."""
    scale = best.tokens_per_second * best.seconds / (one.tokens_per_second * one.seconds)
    more = {name: seconds * scale - best.parts.get(name, 0.0) for name, seconds in one.parts.items()}
    worst = sorted(more, key=lambda name: -more[name])[:2]
    found = [f"{name} +{100 * more[name] / best.seconds:.0f} %" for name in worst if more[name] > 0.01 * best.seconds]
    return ", ".join(found) or "little of everything"


def evaluate(work: Workload, layout: Layout, machine: Machine) -> tuple[Candidate, StageMemory, StepTime]:
    """Work out one given layout; raises OpenmaiError for what it cannot divide, naming the nearest that it can."""
    check_layout(work, layout)
    grid = Grid.of([layout])
    memory = stage_memory(work.model, grid, work.sequence, work.batch_rows, work.state, work.kept)
    times = step_seconds(work.model, grid, work.sequence, work.batch_rows, machine)
    speed = work.batch_rows * work.sequence / times.total
    return _candidate(grid, 0, np.array([work.batch_rows]), times, speed, memory.peak), memory, times


def check_layout(work: Workload, layout: Layout) -> None:
    """Raise OpenmaiError for a layout that the model, the sequence or the batch cannot be divided by."""
    model, dp = work.model, layout.dp_replicate * layout.dp_shard
    if model.num_heads % layout.tp:
        raise OpenmaiError(f"layout.tp={layout.tp} does not divide {model.num_heads} heads; choose among {_divisors(model.num_heads, 16)}")
    if layout.pp * layout.virtual > model.num_layers + 2:
        raise OpenmaiError(
            f"layout.pp={layout.pp} x virtual={layout.virtual} is more than {model.num_layers} layers; "
            f"take {model.num_layers} chunks at most"
        )
    if layout.ep > 1 and model.moe is None:
        raise OpenmaiError(f"layout.ep={layout.ep}: the model has no experts; leave it at 1")
    if model.moe and model.moe.num_experts % layout.ep:
        raise OpenmaiError(
            f"layout.ep={layout.ep} does not divide {model.moe.num_experts} experts; choose among {_divisors(model.moe.num_experts, 512)}"
        )
    if work.sequence % (2 * layout.cp) and layout.cp > 1:
        raise OpenmaiError(f"layout.cp={layout.cp}: sequences of {work.sequence} do not divide into twice as many parts; choose another")
    if work.batch_rows % (dp * layout.micro_rows):
        nearest = max(1, round(work.batch_rows / (dp * layout.micro_rows))) * dp * layout.micro_rows
        raise OpenmaiError(
            f"batch of {work.batch_rows} sequences does not divide among {dp} processes in micro-batches of {layout.micro_rows}; "
            f"the nearest that does has {nearest} ({nearest * work.sequence:,} tokens)"
        )
    rounds = work.batch_rows // (dp * layout.micro_rows)
    if layout.schedule == "interleaved" and rounds % layout.pp:
        raise OpenmaiError(f"an interleaved schedule needs micro-batches in multiples of pp={layout.pp}, and there are {rounds}")
    if layout.schedule == "zbv" and rounds < 2 * layout.pp:
        raise OpenmaiError(f"schedule zbv needs at least 2 x pp = {2 * layout.pp} micro-batches, and there are {rounds}")


def _divisors(number: int, most: int) -> list[int]:
    return [value for value in range(1, min(number, most) + 1) if number % value == 0]
