"""OMP_NUM_THREADS=1 python -m pytest tests/test_optimizer.py

Muon's options against slow twins, PyTorch and their papers; groups, schedules and the dial against the laws that they cite.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from openmai.base.config import validate
from openmai.base.errors import OpenmaiError
from openmai.model.config import ModelConfig, MoEConfig
from openmai.model.count import count_parameters
from openmai.model.transformer import Transformer
from openmai.train import optimizer as module
from openmai.train.config import GROUPS, LoopConfig, OptimizerConfig, PretrainConfig, ScheduleConfig, from_depth
from openmai.train.dial import turn
from openmai.train.optimizer import Muon, Recipe, group_of, make_optimizers, orthogonalize, ramp_factor, schedule_factor, set_rates

NANOCHAT = ModelConfig.model_validate(from_depth(2, "speed") | {"vocab_size": 64, "width": 32, "num_heads": 2, "ffn_width": 64})
EXPERTS = MoEConfig(num_experts=4, num_active=2, expert_width=16, router_bias=True)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def updated(starts: list[torch.Tensor], gradients: list[list[torch.Tensor]], **options) -> list[torch.Tensor]:
    """The parameters after a step of Muon for each list of gradients."""
    parameters = [torch.nn.Parameter(start.clone()) for start in starts]
    muon = Muon(parameters, **options)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        muon.step()
    return [parameter.data for parameter in parameters]


def test_polar_express_polynomials_are_the_best_ones():
    """Each is as high at its end as at the turn before and as low at its beginning as at the other: the best odd quintic there, up to
    a factor, and the factor centres what comes out around 1 (arXiv:2505.16932, sections 3 and 4).

    The interval begins where the one before left the smallest singular value, but not below the paper's cushion, 0.02407 of its end.
    """
    low, high = 1e-3, 1.0
    for number, (a, b, c) in enumerate(module._POLYNOMIALS["polar-express"][:6]):
        x = np.linspace(max(low, 0.02407327424182761 * high), high, 100_001)
        p = a * x + b * x**3 + c * x**5
        turns = p[1:-1][np.diff(np.sign(np.diff(p))) != 0]
        assert list(turns) == pytest.approx([p[-1], p[0]], abs=1e-6), number
        low = a * low + b * low**3 + c * low**5
        assert low + p[-1] == pytest.approx(2, abs=1e-6), number
        high = 2 - low
    assert low == pytest.approx(0.99882, abs=1e-5)


@pytest.mark.parametrize(("steps", "miss"), [(5, 0.15), (8, 0.02)])
def test_polar_express_comes_closer_than_newton_schulz(steps, miss):
    left, _, right = torch.linalg.svd(torch.randn(3, 40, 40, dtype=torch.float64))
    matrices = left @ torch.diag(torch.logspace(-2, 0, 40, dtype=torch.float64)) @ right
    found, classic = (torch.linalg.svdvals(orthogonalize(matrices, steps, method)) for method in ("polar-express", "newton-schulz"))
    # largest 1 / Frobenius norm of the input is 0.43, so the smallest singular value starts at 0.0043
    assert (found - 1).abs().max() < miss < (classic - 1).abs().max()


@pytest.mark.parametrize("method", ["newton-schulz", "polar-express"])
@pytest.mark.parametrize("shape", [(2, 48, 160), (2, 160, 48)])
def test_long_matrices_by_their_gram_matrix_are_the_same(method, shape):
    """Singular values over three decades; in double precision the products are those of the plain iteration."""
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    matrices = left * torch.logspace(0, -3, 48, dtype=torch.float64) @ right
    exact, fast = orthogonalize(matrices, 5, method), orthogonalize(matrices.float(), 5, method)
    assert (exact - fast).norm() / exact.norm() < 1e-3
    x = torch.randn(3, 8, 30, dtype=torch.float64) / 20
    polynomials = module._POLYNOMIALS["polar-express"][:4]
    assert torch.allclose(module._by_gram(x, polynomials), module._directly(x, polynomials), rtol=1e-9, atol=1e-9)


def test_updates_of_adamws_size_agree_with_pytorch():
    start, gradients = torch.randn(24, 64), torch.randn(3, 24, 64)
    ours = updated([start], [[gradient] for gradient in gradients], lr=0.01, momentum=0.9, weight_decay=0.1, recipe=Recipe(rms=True))
    single = torch.nn.Parameter(start.clone())
    theirs = torch.optim.Muon([single], lr=0.01, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        single.grad = gradient.clone()
        theirs.step()
    assert torch.allclose(ours[0], single.data, atol=2e-3)
    step = updated([torch.zeros(24, 64)], [[gradients[0]]], lr=1.0, recipe=Recipe("polar-express", 8, rms=True))[0]
    assert step.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.02)


def test_normuon_agrees_with_its_paper():
    """Algorithm 1 of arXiv:2510.05491 in plain NumPy: rows over the root of their running mean square, at one norm."""
    starts, gradients = [torch.zeros(6, 10), torch.zeros(2, 8, 4)], [[torch.randn(6, 10), torch.randn(2, 8, 4)] for _ in range(3)]
    found = updated(starts, gradients, lr=0.1, momentum=0.5, normuon=0.8)
    for index, experts in ((0, 1), (1, 2)):
        for expert in range(experts):
            buffer, mean = 0.0, 0.0
            weight = np.zeros_like(starts[index].reshape(experts, *starts[index].shape[-2:])[expert].numpy())
            for step in gradients:
                gradient = step[index].reshape(experts, *weight.shape)[expert].numpy()
                buffer = 0.5 * buffer + 0.5 * gradient
                update = orthogonalize(torch.from_numpy(0.5 * gradient + 0.5 * buffer)[None])[0].numpy()
                mean = 0.8 * mean + 0.2 * (update**2).mean(1, keepdims=True)
                evened = update / np.sqrt(mean)
                evened *= min(weight.shape) ** 0.5 / np.linalg.norm(evened)
                weight = weight - 0.1 * max(1, weight.shape[0] / weight.shape[1]) ** 0.5 * evened
            assert np.allclose(found[index].reshape(experts, *weight.shape)[expert].numpy(), weight, atol=1e-5)


def test_each_head_is_orthogonalised_alone():
    q, o = torch.randn(12, 10), torch.randn(10, 12)
    together = updated([torch.zeros(12, 10)], [[q]], lr=1.0)[0]
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros_like(x))], "recipe": Recipe(heads=3, columns=columns)}
        for x, columns in ((q, False), (o, True))
    ]
    muon = Muon(groups, lr=1.0)
    for group, gradient in zip(groups, (q, o), strict=True):
        group["params"][0].grad = gradient.clone()
    muon.step()
    heads = updated([torch.zeros(4, 10)] * 3, [list(q.split(4))], lr=1.0)
    assert torch.allclose(groups[0]["params"][0].data, torch.cat(heads), atol=1e-6)
    columns = updated([torch.zeros(10, 4)] * 3, [list(o.split(4, dim=1))], lr=1.0)
    assert torch.allclose(groups[1]["params"][0].data, torch.cat(columns, dim=1), atol=1e-6)
    assert not torch.allclose(groups[0]["params"][0].data, together, atol=0.1)


def test_heads_of_a_model_are_found():
    model = Transformer(NANOCHAT.model_copy(update={"num_kv_heads": 1}))
    muon = make_optimizers(model, OptimizerConfig(per_head=True))[0]
    names = {id(parameter): name.split(".", 2)[-1] for name, parameter in model.named_parameters()}
    found = {
        (group["recipe"].heads, group["recipe"].columns): {names[id(parameter)].removesuffix(".weight") for parameter in group["params"]}
        for group in muon.param_groups
    }
    assert found == {
        (2, False): {"attention.q"},
        (1, False): {"attention.k", "attention.v", "mlp.up", "mlp.down"},
        (2, True): {"attention.o"},
    }


def test_cautious_decay_only_where_the_update_shrinks_a_weight():
    start, gradient = torch.randn(8, 8), torch.randn(8, 8)
    plain, cautious, none = (
        updated([start], [[gradient]], lr=0.1, weight_decay=wd, cautious=c)[0] for wd, c in ((0.5, False), (0.5, True), (0.0, False))
    )
    shrinks = (start - none) * start > 0
    assert 10 < shrinks.sum() < 54
    assert torch.equal(torch.where(shrinks, plain, none), cautious)


def test_every_parameter_has_its_group():
    model = Transformer(NANOCHAT.model_copy(update={"moe": EXPERTS, "norm_weight": "scale", "sinks": True}))
    matrices = {id(parameter) for parameter in model.matrices()}
    groups: dict[str, set[str]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in matrices:
            groups.setdefault(group_of(name), set()).add(name.split(".")[-2] if name.endswith(("weight", "bias")) else name.split(".")[-1])
    assert set(groups) == set(GROUPS)
    assert groups["stream_scale"] == {"stream_scale_L"}
    assert groups["embedding_scale"] == {"embedding_scale_L"}
    assert groups["scalar"] == {"smear_gate", "smear_scale", "backout_scale", "sinks_H"}
    assert groups["router"] == {"weight_ED", "logit_bias_E"}
    assert groups["value_embedding"] == {"value_embedding"}
    assert groups["other"] == {"attention_norm", "mlp_norm", "q_norm", "k_norm", "norm", "embedding_norm", "value_gate"}


def test_groups_have_rates_moments_and_decay_of_their_own():
    config = OptimizerConfig.model_validate(
        {"head_lr": 0.5, "groups": {"embedding": {"betas": [0.7, 0.9], "weight_decay": 0.2}, "scalar": {"lr": 0.3}}, "eps": 1e-9}
    )
    model = Transformer(NANOCHAT)
    muon, adam = make_optimizers(model, config)
    assert sum(len(group["params"]) for optimizer in (muon, adam) for group in optimizer.param_groups) == len(list(model.parameters()))
    by_rate = {group["lr"]: group for group in adam.param_groups}
    embedding = next(group for group in adam.param_groups if group["params"][0] is model.embedding.weight)
    assert (embedding["lr"], embedding["betas"], embedding["weight_decay"], embedding["eps"]) == (0.05, (0.7, 0.9), 0.2, 1e-9)
    assert by_rate[0.5]["params"][0] is model.head.weight
    assert any(parameter is model.smear_scale for parameter in by_rate[0.3]["params"])
    with pytest.raises(OpenmaiError, match=r"groups\.haed: no such group; did you mean head"):
        validate(OptimizerConfig, {"groups": {"haed": {"lr": 1}}}, "test")
    with pytest.raises(OpenmaiError, match="cautious, normuon would have no effect"):
        validate(OptimizerConfig, {"name": "adamw", "cautious": True, "normuon": 0.9}, "test")


def test_decays_have_their_shapes():
    half = [schedule_factor(ScheduleConfig(warmup=0, decay=1.0, final=0.2, shape=shape), 50, 100) for shape in ("linear", "cosine", "sqrt")]
    assert half == pytest.approx([0.6, 0.6, 0.2 + 0.8 * (1 - math.sqrt(0.5))])
    quarter = schedule_factor(ScheduleConfig(warmup=0, decay=1.0, final=0.0, shape="cosine"), 25, 100)
    assert quarter == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_momentum_and_decay_follow_the_schedule():
    schedule = ScheduleConfig(warmup=0, decay=0.5, momentum_first=0.85, momentum_warmup=10, momentum_last=0.9, decay_fades=True)
    optimizers = make_optimizers(Transformer(NANOCHAT), OptimizerConfig(momentum=0.95, weight_decay=0.4))
    group = optimizers[0].param_groups[0]
    seen = []
    for step in (0, 5, 10, 49, 75, 99):
        set_rates(optimizers, schedule, step, 100)
        seen.append((group["momentum"], group["weight_decay"]))
    assert [momentum for momentum, _ in seen] == pytest.approx([0.85, 0.9, 0.95, 0.95, 0.925, 0.901])
    assert [decay for _, decay in seen] == pytest.approx(
        [0.4 * (1 + math.cos(math.pi * step / 100)) / 2 for step in (0, 5, 10, 49, 75, 99)]
    )


def test_rates_follow_the_batch_ramp():
    schedule = ScheduleConfig(warmup=0, decay=0.0, batch_ramp=(0.25, 0.5), ramp=0.4)
    assert schedule.ramp_of(16, 100) == ((20, 4), (20, 8))
    optimizers = make_optimizers(Transformer(NANOCHAT), OptimizerConfig())
    assert [set_rates(optimizers, schedule, step, 100) for step in (0, 19, 20, 39, 40, 99)] == pytest.approx(
        [0.5, 0.5, math.sqrt(0.5), math.sqrt(0.5), 1, 1]
    )
    assert ramp_factor(ScheduleConfig(), 0, 100) == 1
    with pytest.raises(OpenmaiError, match="rising shares between 0 and 1"):
        validate(ScheduleConfig, {"batch_ramp": [0.5, 0.25]}, "test")


def config(**settings) -> PretrainConfig:
    return PretrainConfig.model_validate({"shards": "s", "tokenizer": "t", "out": "o", **settings})


def test_the_law_at_its_reference_is_nanochats_recipe():
    chosen, said = turn(config(depth=12, family="speed", context=2048), 32768)
    assert (chosen.batch_rows * 2048, chosen.micro_rows) == (2**19, 4)
    assert chosen.loop.steps == round(12 * count_parameters(chosen.architecture(32768)).active_matmul / 2**19)
    found = chosen.optimizer
    assert (found.lr, found.embedding_lr, found.head_lr, found.weight_decay) == pytest.approx((0.02, 0.3, 0.008, 0.28))
    values = found.group("value_embedding")
    assert (values.lr, values.betas, values.weight_decay) == (pytest.approx(0.15), (0.8, 0.995), 0.01)
    assert (chosen.schedule.decay, chosen.schedule.final, chosen.schedule.warmup) == (0.65, 0.05, 40)
    assert "2,5" in said
    assert "0.02 (matrices)" in said


def test_the_law_scales_as_published():
    """nanochat's own formulas for depth 20 and 4, from the parameters of matrices and head."""
    reference = count_parameters(ModelConfig.model_validate(from_depth(12, "speed") | {"vocab_size": 32768})).active_matmul
    for depth in (4, 20):
        chosen, _ = turn(config(depth=depth, family="speed"), 32768)
        ratio = count_parameters(chosen.architecture(32768)).active_matmul / reference
        batch = 2 ** round(math.log2(2**19 * ratio**0.383))
        assert chosen.batch_rows * 512 == batch
        assert chosen.optimizer.lr == pytest.approx(0.02 * math.sqrt(batch / 2**19))
        assert chosen.optimizer.embedding_lr == pytest.approx(0.3 * math.sqrt(batch / 2**19) * (64 * depth / 768) ** -0.5)
        assert chosen.optimizer.weight_decay == pytest.approx(0.28 * math.sqrt(batch / 2**19) / ratio)


def test_olmos_ladder():
    chosen, _ = turn(config(depth=12, law="olmo", optimizer={"name": "adamw"}, context=2048), 32768)
    size = count_parameters(chosen.architecture(32768)).active_matmul
    assert chosen.optimizer.lr == pytest.approx(0.0047 * (size / 108e6) ** (-1 / 3) / 2)
    assert chosen.batch_rows * 2048 == 2**18
    assert chosen.optimizer.betas == (0.9, 0.99)
    assert chosen.loop.steps * 2**18 == pytest.approx(20 * size, rel=1e-3)
    assert turn(config(depth=2, optimizer={"name": "muon-rms"}), 256)[0].optimizer.orthogonalize == "polar-express"


def test_whatever_is_given_stays():
    given = {"lr": 0.5, "groups": {"head": {"lr": 0.1}}, "clip": 2.0}
    chosen, _ = turn(config(depth=2, batch_rows=12, optimizer=given, schedule={"warmup": 3}, loop={"steps": 70}, law="nanochat"), 256)
    assert (chosen.optimizer.lr, chosen.optimizer.clip, chosen.schedule.warmup, chosen.loop.steps) == (0.5, 2.0, 3, 70)
    assert (chosen.batch_rows, chosen.micro_rows) == (12, 12)
    head = chosen.optimizer.group("head")
    assert (head.lr, head.betas) == (0.1, (0.8, 0.96))
    assert turn(config(depth=2, batch_rows=12, loop={"steps": 7}, law="none"), 256)[0].optimizer == OptimizerConfig()
    assert turn(config(depth=2, batch_rows=48, loop={"steps": 7}), 256, processes=3)[0].micro_rows == 16


def test_a_ramp_trains_on_the_tokens_of_the_law():
    chosen, _ = turn(config(depth=2, schedule={"batch_ramp": [0.25, 0.5], "ramp": 0.5}), 256)
    flat, _ = turn(config(depth=2), 256)
    ramp = chosen.schedule.ramp_of(chosen.batch_rows, chosen.loop.steps)
    rows = sum(steps * fewer for steps, fewer in ramp) + (chosen.loop.steps - sum(steps for steps, _ in ramp)) * chosen.batch_rows
    assert rows == pytest.approx(flat.loop.steps * flat.batch_rows, rel=0.03)


def test_the_speed_family_has_nanochats_features_and_needs_a_depth():
    shape = config(depth=4, family="speed").architecture(64)
    assert (shape.ffn_width, shape.activation, shape.value_embeddings, shape.smear) == (1024, "relu2", True, True)
    with pytest.raises(OpenmaiError, match="family needs depth"):
        validate(PretrainConfig, {"shards": "s", "tokenizer": "t", "out": "o", "preset": "mai-1", "family": "speed"}, "test")
    assert LoopConfig().steps == 0


_WORKER = """
import sys, torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from openmai.parallel.exchange import Pieces
from openmai.parallel.mesh import Axis
from openmai.train.optimizer import Muon, Recipe

dist.init_process_group("gloo")
rank = dist.get_rank()
axis = Axis(dist.group.WORLD, rank, 2)
torch.manual_seed(0)
starts = [torch.randn(8, 6), torch.randn(6, 12), torch.randn(12, 10)]
gradients = [[torch.randn_like(start) for start in starts] for _ in range(3)]
results = []
for spread in (False, True):
    pieces = [Pieces.of(tuple(start.shape), dim, axis, 2 if dim is not None else 1) for start, dim in zip(starts, (0, 1, None))]
    place = lambda x, i: x[pieces[i].held[rank]].clone() if spread else x.clone()
    parameters = [torch.nn.Parameter(place(start, i)) for i, start in enumerate(starts)]
    if spread:
        for parameter, piece in zip(parameters, pieces):
            parameter.pieces = piece
    recipe = Recipe("polar-express")
    groups = [{"params": parameters[2:]}, {"params": parameters[:1], "recipe": Recipe(heads=2)}]
    groups.append({"params": parameters[1:2], "recipe": Recipe(heads=2, columns=True)})
    muon = Muon(groups, lr=0.1, weight_decay=0.1, recipe=recipe, normuon=0.9, cautious=True)
    for step in gradients:
        for i, (parameter, gradient) in enumerate(zip(parameters, step)):
            parameter.grad = place(gradient, i)
        muon.step()
    results.append([p.data for p in parameters])
difference = max((whole[pieces[i].held[rank]] - part).abs().max().item() for i, (whole, part) in enumerate(zip(*results)))
sys.stdout.write(f"{difference}\\n")  # in one piece: the other process writes to the same pipe
dist.destroy_process_group()
"""


def test_muons_options_are_the_same_on_two_processes(tmp_path: Path):
    script = tmp_path / "worker.py"
    script.write_text(_WORKER)
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) == 2
    assert max(map(float, done.stdout.split())) < 1e-5
