"""What went in and what was thrown away: the funnel of a documents artifact, with examples of rejected pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from openmai.base.artifact import Artifact
from openmai.base.files import read_json
from openmai.report import text

_EXCERPT = 420
_MOST_READ = 100_000
"rejected documents looked at in search of examples; the funnel counts all of them"


@dataclass(frozen=True)
class Stage:
    """One step of the funnel; shares are of all documents read and of all text extracted. An idle one took nothing away."""

    title: str
    kept: int
    dropped: int
    kept_share: float
    dropped_share: float
    bytes_out: str
    bytes_share: float
    is_idle: bool


@dataclass(frozen=True)
class Example:
    """A rejected page."""

    place: str
    reason: str
    excerpt: str
    size: str


@dataclass(frozen=True)
class Rule:
    """What one rule dropped."""

    name: str
    family: str
    dropped: int
    share: float
    examples: list[Example]


@dataclass(frozen=True)
class SourceRow:
    """One source: what was read and what is left of it."""

    name: str
    license: str
    read: int
    kept: int
    kept_share: float
    raw: str
    text: str
    left: str


@dataclass(frozen=True)
class Documents:
    """Everything the page says about one documents artifact."""

    step: str
    read: int
    kept: int
    raw: str
    left: str
    captured: str
    stages: list[Stage]
    sources: list[SourceRow]
    rules: list[Rule]
    damaged: list[str]


def describe(artifact: Artifact, parents: list[Artifact], examples: int) -> Documents | None:
    """Read the funnel of a documents artifact; None if it has none."""
    if "funnel.json" not in artifact.files:
        return None
    funnel = read_json(artifact.path / "funnel.json")
    read = funnel["steps"][0]["in"] if funnel["steps"] else 0
    kept = funnel["steps"][-1]["out"] if funnel["steps"] else 0
    sources = _sources(funnel["sources"], {source["name"]: source.get("license", "") for source in artifact.config.get("sources", [])})
    raw, left = text.size(funnel["raw_bytes"]), text.size(sum(row["bytes_out"] for row in funnel["sources"].values()))
    stages, rules = _stages(funnel, max(1, read)), _rules(artifact, funnel["steps"], max(1, read), examples)
    return Documents(artifact.path.name, read, kept, raw, left, _captured(parents), stages, sources, rules, funnel["damaged"])


def _stages(funnel: dict[str, Any], read: int) -> list[Stage]:
    whole = max(1, funnel["steps"][0]["bytes_in"]) if funnel["steps"] else 1
    return [
        Stage(
            title=step["title"],
            kept=step["out"],
            dropped=step["in"] - step["out"],
            kept_share=step["out"] / read,
            dropped_share=(step["in"] - step["out"]) / read,
            bytes_out=text.size(step["bytes_out"]),
            bytes_share=step["bytes_out"] / whole,
            is_idle=(step["in"], step["bytes_in"]) == (step["out"], step["bytes_out"]),
        )
        for step in funnel["steps"]
    ]


def _sources(sources: dict[str, dict[str, Any]], licenses: dict[str, str]) -> list[SourceRow]:
    return [
        SourceRow(
            name=name,
            license=licenses.get(name) or "",
            read=row["in"],
            kept=row["out"],
            kept_share=row["out"] / max(1, row["in"]),
            raw=text.size(row["raw_bytes"]),
            text=text.size(row["bytes_in"]),
            left=text.size(row["bytes_out"]),
        )
        for name, row in sources.items()
    ]


def _captured(parents: list[Artifact]) -> str:
    """Say what snapshots hold, most pages first."""
    counts: dict[str, int] = {}
    for snapshot in (parent for parent in parents if parent.kind == "snapshot"):
        for name, pages in snapshot.metrics.get("packages", {}).items():
            counts[name] = counts.get(name, 0) + pages
    return ", ".join(f"{name} {pages}" for name, pages in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _rules(artifact: Artifact, steps: list[dict[str, Any]], read: int, examples: int) -> list[Rule]:
    dropped = {rule: (step["title"], count) for step in steps for rule, count in step["dropped"].items()}
    found = _examples(artifact, {rule: min(examples, count) for rule, (_, count) in dropped.items()})
    order = sorted(dropped, key=lambda rule: (-dropped[rule][1], rule))
    return [Rule(rule, dropped[rule][0], dropped[rule][1], dropped[rule][1] / read, found[rule]) for rule in order]


def _examples(artifact: Artifact, wanted: dict[str, int]) -> dict[str, list[Example]]:
    """Return the first rejected documents of each rule, as many as wanted."""
    found: dict[str, list[Example]] = {rule: [] for rule in wanted}
    missing = sum(wanted.values())
    for row in _rejected(artifact) if missing else ():
        rule = row["rule"]
        if len(found.get(rule, ())) < wanted.get(rule, 0):
            size = text.size(len(row["text"].encode()))
            found[rule].append(Example(row["url"] or row["id"], row["reason"], text.excerpt(row["text"], _EXCERPT), size))
            missing -= 1
            if not missing:
                break
    return found


def _rejected(artifact: Artifact) -> Iterator[dict[str, Any]]:
    seen = 0
    for name in sorted(name for name in artifact.files if name.startswith("rejected/")):
        for batch in pq.ParquetFile(artifact.path / name).iter_batches(batch_size=256, columns=["id", "url", "text", "rule", "reason"]):
            yield from batch.to_pylist()
            seen += batch.num_rows
            if seen >= _MOST_READ:
                return
