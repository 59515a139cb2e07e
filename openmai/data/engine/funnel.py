"""What went in, what each step dropped and why: counted while the build runs, printed at its end."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from openmai.base.progress import say

# A rule's name begins with its family; the families in the order in which they are applied.
STEPS = {
    "url": "addresses",
    "extract": "extraction",
    "opt_out": "opt-outs",
    "language": "language",
    "repetition": "Gopher repetition",
    "c4": "C4",
    "gopher": "Gopher quality",
    "fineweb": "FineWeb",
    "words": "adult and abusive",
    "quality": "learned quality",
    "exact": "exact duplicates",
    "near": "near-duplicates",
    "paragraphs": "repeated passages",
}


_COUNTS = ("read", "raw_bytes", "text_bytes", "lost_bytes", "kept", "kept_bytes")


class Funnel:
    """Counts documents and UTF-8 bytes of text per step, rule and source."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.raw_bytes: Counter[str] = Counter()
        self.dropped: dict[str, Counter[str]] = defaultdict(Counter)
        self.text_bytes: Counter[str] = Counter()
        self.lost_bytes: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.kept_bytes: Counter[str] = Counter()
        self.damaged: list[str] = []

    def take(self, row: dict[str, Any]) -> None:
        """Count a document that was read."""
        self.read[row["source"]] += 1
        self.raw_bytes[row["source"]] += int(dict(row["scores"]).get("raw_bytes", 0))
        self.text_bytes[row["source"]] += _size(row["text"])

    def drop(self, row: dict[str, Any]) -> None:
        """Count a rejected document."""
        self.dropped[row["rule"]][row["source"]] += 1
        self.lost_bytes[row["rule"].split(".")[0]] += _size(row["text"])

    def shorten(self, removed: int) -> None:
        """Count bytes of paragraphs that were taken out of a document that stays."""
        self.lost_bytes["paragraphs"] += removed

    def keep(self, row: dict[str, Any]) -> None:
        """Count a document that stays."""
        self.kept[row["source"]] += 1
        self.kept_bytes[row["source"]] += _size(row["text"])

    def plain(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        return {name: getattr(self, name) for name in _COUNTS} | {"dropped": self.dropped}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Funnel:
        """Return the funnel of plain values."""
        funnel = cls()
        for name in _COUNTS:
            getattr(funnel, name).update(values[name])
        for rule, counts in values["dropped"].items():
            funnel.dropped[rule].update(counts)
        return funnel

    def add(self, other: Funnel) -> None:
        """Count what `other` counted."""
        for name in _COUNTS:
            getattr(self, name).update(getattr(other, name))
        for rule, counts in other.dropped.items():
            self.dropped[rule].update(counts)

    def summary(self) -> dict[str, Any]:
        """Return all counts; documents and bytes add up from step to step."""
        documents, size = self.read.total(), self.text_bytes.total()
        steps = []
        for family, title in STEPS.items():
            rules = {rule: counts.total() for rule, counts in sorted(self.dropped.items()) if rule.split(".")[0] == family}
            out, size_out = documents - sum(rules.values()), size - self.lost_bytes[family]
            steps.append(
                {"step": family, "title": title, "in": documents, "out": out, "bytes_in": size, "bytes_out": size_out, "dropped": rules}
            )
            documents, size = out, size_out
        sources = {
            name: {
                "in": count,
                "out": self.kept[name],
                "raw_bytes": self.raw_bytes[name],
                "bytes_in": self.text_bytes[name],
                "bytes_out": self.kept_bytes[name],
                "dropped": {rule: counts[name] for rule, counts in sorted(self.dropped.items()) if counts[name]},
            }
            for name, count in sorted(self.read.items())
        }
        return {"raw_bytes": self.raw_bytes.total(), "steps": steps, "sources": sources, "damaged": self.damaged}

    def show(self) -> None:
        """Print the funnel as a table."""
        summary = self.summary()
        say(f"{'step':<22}{'documents':>10}{'dropped':>9}{'text MB':>9}  most frequent reason")
        say(f"{'read':<22}{self.read.total():>10}{'':>9}{summary['raw_bytes'] / 1e6:>9.1f}  (bytes as read)")
        for step in summary["steps"]:
            top = max(step["dropped"].items(), key=lambda item: (item[1], item[0]), default=("", 0))
            why = f"{top[0]} ({top[1]})" if top[1] else ""
            say(f"{step['title']:<22}{step['out']:>10}{step['in'] - step['out']:>9}{step['bytes_out'] / 1e6:>9.2f}  {why}".rstrip())


def _size(text: str) -> int:
    return len(text.encode("utf-8"))
