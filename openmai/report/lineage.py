"""Who was made from what: one row per step with arcs from its inputs, and what each step took."""

from __future__ import annotations

from dataclasses import dataclass

from openmai.base.artifact import Artifact
from openmai.base.progress import duration
from openmai.report.artifacts import Run, role
from openmai.report.machine import Machine

ROW = 52
"height of a row in pixels, also in style.css"
GUTTER = 92
_DIGITS = 8


@dataclass(frozen=True)
class Node:
    """A step: `inputs` are (name, short digest, whether it comes from outside the run)."""

    name: str
    kind: str
    digest: str
    inputs: list[tuple[str, str, bool]]
    y: int


@dataclass(frozen=True)
class Lineage:
    """All steps, and the SVG paths between them."""

    nodes: list[Node]
    arcs: list[str]
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
    arcs = [_arc(places[parent.path], places[artifact.path]) for artifact in run.artifacts for parent in run.parents(artifact)]
    return Lineage([_node(run, artifact, number) for number, artifact in enumerate(run.artifacts)], arcs, ROW * len(places))


def _node(run: Run, artifact: Artifact, place: int) -> Node:
    names = {parent.digest: parent.path.name for parent in run.parents(artifact)}
    inputs = [
        (names.get(source["digest"], _last_part(source["path"])), source["digest"][:_DIGITS], source["digest"] not in names) for source in artifact.inputs
    ]
    return Node(artifact.path.name, kind_of(artifact), artifact.digest[:_DIGITS], inputs, ROW * place + ROW // 2)


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def kind_of(artifact: Artifact) -> str:
    """Name the kind; of checkpoints also how they were trained."""
    return f"{artifact.kind}, {role(artifact)}" if artifact.kind == "checkpoint" else artifact.kind


def _arc(start: int, end: int) -> str:
    """Return a path from one row's dot to another's: straight to the next row, else swinging out to the left, farther for longer ways."""
    x, top, bottom = GUTTER - 14, ROW * start + ROW // 2, ROW * end + ROW // 2
    if end - start == 1:
        return f"M{x} {top}V{bottom}"
    reach = x - min(GUTTER - 18, 12 + 11 * (end - start))
    return f"M{x} {top}C{reach} {top + ROW * 0.5:g} {reach} {bottom - ROW * 0.5:g} {x} {bottom}"


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
