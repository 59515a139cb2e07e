"""pytest tests/test_plan_memory.py: planned bytes against what PyTorch really holds and sends, and against what was published."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plan_worker import CASES, MODELS, ROWS

from openmai.base.files import read_json
from openmai.model.config import ModelConfig, load_preset, preset_names
from openmai.model.count import count_around, count_layer, count_parameters
from openmai.model.loss import summed_nats
from openmai.model.transformer import Transformer
from openmai.plan.layout import Grid, Layout
from openmai.plan.memory import Kept, State, layer_activations, stage_memory
from openmai.plan.network import step_bytes
from openmai.plan.published import published_model, read_rows
from openmai.plan.stages import local_parameters, stages_of

WORKER = Path(__file__).parent / "plan_worker.py"
GIB = 2**30


def saved_bytes(config: ModelConfig, rows: int, dtype: torch.dtype) -> int:
    """Return the bytes of distinct tensors that a forward pass keeps for its backward pass, without weights and buffers."""
    torch.manual_seed(0)
    model = Transformer(config)
    model.initialize(0)
    model.to(dtype)
    own = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept.setdefault(storage.data_ptr(), value)
        return value

    ids = torch.randint(config.vocab_size, (rows, config.context))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        _loss = summed_nats(model, ids, ids)
    return sum(value.untyped_storage().nbytes() for value in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": True, "num_kv_heads": 1},
        {"norm_place": "both"},
        {"moe": {"num_experts": 8, "num_active": 2, "expert_width": 96}},
        {"moe": {"num_experts": 16, "num_active": 4, "expert_width": 64, "num_shared": 2, "score": "sigmoid"}},
        {"num_kv_heads": None, "mla": {"query_rank": 48, "kv_rank": 32, "nope_width": 24, "rope_width": 8, "value_width": 32}},
    ],
    ids=["dense", "qk_norm", "both norms", "moe", "shared", "mla"],
)
def test_a_layer_keeps_what_is_planned(changes: dict[str, Any], dtype: torch.dtype) -> None:
    """What one more layer adds to the tensors that autograd saves, within 3 %."""
    base = {"vocab_size": 512, "width": 128, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 320, "context": 96, **changes}
    small, large = (ModelConfig.model_validate({**base, "num_layers": layers}) for layers in (1, 2))
    measured = saved_bytes(large, 3, dtype) - saved_bytes(small, 3, dtype)
    grid = Grid.of([Layout(micro_rows=3)])
    kept = Kept(bytes_each=dtype.itemsize, fused=False)
    kind = stages_of(large, 1, 1).kinds[0]
    planned = layer_activations(large, kind, grid, 96, 3 * 96, kept)[0]
    assert planned == pytest.approx(measured, rel=0.03)


def test_processes_hold_and_send_what_is_planned(tmp_path: Path) -> None:
    """What 4 processes hold and send under FSDP, HSDP, tensor, expert and pipeline parallelism, as training really does it.

    Weights, gradients and optimizer state (AdamW, Muon) and FSDP's bytes to the thousandth, all-to-all by chance of the routing within 3 %.
    """
    subprocess.run([sys.executable, str(WORKER), str(tmp_path)], check=True, timeout=240, capture_output=True)
    measured = [read_json(tmp_path / f"{rank}.json") for rank in range(4)]
    for number, (name, optimizer, layout) in enumerate(CASES):
        model = ModelConfig.model_validate(MODELS[name])
        grid = Grid.of([Layout.model_validate({**layout, "micro_rows": ROWS})])
        state = State(weights=0, matrix_moments=4 if optimizer == "muon" else None)
        rows = ROWS * int(grid.dp[0])
        planned = stage_memory(model, grid, model.context, rows, state)
        dense, experts = local_parameters(model, grid)
        weights = 4 * (dense / grid.shards + experts / grid.expert_shards)[:, 0]
        found = {what: [rank[number][what] for rank in measured] for what in measured[0][number]}
        case = f"{name} {optimizer} {layout}"
        for rank, held in enumerate(found["weights"]):
            assert held == pytest.approx(weights[rank * len(weights) // 4], rel=0.001), case
        if grid.pp > 1:
            continue
        assert np.mean(found["gradients"]) == pytest.approx(float(planned.gradients[0, 0]), rel=0.001), case
        assert np.mean(found["optimizer"]) == pytest.approx(float(planned.optimizer[0, 0]) - weights[0], rel=0.001), case
        sends = step_bytes(model, grid, model.context, rows, weight_bytes=4, bytes_each=4)
        for what, close in (("gather weights", 0.001), ("scatter gradients", 0.001), ("tensor parallel", 0.001), ("all-to-all", 0.03)):
            assert np.mean(found[what]) == pytest.approx(float(sends[what][0]), rel=close), f"{case}: {what}"


def test_published_peaks_within_five_percent() -> None:
    """SimuMax's measured peaks of Megatron-LM on 8 B200: dense, mixtures, pipeline, tensor and context parallelism."""
    rows = [row for row in read_rows()[0] if row.memory_gib and row.table.startswith("simumax")]
    assert len(rows) == 22
    for row in rows:
        planned = stage_memory(row.model, Grid.of([row.layout]), row.sequence, row.batch_rows)
        peak = float((planned.total - planned.runtime).max()) / GIB
        assert peak == pytest.approx(row.memory_gib, rel=0.05), row.name


@pytest.mark.parametrize(
    ("name", "layout", "rows", "state", "baseline", "selective"),
    [
        ("megatron-22b", {"tp": 8, "micro_rows": 4}, 4, 45.56, 59.25, 9.56),
        ("gpt-174.6b", {"tp": 8, "pp": 8, "virtual": 3}, 64, 45.56, 66.84, 12.35),
        ("megatron-529.6b", {"tp": 8, "pp": 35, "virtual": 3}, 280, 31.64, 114.02, 23.08),
        ("megatron-1008b", {"tp": 8, "pp": 64}, 512, 32.96, 131.25, 26.56),
    ],
)
def test_published_activations(name: str, layout: dict[str, int], rows: int, state: float, baseline: float, selective: float) -> None:
    """arXiv:2205.05198, figure 1, in GiB: states on average, activations of the first stage without and with its two savings."""
    schedule = "interleaved" if layout.get("virtual", 1) > 1 else "1f1b"
    for checkpointing, published in (("none", baseline), ("selective", selective)):
        grid = Grid.of([Layout.model_validate({**layout, "zero": 0, "schedule": schedule, "checkpointing": checkpointing})])
        kept = Kept(plain_attention=True, sequence_parallel=checkpointing == "selective")
        planned = stage_memory(published_model(name), grid, 2048, rows, kept=kept)
        assert (planned.weights + planned.gradients + planned.optimizer).mean() / GIB == pytest.approx(state, rel=0.02)
        assert float(planned.activations[0, 0]) / GIB == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize("name", preset_names())
def test_parts_of_a_model_add_up(name: str) -> None:
    model = load_preset(name)
    assert (
        sum(count_around(model)) + sum(count_layer(model, layer).total for layer in range(model.num_layers))
        == count_parameters(model).total
    )


@pytest.mark.parametrize(
    "layout", [{"tp": 4}, {"pp": 4, "dp_shard": 2}, {"dp_shard": 16, "ep": 16}, {"tp": 2, "dp_shard": 8, "ep": 4, "etp": 2}]
)
def test_processes_hold_the_model_between_them(layout: dict[str, int]) -> None:
    """What all stages hold, times the processes that divide it, is the whole model; only what a division cannot split is held twice."""
    model = load_preset("qwen3-30b-a3b")
    grid = Grid.of([Layout.model_validate(layout)])
    dense, experts = local_parameters(model, grid)
    counted = count_parameters(model)
    routed = sum(count_layer(model, layer).experts for layer in range(model.num_layers))
    assert experts.sum() * int(grid.ep[0] * grid.etp[0]) == pytest.approx(routed)
    assert counted.total - routed <= dense.sum() * int(grid.tp[0]) <= (counted.total - routed) * 1.05


def test_fewer_bytes_with_every_division() -> None:
    """More processes for the state, the tensors or the sequence never need more memory; recomputing more never keeps more."""
    model = load_preset("mixtral-8x7b")

    def peak(**layout: Any) -> float:
        return float(stage_memory(model, Grid.of([Layout.model_validate(layout)]), 4096, 512).peak[0])

    assert peak(dp_shard=64) > peak(dp_shard=64, tp=2) > peak(dp_shard=64, tp=8)
    assert peak(dp_shard=64, zero=0) > peak(dp_shard=64, zero=1) > peak(dp_shard=64, zero=2) > peak(dp_shard=64, zero=3)
    assert peak(dp_shard=64) > peak(dp_shard=64, checkpointing="selective") > peak(dp_shard=64, checkpointing="full")
    assert peak(dp_shard=16, micro_rows=4) > peak(dp_shard=16, cp=4, micro_rows=4)
