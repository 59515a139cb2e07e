"""The runs of a folder, read from their artifacts as they grow: curves, the funnel of documents, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openmai.base.artifact import MANIFEST, Artifact
from openmai.base.errors import OpenmaiError
from openmai.base.events import read_events
from openmai.base.files import read_json

POINTS = 400  # of a curve: more than a screen shows
CURVES = ("loss", "lr", "grad_norm", "tokens")


class Runs:
    """Every folder below `root` (and `root` itself) that holds artifacts or unfinished checkpoints."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(self) -> list[dict[str, Any]]:
        """Name the runs and their steps, the latest first."""
        found = []
        for folder in [self.root, *sorted(path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))]:
            steps = sorted({path.parent.name for pattern in (MANIFEST, "events.jsonl") for path in folder.glob(f"*/{pattern}")})
            if steps:
                changed = max((folder / step).stat().st_mtime for step in steps)
                found.append({"name": folder.name if folder != self.root else ".", "steps": steps, "changed": changed})
        return sorted(found, key=lambda run: -run["changed"])

    def read(self, name: str) -> dict[str, Any]:
        """Return what one run holds. Raises OpenmaiError for a name that `list` does not give."""
        if name not in {run["name"] for run in self.list()}:
            raise OpenmaiError(f"run '{name}': no such run in {self.root.name}")
        folder = self.root / name
        run: dict[str, Any] = {"name": name, "checkpoints": [], "funnels": [], "evaluations": [], "steps": []}
        for step in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            artifact = _artifact(step)
            if artifact:
                run["steps"].append({"name": step.name, "kind": artifact.kind, "seconds": artifact.seconds, "created": artifact.created})
            if (step / "events.jsonl").exists():
                run["checkpoints"].append(
                    {"name": step.name, "finished": artifact is not None, "metrics": _metrics(artifact), **_curves(step)}
                )
            for key, file in (("funnels", "funnel.json"), ("evaluations", "results.json")):
                if (step / file).exists() and (value := _json(step / file)) is not None:
                    run[key].append({"name": step.name, **value})
        run["steps"].sort(key=lambda step: step["created"])
        return run


def _artifact(folder: Path) -> Artifact | None:
    try:
        return Artifact.load(folder, verify=False)
    except (OpenmaiError, OSError, ValueError):
        return None  # unfinished, or not one of ours


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = read_json(path)
    except (OpenmaiError, OSError, json.JSONDecodeError):
        return None  # half-written
    return value if isinstance(value, dict) else None


def _metrics(artifact: Artifact | None) -> dict[str, Any]:
    return {name: value for name, value in (artifact.metrics if artifact else {}).items() if isinstance(value, int | float | str)}


def _curves(step: Path) -> dict[str, Any]:
    """Return the curves of a checkpoint, thinned to what a screen shows, by the mean of neighbours."""
    events = list(read_events(step / "events.jsonl"))
    trained = [event for event in events if event.get("kind") == "train" and "step" in event]
    group = -(-len(trained) // POINTS) or 1
    curves: dict[str, list[list[float]]] = {name: [] for name in CURVES}
    for start in range(0, len(trained), group):
        part = trained[start : start + group]
        for name in CURVES:
            values = [event[name] for event in part if isinstance(event.get(name), int | float)]
            if values:
                curves[name].append([part[-1]["step"], sum(values) / len(values)])
    measured: dict[str, list[list[float]]] = {}
    for event in events:
        if event.get("kind") == "eval" and "step" in event:
            for name, value in event.items():
                if name not in ("kind", "step") and isinstance(value, int | float):
                    measured.setdefault(name, []).append([event["step"], value])
    return {"curves": {name: points for name, points in curves.items() if points}, "measured": measured}
