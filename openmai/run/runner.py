"""`openmai run`: the steps of a recipe one after the other; what is finished is skipped, what was cut off goes on."""

from __future__ import annotations

import time

from openmai.base.artifact import Artifact
from openmai.base.files import write_json
from openmai.base.progress import duration, say
from openmai.run.config import RunConfig
from openmai.run.recipe import Step, load_recipe


def run(config: RunConfig) -> None:
    """Run a recipe to its end and print a summary."""
    recipe, steps = load_recipe(config.recipe, config.overrides)
    say(f"{recipe.description or config.recipe}\n{len(steps)} steps into {recipe.out}\n")
    began = time.monotonic()
    rows = [_run_step(step, place, len(steps)) for place, step in enumerate(steps, start=1)]
    write_json(
        recipe.out / "run.json", {"recipe": str(config.recipe), "description": recipe.description, "steps": [step.name for step in steps]}
    )
    say("\n" + _summary(rows))
    say(f"\ndone in {duration(time.monotonic() - began)}")
    if recipe.next:
        say("try next:\n" + "\n".join(f"  {line}" for line in recipe.next))


def _run_step(step: Step, place: int, total: int) -> tuple[str, str, Artifact, bool]:
    say(f"[{place}/{total}] {step.name}: openmai {step.command}")
    began = time.time()
    artifact: Artifact = step.verb.load_run()(step.config)
    fresh = (artifact.path / "manifest.json").stat().st_mtime >= began
    if not fresh:
        say("  unchanged since it was finished: skipped")
    return step.name, step.command, artifact, fresh


def _summary(rows: list[tuple[str, str, Artifact, bool]]) -> str:
    lines = [f"{'step':<12} {'verb':<18} {'time':>8}  result"]
    for name, command, artifact, fresh in rows:
        facts = ", ".join(f"{key} {_short(value)}" for key, value in artifact.metrics.items() if isinstance(value, int | float))
        lines.append(f"{name:<12} {command:<18} {duration(artifact.seconds) if fresh else 'skipped':>8}  {facts}")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
