"""Plots of a plan as inline SVG in the colours of the page; no library is loaded for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 38
COLORS = ("s1", "s2", "s3", "s4", "s5", "s6", "s7", "muted")


@dataclass(frozen=True)
class Axis:
    """One axis: its range, whether it is logarithmic, and how values are written."""

    low: float
    high: float
    label: str
    log: bool = False
    prefix: str = ""
    whole: bool = False
    "only whole numbers"

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 to 1."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return round values in the range."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            found = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
            inside = [value for value in found if self.low <= value <= self.high * 1.0001]
            return inside if len(inside) <= 8 else [value for value in inside if f"{value:e}"[0] == "1"]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
        if self.whole:
            step = max(1.0, math.ceil(step))
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, int(self.high / step + 1e-9) + 1)]


def short(value: float, prefix: str = "") -> str:
    """Write a number for an axis: 1.2k, 15M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{prefix}{value / size:g}{letter}"
    return f"{prefix}{value:g}"


class Canvas:
    """A plot under construction."""

    def __init__(self, title: str, x: Axis, y: Axis, height: int = HEIGHT) -> None:
        self.title, self.x, self.y, self.height = title, x, y, height
        self.parts: list[str] = []
        self._axes()

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return pixels of a point."""
        across = LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(self.height - BOTTOM - self.y.place(y) * (self.height - TOP - BOTTOM), 1)

    def _axes(self) -> None:
        bottom = self.height - BOTTOM
        for value in self.y.ticks():
            _, y = self.at(self.x.low, value)
            self.parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
            self.text(LEFT - 6, y + 4, short(value, self.y.prefix), "end")
        for value in self.x.ticks():
            x, _ = self.at(value, self.y.low)
            self.text(x, bottom + 16, short(value, self.x.prefix), "middle")
        self.parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}" class="axis"/>')
        self.text(WIDTH - RIGHT, self.height - 4, self.x.label, "end")

    def text(self, x: float, y: float, words: str, anchor: str = "start", kind: str = "tick") -> None:
        """Write at pixels."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>')

    def line(self, points: Sequence[tuple[float, float]], color: str, dashed: bool = False) -> None:
        """Draw a curve."""
        places = " ".join(f"{x:g},{y:g}" for x, y in (self.at(*point) for point in points))
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<polyline points="{places}" fill="none" stroke="var(--{color})" stroke-width="2"{dash}/>')

    def dot(self, x: float, y: float, color: str, radius: float = 4, hint: str = "") -> None:
        """Draw a point with a hint."""
        across, up = self.at(x, y)
        self.parts.append(
            f'<circle cx="{across}" cy="{up}" r="{radius}" fill="var(--{color})" stroke="var(--panel)">'
            f"<title>{escape(hint)}</title></circle>"
        )

    def level(self, value: float, words: str, color: str = "bad") -> None:
        """Draw a horizontal limit."""
        x, y = self.at(self.x.low, value)
        self.parts.append(f'<line x1="{x}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="var(--{color})" stroke-dasharray="5 4"/>')
        self.text(WIDTH - RIGHT, y - 5, words, "end", "note")

    def bar(self, left: float, right: float, low: float, high: float, color: str, hint: str) -> None:
        """Fill a rectangle."""
        x0, y0 = self.at(left, low)
        x1, y1 = self.at(right, high)
        self.parts.append(
            f'<rect x="{x0:g}" y="{y1:g}" width="{max(x1 - x0, 0.5):.1f}" height="{max(y0 - y1, 0):.1f}" fill="var(--{color})">'
            f"<title>{escape(hint)}</title></rect>"
        )

    def done(self) -> Markup:
        """Return the element."""
        head = f'<svg role="img" aria-label="{escape(self.title)}" viewBox="0 0 {WIDTH} {self.height}" xmlns="http://www.w3.org/2000/svg">'
        return Markup(head + "".join(self.parts) + "</svg>")


def share_bar(parts: Sequence[tuple[str, float]], colors: dict[str, str]) -> Markup:
    """Draw one bar of shares across the page."""
    whole = sum(value for _, value in parts) or 1.0
    left, drawn = 0.0, []
    for name, value in parts:
        width = 1000 * value / whole
        drawn.append(
            f'<rect x="{left:.1f}" y="0" width="{max(width - 1.5, 0.5):.1f}" height="34" rx="2" fill="var(--{colors[name]})">'
            f"<title>{escape(name)}: {100 * value / whole:.1f} %</title></rect>"
        )
        left += width
    return Markup(
        f'<svg role="img" aria-label="shares" viewBox="0 0 1000 34" preserveAspectRatio="none" class="share">{"".join(drawn)}</svg>'
    )
