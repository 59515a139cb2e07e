"""python benchmarks/plan_systems.py [--write]: the systems of plan/data/systems.yaml as plans, beside what was published of them.

With --write the table replaces the one in docs/plan/systems.md between its two marks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from openmai.base.config import read_yaml, validate
from openmai.plan.config import PlanConfig
from openmai.plan.hardware import DATA
from openmai.plan.make import Plan, make_plan
from openmai.plan.show import _count, _money, _rounded, _unit

PAGE = Path(__file__).resolve().parent.parent / "docs" / "plan" / "systems.md"
MARKS = ("<!-- systems -->", "<!-- /systems -->")
OURS = ("published_hours", "published_days", "given", "source")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/plan/systems.md")
    arguments = parser.parse_args()
    lines = [
        "| system | parameters | tokens | cluster | layout | GB per GPU | tokens/s per GPU | days | GPU-hours | rent "
        "| published hours | planned / published |",
        "|---|--:|--:|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    notes = []
    for name, values in read_yaml(DATA / "systems.yaml").items():
        config = validate(PlanConfig, {key: value for key, value in values.items() if key not in OURS}, name)
        lines.append(row(name, make_plan(config), values.get("published_hours")))
        notes.append(f"{name}: {values['given']} ({values['source']})")
        print(lines[-1], flush=True)
    table = "\n".join([*lines, "", "Assumed, since it is not published: " + "; ".join(notes) + "."])
    if arguments.write:
        text = PAGE.read_text(encoding="utf-8")
        head, _, rest = text.partition(MARKS[0])
        PAGE.write_text(f"{head}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}", encoding="utf-8")


def row(name: str, plan: Plan, published: float | None) -> str:
    training = plan.training
    assert training is not None
    assert training.run is not None
    counted, run = plan.parameters, training.run
    size = _count(counted.total) + (f" / {_count(counted.active)}" if counted.active < counted.total else "")
    ratio = f"{run.gpu_hours[1] / published:.2f}" if published else ""
    cells = [
        name,
        size,
        _unit(run.tokens).replace("G", "B").strip(),
        f"{training.gpus:,} {plan.gpu.name.split()[0]}, {training.precision}",
        training.layout.describe(),
        f"{training.memory_gb:.0f}",
        f"{training.tokens_per_second / training.used:,.0f}",
        f"{_rounded(run.days[1])} ({_rounded(run.days[0])} to {_rounded(run.days[2])})",
        _unit(run.gpu_hours[1]),
        _money(run.dollars[1]),
        _unit(published) if published else "",
        ratio,
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
