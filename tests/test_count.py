"""OMP_NUM_THREADS=1 pytest tests/test_count.py: counts by formula against built models, counted FLOPs and published totals."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from openmai.model import attention
from openmai.model.config import ModelConfig, load_preset, preset_names
from openmai.model.count import (
    TRAINING_STATE_BYTES,
    cache_bytes,
    cache_bytes_per_token,
    count_parameters,
    flops_per_token,
    training_state_bytes,
    weight_bytes,
)
from openmai.model.hf.family import choose
from openmai.model.moe import Router
from openmai.model.transformer import Transformer, num_parameters
from openmai.plan.config import PlanConfig
from openmai.plan.make import make_plan
from openmai.plan.show import show_plan

TOTALS = {row["preset"]: row for row in csv.DictReader((Path(__file__).parent / "data" / "preset_totals.csv").read_text().splitlines())}

BASE = {"vocab_size": 211, "num_layers": 3, "width": 48, "num_heads": 4, "ffn_width": 80, "context": 64}
EXPERTS = {"num_experts": 6, "num_active": 2, "expert_width": 24}
MLA = {"query_rank": 20, "kv_rank": 12, "nope_width": 10, "rope_width": 6, "value_width": 14}
NANOCHAT = {"value_embeddings": True, "residual_scalars": True, "smear": True, "backout": True}
TOYS: dict[str, dict[str, Any]] = {
    "dense": {},
    "grouped": {"num_kv_heads": 2, "head_width": 20},
    "tied": {"tied_embeddings": True},
    "biases": {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "head_bias": True},
    "gpt": {"norm": "layer", "gated": False, "mlp_bias": True, "positions": "learned", "tied_embeddings": True},
    "qk_norm": {"qk_norm": True, "num_kv_heads": 2},
    "qk_norm_all": {"qk_norm": True, "qk_norm_span": "all", "num_kv_heads": 2, "norm_place": "after"},
    "norms_both": {"norm_place": "both", "norm": "layer"},
    "norm_no_bias": {"norm": "layer", "norm_bias": False, "embedding_norm": True},
    "norm_offset": {"norm_weight": "offset", "qk_norm": True, "embedding_scale": 7.0, "tied_embeddings": True},
    "norm_bare": {"norm_weight": "none", "norm_place": "both", "qk_norm": True, "qk_norm_place": "after", "embedding_norm": True},
    "parallel": {"parallel": True, "norm": "layer", "qkv_bias": True, "head_bias": True, "rope_share": 0.5},
    "alibi": {"positions": "alibi", "embedding_norm": True, "clip_qkv": 8.0},
    "capped": {"attention_softcap": 50.0, "logit_softcap": 30.0, "attention_scale": 0.1, "glu_limit": 7.0, "glu_offset": 1.0},
    "scaled_rope": {"rope_scaling": {"kind": "yarn", "factor": 4, "original_context": 16}, "window": 8, "rope_local_theta": 100.0},
    "window": {"window": 8, "global_every": 2},
    "window_layers": {"window": 8, "global_layers": [1], "global_rope": False, "sinks": True},
    "nanochat": {**NANOCHAT, "num_kv_heads": 2, "norm_weight": "none", "embedding_norm": True, "gated": False},
    "moe": {"moe": EXPERTS},
    "moe_shared": {"moe": {**EXPERTS, "num_shared": 2, "first_dense": 1, "score": "sigmoid", "bias_rate": 0.001}, "mlp_bias": True},
    "moe_latent": {"moe": {**EXPERTS, "latent_width": 16, "every": 2, "num_shared": 1, "expert_bias": True}},
    "moe_ungated_shared": {"moe": {**EXPERTS, "num_shared": 1}, "gated": False},
    "moe_biases": {"moe": {**EXPERTS, "router_bias": True, "expert_bias": True}, "sinks": True, "qkv_bias": True, "o_bias": True},
    "moe_groups": {"moe": {**EXPERTS, "num_groups": 3, "active_groups": 2, "weigh_input": True, "score": "sigmoid"}},
    "moe_sparsemixer": {"moe": {**EXPERTS, "score": "sparsemixer", "normalize": False}},
    "mla": {"mla": MLA},
    "mla_plain_query": {"mla": {**MLA, "query_rank": None}},
    "mla_moe": {"mla": MLA, "moe": {**EXPERTS, "num_shared": 1, "first_dense": 1, "bias_rate": 0.001}, "norm": "layer"},
    "predict": {"num_predict": 2, "tied_embeddings": True, "window": 8, "global_every": 3},
    "predict_moe": {"num_predict": 1, "mla": MLA, "moe": {**EXPERTS, "num_shared": 1, "bias_rate": 0.001}},
    "predict_nanochat": {**NANOCHAT, "num_predict": 1},
}


def toy(name: str, **changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({**BASE, **TOYS[name], **changes})


def build(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


def stored(module: nn.Module) -> int:
    """Parameters and the selection biases of routers, which are buffers."""
    routers = (part for part in module.modules() if isinstance(part, Router) and part.moe.bias_rate)
    return num_parameters(module) + sum(router.bias_E.numel() for router in routers)


@pytest.mark.parametrize("name", TOYS)
def test_totals_equal_a_built_model(name: str) -> None:
    config = toy(name)
    model = build(config)
    counted = count_parameters(config)
    assert counted.predictors == stored(model.predictors)
    assert counted.total == stored(model) - counted.predictors
    tables = {key: value.numel() for key, value in model.named_parameters() if "embedding.weight" in key and "predictors" not in key}
    head = 0 if config.tied_embeddings else model.head.weight.numel()
    assert counted.embedding == sum(tables.values()) + head
    looked_up = sum(size for key, size in tables.items() if "value" in key or (key == "embedding.weight" and head))
    assert counted.active_without_input_embedding == counted.active - looked_up


@pytest.mark.parametrize("name", TOYS)
def test_active_leaves_out_exactly_the_idle_experts(name: str) -> None:
    config = toy(name)
    counted = count_parameters(config)
    if config.moe is None:
        assert counted.active == counted.total
        return
    fewer = config.moe.model_copy(update={"num_experts": config.moe.num_active})
    unused, biases = config.moe.num_experts - config.moe.num_active, (config.moe.bias_rate > 0) + config.moe.router_bias
    layers = sum(config.is_moe(layer) for layer in range(config.num_layers))
    routing = layers * unused * (config.width + biases)
    assert counted.active == count_parameters(config.model_copy(update={"moe": fewer})).total + routing


@pytest.mark.parametrize("name", sorted(TOTALS))
def test_presets_have_the_published_totals(name: str) -> None:
    counted = count_parameters(load_preset(name))
    row = TOTALS[name]
    assert counted.total == int(row["total"])
    assert counted.active == int(row["active"])
    assert counted.active_without_input_embedding == int(row["active_without_input_embedding"])


def test_every_preset_is_checked_and_says_where_it_comes_from() -> None:
    assert set(preset_names()) == set(TOTALS) | {"mai-1"}
    assert all(load_preset(name).source for name in preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_presets_equal_a_built_model(name: str) -> None:
    config = load_preset(name)
    assert count_parameters(config).total == stored(build(config))


def test_mai_1_is_what_it_says() -> None:
    config = load_preset("mai-1")
    assert choose(config).hf_class == "DeepseekV3ForCausalLM"
    counted = count_parameters(config)
    assert 495e9 <= counted.total <= 505e9
    assert 30e9 <= counted.active <= 40e9
    assert config.moe is not None
    assert config.moe.num_experts % 64 == 0
    assert config.num_layers % 16 == 0
    assert all(size % 8 == 0 for size in (config.num_heads, config.ffn_width, config.vocab_size, config.width))
    assert all(size % 128 == 0 for size in (config.width, config.ffn_width, config.moe.expert_width, config.vocab_size))


def train_once(model: Transformer, ids_BT: Tensor) -> None:
    """One forward and backward pass through everything that training computes."""
    x_BTD = model.stream(ids_BT)
    logits = [model.logits(x_BTD), *(model.head(normed_BTD) for normed_BTD in model.streams_ahead(x_BTD, ids_BT))]
    torch.stack([part.float().logsumexp(-1).sum() for part in logits]).sum().backward()


@pytest.mark.parametrize("name", TOYS)
def test_flops_equal_counted_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain attention computes the full square of scores, so the counter sees the `causal=False` figure."""
    monkeypatch.setattr(attention, "attend", attention.attend_plain)
    config = toy(name)
    model = Transformer(config)
    model.initialize(0)
    ids = torch.randint(config.vocab_size, (2, 32), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        train_once(model, ids)
    assert flops_per_token(config, 32, causal=False) * ids.numel() == pytest.approx(counter.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize("name", ["dense", "window", "window_layers", "alibi", "mla"])
def test_causal_attention_counts_what_the_masks_let_through(name: str) -> None:
    """Sum the real masks at 512 tokens, where the formula counts a token's own key as half."""
    config = toy(name, context=512, **({"window": 200} if "window" in name else {}))
    context = Transformer(config).context(torch.arange(512)[None])
    seen = 0.0
    for layer in range(config.num_layers):
        mask = context.masks[config.is_global(layer)].dense
        if mask is None:
            mask = torch.ones(1, 1, 512, 512, dtype=torch.bool).tril()
        seen += int((mask[0, 0] if mask.dtype == torch.bool else mask[0, 0].isfinite()).sum()) - 512 / 2
    values = config.mla.value_width if config.mla else config.head
    expected = 6 * config.num_heads * (config.head + values) * seen / 512
    found = flops_per_token(config, 512) - 6 * count_parameters(config).active_matmul
    assert found == pytest.approx(expected, rel=1e-9)


def test_predictors_are_counted_apart(tmp_path: Path) -> None:
    """DeepSeek-V3 publishes 11.5B for its one module, without the embeddings that it shares (README_WEIGHTS.md)."""
    plain = load_preset("deepseek-v3-671b")
    config = plain.model_copy(update={"num_predict": 1})
    counted, without = count_parameters(config), count_parameters(plain)
    assert counted.predictors == pytest.approx(11.5e9, rel=0.01)
    assert (counted.total, counted.active, without.predictors) == (without.total, without.active, 0)
    assert training_state_bytes(config) == 18 * (counted.total + counted.predictors)
    assert weight_bytes(config, "bf16") == weight_bytes(plain, "bf16")
    assert flops_per_token(config, 4096) == pytest.approx(260e9, rel=0.01)
    (tmp_path / "model.json").write_text(config.model_dump_json())
    shown = show_plan(make_plan(PlanConfig(model=str(tmp_path))))
    assert f"{counted.predictors:,}  11.6B besides the total" in shown


def test_flops_of_published_models() -> None:
    """DeepSeek-V3 spends 250 GFLOP a token at 4096 tokens (arXiv:2505.09343, table 2); plain attention adds 6 L H K s."""
    assert flops_per_token(load_preset("deepseek-v3-671b"), 4096) == pytest.approx(250e9, rel=0.01)
    llama = load_preset("llama-3-8b")
    matrices = 6 * count_parameters(llama).active_matmul
    assert flops_per_token(llama, 8192) - matrices == 6 * 32 * 32 * 128 * 8192
    assert flops_per_token(llama, 8192, causal=False) - matrices == 12 * 32 * 32 * 128 * 8192
    assert flops_per_token(load_preset("mai-base-1"), 16384) == pytest.approx(225.14e9, rel=0.001)


def test_bytes() -> None:
    llama = load_preset("llama-3-8b")
    assert weight_bytes(llama, "bf16") == 2 * 8_030_261_248
    assert sum(TRAINING_STATE_BYTES.values()) == 18
    assert training_state_bytes(llama) == 18 * 8_030_261_248
    assert cache_bytes_per_token(llama) == 2 * 32 * 8 * 128 * 2
    assert cache_bytes(llama, 8192) == 8192 * cache_bytes_per_token(llama)
    assert cache_bytes_per_token(load_preset("deepseek-v3-671b")) == 61 * (512 + 64) * 2
    base = load_preset("mai-base-1")  # 13 global layers of 78, the others keep 512 tokens
    assert cache_bytes(base, 16384) == (13 * 16384 + 65 * 512) * 2 * 8 * 128 * 2
