"""Plans as text."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from openmai.model.count import TRAINING_STATE_BYTES, WEIGHT_BYTES
from openmai.plan.inference import BAND, Inference
from openmai.plan.laws import load_laws
from openmai.plan.make import Plan
from openmai.plan.totals import USABLE

if TYPE_CHECKING:
    from openmai.plan.run import Range
    from openmai.plan.training import StageRow, Training

Row = tuple[str, str, str]
_DECIMAL = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def show_presets(presets: list[dict[str, Any]]) -> str:
    """Format the presets as one table."""
    width = max(len(preset["name"]) for preset in presets)
    lines = [f"{'model':<{width}}  {'total':>8}  {'active':>8}  {'context':>8}"]
    lines += [f"{p['name']:<{width}}  {_count(p['total']):>8}  {_count(p['active']):>8}  {p['context']:>8,}" for p in presets]
    return "\n".join([*lines, "", "`openmai plan MODEL` says what one of them takes; `openmai plan --help` lists every setting."])


def show_plan(plan: Plan) -> str:
    """Format one plan as aligned sections: label, figure, remark."""
    sections = {"parameters": _parameters(plan), "compute per token": _compute(plan), "memory": _memory(plan)}
    training = plan.training
    if training:
        sections[f"cluster of {training.gpus:,} {plan.gpu.name}"] = _cluster(training)
    if training and training.run:
        sections["training run, an estimate"] = _run(plan, training)
    rows = [row for section in sections.values() for row in section]
    label, figure = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [plan.model, *_wrap(f"source: {plan.source}" if plan.source else "")]
    for title, section in sections.items():
        lines += ["", title]
        lines += [f"  {name:<{label}}  {value:>{figure}}  {remark}".rstrip() for name, value, remark in section]
    if training:
        lines += ["", "memory per GPU by pipeline stage, GB", *stage_table(training.stages)]
        lines += (
            _others(training) + _sizes(training) + ["", "assumptions, not measurements:", *(f"  - {text}" for text in assumptions(plan))]
        )
    if plan.inference:
        lines += _serving(plan.inference)
    if plan.device and plan.on_device:
        lines += ["", f"on {plan.device.name}, {plan.device.memory_gb:g} GB of which {plan.device.usable:.0%} may be used"]
        for one in plan.on_device:
            verdict = f"{one.context:,} tokens of context, {one.tokens_per_s:.1f} tokens/s" if one.context else "does not fit"
            lines.append(f"  {one.precision:<5} {one.weights_gb:6.2f} GB  {verdict}")
        if not any(one.context for one in plan.on_device):
            lines.append("  nothing fits: take a smaller model (openmai plan lists all) or a device with more memory")
    return "\n".join(lines)


def _parameters(plan: Plan) -> list[Row]:
    counted = plan.parameters
    rows = [
        ("total", f"{counted.total:,}", _count(counted.total)),
        ("active", f"{counted.active:,}", f"{_count(counted.active)} per token"),
        ("active, no input embedding", f"{counted.active_without_input_embedding:,}", _count(counted.active_without_input_embedding)),
        ("embeddings", f"{counted.embedding:,}", f"{counted.embedding / counted.total:.1%} of the total"),
    ]
    if counted.predictors:
        rows.append(("predictors", f"{counted.predictors:,}", f"{_count(counted.predictors)} besides the total, for training only"))
    return rows


def _compute(plan: Plan) -> list[Row]:
    convention = f"6 x active matrices + causal attention, at {plan.sequence:,} tokens"
    return [
        ("forward and backward", f"{_unit(plan.flops_per_token)}FLOP", convention),
        ("with full attention", f"{_unit(plan.flops_per_token_full_attention)}FLOP", "for figures published under that convention"),
    ]


def _memory(plan: Plan) -> list[Row]:
    memory, gpu = plan.memory, plan.gpu
    bits = {name: f"{8 * size:g} bits" for name, size in WEIGHT_BYTES.items()}
    rows = [(f"weights {name}", f"{_unit(size)}B", bits[name]) for name, size in memory.weights.items()]
    state = f"{sum(TRAINING_STATE_BYTES.values())} bytes per parameter: bf16 weights, fp32 gradients, master, 2 moments"
    return [
        *rows,
        ("training state", f"{_unit(memory.training_state)}B", state),
        ("KV cache per token", f"{_unit(memory.cache_per_token)}B", "bf16, all layers"),
        ("KV cache, full context", f"{_unit(memory.cache_full_context)}B", f"one sequence of {memory.context:,} tokens"),
        ("fewest GPUs to train", f"{memory.min_gpus_training:,}", f"{gpu.name}, {USABLE:.0%} usable; activations come on top"),
        ("fewest GPUs to run", f"{memory.min_gpus_inference:,}", "bf16 weights and the cache of one full context"),
    ]


def _cluster(training: Training) -> list[Row]:
    layout = training.layout
    schedule = f"{layout.schedule}, " if layout.pp > 1 else ""
    batch = f"{training.batch_rows:,} sequences"
    parts = sorted(training.step_parts.items(), key=lambda part: -part[1])
    whole = sum(training.step_parts.values())
    most = ", ".join(f"{name} {100 * seconds / whole:.0f} %" for name, seconds in parts[:4])
    return [
        (
            "layout",
            f"{training.used:,} GPUs",
            f"{layout.describe()}; {schedule}micro-batches of {layout.micro_rows}, checkpointing {layout.checkpointing}",
        ),
        ("batch", batch, f"{training.micro_batches:,.0f} micro-batches on each process"),
        ("memory of a GPU", f"{training.memory_gb:.0f} GB", "fullest stage, with context and fragmentation"),
        ("step", f"{_rounded(training.step_seconds)} s", f"± {training.band:.0%}: {most}"),
        ("speed", f"{_unit(training.tokens_per_second)}tokens/s", f"{training.tokens_per_second / training.used:,.0f} per GPU"),
        ("utilisation", f"{training.mfu:.1%}", f"model FLOPs of the dense bf16 peak, in {training.precision}"),
    ]


def _run(plan: Plan, training: Training) -> list[Row]:
    run, expected = training.run, training.expected
    assert run is not None
    assert expected is not None
    survives = run.resilience
    losses = "; ".join(f"{name} {low:.2f} to {high:.2f}" for name, (low, high) in expected.losses.items())
    return [
        ("tokens", _unit(run.tokens).replace("G", "B"), f"{expected.tokens_per_active:,.0f} per active parameter, {run.steps:,} steps"),
        ("compute", f"{run.flops:.2e} FLOP", ""),
        ("days", _rounded(run.days[1]), f"{_range(run.days)}; {_rounded(run.useful_days)} if nothing were lost"),
        ("GPU-hours", _unit(run.gpu_hours[1]), f"{_unit(run.gpu_hours[0]).strip()} to {_unit(run.gpu_hours[2]).strip()}"),
        ("rent", _money(run.dollars[1]), f"{_money(run.dollars[0])} to {_money(run.dollars[2])}"),
        ("energy", f"{_rounded(run.energy_mwh[1])} MWh", f"{_range(run.energy_mwh)}; {_rounded(run.tonnes_co2[1])} t CO2e"),
        (
            "failures",
            _rounded(survives.failures),
            f"one in {_rounded(survives.hours_between_failures)} h; {survives.spare_nodes} spare machines cover repairs",
        ),
        (
            "checkpoint",
            f"{_unit(survives.checkpoint_bytes)}B",
            f"every {survives.interval_minutes:.0f} min, written in {_rounded(survives.save_seconds)} s",
        ),
        ("useful time", f"{survives.goodput:.1%}", f"simulated {survives.simulated_goodput:.1%}"),
        (
            "data",
            f"{_rounded(run.raw_text_tb)} TB",
            f"of text; shards {_rounded(run.shards_tb)} TB, checkpoints kept {_rounded(run.checkpoints_tb)} TB",
        ),
        ("loss", f"{next(iter(expected.losses.values()))[0]:.2f} nats", f"{losses} (for the laws' own data)"),
        (
            "best dense model",
            _count(expected.optimal_parameters),
            f"of least loss for this compute, on {_unit(expected.optimal_tokens).replace('G', 'B').strip()} tokens",
        ),
    ]


def stage_table(stages: list[StageRow]) -> list[str]:
    """Format the stages; neighbours that are equal but for their activations are left out of the middle."""
    names = ("weights", "gradients", "optimizer", "activations", "buffers", "runtime", "total")
    lines = [f"  {'stage':<7}{'layers':>7}" + "".join(f"{name:>13}" for name in names)]
    shown = stages if len(stages) <= 6 else [*stages[:3], None, *stages[-2:]]
    for row in shown:
        if row is None:
            lines.append("  ...")
        else:
            lines.append(f"  {row.stage:<7}{row.layers:>7}" + "".join(f"{getattr(row, name):>13.1f}" for name in names))
    return lines


def _others(training: Training) -> list[str]:
    if not training.others:
        return []
    lines = ["", f"layouts that lose ({training.searched:,} tried, {training.fitting:,} fit)"]
    for one in training.others:
        share = one.tokens_per_second / training.tokens_per_second - 1
        lines.append(f"  {one.layout.describe():<40}{100 * share:+6.1f} %  {one.memory_gb:4.0f} GB  {one.why}")
    return lines


def _sizes(training: Training) -> list[str]:
    if len(training.sizes) < 2:
        return []
    lines = ["", f"  {'GPUs':>8}{'days':>9}{'rent':>10}  layout"]
    return [*lines, *(f"  {one.gpus:>8,}{_rounded(one.days):>9}{_money(one.dollars):>10}  {one.layout}" for one in training.sizes)]


def assumptions(plan: Plan) -> list[str]:
    """Say what the estimate rests on."""
    training, gpu = plan.training, plan.gpu
    assert training is not None
    low, high = gpu.dollars_per_hour
    rent = f"${low:.2f}" if low == high else f"${low:.2f} to ${high:.2f}"
    from openmai.plan.run import PUE

    found = [f"speed of {training.software_title} ({training.software}){'; ' + training.remark if training.remark else ''}"]
    if training.run:
        found += [
            "that is tuned software on a healthy cluster: whole published runs took 0.7 to 2.8 times the GPU-hours planned for them",
            f"{gpu.watts:,.0f} W per GPU less 25 % or plus 30 %, times {PUE} for the building",
            f"rent {rent} per GPU-hour, listed {gpu.price_date}; storage, network, staff and failed experiments are not in it",
            f"losses are of {', '.join(load_laws())} on their authors' data; a mixture counts as its active parameters, or as their "
            "geometric mean with all",
        ]
    return found


def _serving(inference: Inference) -> list[str]:
    lines = ["", f"serving in {inference.precision} at {inference.context:,} tokens per sequence, ± {BAND:.0%}, fitted to nothing"]
    cache, prompts = _unit(inference.cache_bytes_per_token), f"{inference.prompt_tokens_per_s:,.0f}"
    lines.append(f"  weights {inference.weights_gb:,.0f} GB; {cache}B of cache per token; prompts at {prompts} tokens/s")
    lines.append(f"  {'GPUs':>5}{'sequences':>11}{'tokens/s':>10}{'each':>8}{'$/M tokens':>12}{'cache GB':>10}")
    for way in inference.ways:
        lines.append(
            f"  {way.gpus:>5}{way.batch:>11,}{way.tokens_per_s:>10,.0f}{way.each_per_s:>8.1f}"
            f"{way.dollars_per_million:>12.2f}{way.cache_gb:>10.1f}"
        )
    return lines


def _range(values: Range) -> str:
    return f"{_rounded(values[0])} to {_rounded(values[2])}"


def _rounded(number: float) -> str:
    """Format an estimate with three digits: 174,000, 11.6, 0.0214."""
    if number >= 100:
        return f"{round(number, 2 - int(math.log10(number))):,.0f}"
    return f"{number:.3g}"


def _money(dollars: float) -> str:
    return f"${_rounded(dollars / 1e6)}M" if dollars >= 1e6 else f"${_rounded(dollars)}"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 110)


def _count(number: float) -> str:
    """Format a number of parameters: 124.4M, 495.8B, 1.03T."""
    if number >= 1e12:
        return f"{number / 1e12:.2f}T"
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _unit(number: float) -> str:
    """Format with three digits and a decimal prefix: 215 G, 8.92 T."""
    for size, letter in _DECIMAL:
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g} "


def show_versus(plan: Plan, other: Plan, changes: str) -> str:
    """Format two plans beside each other."""
    rows = versus_rows(plan, other)
    width = max(len(name) for name, _, _, _ in rows)
    lines = ["", f"beside it: {changes}", f"  {'':<{width}}{'this':>16}{'other':>16}{'other/this':>12}"]
    lines += [f"  {name:<{width}}{left:>16}{right:>16}{ratio:>12}" for name, left, right, ratio in rows]
    return "\n".join(lines)


def versus_rows(plan: Plan, other: Plan) -> list[tuple[str, str, str, str]]:
    """Return what two plans share: label, both figures, and their ratio."""

    def row(name: str, left: float, right: float, form: Any = _rounded) -> tuple[str, str, str, str]:
        return name, form(left), form(right), f"{right / left:.2f}" if left else ""

    rows = [
        row("parameters", plan.parameters.total, other.parameters.total, _count),
        row("active", plan.parameters.active, other.parameters.active, _count),
        row("FLOP per token", plan.flops_per_token, other.flops_per_token, _unit),
    ]
    mine, theirs = plan.training, other.training
    if mine and theirs:
        rows += [
            row("GPUs", mine.gpus, theirs.gpus, lambda value: f"{value:,}"),
            row("memory of a GPU, GB", mine.memory_gb, theirs.memory_gb),
            row("tokens/s", mine.tokens_per_second, theirs.tokens_per_second, _unit),
            row("utilisation", mine.mfu, theirs.mfu, lambda value: f"{value:.1%}"),
        ]
        if mine.run and theirs.run:
            rows += [
                row("days", mine.run.days[1], theirs.run.days[1]),
                row("GPU-hours", mine.run.gpu_hours[1], theirs.run.gpu_hours[1], _unit),
                row("rent", mine.run.dollars[1], theirs.run.dollars[1], _money),
                row("MWh", mine.run.energy_mwh[1], theirs.run.energy_mwh[1]),
                row("failures", mine.run.resilience.failures, theirs.run.resilience.failures),
                row("useful time", mine.run.resilience.goodput, theirs.run.resilience.goodput, lambda value: f"{value:.1%}"),
            ]
    return rows
