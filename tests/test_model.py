"""OMP_NUM_THREADS=1 pytest tests/test_model.py: what holds for every architecture: cache, causality, packed rows, compiler, checkpoints."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openmai.base.config import validate
from openmai.base.errors import OpenmaiError
from openmai.model import attention
from openmai.model.cache import PagedCache, batch_of
from openmai.model.checkpoint import load_weights, save_model
from openmai.model.config import ModelConfig, load_config, load_preset
from openmai.model.layers import activate_gated, make_norm
from openmai.model.loss import summed_nats, token_nats
from openmai.model.transformer import Transformer

BASE = {"vocab_size": 97, "num_layers": 3, "width": 32, "num_heads": 4, "ffn_width": 48, "context": 64}
EXPERTS = {"num_experts": 8, "num_active": 2, "expert_width": 16}
MLA = {"query_rank": 20, "kv_rank": 12, "nope_width": 10, "rope_width": 6, "value_width": 14}
YARN = {"kind": "yarn", "factor": 4.0, "original_context": 16, "beta_fast": 2.0, "beta_slow": 0.5}
KINDS: dict[str, dict[str, Any]] = {
    "grouped": {"num_kv_heads": 2, "qk_norm": True},
    "window": {"window": 5, "global_every": 3},
    "window_only": {"window": 4, "num_kv_heads": 1},
    "global_layers": {"window": 4, "global_layers": (0, 1), "global_rope": False},
    "gpt": {
        "norm": "layer",
        "gated": False,
        "positions": "learned",
        "tied_embeddings": True,
        "mlp_bias": True,
        "qkv_bias": True,
        "o_bias": True,
    },
    "after": {"norm_place": "after", "qk_norm": True, "qk_norm_span": "all", "num_kv_heads": 2},
    "both": {"norm_place": "both", "head_bias": True, "activation": "gelu_tanh"},
    "softcap": {"attention_softcap": 1.0, "logit_softcap": 3.0, "num_kv_heads": 2},
    "sinks": {"sinks": True, "window": 5, "global_every": 3, "num_kv_heads": 2},
    "alibi": {"positions": "alibi", "norm": "layer", "embedding_norm": True, "gated": False, "activation": "gelu"},
    "parallel": {"parallel": True, "norm": "layer", "norm_bias": False, "rope_share": 0.5, "clip_qkv": 0.5},
    "linear": {"rope_scaling": {"kind": "linear", "factor": 4.0}},
    "llama3": {"rope_scaling": {"kind": "llama3", "factor": 8.0, "original_context": 16}},
    "yarn": {"rope_scaling": YARN},
    "longrope": {
        "rope_scaling": {
            "kind": "longrope",
            "original_context": 4,  # every sequence of these tests is longer: a full pass has to rotate as a cache of full length does
            "short_factor": (1.0, 1.0, 1.5, 2.0),
            "long_factor": (1.0, 2.0, 5.0, 9.0),
        }
    },
    "gemma": {
        "embedding_scale": 5.6,
        "norm_weight": "offset",
        "norm_place": "both",
        "tied_embeddings": True,
        "attention_scale": 0.3,
        "window": 5,
        "global_every": 3,
        "rope_local_theta": 100.0,
        "rope_scaling": {"kind": "linear", "factor": 8.0, "global_only": True},
    },
    "nanochat": {
        "norm_weight": "none",
        "embedding_norm": True,
        "qk_norm": True,
        "qk_norm_place": "after",
        "gated": False,
        "activation": "relu2",
        "logit_softcap": 15.0,
        "window": 5,
        "global_every": 3,
        "value_embeddings": True,
        "residual_scalars": True,
        "smear": True,
        "backout": True,
    },
    "mla": {"mla": MLA},
    "mla_wide_query": {"mla": {**MLA, "query_rank": None}, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}},
    "moe": {"moe": {**EXPERTS, "num_shared": 1, "first_dense": 1, "score": "sigmoid", "scale": 2.5, "bias_rate": 0.01}},
    "moe_latent": {"moe": {**EXPERTS, "latent_width": 12, "every": 3}},
    "groups": {"moe": {**EXPERTS, "num_groups": 4, "active_groups": 2, "score": "sigmoid", "bias_rate": 0.01}},
    "sparsemixer": {"moe": {**EXPERTS, "score": "sparsemixer", "normalize": False, "jitter": 0.4}},
    "weigh_input": {"moe": {**EXPERTS, "score": "sigmoid", "num_active": 1, "num_shared": 1, "normalize": False, "weigh_input": True}},
    "gpt_oss": {
        "sinks": True,
        "window": 5,
        "global_every": 3,
        "qkv_bias": True,
        "o_bias": True,
        "glu_limit": 0.8,
        "glu_offset": 1.0,
        "activation": "quick_gelu",
        "rope_scaling": {**YARN, "truncate": False},
        "moe": {**EXPERTS, "router_bias": True, "expert_bias": True},
    },
    "predict": {"num_predict": 2, "moe": {**EXPERTS, "score": "sigmoid", "bias_rate": 0.01}},
}


def make(kind: str = "grouped", **changes: Any) -> Transformer:
    """Build a small model whose weights all matter (training starts some at zero), with logits of about 2."""
    model = Transformer(ModelConfig.model_validate({**BASE, **KINDS[kind], **changes}))
    model.initialize(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if not parameter.any() or parameter.ndim == 1:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3, generator=generator))
        model.head.weight.normal_(0, 0.3, generator=generator)
    return model.eval()


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(97, (rows, length), generator=torch.Generator().manual_seed(seed))


def cached(model: Transformer, cache: PagedCache, length: int, *sequences: tuple[list[int], int, list[int], list[int]]) -> Tensor:
    """Run one pass over a cache; sequences as `batch_of` takes them. Returns logits (N, V)."""
    batch = batch_of(cache, length, sequences)
    return model(batch.ids_1N, batch.positions_1N, batch)[0]


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "gathered"])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_steps_equal_the_full_pass(kind: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts in two pieces, then token by token and in twos, in blocks that are not in order; what is stale in them does not matter."""
    if not compiled:
        monkeypatch.setattr(attention, "compiles", lambda _: False)
    model, ids = make(kind), tokens(2, 26)
    cache = PagedCache(model.config, blocks=20, block=4)
    cache.keys.fill_(7.0)
    cache.values.fill_(7.0)
    blocks, rows = [[9, 3, 0, 7, 11, 4, 2], [1, 8, 5, 13, 12, 6, 10]], ids.tolist()
    parts: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        steps = [(0, 10), (10, 19), *((t, t + 1) for t in range(19, 22)), (22, 24), (24, 26)]
        for start, stop in steps:
            for row, logits in enumerate(
                cached(model, cache, 26, *((rows[r][start:stop], start, blocks[r], rows[r][:start]) for r in range(2))).split(stop - start)
            ):
                parts[row].append(logits)
        found = torch.stack([torch.cat(row) for row in parts])
        torch.testing.assert_close(found, model(ids), rtol=0, atol=2e-5)


def test_a_cached_prompt_is_rotated_for_the_length_of_its_cache() -> None:
    """LongRoPE changes its factors once a sequence passes 12 tokens; the first 9 must have been rotated with the later ones by then."""
    model, ids = make("longrope", rope_scaling={**KINDS["longrope"]["rope_scaling"], "original_context": 12}), tokens(1, 14)
    new = ids[0].tolist()
    with torch.no_grad():
        cache = PagedCache(model.config, blocks=4, block=4)
        parts = [cached(model, cache, 14, (new[:9], 0, [0, 1, 2, 3], [])), cached(model, cache, 14, (new[9:], 9, [0, 1, 2, 3], new[:9]))]
        torch.testing.assert_close(torch.cat(parts)[None], model(ids), rtol=0, atol=2e-5)
        assert (model(ids)[:, :9] - model(ids[:, :9])).abs().max() > 1e-3


def test_sequences_of_one_pass_may_stand_at_different_places() -> None:
    """One token of one sequence beside a stretch of another and a third of two tokens: each as if alone."""
    model, rows = make("grouped"), tokens(3, 30).tolist()
    cache = PagedCache(model.config, blocks=30, block=4)
    blocks = [list(range(start, start + 8)) for start in (0, 10, 20)]
    with torch.no_grad():
        for row, length in enumerate((11, 3, 20)):
            cached(model, cache, 30, (rows[row][:length], 0, blocks[row], []))
        step = cached(
            model,
            cache,
            30,
            (rows[0][11:12], 11, blocks[0], rows[0][:11]),
            (rows[1][3:5], 3, blocks[1], rows[1][:3]),
            (rows[2][20:30], 20, blocks[2], rows[2][:20]),
        )
        for row, (start, stop), place in ((0, (11, 12), 0), (1, (3, 5), 1), (2, (20, 30), 3)):
            alone = model(torch.tensor([rows[row][:stop]]))[0, start:]
            torch.testing.assert_close(step[place : place + stop - start], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_sees_the_future(kind: str) -> None:
    model, ids = make(kind), tokens(1, 12)
    changed = ids.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 97
    with torch.no_grad():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-5)
    assert (after[:, 7:] - before[:, 7:]).abs().amax(-1).min() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_row_equals_its_documents_alone(kind: str) -> None:
    """Two rows, cut in different places; positions start again in each document."""
    model, ids, cuts = make(kind), tokens(2, 19), ((5, 7, 7), (12, 7))
    documents = torch.stack([torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)) for lengths in cuts])
    positions = torch.stack([torch.cat([torch.arange(length) for length in lengths]) for lengths in cuts])
    with torch.no_grad():
        packed = model(ids, positions, documents_BT=documents)
        alone = [
            torch.cat([model(document[None]) for document in row.split(lengths)], dim=1) for row, lengths in zip(ids, cuts, strict=True)
        ]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=2e-5)


def test_gates_are_clamped_and_shifted_as_in_gpt_oss() -> None:
    """x sigmoid(1.702 x) of the gate clamped from above only, times one more than the other factor clamped from both sides."""
    config = ModelConfig.model_validate({**BASE, "activation": "quick_gelu", "glu_limit": 7.0, "glu_offset": 1.0})

    def s(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    gate, up = torch.tensor([-9.0, 2.0, 9.0, 9.0]), torch.tensor([3.0, -9.0, 9.0, 0.5])
    expected = [-9 * s(-9 * 1.702) * 4, 2 * s(2 * 1.702) * -6, 7 * s(7 * 1.702) * 8, 7 * s(7 * 1.702) * 1.5]
    torch.testing.assert_close(activate_gated(config, gate, up), torch.tensor(expected), rtol=1e-6, atol=1e-9)


def test_norms_equal_their_formulas() -> None:
    """arXiv:1910.07467, eq. 4, with the weight stored as it is or less one, or without; arXiv:1607.06450, eq. 4, with and without bias."""
    torch.manual_seed(0)
    x = 3 * torch.randn(5, 8) + 1
    rms = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    centred = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    w, b = torch.randn(8), torch.randn(8)
    for changes, parameters, expected in (
        ({}, [w], rms * w),
        ({"norm_weight": "offset"}, [w], rms * (1 + w)),
        ({"norm_weight": "none"}, [], rms),
        ({"norm": "layer"}, [w, b], centred * w + b),
        ({"norm": "layer", "norm_bias": False}, [w], centred * w),
        ({"norm": "layer", "norm_weight": "none"}, [], centred),
    ):
        norm = make_norm(ModelConfig.model_validate({**BASE, **changes}), 8)
        for parameter, value in zip(norm.parameters(), parameters, strict=True):
            parameter.data.copy_(value)
        torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-5)


def test_last_picks_each_rows_token() -> None:
    model, ids, last = make("grouped"), tokens(3, 8), torch.tensor([7, 0, 4])
    with torch.no_grad():
        torch.testing.assert_close(model(ids, last_B=last), model(ids)[torch.arange(3), last], rtol=0, atol=1e-6)


def test_initialize_is_a_function_of_the_seed() -> None:
    first, again, other = (Transformer(ModelConfig.model_validate({**BASE, **KINDS["moe"]})) for _ in range(3))
    for model, seed in ((first, 3), (again, 3), (other, 4)):
        model.initialize(seed)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns_from_the_initial_state(kind: str) -> None:
    """Zero outputs at the start hold up what lies before them for a step or two, no longer: nothing stays dead."""
    model = Transformer(ModelConfig.model_validate({**BASE, **KINDS[kind]})).train()
    model.initialize(0)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-12)
    ids = tokens(8, 32)
    for _ in range(5):
        loss, ahead = summed_nats(model, ids[:, :-1], ids[:, 1:])
        (loss if ahead is None else loss + ahead).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, start[name])] == []


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.float32) for kind in ("grouped", "window", "mla", "nanochat", "predict")), ("moe", torch.bfloat16)]
)
def test_forward_and_losses_compile_without_a_break(kind: str, dtype: torch.dtype) -> None:
    """`fullgraph` refuses graph breaks. Losses and loads stay the same."""
    model, ids = make(kind, num_layers=2).train().to(dtype), tokens(2, 8)

    def losses(ids: Tensor, targets: Tensor) -> Tensor:
        loss, ahead = summed_nats(model, ids, targets)
        loss = loss + token_nats(model, ids, targets).sum() + model.take_penalty()
        return loss if ahead is None else loss + ahead

    torch._dynamo.reset()
    runs = []
    for compute in (torch.compile(losses, fullgraph=True, backend="eager"), losses):
        runs.append([compute(ids, ids.roll(-1)), *(router.load_E.clone() for router in model.routers())])
        for router in model.routers():
            router.load_E.zero_()
    torch.testing.assert_close(*runs)


@pytest.mark.parametrize("preset", ["kimi-k2", "mai-base-1"])
def test_a_trillion_parameters_are_described_in_seconds(preset: str) -> None:
    start = time.perf_counter()
    with torch.device("meta"):
        model = Transformer(load_preset(preset))
    seconds, total = time.perf_counter() - start, sum(parameter.numel() for parameter in model.parameters())
    print(f"{preset}: {total / 1e9:.1f}B parameters in {seconds:.2f} s")
    assert total > 9e11
    assert seconds < 10


def test_tied_embeddings_are_one_matrix() -> None:
    model = make("gpt")
    assert model.head.weight is model.embedding.weight
    assert make("grouped").head.weight is not make("grouped").embedding.weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, r"width=32 is not divisible by num_heads=5; choose num_heads among \[1, 2, 4, 8, 16\] or set head_width"),
        ({"num_heads": 32}, "head width 1 is odd"),
        ({"num_kv_heads": 3}, "num_heads=4 is not divisible by num_kv_heads=3"),
        ({"global_every": 2}, "global_every needs a window"),
        ({"moe": {**EXPERTS, "num_active": 9}}, "num_active=9 exceeds num_experts=8"),
        ({"moe": {**EXPERTS, "num_expert": 9}}, "moe.num_expert: unknown key; did you mean 'num_experts'"),
        ({"width": 0}, "width=0"),
        ({"global_layers": (1,)}, "global_layers needs a window"),
        ({"window": 4, "global_every": 2, "global_layers": (1,)}, "either global_every or global_layers"),
        ({"rope_share": 0.4}, "rope_share=0.4 of a head of 8 rotates an odd number of values"),
        ({"rope_scaling": {"kind": "yarn", "factor": 4.0}}, "kind=yarn needs original_context"),
        ({"rope_scaling": {"kind": "linear"}}, "kind=linear needs a factor"),
        (
            {"rope_scaling": {"kind": "longrope", "original_context": 8, "short_factor": [1], "long_factor": [2]}},
            "short_factor has 1 numbers, 4 pairs are rotated",
        ),
        ({"parallel": True, "norm_place": "after"}, "parallel needs norm_place=before"),
        ({"value_embeddings": True, "mla": MLA}, "value_embeddings"),
        ({"moe": {**EXPERTS, "num_groups": 3}}, "the groups must divide the experts"),
        ({"moe": {**EXPERTS, "num_groups": 4, "num_active": 4}}, "leaves too few experts for num_active=4"),
        ({"moe": {**EXPERTS, "score": "sparsemixer"}}, "num_active must be 2 and normalize false"),
        ({"norm": "batch"}, "norm='batch'"),
    ],
)
def test_impossible_architectures_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OpenmaiError, match=message):
        validate(ModelConfig, {**BASE, **changes}, "model")


def saved(model: Transformer, folder: Path) -> Path:
    tokenizer = folder / "source"
    tokenizer.mkdir(parents=True)
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "manifest.json").write_text("{}")
    save_model(model, folder, tokenizer)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_round_trip(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    for router in model.routers():
        if router.moe.bias_rate:
            router.bias_E.copy_(torch.linspace(-1, 1, 8))
    folder = saved(model, tmp_path / "checkpoint")
    again = Transformer(load_config(folder))
    load_weights(again, folder / "model.safetensors")
    assert again.config == model.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(tokens(1, 9)), again.eval()(tokens(1, 9)))
    assert sorted(file.name for file in (folder / "tokenizer").iterdir()) == ["tokenizer.json"]
    assert json.loads((folder / "model.json").read_text())["num_layers"] == 3


def test_checkpoint_errors_name_the_tensor(tmp_path: Path) -> None:
    model = make("grouped")
    file = saved(model, tmp_path / "checkpoint") / "model.safetensors"
    good, name = load_file(file), "blocks.1.attention.q.weight"

    def refuse(weights: dict[str, Tensor], message: str) -> None:
        save_file(weights, file)
        with pytest.raises(OpenmaiError, match=message):
            load_weights(model, file)

    refuse({key: value for key, value in good.items() if key != name}, rf"{name} is missing; expected shape \(32, 32\)")
    refuse({**good, name: torch.zeros(32, 16)}, rf"{name} has shape \(32, 16\), model.json expects \(32, 32\)")
    refuse({**good, "blocks.9.extra": torch.zeros(2)}, r"unexpected tensor blocks.9.extra of shape \(2,\)")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(OpenmaiError, match=r"cannot be read .*; make the checkpoint again"):
        load_weights(model, file)
    file.unlink()
    with pytest.raises(OpenmaiError, match="cannot be read"):
        load_weights(model, file)


def test_tied_weights_into_an_untied_model_are_refused(tmp_path: Path) -> None:
    file = saved(make("grouped", tied_embeddings=True), tmp_path / "tied") / "model.safetensors"
    with pytest.raises(OpenmaiError, match=r"head\.weight is missing"):
        load_weights(make("grouped"), file)
