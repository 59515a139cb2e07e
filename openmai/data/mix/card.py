"""The card of a mixture: what is in it, where it came from, and what was done to it. For programs, for a repository, for a browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from openmai.base.artifact import MANIFEST, Artifact
from openmai.base.files import atomic_file, read_json, write_json
from openmai.data.mix.choose import Mask, Pool
from openmai.data.mix.config import MixConfig

_TOP = 20
_OPT_OUT = re.compile(r"opt.?out|robots|noai|tdm|licen[cs]e|rights", re.IGNORECASE)
_PRIVATE = re.compile(r"\bpii|private|mask", re.IGNORECASE)
_QUALITY = re.compile(r"quality|edu|grade", re.IGNORECASE)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def write_card(
    out: Path,
    config: MixConfig,
    inputs: list[Artifact],
    pool: Pool,
    taken: Mask,
    losses: dict[str, dict[str, int]],
    scores: dict[str, np.ndarray],
    mixture: dict[str, Any],
) -> dict[str, Any]:
    """Write card.json, card.md and card.html under `out` and return the card."""
    history = lineage(inputs)
    card = {
        "title": config.title or f"A mixture of {', '.join(mixture['sources'])}",
        "documents": int(taken.sum()),
        "bytes": int(pool.sizes[taken].sum()),
        "read": {"documents": len(taken), "bytes": int(pool.sizes.sum())},
        "left_out": {rule: loss for rule, loss in losses.items() if loss["documents"]},
        "mixture": mixture,
        "as_seen": _as_seen(pool, taken, mixture),
        "groups": {group: _table(pool, taken, group) for group in ("source", "license", "language", "host", "year")},
        "hosts": _hosts(pool, taken),
        "license_of": _license_of(pool, taken),
        "scores": {name: _distribution(values) for name, values in scores.items() if len(values)},
        "shown_scores": [name for name in scores if _QUALITY.search(name)],
        "history": history,
        "opt_outs": _rules(history, _OPT_OUT),
        "private": _rules(history, _PRIVATE) | {name: int(values.sum()) for name, values in scores.items() if _PRIVATE.search(name)},
        "contamination": _contamination(history),
        "limits": _limits(pool, taken, history, config),
    }
    write_json(out / "card.json", card)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": _size, "percent": _percent}
    for name in ("card.md", "card.html"):
        with atomic_file(out / name, "w") as file:
            file.write(environment.get_template(f"{name}.jinja").render(card=card))
    return card


def lineage(inputs: list[Artifact]) -> list[dict[str, Any]]:
    """Return what is recorded about the inputs and what they were made of: funnels and contamination reports, the earliest first."""
    seen: dict[str, dict[str, Any]] = {}

    def visit(path: Path) -> None:
        if str(path) in seen or not (path / MANIFEST).exists():
            return
        artifact = Artifact.load(path, verify=False)
        for source in artifact.inputs:
            visit(Path(source["path"]))
        funnel, report = path / "funnel.json", path / "report.json"
        seen[str(path)] = {
            "name": path.name,
            "kind": artifact.kind,
            "digest": artifact.digest,
            "funnel": read_json(funnel) if funnel.exists() else None,
            "contamination": read_json(report) if report.exists() else None,
        }

    for artifact in inputs:
        visit(artifact.path)
    return list(seen.values())


def _table(pool: Pool, taken: Mask, group: str) -> list[dict[str, Any]]:
    """Return documents and bytes of the largest members of a group, the rest together."""
    names = pool.names[group].names()
    counts = np.bincount(pool.groups[group][taken], minlength=len(names))
    sizes = np.bincount(pool.groups[group][taken], pool.sizes[taken], minlength=len(names))
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda number: (-sizes[number], names[number]))
    if group == "year":
        return [{"name": names[n], "documents": int(counts[n]), "bytes": int(sizes[n])} for n in sorted(order, key=lambda n: names[n])]
    rows = [{"name": names[n], "documents": int(counts[n]), "bytes": int(sizes[n])} for n in order[:_TOP]]
    rest = order[_TOP:]
    if rest:
        rows.append({"name": f"{len(rest):,} more", "documents": int(counts[rest].sum()), "bytes": int(sizes[rest].sum())})
    return rows


def _hosts(pool: Pool, taken: Mask) -> int:
    names = pool.names["host"]
    return len(set(np.unique(pool.groups["host"][taken]).tolist()) - {names.numbers.get("", -1)})


def _license_of(pool: Pool, taken: Mask) -> dict[str, list[str]]:
    """Return the licences of every source."""
    names, licenses = pool.names["source"].names(), pool.names["license"].names()
    pairs = np.unique(np.stack([pool.groups["source"][taken], pool.groups["license"][taken]]), axis=1).T.tolist()
    out: dict[str, list[str]] = {}
    for source, license_ in pairs:
        out.setdefault(names[source], []).append(licenses[license_] or "not stated")
    return out


def _as_seen(pool: Pool, taken: Mask, mixture: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the shares of licences and languages in the tokens of training, where sources repeat by their epochs."""
    epochs = np.zeros(len(pool.names["source"].numbers))
    for name, source in mixture["sources"].items():
        epochs[pool.names["source"].numbers[name]] = source["epochs"]
    weights = pool.sizes[taken] * epochs[pool.groups["source"][taken]]
    out = {}
    for group in ("license", "language"):
        totals = np.bincount(pool.groups[group][taken], weights, minlength=len(pool.names[group].numbers))
        out[group] = {name: float(totals[number] / totals.sum()) for name, number in pool.names[group].numbers.items() if totals[number]}
    return out


def _distribution(values: np.ndarray) -> dict[str, Any]:
    counts, edges = np.histogram(values, bins=24) if np.ptp(values) > 0 else (np.array([len(values)]), np.array([values[0], values[0]]))
    quantiles = {f"{q:g}": round(float(value), 4) for q, value in zip(_QUANTILES, np.quantile(values, _QUANTILES), strict=True)}
    return {
        "documents": len(values),
        "mean": round(float(values.mean()), 4),
        "quantiles": quantiles,
        "histogram": {"from": float(edges[0]), "to": float(edges[-1]), "counts": counts.tolist()},
    }


def _rules(history: list[dict[str, Any]], pattern: re.Pattern[str]) -> dict[str, int]:
    """Return how many documents the rules whose names match have dropped, over all inputs."""
    totals: dict[str, int] = {}
    for step in history:
        for stage in (step["funnel"] or {}).get("steps", []):
            for rule, count in stage["dropped"].items():
                if pattern.search(rule):
                    totals[rule] = totals.get(rule, 0) + count
    return totals


def _contamination(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the summaries of the decontaminations among the inputs' makers."""
    return [
        {
            "name": step["name"],
            "mode": report["mode"],
            "n": report["overlap"]["n"],
            "unit": report["overlap"]["unit"],
            "documents": report["documents"],
            "tasks": {name: {key: task[key] for key in ("items", "found", "documents")} for name, task in report["tasks"].items()},
        }
        for step in history
        if (report := step["contamination"])
    ]


def _limits(pool: Pool, taken: Mask, history: list[dict[str, Any]], config: MixConfig) -> list[str]:
    """Say what is not known or not done, as far as the records tell."""
    out = []
    unstated = pool.bytes_of("license", taken).get("", 0) / max(1, int(pool.sizes[taken].sum()))
    undated = pool.bytes_of("year", taken).get("", 0) / max(1, int(pool.sizes[taken].sum()))
    if unstated:
        out.append(f"The licence of {_percent(unstated)} of the text is not stated.")
    if undated:
        out.append(f"The date of {_percent(undated)} of the text is not known.")
    if not any(step["contamination"] for step in history):
        out.append("No record of a comparison with evaluation sets: run `openmai data decontaminate` on the inputs.")
    elif any(step["contamination"]["mode"] == "report" for step in history if step["contamination"]):
        out.append("Contaminated documents were reported, not removed.")
    else:
        out.append("Decontamination finds copies, not paraphrases or translations of evaluation items.")
    if not _rules(history, _PRIVATE):
        out.append("No record of masked private data.")
    if not any(step["funnel"] for step in history):
        out.append("The inputs have no funnel: how they were filtered and deduplicated is not recorded.")
    if len(config.documents) > 1:
        out.append("Inputs are compared by document id only; near-duplicates between inputs need `data build` over all of them.")
    out.append(f"Tokens are estimated at {config.bytes_per_token:g} bytes each; training counts the real ones.")
    return out


def _size(number: float) -> str:
    for unit, letter in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.{2 if number < 10 * unit else 1}f}\N{NO-BREAK SPACE}{letter}"
    return f"{number:.0f}\N{NO-BREAK SPACE}B"


def _percent(share: float) -> str:
    return f"{100 * share:.{2 if share < 0.1 else 1}f}\N{NO-BREAK SPACE}%"
