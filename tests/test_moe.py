"""OMP_NUM_THREADS=1 pytest tests/test_moe.py: routers, experts and balancing against the papers; how even a real run's load becomes."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_model import BASE, EXPERTS, make, tokens
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openmai.model import moe as module
from openmai.model.config import ModelConfig
from openmai.model.grouped import grouped_product
from openmai.model.loss import summed_nats
from openmai.model.moe import Experts, MoE, Router, sparse_mixer
from openmai.model.transformer import Transformer
from openmai.train.config import OptimizerConfig
from openmai.train.optimizer import make_optimizers

LESSONS = Path(__file__).parents[1] / "examples/lessons"


def config_of(**changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({**BASE, "moe": {**EXPERTS, **changes}})


def filled(part: nn.Module, spread: float = 0.3) -> Any:
    """Draw all weights, so that every one matters."""
    torch.manual_seed(0)
    for parameter in part.parameters():
        nn.init.normal_(parameter, 0, spread)
    return part.train()


def mix_plainly(mixture: MoE, x_D: Tensor) -> Tensor:
    """One token through the mixture, written as the papers do."""
    moe, experts = mixture.router.moe, mixture.experts
    logits_E = mixture.router.weight_ED @ x_D + (mixture.router.logit_bias_E if moe.router_bias else 0)
    scores_E = logits_E.softmax(0) if moe.score == "softmax" else logits_E.sigmoid()
    chosen = sorted(range(moe.num_experts), key=lambda e: -(scores_E[e] + mixture.router.bias_E[e]).item())[: moe.num_active]
    total = sum(scores_E[e] for e in chosen) if moe.normalize else 1.0
    inner_D = mixture.latent_down(x_D) if mixture.latent_down else x_D
    outer_D = torch.zeros_like(inner_D)
    for e in chosen:
        weight = moe.scale * scores_E[e] / total
        z_D = inner_D * weight if moe.weigh_input else inner_D
        gate_F, up_F = experts.gate_EFD[e] @ z_D, experts.up_EFD[e] @ z_D
        if moe.expert_bias:
            gate_F, up_F = gate_F + experts.gate_bias_EF[e], up_F + experts.up_bias_EF[e]
        answer_D = experts.down_EDF[e] @ (F.silu(gate_F) * up_F) + (experts.down_bias_ED[e] if moe.expert_bias else 0)
        outer_D = outer_D + (answer_D if moe.weigh_input else weight * answer_D)
    routed_D = mixture.latent_up(outer_D) if mixture.latent_up else outer_D
    return routed_D + mixture.shared(x_D) if mixture.shared else routed_D


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Hold fp32 values within 1e-5, or 5e-6 of the largest where that is above 2: a processor's order of sums moves their last bits."""
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6 * max(2.0, float(expected.detach().abs().max())))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_shared": 2},
        {"latent_width": 12},
        {"normalize": False, "scale": 2.5},
        {"bias_rate": 0.1},
        {"router_bias": True, "expert_bias": True},
        {"weigh_input": True},
    ],
    ids=str,
)
def test_a_mixture_equals_a_loop_over_tokens(score: str, changes: dict[str, Any]) -> None:
    mixture = filled(MoE(config_of(score=score, **changes)))
    mixture.router.bias_E.copy_(torch.randn(8) * (mixture.router.moe.bias_rate > 0))
    x = torch.randn(2, 7, 32)
    found, _ = mixture(x)
    exact = copy.deepcopy(mixture).double()
    expected = torch.stack([mix_plainly(exact, token) for token in x.double().flatten(0, 1)]).view_as(x)
    assert_near(found, expected.float())
    probe = torch.randn_like(x)
    gradients = [torch.autograd.grad((y * probe).sum(), list(part.parameters())) for y, part in ((found, mixture), (expected, exact))]
    for fast, plain in zip(*gradients, strict=True):
        assert_near(fast, plain.float())


EXPERT_KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"expert_bias": True},
    "weigh_input": {"weigh_input": True},
    "latent": {"latent_width": 12},
    "one_active": {"num_active": 1},
    "many": {"num_experts": 64, "num_active": 6},
}


@pytest.mark.parametrize("kind", EXPERT_KINDS)
@pytest.mark.parametrize("empty", [False, True])
def test_grouped_experts_equal_looped_ones(kind: str, empty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, and gradients of tokens, weights and every matrix; also where most experts get no token."""
    config = config_of(**EXPERT_KINDS[kind])
    moe, experts = config.moe, filled(Experts(config))
    assert moe is not None
    x = torch.randn(40, moe.latent_width or 32, requires_grad=True)
    weights = torch.rand(40, moe.num_active, requires_grad=True)
    first, last = (3, 3 + moe.num_active) if empty else (0, moe.num_experts)
    chosen = torch.stack([first + torch.randperm(last - first)[: moe.num_active] for _ in range(40)])
    results, used = [], []
    for name in ("_grouped", "_looped"):
        plain = getattr(Experts, name)
        monkeypatch.setattr(experts, name, lambda *arguments, name=name, plain=plain: used.append(name) or plain(experts, *arguments))
        monkeypatch.setattr(module, "_can_group", lambda *_, name=name: name == "_grouped")
        found = experts(x, weights, chosen)
        probe = torch.linspace(-1, 1, found.numel()).view_as(found)
        results.append((found, *torch.autograd.grad((found * probe).sum(), (x, weights, *experts.parameters()))))
    assert used == ["_grouped", "_looped"]
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)
    learned = results[0][3].abs().amax((1, 2)) > 0
    assert torch.equal(learned, torch.bincount(chosen.flatten(), minlength=moe.num_experts) > 0)
    assert learned.all() or empty or kind == "many"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_product_equals_a_loop(dtype: torch.dtype) -> None:
    """Rows in groups by matrices, and columns in groups by rows; an empty group among them; what the compiler and autograd ask of it."""
    torch.manual_seed(0)
    counts = [3, 0, 5, 4]
    ends = torch.tensor(counts).cumsum(0).int()
    rows, others, matrices = (torch.randn(shape, dtype=dtype) for shape in ((12, 16), (12, 8), (4, 16, 8)))
    forward = torch.cat([part @ matrix for part, matrix in zip(rows.split(counts), matrices, strict=True)])
    torch.testing.assert_close(grouped_product(rows, matrices, ends), forward)
    backward = torch.stack([one.T @ other for one, other in zip(rows.split(counts), others.split(counts), strict=True)])
    torch.testing.assert_close(grouped_product(rows.T, others, ends), backward)
    torch.library.opcheck(grouped_product, (rows.requires_grad_(), matrices.requires_grad_(), ends))


@pytest.mark.parametrize(("groups", "active"), [(4, 2), (2, 1), (4, 4), (8, 3)])
def test_groups_limit_the_choice(groups: int, active: int) -> None:
    """arXiv:2412.19437, section 2.1.2 and DeepSeek-V3's model.py: the groups whose two best biased scores add up to most."""
    router = filled(Router(config_of(num_experts=32, num_active=4, num_groups=groups, active_groups=active, score="sigmoid")), 0.5)
    router.bias_E.copy_(torch.randn(32) * 0.3)
    x, size, crossed = torch.randn(2, 50, 32), 32 // groups, 0
    weights, chosen, _ = router(x)
    for n, token in enumerate(x.flatten(0, 1)):
        scores = (router.weight_ED @ token).sigmoid()
        biased = (scores + router.bias_E).tolist()

        def worth(group: int, biased: list[float] = biased) -> float:
            return sum(sorted(biased[group * size : (group + 1) * size])[-2:])

        allowed = sorted(range(groups), key=worth)[-active:]
        best = sorted((e for e in range(32) if e // size in allowed), key=lambda e: biased[e])[-4:]
        assert set(chosen[n].tolist()) == set(best)
        torch.testing.assert_close(weights[n], scores[chosen[n]] / scores[best].sum())
        crossed += set(best) != set(torch.tensor(biased).topk(4).indices.tolist())
    assert (crossed > 10) == (active < groups)


@pytest.mark.parametrize("jitter", [0.01, 0.2, 1.0])
def test_sparse_mixer_equals_its_description(jitter: float) -> None:
    """Phi-3.5-MoE's `sparsemixer` without noise: twice the best expert, weighed by a softmax over those not far behind it."""
    scores = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    weights, chosen = sparse_mixer(scores, jitter)
    shared = 0
    for n, row in enumerate(scores.tolist()):
        left = list(range(8))
        for place in range(2):
            best = max(left, key=lambda e: row[e])
            near = [e for e in left if (row[best] - row[e]) / max(abs(row[e]), row[best]) <= 2 * jitter]
            share = math.exp(row[best]) / sum(math.exp(row[e]) for e in near)
            assert chosen[n, place] == best
            assert weights[n, place].item() == pytest.approx(share, rel=1e-5)
            shared += len(near) > 1
            left.remove(best)
    assert shared > 0


def test_balancing_losses_are_the_published_ones() -> None:
    """arXiv:2101.03961, eq. 4, is `aux_loss` for a load that is even; arXiv:2202.08906, eq. 5, for all-zero logits is (ln E)^2."""
    router = Router(config_of(aux_loss=0.5, z_loss=0.25)).train()
    nn.init.zeros_(router.weight_ED)
    assert router(torch.randn(2, 8, 32))[2].penalty.item() == pytest.approx(0.5 + 0.25 * math.log(8) ** 2, rel=1e-5)


def balance_of(shares_TE: list[list[float]], chosen_TA: list[list[int]]) -> float:
    """arXiv:2412.19437, eq. 17 to 20, without alpha; for A = 1 also arXiv:2101.03961, eq. 4 to 6."""
    tokens, experts, active = len(shares_TE), len(shares_TE[0]), len(chosen_TA[0])
    total = 0.0
    for e in range(experts):
        f = experts / (active * tokens) * sum(e in chosen for chosen in chosen_TA)
        total += f * sum(shares[e] / sum(shares) for shares in shares_TE) / tokens
    return total


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("span", ["batch", "sequence"])
@pytest.mark.parametrize("active", [1, 2])
def test_auxiliary_loss_equals_the_formula(score: str, span: str, active: int) -> None:
    """Over all tokens together, or the mean over the sequences; and the z-loss, in its gradient too."""
    router = filled(Router(config_of(num_active=active, score=score, aux_loss=0.5, aux_span=span, z_loss=0.25)))
    x = torch.randn(3, 10, 32)
    _, chosen, routing = router(x)
    logits = x @ router.weight_ED.detach().T
    shares = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
    rows = (shares.flatten(0, 1)[None], chosen[None]) if span == "batch" else (shares, chosen.unflatten(0, (3, 10)))
    balance = [balance_of(*row) for row in zip(rows[0].tolist(), rows[1].tolist(), strict=True)]
    z = [math.log(sum(math.exp(logit) for logit in row)) ** 2 for row in logits.flatten(0, 1).tolist()]
    assert routing.penalty.item() == pytest.approx(0.5 * sum(balance) / len(balance) + 0.25 * sum(z) / 30, rel=1e-5)
    (slope,) = torch.autograd.grad(routing.penalty, router.weight_ED)
    router.weight_ED.data -= 1e-2 * slope
    _, again, after = router(x)
    if torch.equal(again, chosen):  # the load has no gradient
        assert (routing.penalty - after.penalty).item() == pytest.approx(1e-2 * slope.square().sum().item(), rel=0.1)


def test_one_bias_step_moves_towards_the_mean() -> None:
    """arXiv:2408.15664, algorithm 1: b_i = b_i + u sign(mean load - load_i)."""
    model = make("moe").train()
    model(tokens(4, 16))
    for router in model.routers():
        load = router.update_bias()
        assert load.sum() == 4 * 16 * 2
        assert torch.equal(router.bias_E, 0.01 * (load.mean() - load).sign())
        assert not router.load_E.any()


COUNTED = {"moe": {**EXPERTS, "score": "sigmoid", "bias_rate": 0.01, "aux_loss": 0.1, "z_loss": 0.01}, "num_predict": 1}


@pytest.mark.parametrize("recompute", [False, True])
def test_loads_are_counted_once(recompute: bool) -> None:
    """Micro-batches of unlike size add up; a block that is computed again for its backward pass does not count again."""
    model, plain = (make("grouped", **COUNTED).train() for _ in range(2))
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for router in model.routers():
        router.register_forward_hook(count)
    if recompute:
        for block in [*model.blocks, *(predictor.block for predictor in model.predictors)]:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    penalties = []
    for number, (rows, length) in enumerate([(4, 16), (2, 9), (3, 12)]):
        ids = tokens(rows, length, number)
        for each in (model, plain):
            loss, ahead = summed_nats(each, ids, ids.roll(-1))
            penalties.append(each.take_penalty())
            (loss + ahead + penalties[-1]).backward()
    assert calls == 3 * 4 * (2 if recompute else 1)
    assert penalties[0::2] == penalties[1::2]
    assert model.take_penalty() == 0
    counted = [64 + 18 + 36] * 3 + [60 + 16 + 33]  # the predictor sees one token less per row
    assert [router.load_E.sum().item() for router in model.routers()] == [2 * count for count in counted]
    for router, other in zip(model.routers(), plain.routers(), strict=True):
        assert torch.equal(router.load_E, other.load_E)
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=1e-6)


def test_evaluation_leaves_no_trace() -> None:
    model = make("moe")
    model(tokens(2, 8))
    assert model.take_penalty() == 0
    assert not any(router.load_E.any() for router in model.routers())


def test_counts_and_biases_stay_exact_in_bf16() -> None:
    """bf16 counts to 256, and loses a step of 0.001 on a bias of 1. The bias is moved and saved all the same."""
    model = make("moe").train()
    for router in model.routers():
        router.bias_E.fill_(1.001)
    model = model.bfloat16()
    for seed in range(3):
        model(tokens(16, 61, seed))
    for router in model.routers():
        assert router.weight_ED.dtype == torch.bfloat16
        assert router.load_E.double().sum() == 3 * 16 * 61 * 2
        assert torch.equal(router.bias_E, torch.full((8,), 1.001))
        assert router.to("meta").bias_E.is_meta
        assert set(router.state_dict()) == {"weight_ED", "bias_E"}


def variation_of_load(experts: int, active: int, bias_rate: float) -> float:
    """Train a small byte model on the lessons with AdamW; return the coefficient of variation of the load of the last 20 steps."""
    moe = {"num_experts": experts, "num_active": active, "expert_width": 24, "num_shared": 1, "first_dense": 1}
    shape = {"vocab_size": 256, "num_layers": 2, "width": 48, "num_heads": 4, "ffn_width": 128, "context": 64}
    model = Transformer(ModelConfig.model_validate({**shape, "moe": {**moe, "score": "sigmoid", "bias_rate": bias_rate}})).train()
    model.initialize(0)
    rate = 2e-3
    optimizers = make_optimizers(model, OptimizerConfig(name="adamw", lr=rate, embedding_lr=rate, head_lr=rate, other_lr=rate))
    text = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sorted(LESSONS.rglob("*.md")))), dtype=torch.uint8).long()
    generator, loads, losses = torch.Generator().manual_seed(0), [], []
    for _ in range(100):
        rows = text[torch.randint(len(text) - 65, (8, 1), generator=generator) + torch.arange(65)]
        loss, _ = summed_nats(model, rows[:, :-1], rows[:, 1:])
        (loss / 512).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        loads.append(model.routers()[0].update_bias())
        losses.append(loss.item() / 512)
    load_E = torch.stack(loads[-20:]).sum(0)
    assert load_E.sum() == 20 * 512 * active
    variation = (load_E.std(correction=0) / load_E.mean()).item()
    print(f"{experts} experts, bias rate {bias_rate}: variation of load {variation:.3f}, loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    assert losses[-1] < 3.2
    return variation


@pytest.mark.parametrize(("experts", "active", "most"), [(8, 2, 0.2), (64, 4, 0.5)])
def test_selection_bias_balances_a_language_model(experts: int, active: int, most: float) -> None:
    """Bytes are uneven, and so is what a router makes of them; the bias evens it out (arXiv:2408.15664)."""
    assert variation_of_load(experts, active, bias_rate=0.02) < most
    assert variation_of_load(experts, active, bias_rate=0.0) > 2 * most
