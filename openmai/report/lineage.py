"""Who was made from what: one row per step with arcs from its inputs, and what each step took."""

from __future__ import annotations

from dataclasses import dataclass

from openmai.base.artifact import Artifact
from openmai.base.progress import duration
from openmai.report import text
from openmai.report.artifacts import Run, role
from openmai.report.machine import Machine

ROW = 52
"height of a row in pixels, also in style.css"
_MARGIN, _WIDEST = 12, 90
_DIGITS = 8


@dataclass(frozen=True)
class Node:
    """A step: `inputs` are (name, short digest, whether it comes from outside the run)."""

    name: str
    kind: str
    digest: str
    inputs: list[tuple[str, str, bool]]
    made: str
    y: int


@dataclass(frozen=True)
class Lineage:
    """All steps, and the SVG paths between their dots, which stand `x` from the left."""

    nodes: list[Node]
    arcs: list[str]
    x: int
    width: int
    height: int


@dataclass(frozen=True)
class Cost:
    """What one step took."""

    name: str
    kind: str
    time: str
    share: float
    core_hours: float
    dollars: float | None


def describe(run: Run) -> Lineage:
    """Lay out the graph."""
    places = {artifact.path: number for number, artifact in enumerate(run.artifacts)}
    edges = [(places[parent.path], places[artifact.path]) for artifact in run.artifacts for parent in run.parents(artifact)]
    # A Bézier curve goes three quarters of the way to its control points.
    x = _MARGIN + max((round(0.75 * _reach(start, end)) for start, end in edges), default=0)
    nodes = [_node(run, artifact, number) for number, artifact in enumerate(run.artifacts)]
    return Lineage(nodes, [_arc(x, start, end) for start, end in edges], x, x + _MARGIN, ROW * len(places))


def _node(run: Run, artifact: Artifact, place: int) -> Node:
    names = {parent.digest: parent.path.name for parent in run.parents(artifact)}
    inputs = [
        (names.get(source["digest"], _last_part(source["path"])), source["digest"][:_DIGITS], source["digest"] not in names)
        for source in artifact.inputs
    ]
    made = f"{text.size(sum(facts['bytes'] for facts in artifact.files.values()))} · {artifact.created[:16].replace('T', ' ')}"
    return Node(artifact.path.name, kind_of(artifact), artifact.digest[:_DIGITS], inputs, made, ROW * place + ROW // 2)


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def kind_of(artifact: Artifact) -> str:
    """Name the kind; of checkpoints also how they were trained."""
    return f"{artifact.kind}, {role(artifact)}" if artifact.kind == "checkpoint" else artifact.kind


def _reach(start: int, end: int) -> int:
    """Return how far an arc swings out: not at all to the next row, farther for longer ways."""
    return 0 if end - start == 1 else min(_WIDEST, 14 + 9 * (end - start))


def _arc(x: int, start: int, end: int) -> str:
    """Return the path from one row's dot to another's."""
    top, bottom, side = ROW * start + ROW // 2, ROW * end + ROW // 2, x - _reach(start, end)
    return f"M{x} {top}C{side} {top + ROW // 2} {side} {bottom - ROW // 2} {x} {bottom}"


def costs(run: Run, machine: Machine, price_per_hour: float | None) -> list[Cost]:
    """Return what each step took, and a last row with the total."""
    total = sum(artifact.seconds for artifact in run.artifacts)
    rows = [(artifact.path.name, kind_of(artifact), artifact.seconds) for artifact in run.artifacts]
    return [
        Cost(name, kind, duration(seconds), seconds / (total or 1.0), seconds / 3600 * machine.cores, _dollars(seconds, price_per_hour))
        for name, kind, seconds in [*rows, ("total", "", total)]
    ]


def _dollars(seconds: float, price_per_hour: float | None) -> float | None:
    return None if price_per_hour is None else seconds / 3600 * price_per_hour
