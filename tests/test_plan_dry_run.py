"""pytest tests/test_plan_dry_run.py: the plan of openmai's own training against its dry run, tensor by tensor and call by call.

tests/test_dry_run.py holds the dry run against real processes; benchmarks/plan_dry_run.py does at full size what this does with toys.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_dry_run import config as toy_config
from test_dry_run import really

from openmai.plan.activations import process_bytes
from openmai.plan.collectives import step_collectives
from openmai.plan.layout import Layout
from openmai.train.config import DryRunConfig
from openmai.train.dry_run import ACTIVATIONS, dry_run

EXPERTS = {"moe": {"num_experts": 16, "num_active": 2, "expert_width": 64, "first_dense": 1, "aux_loss": 0.01}}
SHARED = {"moe": {**EXPERTS["moe"], "num_shared": 1}}
LATENT = {
    "num_heads": 4,
    "num_kv_heads": None,
    "qk_norm": False,
    "mla": {"query_rank": 48, "kv_rank": 32, "nope_width": 24, "rope_width": 8, "value_width": 24},
}


def planned_layout(found: dict[str, Any], micro_rows: int) -> Layout:
    """Return a dry run's layout as the plan names it."""
    names = ("pp", "dp_replicate", "dp_shard", "cp", "tp", "ep", "schedule", "checkpointing")
    each = found["stages_each"] or (1 if found["schedule"] == "1f1b" else 2)
    return Layout.model_validate(
        {name: found[name] for name in names} | {"virtual": each if found["pp"] > 1 else 1, "micro_rows": micro_rows}
    )


def run(out: Path, stage: int, **changes: Any) -> tuple[dict[str, Any], DryRunConfig, Layout]:
    """Dry-run the first process of a stage; return what it found."""
    values = {
        "depth": 2,
        "context": 64,
        "batch_rows": 16,
        "micro_rows": 1,
        "law": "none",
        "vocab_size": 512,
        "processes": 8,
        "precision": "bf16",
        "out": out,
        **changes,
    }
    chosen = DryRunConfig.model_validate(values | {"rank": stage * 8 // values["layout"].get("pp", 1)})
    dry_run(chosen)
    found = json.loads(out.read_text())
    return found, chosen, planned_layout(found["layout"], chosen.micro_rows or 1)


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        ({"pp": 2, "tp": 2, "checkpointing": "selective"}, SHARED | LATENT),
        ({"pp": 2, "tp": 2, "checkpointing": "full"}, {"tied_embeddings": True}),
        ({"pp": 2, "tp": 2, "schedule": "interleaved"}, {"num_layers": 5}),
        ({"cp": 2, "tp": 2, "ep": 8}, SHARED | LATENT),
        ({"dp_replicate": 2, "dp_shard": 4, "ep": 4}, EXPERTS),
    ],
    ids=str,
)
def test_state_and_collectives_are_those_of_a_dry_run(layout: dict[str, Any], model: dict[str, Any], tmp_path: Path) -> None:
    """Every kind of call, how often, over how many processes and with how many bytes; and state to the byte."""
    found, chosen, planned = run(tmp_path / "dry.json", 0, layout=layout, model=model)
    architecture = chosen.architecture(512)
    calls = {(row["kind"], row["group"]): [row["count"], row["bytes"]] for row in found["collectives"]}
    assert step_collectives(architecture, planned, 64, 16) == calls
    expected = process_bytes(architecture, planned, 64, 16)
    for name in ("weights (fp32)", "gradients (fp32)"):
        assert expected[name] == found["bytes"][name]
    assert 0 <= found["bytes"]["optimizer state"] - expected["optimizer state"] <= 4 * 100  # AdamW counts the steps of each tensor


@pytest.mark.parametrize(
    ("layout", "model", "stage"),
    [
        ({"dp_shard": 2, "tp": 2, "cp": 2}, {}, 0),
        ({"pp": 2, "tp": 2}, {}, 0),
        ({"pp": 2, "ep": 4}, EXPERTS, 1),
        ({"pp": 2, "tp": 2, "ep": 4, "checkpointing": "selective"}, SHARED | LATENT, 0),
        ({"pp": 2, "tp": 2, "ep": 4, "checkpointing": "selective"}, SHARED | LATENT, 1),
        ({"pp": 2, "tp": 2, "schedule": "zero-bubble"}, {"num_layers": 4}, 1),
        ({"pp": 2, "tp": 2, "schedule": "zbv"}, SHARED | LATENT | {"num_layers": 4}, 1),
    ],
    ids=str,
)
def test_a_process_holds_at_its_peak_what_is_planned(layout: dict[str, Any], model: dict[str, Any], stage: int, tmp_path: Path) -> None:
    """Micro-batches in flight, buffers, the loss, what waits for weights' gradients; at a size where they outweigh what comes and goes."""
    wide = {"context": 1024, "vocab_size": 4096, "depth": 4, "batch_rows": 32}
    found, chosen, planned = run(tmp_path / "dry.json", stage, layout=layout, model=model, **wide)
    expected = process_bytes(chosen.architecture(4096), planned, 1024, 32, stage)
    gathered, gradients = "gathered weights, at the peak of the passes", "gradients, whole and scattered, at the peak of the passes"
    assert expected[gathered] == found["bytes"][gathered]
    # a chunk's gradients that are not added to the sums yet count as gradients, where a pass works backwards in two halves
    assert expected[gradients] == pytest.approx(found["bytes"][gradients], rel=0.2 if planned.schedule.startswith("z") else 0.04)
    assert expected[ACTIVATIONS] == pytest.approx(found["bytes"][ACTIVATIONS], rel=0.03)
    assert sum(expected[name] for name in (ACTIVATIONS, gradients)) == pytest.approx(
        sum(found["bytes"][name] for name in (ACTIVATIONS, gradients)), rel=0.03
    )


@pytest.mark.parametrize(
    ("layout", "model"), [({"cp": 4}, {}), ({"pp": 2, "cp": 2, "checkpointing": "full"}, {"num_kv_heads": 1})], ids=str
)
def test_gloo_processes_send_what_is_planned(layout: dict[str, Any], model: dict[str, Any], tmp_path: Path) -> None:
    """The ring of context parallelism among 4 real processes, forward, computed again and backward; and the pipeline around it."""
    chosen = toy_config(tmp_path / "dry.json", layout, model)
    found = really(chosen, tmp_path / "real.json")
    calls = {(row["kind"], row["group"]): [row["count"], row["bytes"]] for row in found["collectives"]}
    planned = planned_layout(chosen.layout.resolve(4, 8, 1).model_dump(), 1)
    assert step_collectives(chosen.architecture(128), planned, 64, 8, size=4) == calls
