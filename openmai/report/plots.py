"""Plots as inline SVG that takes the colours of the page, light or dark, and comes out the same byte for byte."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

Points = Sequence[tuple[float, float]]

# Colours that stand for the page's own: matplotlib wants hex, the page wants variables.
_NAMES = ("ink", "muted", "line", "panel", "s1", "s2", "s3", "s4", "bad")
_STAND_INS = {name: f"#0a0b{number:02x}" for number, name in enumerate(_NAMES, start=1)}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": _STAND_INS["line"],
    "axes.labelcolor": _STAND_INS["muted"],
    "text.color": _STAND_INS["muted"],
    "xtick.color": _STAND_INS["muted"],
    "ytick.color": _STAND_INS["muted"],
    "grid.color": _STAND_INS["line"],
    "grid.linewidth": 0.8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": True,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
}
_WIDTHS = {True: 4.9, False: 3.75}
_HEIGHT = 2.35
_MOST_POINTS, _SMOOTH_FROM = 400, 40


@dataclass(frozen=True)
class Line:
    """A curve: `noisy` ones are drawn faint with their running mean on top, `measured` ones with a dot at every point."""

    label: str
    points: Points
    color: str = "s1"
    noisy: bool = False
    measured: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    label: str
    value: float
    color: str = "muted"


@dataclass(frozen=True)
class Plot:
    """A picture with its caption; `legend` holds (colour, label). Wide ones take half of a row, the others a third."""

    title: str
    unit: str
    svg: Markup
    wide: bool
    legend: list[tuple[str, str]] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """What to draw over the steps; `form` of the values: "" plain, "count" (12 k) or "share" (percent). `floor` is in view at least."""

    title: str
    lines: Sequence[Line]
    levels: Sequence[Level] = ()
    unit: str = ""
    form: str = ""
    floor: float | None = None
    note: str = ""

    def draw(self, key: str, wide: bool) -> Plot:
        """Draw; `key` makes the identifiers inside the picture unlike those of other pictures on the page."""
        lines = [line for line in self.lines if line.points]
        with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"{key} {self.title}"}):
            figure, axes = _canvas(_WIDTHS[wide], _HEIGHT)
            for line in lines:
                _draw(axes, line)
            for level in self.levels:
                _draw_level(axes, level)
            self._scale(axes)
            legend = [(line.color, line.label) for line in lines] if len(lines) > 1 else []
            return Plot(self.title, self.unit, _svg(figure, self.title), wide, legend, self.note)

    def _scale(self, axes: Axes) -> None:
        axes.set_xlabel("step", loc="right", labelpad=1)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if self.form == "count":
            axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
        elif self.form == "share":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        if self.floor is not None:
            axes.set_ylim(bottom=self.floor)


@dataclass(frozen=True)
class HeatMap:
    """A matrix as tiles, darker for larger values; one too large for a page is sampled evenly."""

    title: str
    rows: Sequence[Sequence[float]]
    row_label: str
    column_label: str
    note: str = ""

    def draw(self, key: str, wide: bool) -> Plot:
        """Draw; see Curves.draw."""
        picked = [list(_spread(row, 64)) for row in _spread(self.rows, 24)]
        height, width = len(picked), len(picked[0])
        with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"{key} {self.title}"}):
            figure, axes = _canvas(_WIDTHS[wide], max(_HEIGHT, 0.5 + 0.2 * height))
            _draw_tiles(axes, picked, labelled=width <= 16 and height <= 10)
            axes.set(xlim=(0, width), ylim=(height, 0), xlabel=self.column_label, ylabel=self.row_label)
            axes.grid(False)
            axes.spines[:].set_visible(False)
            _number(axes.xaxis, width, len(self.rows[0]))
            _number(axes.yaxis, height, len(self.rows))
            return Plot(self.title, "", _svg(figure, self.title), wide, note=self.note)


def draw_all(figures: Sequence[Curves | HeatMap], key: str) -> list[Plot]:
    """Draw what has data, in rows that are full: the first two or four pictures are wide where the rest fills rows of three."""
    drawable = [figure for figure in figures if isinstance(figure, HeatMap) or any(line.points for line in figure.lines)]
    wide = {0: 0, 1: 4, 2: 2}[len(drawable) % 3]
    return [figure.draw(key, place < wide) for place, figure in enumerate(drawable)]


@dataclass(frozen=True)
class Interval:
    """A measured value with the half-width of its confidence interval."""

    label: str
    value: float
    half: float


def intervals(title: str, groups: Sequence[tuple[str, str, Sequence[Interval]]], chance: float, note: str, key: str) -> Plot:
    """Draw shares with error bars, one row per label; `groups` are (colour, name, intervals over the same labels)."""
    labels = [interval.label for interval in groups[0][2]]
    step = 0.62 / max(1, len(groups))
    height = 0.75 + max(0.34, 0.14 * len(groups) + 0.1) * len(labels)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": key}):
        figure, axes = _canvas(_WIDTHS[False], height)
        axes.axvline(chance, color=_STAND_INS["muted"], linewidth=1.1, dashes=(4, 3))
        axes.text(chance, -0.75, f"chance {100 * chance:.0f} %", ha="center", va="bottom", fontsize=8)
        for number, (color, _, row) in enumerate(groups):
            places = [labels.index(interval.label) + (number - (len(groups) - 1) / 2) * step for interval in row]
            for place, interval in zip(places, row, strict=True):
                ends = (max(0.0, interval.value - interval.half), min(1.0, interval.value + interval.half))
                axes.plot(ends, (place, place), color=_STAND_INS[color], linewidth=1.6, alpha=0.55)
            axes.plot([interval.value for interval in row], places, "o", color=_STAND_INS[color], markersize=5)
        axes.set(ylim=(len(labels) - 0.4, -0.7), yticks=range(len(labels)), xlim=_reach(groups, chance))
        axes.set_yticklabels([textwrap.fill(label, 18) for label in labels], color=_STAND_INS["ink"], fontsize=8.5)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return Plot(title, "", _svg(figure, title), False, [(color, name) for color, name, _ in groups], note)


def _reach(groups: Sequence[tuple[str, str, Sequence[Interval]]], chance: float) -> tuple[float, float]:
    top = max([chance, *(interval.value + interval.half for _, _, row in groups for interval in row)])
    return 0.0, min(1.0, math.ceil(top * 10 + 0.5) / 10)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03))
    axes = figure.add_subplot()
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def _draw(axes: Axes, line: Line) -> None:
    color = _STAND_INS[line.color]
    points = thin(line.points)
    if line.noisy and len(points) >= _SMOOTH_FROM:
        axes.plot(*zip(*points, strict=True), color=color, linewidth=0.9, alpha=0.28)
        points = smooth(points)
    dotted = (line.measured and len(points) <= 40) or len(points) == 1
    axes.plot(*zip(*points, strict=True), color=color, marker="o" if dotted else "", markersize=3.6)


def _draw_level(axes: Axes, level: Level) -> None:
    axes.axhline(level.value, color=_STAND_INS[level.color], linewidth=1.1, dashes=(4, 3))
    label = axes.annotate(level.label, (1, level.value), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points")
    label.set(ha="left", va="center", fontsize=8.5, color=_STAND_INS[level.color])


def _draw_tiles(axes: Axes, rows: Sequence[Sequence[float]], labelled: bool) -> None:
    top = max(max(row) for row in rows) or 1.0
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            tile = axes.add_artist(Rectangle((x, y), 0.95, 0.93, facecolor=_STAND_INS["s1"], alpha=round(0.06 + 0.94 * value / top, 3)))
            tile.set_in_layout(False)  # thousands of tiles would take the layout seconds
            if labelled:
                ink = _STAND_INS["panel" if value / top > 0.55 else "ink"]
                axes.text(x + 0.47, y + 0.47, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)


def thin(points: Points, most: int = _MOST_POINTS) -> Points:
    """Average neighbouring points so that at most `most` are left."""
    if len(points) <= most:
        return points
    edges = [round(number * len(points) / most) for number in range(most + 1)]
    groups = [points[start:end] for start, end in pairwise(edges)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def smooth(points: Points) -> Points:
    """Return the running mean: exponential weights over about a thirtieth of the points, without bias towards the start."""
    keep = 1 - 1 / max(2.0, len(points) / 30)
    total = weight = 0.0
    result = []
    for x, y in points:
        total, weight = keep * total + y, keep * weight + 1
        result.append((x, total / weight))
    return result


def _spread(items: Sequence, most: int) -> Sequence:
    return items if len(items) <= most else [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]


def _number(axis: matplotlib.axis.Axis, shown: int, total: int) -> None:
    """Label tiles by the number of what they show, counted from 1."""
    places = sorted({round(number * (shown - 1) / 7) for number in range(8)}) if shown > 8 else range(shown)
    axis.set_ticks([place + 0.47 for place in places], [f"{round(place * (total - 1) / max(1, shown - 1)) + 1}" for place in places])


def _svg(figure: Figure, description: str) -> Markup:
    """Return the figure as an SVG element: no prolog, fixed size, dates or foreign addresses; the page's colours and fonts."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<g id=\"[^\"]*\"", "<g", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    for name, color in _STAND_INS.items():
        text = text.replace(color, f"var(--{name})")
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    head = Markup('<svg role="img" aria-label="{}" viewBox="{}" xmlns:xlink="http://www.w3.org/1999/xlink">').format(description, box[1])
    return head + Markup(re.sub(r"\n\s*", "\n", text[text.index(">") + 1 :]).rstrip())
