"""python benchmarks/plan_accuracy.py [--json FILE]: what the plan predicts for published runs, beside what was published.

Every row of data/throughput.csv that a plan can be made of, with its prediction, its error, and whether factors were fitted to it. Fitted
rows do not count in any mean. Rows that repeat a fitted one in another release of the same software are counted, and once more left out.
Then memory against published and measured bytes, parameters against published totals, and whole runs against published GPU-hours. The
formulas themselves were written with all rows in view; only the factors have never seen those that are held out.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openmai.base.files import write_json
from openmai.plan.accuracy import Compared, compare
from openmai.plan.published import read_rows

LIMIT = 0.20


def mean(errors: Iterable[float]) -> float:
    return statistics.fmean(abs(error) for error in errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    arguments = parser.parse_args()
    rows = compare()
    print(f"{'row':40}{'model':19}{'GPU':8}{'GPUs':>6} {'kind':6} {'layout':34}{'published s':>12}{'predicted s':>12}{'error':>8}  used")
    for one in rows:
        used = "fitted" if one.fitted else "repeats a fitted row" if one.sibling else ""
        row = one.row
        print(
            f"{row.name:40}{row.model_name:19}{row.gpu:8}{row.gpus:6} {row.precision:6} {row.layout.describe():34}"
            f"{row.step_s:12.3f}{one.step_s:12.3f}{100 * one.error:+7.1f}%  {used}"
        )
    print()
    result = summary(rows)
    for line in result["lines"]:
        print(line)
    far = [one for one in rows if abs(one.error) > LIMIT and not one.fitted]
    print(f"\nheld-out rows beyond {100 * LIMIT:.0f} %:")
    for one in far:
        print(f"  {one.row.name:38}{100 * one.error:+6.0f}%  {one.explanation or 'NOT EXPLAINED'}")
    left = read_rows()[1]
    print(f"\n{len(left)} rows that no plan can be made of:")
    for reason in sorted({reason for _, reason in left}):
        print(f"  {sum(1 for _, why in left if why == reason):4}  {reason}")
    if arguments.json:
        values = [
            {
                "row": one.row.name,
                "published_s": one.row.step_s,
                "predicted_s": one.step_s,
                "error": one.error,
                "fitted": one.fitted,
                "repeats": one.sibling,
                "family": one.family,
                "source": one.row.source,
            }
            for one in rows
        ]
        write_json(arguments.json, {"rows": values, "summary": {key: value for key, value in result.items() if key != "lines"}})


def summary(rows: list[Compared]) -> dict[str, Any]:
    """Return the mean absolute errors of held-out rows, per family and over all."""
    lines = [f"{'family':20}{'fitted':>7}{'held out':>9}{'mean error':>12}{'largest':>9}{'of new ones':>13}"]
    result: dict[str, Any] = {"lines": lines}
    for name in dict.fromkeys(one.family for one in rows):
        mine = [one for one in rows if one.family == name]
        lines.append(_line(name, mine))
    for title, moe in (("dense", False), ("mixtures", True)):
        mine = [one for one in rows if one.row.is_moe == moe]
        lines.append(_line(f"all {title}", mine))
        held = [one for one in mine if not one.fitted]
        result[title] = {
            "mean": mean(one.error for one in held),
            "new": mean(one.error for one in held if not one.sibling),
            "rows": len(held),
        }
        by_family = [mean(o.error for o in held if o.family == name) for name in {o.family for o in held}]
        result[title]["mean_of_families"] = statistics.fmean(by_family)
    return result


def _line(name: str, rows: list[Compared]) -> str:
    held = [one for one in rows if not one.fitted]
    new = [one for one in held if not one.sibling]
    fresh = f"{100 * mean(one.error for one in new):8.1f} % {len(new):3}" if new else ""
    largest = max(held, key=lambda one: abs(one.error)).error
    return (
        f"{name:20}{len(rows) - len(held):7}{len(held):9}{100 * mean(one.error for one in held):10.1f} %{100 * largest:+8.0f}%{fresh:>14}"
    )


if __name__ == "__main__":
    main()
