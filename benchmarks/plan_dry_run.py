"""python benchmarks/plan_dry_run.py [--json FILE]: the plan of both cluster recipes beside `openmai train dry-run` of them, at full size.

For the first process of a pipeline: bytes of weights, gradients, optimizer state and activations, and each kind of collective with its
calls and bytes. Ends with status 1 if bytes differ by more than 3 %, or a collective by one call or byte. Some minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from openmai.base.config import read_yaml, validate
from openmai.base.files import write_json
from openmai.plan.activations import process_bytes
from openmai.plan.collectives import step_collectives
from openmai.plan.layout import Layout
from openmai.train.config import DryRunConfig
from openmai.train.dry_run import dry_run

RECIPES = {"mai-1": 8192, "mai-base-1": 15360}
FOLDER = Path(__file__).parents[1] / "recipes" / "cluster"
CLOSE = 0.03


def compare(name: str, processes: int) -> list[dict[str, Any]]:
    """Return rows of what, planned, found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "dry.json"
        config = validate(DryRunConfig, {**read_yaml(FOLDER / f"{name}.yaml"), "processes": processes, "out": out}, name)
        dry_run(config)
        found = json.loads(out.read_text())
    assert config.batch_rows
    assert config.micro_rows
    names = ("pp", "dp_replicate", "dp_shard", "cp", "tp", "ep", "checkpointing")
    layout = Layout.model_validate({name: found["layout"][name] for name in names} | {"micro_rows": config.micro_rows})
    model, muon = config.architecture(config.vocab_size), config.optimizer.name != "adamw"
    planned = process_bytes(model, layout, config.context, config.batch_rows, muon=muon)
    rows = [{"what": what, "planned": size, "found": found["bytes"][what]} for what, size in planned.items()]
    calls = {(row["kind"], row["group"]): row for row in found["collectives"]}
    mine = step_collectives(model, layout, config.context, config.batch_rows, muon=muon)
    for key in sorted(calls.keys() | mine.keys()):
        one, other = mine.get(key, [0, 0]), calls.get(key, {"count": 0, "bytes": 0})
        rows.append({"what": f"{key[0]} over {key[1]}, calls", "planned": one[0], "found": other["count"], "exact": True})
        rows.append({"what": f"{key[0]} over {key[1]}, bytes", "planned": one[1], "found": other["bytes"], "exact": True})
    return [{"recipe": name, **row} for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    arguments = parser.parse_args()
    rows = [row for name, processes in RECIPES.items() for row in compare(name, processes)]
    print(f"\n{'recipe':12}{'what':62}{'planned':>18}{'dry run':>18}{'difference':>12}")
    far = 0
    for row in rows:
        error = row["planned"] / row["found"] - 1 if row["found"] else float("inf")
        far += abs(error) > (0 if row.get("exact") else CLOSE)
        print(f"{row['recipe']:12}{row['what']:62}{row['planned']:18,.0f}{row['found']:18,}{100 * error:+11.2f}%")
    if arguments.json:
        write_json(arguments.json, rows)
    print(f"\n{len(rows)} figures, {far} too far")
    return int(far > 0)


if __name__ == "__main__":
    sys.exit(main())
