"""OMP_NUM_THREADS=1 pytest tests/test_count.py: counts by formula against built models, counted FLOPs and published totals."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from openmai.export.family import choose
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
from openmai.model.transformer import Transformer, num_parameters

TOTALS = {row["preset"]: row for row in csv.DictReader((Path(__file__).parent / "data" / "preset_totals.csv").read_text().splitlines())}

BASE = {"vocab_size": 211, "num_layers": 3, "width": 48, "num_heads": 4, "ffn_width": 80, "context": 64}
EXPERTS = {"num_experts": 6, "num_active": 2, "expert_width": 24}
MLA = {"query_rank": 20, "kv_rank": 12, "nope_width": 10, "rope_width": 6, "value_width": 14}
TOYS = {
    "dense": {},
    "grouped": {"num_kv_heads": 2, "head_width": 20},
    "tied": {"tied_embeddings": True},
    "biases": {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "head_bias": True},
    "gpt": {"norm": "layer", "gated": False, "mlp_bias": True, "positions": "learned", "tied_embeddings": True},
    "qk_norm": {"qk_norm": True, "num_kv_heads": 2},
    "qk_norm_all": {"qk_norm": True, "qk_norm_span": "all", "num_kv_heads": 2, "norm_place": "after"},
    "norms_both": {"norm_place": "both", "norm": "layer"},
    "window": {"window": 8, "global_every": 2},
    "moe": {"moe": EXPERTS},
    "moe_shared": {"moe": {**EXPERTS, "num_shared": 2, "first_dense": 1, "score": "sigmoid", "bias_rate": 0.001}, "mlp_bias": True},
    "moe_latent": {"moe": {**EXPERTS, "latent_width": 16, "every": 2, "num_shared": 1}},
    "moe_ungated_shared": {"moe": {**EXPERTS, "num_shared": 1}, "gated": False},
    "mla": {"mla": MLA},
    "mla_moe": {"mla": MLA, "moe": {**EXPERTS, "num_shared": 1, "first_dense": 1, "bias_rate": 0.001}, "norm": "layer"},
}


def toy(name: str, **changes) -> ModelConfig:
    return ModelConfig.model_validate({**BASE, **TOYS[name], **changes})


def build(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


def selection_biases(model: Transformer) -> int:
    return sum(router.bias_E.numel() for router in model.routers() if router.moe.bias_rate)


@pytest.mark.parametrize("name", TOYS)
def test_totals_equal_a_built_model(name: str) -> None:
    config = toy(name)
    model = build(config)
    counted = count_parameters(config)
    assert counted.total == num_parameters(model) + selection_biases(model)
    named = dict(model.named_parameters())  # a tied head is listed once, under the embedding
    assert counted.embedding == sum(
        value.numel() for key, value in named.items() if key in ("embedding.weight", "position_embedding.weight", "head.weight")
    )
    looked_up = 0 if config.tied_embeddings else model.embedding.weight.numel()
    assert counted.active_without_input_embedding == counted.active - looked_up


@pytest.mark.parametrize("name", TOYS)
def test_active_leaves_out_exactly_the_idle_experts(name: str) -> None:
    config = toy(name)
    counted = count_parameters(config)
    if config.moe is None:
        assert counted.active == counted.total
        return
    fewer = config.moe.model_copy(update={"num_experts": config.moe.num_active})
    model = build(config)
    unused = config.moe.num_experts - config.moe.num_active
    routing = sum(unused * (router.weight_ED.shape[1] + (1 if router.moe.bias_rate else 0)) for router in model.routers())
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


@pytest.mark.parametrize("name", ["llama-3-8b", "deepseek-v3-671b", "mai-base-1", "mai-1", "gpt2-124m", "grok-1-314b"])
def test_presets_equal_a_built_model(name: str) -> None:
    config = load_preset(name)
    model = build(config)
    assert count_parameters(config).total == num_parameters(model) + selection_biases(model)


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


@pytest.mark.parametrize("name", TOYS)
def test_flops_equal_counted_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain attention computes the full square of scores, so the counter sees the `causal=False` figure."""
    monkeypatch.setattr(attention, "attend", attention.attend_plain)
    config = toy(name)
    model = Transformer(config)
    model.initialize(0)
    ids = torch.randint(config.vocab_size, (2, 32), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model(ids).float().logsumexp(-1).sum().backward()
    assert flops_per_token(config, 32, causal=False) * ids.numel() == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("name", ["dense", "window", "mla"])
def test_causal_attention_counts_what_the_masks_let_through(name: str) -> None:
    """Sum the real masks at 512 tokens; the formula's half token per query is below 1 %."""
    config = toy(name, context=512, **({"window": 200, "global_every": 3} if name == "window" else {}))
    model = Transformer(config)
    context = model._context(torch.arange(512)[None], None, None)
    causal = torch.ones(512, 512, dtype=torch.bool).tril()
    seen = 0
    for layer in range(config.num_layers):
        mask = context.masks[config.is_global(layer)]
        seen += int((causal if mask is None else mask).sum())
    values = config.mla.value_width if config.mla else config.head
    expected = 6 * config.num_heads * (config.head + values) * seen / 512
    found = flops_per_token(config, 512) - 6 * count_parameters(config).active_matmul
    assert found == pytest.approx(expected, rel=0.005)


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
