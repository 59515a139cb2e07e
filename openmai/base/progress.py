"""Messages and live progress on standard error: a bar with ETA on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any

_LINE_SECONDS = 10.0


def is_quiet() -> bool:
    """True when the user asked for silence (`--quiet`, which sets OPENMAI_QUIET)."""
    return os.environ.get("OPENMAI_QUIET", "") not in ("", "0")


def say(text: str) -> None:
    """Print one message for the user on standard error, unless quiet."""
    if not is_quiet():
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Format a duration: 8.2s, 3m07s, 2h05m."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


class Progress:
    """Live progress of one piece of work.

    `total` is in `unit`s, or None when unknown. `advance(n, loss=2.1)` moves it on; keyword facts are shown at the end of the line.
    """

    def __init__(self, label: str, total: float | None, unit: str = "", start: float = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.start = self.done = start
        self.began = self.shown = time.monotonic()
        self.facts: dict[str, Any] = {}
        self.live = sys.stderr.isatty() and not is_quiet()

    def __enter__(self) -> Progress:
        return self

    def advance(self, amount: float = 1, **facts: Any) -> None:
        """Move on by `amount` units and show the latest facts."""
        self.done += amount
        self.facts.update(facts)
        now = time.monotonic()
        ended = self.total is not None and self.done >= self.total  # leaving the block shows the end
        if not is_quiet() and not ended and now - self.shown >= (0.1 if self.live else _LINE_SECONDS):
            self.shown = now
            self._show("\r" if self.live else "")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not is_quiet() and (self.live or kind is None):
            self._show("\r" if self.live else "", end="\n")

    def _show(self, prefix: str, end: str | None = None) -> None:
        elapsed = time.monotonic() - self.began
        rate = (self.done - self.start) / elapsed if elapsed > 0 else 0.0
        parts = [f"{self.label:<12}"]
        if self.total:
            share = min(1.0, self.done / self.total)
            filled = int(24 * share)
            parts.append(f"{'━' * filled}{'╌' * (24 - filled)} {share:4.0%}")
        if self.unit != "%":
            parts.append(f"{_count(self.done)}{f'/{_count(self.total)}' if self.total else ''} {self.unit}".rstrip())
        parts += [f"{name} {_fact(value)}" for name, value in self.facts.items()]
        parts.append(f"{_count(rate)}/s")
        settled = self.total and self.done - self.start >= 0.02 * self.total  # before that, starting up would be taken for the pace
        left = (self.total - self.done) / rate if self.total and settled else 0.0
        parts.append(f"eta {duration(left)}" if left > 0.5 and end is None else duration(elapsed))
        line = "  ".join(parts)
        if self.live:
            line = f"\033[2K{line[: os.get_terminal_size(sys.stderr.fileno()).columns - 1]}"
        print(prefix + line, end=end if end is not None else ("" if self.live else "\n"), file=sys.stderr, flush=True)


def _count(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if letter == 'k' else size):.1f}{letter}"
    return f"{number:.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def _fact(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
