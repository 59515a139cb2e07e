"""A cluster at work on one model: which layout, how fast, and what the whole run takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from openmai.base.config import read_yaml, validate
from openmai.base.errors import OpenmaiError
from openmai.model.config import ModelConfig
from openmai.model.count import count_parameters
from openmai.plan.calibration import Chosen, choose_calibration
from openmai.plan.config import PlanConfig
from openmai.plan.failures import Resilience, load_fleet, resilience
from openmai.plan.hardware import GPU
from openmai.plan.laws import Expected, batch_tokens, expect
from openmai.plan.layout import Layout, fits
from openmai.plan.memory import StageMemory
from openmai.plan.run import Run, plan_run
from openmai.plan.search import Candidate, Choices, Found, Workload, evaluate, search, why_slower
from openmai.plan.stages import stages_of
from openmai.plan.step import Machine
from openmai.plan.totals import Memory

CHECKPOINT_BYTES = 12
"per parameter: fp32 weights and both moments; Llama 3's and BLOOM's hold 12 to 14"
DEADLINE = 30.0
"days, if neither gpus nor days are given"


@dataclass(frozen=True)
class StageRow:
    """Memory of one pipeline stage, 10^9 bytes."""

    stage: str
    layers: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    runtime: float
    total: float


@dataclass(frozen=True)
class Other:
    """A layout that was not chosen."""

    layout: Layout
    tokens_per_second: float
    memory_gb: float
    why: str


@dataclass(frozen=True)
class Size:
    """What another number of GPUs would do."""

    gpus: int
    days: float
    dollars: float
    tokens_per_second: float
    layout: str


@dataclass(frozen=True)
class Training:
    """A cluster at work."""

    gpus: int
    used: int
    precision: str
    software: str
    software_title: str
    band: float
    remark: str
    layout: Layout
    batch_rows: int
    micro_batches: float
    step_seconds: float
    step_parts: dict[str, float]
    tokens_per_second: float
    mfu: float
    memory_gb: float
    stages: list[StageRow]
    searched: int
    fitting: int
    others: list[Other]
    sizes: list[Size]
    run: Run | None
    expected: Expected | None


def make_training(config: PlanConfig, model: ModelConfig, gpu: GPU, sequence: int, flops: float, memory: Memory) -> Training:
    """Choose a cluster and a layout, and work out the run."""
    chosen = choose_calibration(config.software, _name(config.gpu), config.precision, model.moe is not None)
    machine = Machine(gpu, chosen.factors, config.precision)
    tokens = config.tokens or 0.0
    supposed = tokens or 20 * count_parameters(model).active
    rows = max(1, round((config.batch or batch_tokens(supposed, supposed * flops, model.moe is not None)) / sequence))
    work = Workload(model, sequence, rows)
    choices, gpus = _choices(config), config.gpus
    sizes: list[Size] = []
    if config.layout.dp_shard:
        return _fixed(config, work, machine, chosen, flops)
    if gpus is None:
        gpus = _cluster(config, work, machine, chosen, choices, flops, memory)
    if gpus < memory.min_gpus_training:
        raise OpenmaiError(
            f"gpus={gpus}: the training state of {config.model} needs at least {memory.min_gpus_training} {gpu.name}; give more"
        )
    found = search(work, gpus, machine, choices)
    best, tokens = found.best[0], tokens or _affordable(config, gpus, found, machine, chosen)
    if tokens:
        sizes = _sizes(config, work, machine, chosen, choices, flops, tokens, gpus, best)
    return _training(config, work, machine, chosen, flops, gpus, best, found, sizes, tokens)


def _name(gpu: str) -> str:
    """Return the shipped GPU whose calibration counts: the name itself, or what a user's file says it is like."""
    if not gpu.endswith((".yaml", ".yml")):
        return gpu
    return str(read_yaml(Path(gpu)).get("like", gpu))


def _choices(config: PlanConfig) -> Choices:
    fixed = config.layout
    schedules: tuple[str, ...] = (fixed.schedule,) if fixed.schedule else ("1f1b", "interleaved")
    if fixed.virtual:
        schedules = tuple(one for one in schedules if fits(one, fixed.virtual))
    return Choices(
        pp=fixed.pp,
        virtual=fixed.virtual,
        dp_replicate=fixed.dp_replicate,
        cp=fixed.cp,
        tp=fixed.tp,
        ep=fixed.ep,
        micro_rows=fixed.micro_rows,
        checkpointing=fixed.checkpointing,
        zero=(3,) if config.emit and fixed.zero is None else (1, 3) if fixed.zero is None else (fixed.zero,),
        schedules=schedules,
        strict=bool(config.emit),
    )


def _fixed(config: PlanConfig, work: Workload, machine: Machine, chosen: Chosen, flops: float) -> Training:
    """Plan a layout that is given whole: dp_shard with whatever else is not 1."""
    given = {name: value for name, value in config.layout.model_dump().items() if value is not None}
    if given.get("virtual", 1) > 1:
        given.setdefault("schedule", "interleaved")
    if given.get("schedule") == "zbv":
        given.setdefault("virtual", 2)
    layout = validate(Layout, given, "layout")
    if config.gpus and config.gpus != layout.processes:
        raise OpenmaiError(
            f"layout: {layout.describe()} has {layout.processes:,} processes, gpus={config.gpus:,}; leave gpus out or change dp_shard to "
            f"{config.gpus * layout.dp_shard / layout.processes:g}"
        )
    unit = layout.dp_replicate * layout.dp_shard * layout.micro_rows * (layout.pp if layout.virtual > 1 else 1)
    if not config.batch:
        work = Workload(work.model, work.sequence, max(1, round(work.batch_rows / unit)) * unit)
    best, _, _ = evaluate(work, layout, machine)
    if best.memory > machine.gpu.memory_gb * 1e9:
        raise OpenmaiError(
            f"layout: {layout.describe()} needs {best.memory / 1e9:,.0f} GB of each {machine.gpu.name}, "
            f"which has {machine.gpu.memory_gb:,.0f}; divide more (tp, pp, ep, zero=3), "
            "keep less (checkpointing=full, micro_rows=1), or leave dp_shard out to search"
        )
    found = Found([best], 1, 1, best.memory, layout)
    return _training(config, work, machine, chosen, flops, layout.processes, best, found, [], config.tokens or 0.0)


def _cluster(config: PlanConfig, work: Workload, machine: Machine, chosen: Chosen, choices: Choices, flops: float, memory: Memory) -> int:
    """Return the fewest GPUs that finish in time; with a budget instead, those that spend it in about thirty days."""
    limit, gpu = config.days or DEADLINE, machine.gpu
    if config.budget:
        price = sum(gpu.dollars_per_hour) / 2
        wanted = config.budget / price / 24 / limit
        step = gpu.per_node
        return max(step, math.ceil(wanted / step) * step, math.ceil(memory.min_gpus_training * 1.2 / step) * step)
    low = math.ceil(memory.min_gpus_training / gpu.per_node) * gpu.per_node
    size, tried = low, []
    while size <= 262_144:
        days = _days_on(config, work, machine, chosen, choices, flops, size)
        tried.append((size, days))
        if days is not None and days <= limit:
            break
        size *= 2
    else:
        best = min((days, size) for size, days in tried if days is not None)
        raise OpenmaiError(
            f"days={limit:g}: no cluster of up to 262,144 {gpu.name} trains {config.model} on {config.tokens:.3g} tokens in time; "
            f"{best[1]:,} take {best[0]:.0f} days with batches of {work.batch_rows * work.sequence / 1e6:.1f}M tokens"
        )
    lower = size // 2
    while size - lower > max(gpu.per_node, size // 32):
        middle = (lower + size) // 2 // gpu.per_node * gpu.per_node
        if middle <= lower:
            break
        days = _days_on(config, work, machine, chosen, choices, flops, middle)
        lower, size = (lower, middle) if days is not None and days <= limit else (middle, size)
    return size


def _days_on(
    config: PlanConfig, work: Workload, machine: Machine, chosen: Chosen, choices: Choices, flops: float, gpus: int
) -> float | None:
    """Return the days on `gpus`; None if no layout fits. Not all layouts are tried, to look at many clusters."""
    choices = replace(choices, quick=True)
    try:
        best = search(work, gpus, machine, choices, keep=1).best[0]
    except OpenmaiError:
        return None
    return _run(config, work, machine, chosen, flops, gpus, best.tokens_per_second, best.batch_rows, config.tokens or 0.0).days[1]


def _affordable(config: PlanConfig, gpus: int, found: Found, machine: Machine, chosen: Chosen) -> float:
    """Return the tokens that a budget buys."""
    if not config.budget:
        return 0.0
    hours = config.budget / (sum(machine.gpu.dollars_per_hour) / 2)
    goodput = config.goodput or 0.9
    return hours / gpus * 3600 * goodput * found.best[0].tokens_per_second


def _sizes(
    config: PlanConfig,
    work: Workload,
    machine: Machine,
    chosen: Chosen,
    choices: Choices,
    flops: float,
    tokens: float,
    gpus: int,
    best: Candidate,
) -> list[Size]:
    """Plan the same run on other numbers of GPUs, from a quarter to four times as many, by a quick search."""
    found = []
    choices = replace(choices, quick=True)
    for factor in (0.25, 0.5, 0.75, 1, 1.5, 2, 4):
        size = round(gpus * factor / machine.gpu.per_node) * machine.gpu.per_node or machine.gpu.per_node
        try:
            one = best if factor == 1 else search(work, size, machine, choices, keep=1).best[0]
        except OpenmaiError:
            continue
        size = gpus if factor == 1 else size
        run = _run(config, work, machine, chosen, flops, size, one.tokens_per_second, one.batch_rows, tokens)
        found.append(Size(size, run.days[1], run.dollars[1], one.tokens_per_second, one.layout.describe()))
    return found


def _run(
    config: PlanConfig,
    work: Workload,
    machine: Machine,
    chosen: Chosen,
    flops: float,
    gpus: int,
    tokens_per_second: float,
    batch_rows: int,
    tokens: float,
) -> Run:
    counted = count_parameters(work.model)
    size = CHECKPOINT_BYTES * (counted.total + counted.predictors)
    useful = tokens / tokens_per_second / 3600
    survives = resilience(gpus, machine.gpu.per_node, load_fleet(config.fleet), useful, size, config.storage_gb_s, config.stall_seconds)
    if config.goodput:
        survives = _with_goodput(survives, config.goodput, useful)
    return plan_run(
        tokens,
        flops,
        tokens_per_second,
        batch_rows * work.sequence,
        machine.gpu,
        gpus,
        chosen.band,
        survives,
        config.grid,
        work.model.vocab_size,
    )


def _with_goodput(survives: Resilience, goodput: float, useful: float) -> Resilience:
    return replace(survives, goodput=goodput, failures=useful / goodput / survives.hours_between_failures)


def _training(
    config: PlanConfig,
    work: Workload,
    machine: Machine,
    chosen: Chosen,
    flops: float,
    gpus: int,
    best: Candidate,
    found: Found,
    sizes: list[Size],
    tokens: float,
) -> Training:
    speed = best.tokens_per_second
    if config.mfu:
        speed = config.mfu * gpus * machine.gpu.peak["bf16"] * 1e12 / flops
    exact = Workload(work.model, work.sequence, best.batch_rows, work.state, work.kept)
    _, memory, _ = evaluate(exact, best.layout, machine)
    run = _run(config, work, machine, chosen, flops, gpus, speed, best.batch_rows, tokens) if tokens else None
    return Training(
        gpus=gpus,
        used=best.layout.processes,
        precision=config.precision,
        software=chosen.family,
        software_title=chosen.title,
        band=chosen.band,
        remark="utilisation is given, not planned" if config.mfu else chosen.remark,
        layout=best.layout,
        batch_rows=best.batch_rows,
        micro_batches=best.micro_batches,
        step_seconds=best.batch_rows * work.sequence / speed,
        step_parts=best.parts,
        tokens_per_second=speed,
        mfu=flops * speed / (best.layout.processes * machine.gpu.peak["bf16"] * 1e12),
        memory_gb=best.memory / 1e9,
        stages=stage_rows(work.model, best.layout, memory),
        searched=found.searched,
        fitting=found.fitting,
        others=[Other(one.layout, one.tokens_per_second, one.memory / 1e9, why_slower(one, best)) for one in found.best[1:7]],
        sizes=sizes,
        run=run,
        expected=expect(count_parameters(work.model), tokens, flops * tokens) if tokens else None,
    )


def stage_rows(model: ModelConfig, layout: Layout, memory: StageMemory) -> list[StageRow]:
    """Return the memory of every stage."""
    layers = stages_of(model, layout.pp, layout.virtual, layout.schedule).counts.sum(axis=1)
    names = ("weights", "gradients", "optimizer", "activations", "buffers", "runtime", "total")
    return [
        StageRow(str(stage + 1), int(layers[stage]), *(float(getattr(memory, name)[stage, 0]) / 1e9 for name in names))
        for stage in range(layout.pp)
    ]
