"""A plan as one HTML page for those who decide about money: what it costs, how sure that is, what would change it. No external requests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from openmai.base.files import atomic_file
from openmai.plan.failures import expected_goodput
from openmai.plan.laws import load_laws
from openmai.plan.make import Plan
from openmai.plan.show import _count, _money, _rounded, _unit, assumptions, versus_rows
from openmai.plan.svg import COLORS, Axis, Canvas, share_bar
from openmai.plan.training import Training

MEMORY = ("weights", "gradients", "optimizer", "activations", "buffers", "runtime")


@dataclass(frozen=True)
class Figure:
    """A plot with its title, a sentence about it, and its legend (colour, label)."""

    title: str
    svg: Markup
    note: str
    legend: list[tuple[str, str]]


def write_page(path: Path, plan: Plan, other: Plan | None = None) -> None:
    """Write the page of a plan, with another one beside it if there is one."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    training = plan.training
    values: dict[str, Any] = {
        "plan": plan,
        "training": training,
        "count": _count,
        "money": _money,
        "rounded": _rounded,
        "unit": _unit,
        "figures": [],
        "breakdown": [],
        "bar": "",
        "assumptions": assumptions(plan) if training else [],
        "sentence": sentence(plan),
        "versus": versus_rows(plan, other) if other else [],
        "other": other,
    }
    if training:
        parts = sorted(((name, seconds) for name, seconds in training.step_parts.items() if seconds > 0), key=lambda part: -part[1])
        main = parts[: len(COLORS) - 1]
        rest = sum(seconds for _, seconds in parts[len(COLORS) - 1 :])
        shown = [*main, ("everything else", rest)] if rest else main
        colors = {name: COLORS[place] for place, (name, _) in enumerate(shown)}
        whole = sum(seconds for _, seconds in shown)
        values["bar"] = share_bar(shown, colors)
        values["breakdown"] = [(colors[name], name, seconds, seconds / whole) for name, seconds in shown]
        values["figures"] = [figure for figure in (_sizes(training), _memory(plan, training), _saving(training), _loss(plan)) if figure]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "w") as file:
        file.write(environment.get_template("page.html").render(values))


def sentence(plan: Plan) -> str:
    """Say the plan in one sentence."""
    counted, training = plan.parameters, plan.training
    kind = (
        f"a mixture of {_count(counted.total)} parameters, {_count(counted.active)} of them active"
        if counted.active < counted.total
        else (f"a model of {_count(counted.total)} parameters")
    )
    if training is None:
        return f"{plan.model}: {kind}; its training state alone fills {plan.memory.min_gpus_training:,} {plan.gpu.name}."
    where = f"{training.gpus:,} {plan.gpu.name}"
    run = training.run
    if run is None:
        return f"{plan.model}: {kind}, on {where}: {_unit(training.tokens_per_second)}tokens per second."
    return (
        f"{plan.model}, {kind}, trained on {_unit(run.tokens).replace('G', 'B').strip()} tokens with {where}: "
        f"between {_rounded(run.days[0])} and {_rounded(run.days[2])} days, "
        f"for {_money(run.dollars[0])} to {_money(run.dollars[2])} of rent."
    )


def _span(values: list[float], log: bool, pad: float = 1.15) -> tuple[float, float]:
    return (min(values) / pad, max(values) * pad) if log else (0.0, max(values) * pad)


def _sizes(training: Training) -> Figure | None:
    """Draw rent over days for several numbers of GPUs; those that another beats in both are pale."""
    sizes = training.sizes
    if len(sizes) < 2:
        return None
    x_low, x_high = _span([one.days for one in sizes], log=True, pad=1.3)
    low, high = min(one.dollars for one in sizes), max(one.dollars for one in sizes)
    canvas = Canvas("rent over days", Axis(x_low, x_high, "days", log=True), Axis(0.0, high * 1.15, "rent", prefix="$"))
    front = sorted(
        (one for one in sizes if not any(o.days < one.days and o.dollars <= one.dollars for o in sizes)), key=lambda one: one.days
    )
    canvas.line([(one.days, one.dollars) for one in front], "s1")
    for one in sizes:
        chosen = one.gpus == training.gpus
        hint = f"{one.gpus:,} GPUs: {_rounded(one.days)} days, {_money(one.dollars)}, {one.layout}"
        canvas.dot(one.days, one.dollars, "s2" if chosen else "s1" if one in front else "muted", 6 if chosen else 4, hint)
        x, y = canvas.at(one.days, one.dollars)
        canvas.text(x, y - 10, f"{one.gpus:,}", "middle", "note" if chosen else "tick")
    cheapest = min(sizes, key=lambda one: one.dollars)
    note = (
        f"Each point is a number of GPUs. More of them end sooner and cost more, since they wait for each other more: "
        f"the cheapest here is {cheapest.gpus:,} with {_money(low)} in {_rounded(cheapest.days)} days."
    )
    return Figure("Money for time", canvas.done(), note, [("s2", "this plan"), ("s1", "others")])


def _memory(plan: Plan, training: Training) -> Figure:
    """Draw the memory of every stage as stacked bars, under the limit of the GPU."""
    stages = training.stages
    limit = plan.gpu.memory_gb
    top = max(limit, max(row.total for row in stages)) * 1.12
    canvas = Canvas("memory per GPU", Axis(0.3, len(stages) + 0.7, "pipeline stage", whole=True), Axis(0.0, top, "GB"))
    half = 0.36 if len(stages) > 1 else 0.1
    for number, row in enumerate(stages, start=1):
        low = 0.0
        for place, name in enumerate(MEMORY):
            size = getattr(row, name)
            canvas.bar(number - half, number + half, low, low + size, COLORS[place], f"stage {row.stage}, {name}: {size:.1f} GB")
            low += size
    canvas.level(limit, f"{plan.gpu.name}: {limit:g} GB")
    note = f"Gigabytes on each GPU of a stage; the fullest holds {training.memory_gb:.0f} of {limit:g}."
    return Figure("What fills the GPUs", canvas.done(), note, [(COLORS[place], name) for place, name in enumerate(MEMORY)])


def _saving(training: Training) -> Figure | None:
    """Draw the share of useful time over the interval between checkpoints."""
    run = training.run
    if run is None:
        return None
    survives = run.resilience
    mean, chosen = survives.hours_between_failures * 3600, survives.interval_minutes * 60
    restart = _restart(survives)
    points = [(chosen * 2 ** (step / 4)) for step in range(-12, 17)]
    curve = [(point / 60, 100 * expected_goodput(mean, restart, survives.stall_seconds, point)) for point in points]
    low = max(0.0, math.floor(min(value for _, value in curve) / 5) * 5)
    canvas = Canvas("useful time", Axis(curve[0][0], curve[-1][0], "minutes between checkpoints", log=True), Axis(low, 100.0, "%"))
    canvas.line(curve, "s1")
    canvas.dot(chosen / 60, 100 * expected_goodput(mean, restart, survives.stall_seconds, chosen), "s2", 6, "this plan")
    note = (
        f"Percent of the time that is not lost. Something fails every {_rounded(survives.hours_between_failures)} hours; saving every "
        f"{survives.interval_minutes:.0f} minutes keeps {100 * survives.goodput:.0f} % of the time useful."
    )
    return Figure("Failures", canvas.done(), note, [("s2", "this plan"), ("s1", "other intervals")])


def _restart(survives: Any) -> float:
    """Return the seconds of a restart that the planned share of useful time implies."""
    interval, stall, mean = survives.interval_minutes * 60, survives.stall_seconds, survives.hours_between_failures * 3600
    return max(0.0, mean * math.log(interval / (survives.goodput * mean * math.expm1((interval + stall) / mean))))


def _loss(plan: Plan) -> Figure | None:
    """Draw the expected loss over tokens, between the two readings of a mixture."""
    training = plan.training
    if training is None or training.run is None:
        return None
    counted, law, tokens = plan.parameters, load_laws()["chinchilla-refit"], training.run.tokens
    sizes = [(math.sqrt(counted.total * counted.active), "s1"), (float(counted.active), "s4")]
    points = [tokens * 2 ** (step / 3) for step in range(-15, 7)]
    curves = [([(point, law.loss(size, point)) for point in points], color) for size, color in sizes]
    values = [value for curve, _ in curves for _, value in curve]
    canvas = Canvas("loss", Axis(points[0], points[-1], "tokens", log=True), Axis(min(values) - 0.03, max(values) + 0.03, "nats"))
    for curve, color in curves if counted.active < counted.total else curves[:1]:
        canvas.line(curve, color)
    canvas.dot(tokens, law.loss(sizes[0][0], tokens), "s2", 6, "this plan")
    legend = [("s2", "this plan")]
    if counted.active < counted.total:
        legend += [("s1", "as the mean of total and active parameters"), ("s4", "as active parameters alone")]
    note = "Expected nats per token by Chinchilla's law, fitted anew. It is for its authors' data: read the slope, not the value."
    return Figure("What more tokens would bring", canvas.done(), note, legend)
