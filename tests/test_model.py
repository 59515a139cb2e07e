"""OMP_NUM_THREADS=1 pytest tests/test_model.py: each part of the model against its plain twin, and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from openmai.base.config import validate
from openmai.base.errors import OpenmaiError
from openmai.model.attention import attend, attend_plain
from openmai.model.cache import KVCache
from openmai.model.checkpoint import load_weights, save_model
from openmai.model.config import ModelConfig, load_config
from openmai.model.layers import rope_table, rotate
from openmai.model.moe import MoE
from openmai.model.transformer import Transformer

BASE = {"vocab_size": 97, "num_layers": 3, "width": 32, "num_heads": 4, "ffn_width": 48, "context": 64}
EXPERTS = {"num_experts": 8, "num_active": 2, "expert_width": 16}
MLA = {"query_rank": 20, "kv_rank": 12, "nope_width": 10, "rope_width": 6, "value_width": 14}
KINDS: dict[str, dict[str, Any]] = {
    "grouped": {"num_kv_heads": 2, "qk_norm": True},
    "window": {"window": 5, "global_every": 3},
    "window_only": {"window": 4, "num_kv_heads": 1},
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
    "mla": {"mla": MLA},
    "moe": {"moe": {**EXPERTS, "num_shared": 1, "first_dense": 1, "score": "sigmoid", "scale": 2.5, "bias_rate": 0.01}},
    "moe_latent": {"moe": {**EXPERTS, "latent_width": 12, "every": 3}},
}


def make(kind: str = "grouped", **changes: Any) -> Transformer:
    """Build a small model whose weights all matter (training starts some at zero)."""
    model = Transformer(ModelConfig.model_validate({**BASE, **KINDS[kind], **changes}))
    model.initialize(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if not parameter.any() or parameter.ndim == 1:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3, generator=generator))
    return model.eval()


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(97, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "groups", "value_width"), [(4, 4, 8), (4, 2, 8), (4, 1, 8), (4, 4, 6)])
def test_fused_attention_equals_plain(masked: bool, heads: int, groups: int, value_width: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 9, heads, 8), torch.randn(2, 9, groups, 8), torch.randn(2, 9, groups, value_width)
    distance = torch.arange(9)[:, None] - torch.arange(9)
    mask = ((distance >= 0) & (distance < 4)).expand(2, 1, 9, 9) if masked else None
    torch.testing.assert_close(attend(q, k, v, mask), attend_plain(q, k, v, mask), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_steps_equal_the_full_pass(kind: str) -> None:
    """A prompt in one piece, then token by token, in cache rows that are not in order."""
    model, ids = make(kind), tokens(2, 14)
    with torch.no_grad():
        expected = model(ids)
        cache, rows = KVCache(model.config, rows=3, length=20), torch.tensor([2, 0])
        parts = [model(ids[:, :9], torch.arange(9).expand(2, 9), cache, rows)]
        parts += [model(ids[:, t : t + 1], torch.full((2, 1), t), cache, rows) for t in range(9, 14)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=2e-5)


def test_cached_rows_may_stand_at_different_places() -> None:
    """One step for two sequences of unlike length equals each sequence alone, over stale entries of an earlier one."""
    model, first, second = make("grouped"), tokens(1, 12, 1), tokens(1, 5, 2)
    with torch.no_grad():
        cache = KVCache(model.config, rows=2, length=20)
        cache.keys.fill_(7.0)
        cache.values.fill_(7.0)
        for row, ids in enumerate((first, second)):
            length = ids.shape[1] - 1
            model(ids[:, :-1], torch.arange(length)[None], cache, torch.tensor([row]))
        step = model(torch.cat((first[:, -1:], second[:, -1:])), torch.tensor([[11], [4]]), cache, torch.tensor([0, 1]))
        torch.testing.assert_close(step[0, 0], model(first)[0, -1], rtol=0, atol=2e-5)
        torch.testing.assert_close(step[1, 0], model(second)[0, -1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_sees_the_future(kind: str) -> None:
    model, ids = make(kind), tokens(1, 12)
    changed = ids.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 97
    with torch.no_grad():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-6)
    assert (after[:, 7:] - before[:, 7:]).abs().amax(-1).min() > 1e-3


def test_a_window_forgets() -> None:
    """With one windowed layer a token depends on exactly the `window` last ones."""
    model, ids = make("window_only", num_layers=1), tokens(1, 12)
    with torch.no_grad():
        before = model(ids)
        changed = ids.clone()
        changed[0, 3] = (changed[0, 3] + 1) % 97
        differs = (model(changed) - before).abs().amax(-1)[0] > 1e-6
    assert differs.nonzero().flatten().tolist() == [3, 4, 5, 6]


def test_last_picks_each_rows_token() -> None:
    model, ids, last = make("grouped"), tokens(3, 8), torch.tensor([7, 0, 4])
    with torch.no_grad():
        torch.testing.assert_close(model(ids, last_B=last), model(ids)[torch.arange(3), last], rtol=0, atol=1e-6)


def test_rotation_is_multiplication_by_a_complex_number() -> None:
    torch.manual_seed(0)
    x, positions = torch.randn(2, 5, 3, 8), torch.tensor([[0, 1, 2, 3, 4], [9, 3, 100, 7, 0]])
    turned = torch.complex(x[..., :4].double(), x[..., 4:].double())
    for pair in range(4):
        turned[..., pair] *= torch.exp(1j * positions[:, :, None] * 500.0 ** (-2 * pair / 8))
    expected = torch.cat((turned.real, turned.imag), dim=-1).float()
    torch.testing.assert_close(rotate(x, rope_table(positions, 8, 500.0)), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("changes", [{}, {"num_shared": 2}, {"latent_width": 12}, {"normalize": False, "scale": 2.5}, {"bias_rate": 0.1}])
def test_experts_equal_a_loop_over_tokens(score: str, changes: dict[str, Any]) -> None:
    config = ModelConfig.model_validate({**BASE, "moe": {**EXPERTS, "score": score, **changes}})
    torch.manual_seed(0)
    mixture = MoE(config)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    mixture.router.bias_E.copy_(torch.randn(8) * (config.moe.bias_rate > 0))
    x = torch.randn(2, 7, 32)
    found = mixture(x)
    expected = torch.stack([_mix_plainly(mixture, token) for token in x.flatten(0, 1)]).view_as(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
    torch.manual_seed(1)
    probe = torch.randn_like(x)
    gradients = [torch.autograd.grad((y * probe).sum(), list(mixture.parameters()), retain_graph=True) for y in (found, expected)]
    for fast, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


def _mix_plainly(mixture: MoE, x_D: Tensor) -> Tensor:
    """One token through the mixture, written as the papers do."""
    moe, experts = mixture.router.moe, mixture.experts
    logits_E = mixture.router.weight_ED @ x_D
    scores_E = logits_E.softmax(0) if moe.score == "softmax" else logits_E.sigmoid()
    chosen = sorted(range(moe.num_experts), key=lambda e: -(scores_E[e] + mixture.router.bias_E[e]).item())[: moe.num_active]
    total = sum(scores_E[e] for e in chosen) if moe.normalize else 1.0
    inner_D = mixture.latent_down(x_D) if mixture.latent_down else x_D
    outer_D = torch.zeros_like(inner_D)
    for e in chosen:
        hidden_F = F.silu(experts.gate_EFD[e] @ inner_D) * (experts.up_EFD[e] @ inner_D)
        outer_D = outer_D + moe.scale * scores_E[e] / total * (experts.down_EDF[e] @ hidden_F)
    routed_D = mixture.latent_up(outer_D) if mixture.latent_up else outer_D
    return routed_D + mixture.shared(x_D) if mixture.shared else routed_D


def _load_variation(bias_rate: float) -> float:
    """Train a mixture on tokens with a common direction, which a few experts attract; return the final load's coefficient of variation."""
    config = ModelConfig.model_validate({**BASE, "moe": {**EXPERTS, "score": "sigmoid", "bias_rate": bias_rate}})
    torch.manual_seed(0)
    mixture = MoE(config).train()
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    optimizer = torch.optim.SGD(mixture.parameters(), lr=0.01)
    loads = []
    for _ in range(150):
        x = torch.randn(1, 512, 32) + 0.7
        (mixture(x) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        loads.append(mixture.router.update_bias())
    load_E = torch.stack(loads[-20:]).sum(0)
    assert load_E.sum() == 20 * 512 * 2
    return (load_E.std(correction=0) / load_E.mean()).item()


def test_selection_bias_balances_the_load() -> None:
    assert _load_variation(bias_rate=0.01) < 0.2
    assert _load_variation(bias_rate=0.0) > 0.5


def test_one_bias_step_moves_towards_the_mean() -> None:
    model = make("moe").train()
    model(tokens(4, 16))
    for router in model.routers():
        load = router.update_bias()
        assert load.sum() == 4 * 16 * 2
        assert torch.equal(router.bias_E, 0.01 * (load.mean() - load).sign())
        assert not router.load_E.any()


def test_balancing_losses_are_the_published_ones() -> None:
    """arXiv:2101.03961, eq. 4, is `aux_loss` for a load that is even; arXiv:2202.08906, eq. 5, for all-zero logits is (ln E)^2."""
    config = ModelConfig.model_validate({**BASE, "moe": {**EXPERTS, "aux_loss": 0.5, "z_loss": 0.25}})
    router = MoE(config).router.train()
    torch.nn.init.zeros_(router.weight_ED)
    router(torch.randn(16, 32))
    assert router.penalty.item() == pytest.approx(0.5 + 0.25 * torch.tensor(8.0).log().item() ** 2, rel=1e-5)


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
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, start[name])] == []


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
