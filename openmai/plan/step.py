"""Seconds of one optimizer step: what each GPU computes, what it waits for, and what the pipeline leaves idle.

A matrix product takes its FLOPs at the measured ceiling plus its bytes at memory speed, so small and flat ones are slower. Each cost stands
apart and is scaled by the calibration of a software generation (calibration.py). Times are per process of a pipeline stage and micro-batch,
forward and backward apart; the slowest stage sets the pace (arXiv:2104.04473, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from openmai.model.config import ModelConfig
from openmai.model.count import keys_seen
from openmai.plan.calibration import Calibration
from openmai.plan.hardware import GPU
from openmai.plan.layout import Array, Grid
from openmai.plan.network import Links, context_bytes, exchange_seconds, expert_copies, tensor_bytes
from openmai.plan.stages import Kind, local_parameters, stages_of

Cost = dict[str, tuple[Array, Array]]
"seconds forward and backward, by what they go to"


@dataclass(frozen=True)
class Machine:
    """What a step runs on."""

    gpu: GPU
    calibration: Calibration
    precision: str

    @property
    def bf16(self) -> float:
        """FLOP/s of the products that always run in bf16: output layer and router."""
        return self.gpu.ceiling("bf16") * (self.calibration.matmul if self.precision == "bf16" else OUTPUT)

    @property
    def low(self) -> float:
        """FLOP/s of the products that run in `precision`."""
        return self.gpu.ceiling(self.precision) * self.calibration.matmul

    @property
    def memory(self) -> float:
        return self.gpu.memory_gb_s * 1e9 * MEMORY


PRODUCTS = ("matmul", "experts", "output")
"costs whose backward pass is half for the inputs' gradients and half for the weights'"
OUTPUT = 0.8
"share of the bf16 ceiling that large bf16 products reach beside others in fp8"
MEMORY = 0.85
"share of the memory bandwidth that elementwise kernels reach"


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step per layout, by what they go to; `total` is their sum."""

    parts: dict[str, Array]
    micro_batches: Array
    slowest: Array
    "stage that sets the pace"
    total: Array = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", sum(self.parts.values()))


def step_seconds(model: ModelConfig, grid: Grid, sequence: int, batch_rows: int, machine: Machine) -> StepTime:
    """Work out one step of `batch_rows` sequences for every layout of `grid`."""
    stages, calibration = stages_of(model, grid.pp, grid.virtual, grid.schedule), machine.calibration
    micro_batches = batch_rows / (grid.dp * grid.micro_rows)
    tokens = grid.micro_rows * sequence / grid.cp
    costs = [layer_cost(model, kind, grid, sequence, machine) for kind in stages.kinds]
    first, last = embedding_cost(model, tokens, machine), head_cost(model, grid, tokens, machine, costs[-1])
    names = {name for cost in [*costs, first, last] for name in cost}
    kept: dict[tuple[object, ...], dict[str, Array]] = {}  # stages that hold the same cost the same
    halves: dict[tuple[object, ...], tuple[Array, Array]] = {}
    places = []
    for stage in range(grid.pp):
        held = [(stages.counts[stage, number], cost) for number, cost in enumerate(costs)]
        held += [(1, first)] * (stage == 0) + [(1, last)] * (stage == grid.end)
        key = (*stages.counts[stage], stage == 0, stage == grid.end)
        if key not in kept:
            kept[key] = {name: sum(amount * (cost[name][0] + cost[name][1]) for amount, cost in held if name in cost) for name in names}
            halves[key] = _halves(held)
        places.append(list(kept).index(key))
    shared = np.zeros(len(grid))
    seconds = np.array([sum(held.values()) + shared for held in kept.values()])
    slowest = seconds.argmax(axis=0)
    parts = {
        name: micro_batches * np.take_along_axis(np.array([held[name] + shared for held in kept.values()]), slowest[None], axis=0)[0]
        for name in names
    }
    longest = seconds.max(axis=0)
    forward, weights = (
        np.take_along_axis(np.array([held[way] + shared for held in halves.values()]), slowest[None], axis=0)[0] for way in (0, 1)
    )
    parts["bubble"] = bubble_seconds(grid.schedule, grid.pp, grid.virtual, forward, longest - forward - weights, weights)
    parts["pipeline"] = _pipeline_seconds(model, grid, tokens, micro_batches, machine)
    parts |= _state_seconds(model, grid, machine, micro_batches, longest)
    parts = {name: seconds / calibration.speed for name, seconds in parts.items()}
    return StepTime(parts, micro_batches, np.array([places.index(place) for place in range(len(kept))])[slowest])


def _add(left: Cost, right: Cost) -> Cost:
    return {
        name: tuple(a + b for a, b in zip(left.get(name, (0.0, 0.0)), right.get(name, (0.0, 0.0)), strict=True))
        for name in [*left, *(name for name in right if name not in left)]
    }


def _halves(held: list[tuple[int, Cost]]) -> tuple[Array, Array]:
    """Return the seconds of a stage's forward pass, and of its weights' gradients: half of what products take backward."""
    forward = sum(amount * sum(seconds for seconds, _ in cost.values()) for amount, cost in held)
    return forward, sum(amount * cost[name][0] for amount, cost in held for name in PRODUCTS if name in cost)


def bubble_seconds(schedule: str, pp: int, virtual: int, forward: Array, inputs: Array, weights: Array) -> Array:
    """Return the idle time of a step, from the seconds of a stage's forward pass, of its inputs' gradients and of its weights'.

    (p - 1) / v passes for 1F1B and interleaved (arXiv:2104.04473, section 2.2). ZB-H1 puts the weights' gradients into the gap: F + B - W
    in place of F + B + W (arXiv:2401.10241, table 1). ZB-V has none of its own if all three take equal time (section 6), but whoever waits
    for all before the optimizer's step, as PyTorch and we do, waits for the first and last half stages; B must exceed F and W.
    """
    if schedule == "zbv":
        return (pp - 1) * np.maximum(np.maximum(forward, inputs) / 2, inputs - weights)
    if schedule == "zero-bubble":
        return (pp - 1) / virtual * np.maximum(np.maximum(forward, inputs), forward + inputs - weights)
    return (pp - 1) / virtual * (forward + inputs + weights)


def _product(
    m: Array, k: Array, n: Array, rate: float, machine: Machine, bytes_each: float = 2.0, matrices: Array = 1
) -> tuple[Array, Array]:
    """Return the seconds of `matrices` products (m, k) x (k, n), forward and backward; gradients of weights are added up in fp32."""
    flops, moved = 2.0 * m * k * n, bytes_each * (m * k + k * n) + 2.0 * m * n
    forward = matrices * (flops / rate + moved / machine.memory)
    backward = matrices * (2 * flops / rate + (2 * moved + 8.0 * k * n) / machine.memory)
    return forward, backward


def layer_cost(model: ModelConfig, kind: Kind, grid: Grid, sequence: int, machine: Machine) -> Cost:
    """Return the seconds of one layer for a micro-batch."""
    tokens = grid.micro_rows * sequence / grid.cp
    products = _attention_products(model, grid, tokens, machine)
    core = _attention_core(model, kind, grid, sequence, machine)
    kernels = 14.0
    cost: Cost = {}
    elements = _attention_elements(model, grid, tokens)
    if kind.moe:
        shared, cost["experts"] = _expert_products(model, grid, tokens, machine)
        products = [*products, *shared]
        cost["dispatch"] = _dispatch(model, grid, tokens, machine)
        elements = elements + tokens / grid.tp * (10 if model.moe and model.moe.num_shared else 6) * model.width
        if model.moe and model.moe.num_shared:
            elements = elements + tokens / grid.tp * 6 * model.moe.num_shared * model.moe.expert_width
        kernels = kernels + 40.0 + 6.0 * (model.moe.num_experts if model.moe else 0) / grid.ep
    else:
        hidden = model.ffn_width / grid.tp
        products = [
            *products,
            _product(tokens, model.width, hidden * (2 if model.gated else 1), machine.low, machine, _bytes(machine)),
            _product(tokens, hidden, model.width, machine.low, machine, _bytes(machine)),
        ]
        elements = elements + tokens / grid.tp * (10 * model.width + (6 if model.gated else 4) * model.ffn_width)
        kernels += 4.0
    quantised = machine.precision != "bf16"
    if quantised:
        wide = model.ffn_width if not kind.moe else 0
        elements = elements + tokens / grid.tp * 4 * (2 * model.width + model.num_heads * model.head + wide)
        kernels += 10.0
    calibration = machine.calibration
    cost["matmul"] = (sum(forward for forward, _ in products), sum(backward for _, backward in products))
    cost["attention"] = core
    memory = elements / machine.memory * calibration.memory
    cost["elementwise"] = (memory, 2 * memory)
    if kind.moe:
        cost["all-to-all"] = _all_to_all(model, grid, tokens, machine, cost)
    links = Links.of(machine.gpu)
    whole, exchanges = tensor_bytes(model, kind, grid, tokens)
    each = np.where(grid.tp > 1, links.ring(whole, grid.tp, 1), 0.0) * exchanges * calibration.tp
    cost["tensor parallel"] = (each, each)
    if model.mla is None or np.any(grid.cp > 1):
        ring = context_bytes(model, grid, tokens) / links.speed(grid.cp, grid.tp)
        hidden_by = 0.7 * (core[0])
        cost["context parallel"] = (np.maximum(ring - hidden_by, 0.1 * ring), np.maximum(2 * ring - 2 * hidden_by, 0.2 * ring))
    cost = _recompute(cost, grid)
    host = kernels * calibration.launch_us * 1e-6
    busy = tuple(sum(seconds[way] for seconds in cost.values()) for way in (0, 1))
    cost["waiting for the host"] = (np.maximum(host - busy[0], 0.0), np.maximum(2 * host - busy[1], 0.0))
    return cost


def _recompute(cost: Cost, grid: Grid) -> Cost:
    """Add to the backward pass what it computes again: all of a layer with full checkpointing, norms and activations with selective."""
    some = grid.full | grid.selective
    return {
        name: (forward, backward + np.where(some if name == "elementwise" else grid.full, forward, 0.0))
        for name, (forward, backward) in cost.items()
    }


def _bytes(machine: Machine) -> float:
    return {"bf16": 2.0, "fp8": 1.0, "mxfp8": 1.0, "nvfp4": 0.5625}[machine.precision]


def _attention_products(model: ModelConfig, grid: Grid, tokens: Array, machine: Machine) -> list[tuple[Array, Array]]:
    width, heads, rate, size = model.width, model.num_heads / grid.tp, machine.low, _bytes(machine)
    if model.mla is None:
        groups = np.maximum(model.kv_heads / grid.tp, 1.0)
        return [
            _product(tokens, width, (heads + 2 * groups) * model.head, rate, machine, size),
            _product(tokens, heads * model.head, width, rate, machine, size),
        ]
    mla = model.mla
    down = _product(tokens / grid.tp, width, (mla.query_rank or 0) + mla.kv_rank + mla.rope_width, rate, machine, size)
    return [
        down,
        _product(tokens, mla.query_rank or width, heads * model.head, rate, machine, size),
        _product(tokens, mla.kv_rank, heads * (mla.nope_width + mla.value_width), rate, machine, size),
        _product(tokens, heads * mla.value_width, width, rate, machine, size),
    ]


def _attention_elements(model: ModelConfig, grid: Grid, tokens: Array) -> Array:
    """Return the values that norms, rotation and the residual move in the attention half, at two bytes each."""
    heads = (model.num_heads + model.kv_heads) * model.head
    if model.mla:
        heads = 2 * model.num_heads * model.head + model.num_heads * model.mla.value_width
    rotated = 4 * heads * ((model.positions == "rope") + model.qk_norm)
    return tokens / grid.tp * (10 * model.width + rotated)


def _attention_core(model: ModelConfig, kind: Kind, grid: Grid, sequence: int, machine: Machine) -> tuple[Array, Array]:
    """Return the seconds of scores and weighted values: fused kernels redo the scores backward, 2.5 times the FLOPs of the forward pass.

    `plain` attention, from before fused kernels, computes the whole square and moves every score through memory several times.
    """
    tokens, heads = grid.micro_rows * sequence / grid.cp, model.num_heads / grid.tp
    values = model.mla.value_width if model.mla else model.head
    calibration = machine.calibration
    rate = machine.gpu.ceiling("bf16") * calibration.attention
    seen = sequence if calibration.plain_attention else keys_seen(model, kind.layer, sequence)
    narrow = 1.0 + 32.0 / model.head  # narrow heads leave the tensor cores waiting for the softmax
    forward = 2.0 * tokens * heads * seen * (model.head + values) / rate * narrow
    if not calibration.plain_attention:
        return forward, 2.5 * forward
    scores = tokens * heads * sequence / machine.memory * calibration.memory
    again = np.where(grid.selective, forward + 10 * scores, 0.0)
    return forward + 10 * scores, 2 * forward + 16 * scores + again


def _expert_products(
    model: ModelConfig, grid: Grid, tokens: Array, machine: Machine
) -> tuple[list[tuple[Array, Array]], tuple[Array, Array]]:
    """Return the products that every token meets (router, shared, latent), and the routed experts'; these wait for the fullest process."""
    moe = model.moe
    assert moe is not None
    own, rate, size = tokens / grid.tp, machine.low, _bytes(machine)
    everyone = [_product(own, model.width, moe.num_experts, machine.bf16 / 2, machine)]
    if moe.num_shared:
        hidden = moe.num_shared * moe.expert_width
        everyone += [
            _product(tokens, model.width, 2 * hidden / grid.tp, rate, machine, size),
            _product(tokens, hidden / grid.tp, model.width, rate, machine, size),
        ]
    if moe.latent_width:
        everyone += [_product(own, model.width, 2 * moe.latent_width, rate, machine, size)]
    width, held = moe.latent_width or model.width, moe.num_experts / grid.ep
    rows = expert_copies(model, grid, tokens) * grid.etp * machine.calibration.imbalance / held
    hidden = moe.expert_width / grid.etp
    rate = rate * machine.calibration.experts
    up = _product(rows, width, 2 * hidden, rate, machine, size, held)
    down = _product(rows, hidden, width, rate, machine, size, held)
    return everyone, (up[0] + down[0], up[1] + down[1])


def _dispatch(model: ModelConfig, grid: Grid, tokens: Array, machine: Machine) -> tuple[Array, Array]:
    """Return the seconds of sorting tokens by expert and back, of the experts' activation, and of the router's choice."""
    moe = model.moe
    assert moe is not None
    copies = expert_copies(model, grid, tokens) * machine.calibration.imbalance
    width, hidden = moe.latent_width or model.width, moe.expert_width
    values = 4 * width + 3 * hidden
    if moe.expert_bias:  # added, and summed up in the backward pass, by kernels of their own
        values += 4 * hidden + 2 * width
    if model.glu_limit:  # clamped by kernels of their own
        values += 4 * hidden
    moved = copies * 2 * values + tokens / grid.tp * moe.num_experts * 24
    if machine.precision != "bf16":
        moved = moved + copies * 4 * (width + hidden)
    seconds = moved / machine.memory * machine.calibration.dispatch
    return seconds, 2 * seconds


def _all_to_all(model: ModelConfig, grid: Grid, tokens: Array, machine: Machine, beside: Cost) -> tuple[Array, Array]:
    """Return the seconds of sending tokens to their experts and back that neither a fused kernel nor other work hides."""
    calibration = machine.calibration
    links = Links.of(machine.gpu)
    one = exchange_seconds(model, grid, tokens * calibration.imbalance, links, 2.0, calibration.once_per_domain) * calibration.ep
    forward, backward = (calibration.ep_hidden * sum(cost[way] for cost in beside.values()) for way in (0, 1))
    return np.maximum(2 * one - forward, 0.1 * one), np.maximum(2 * one - backward, 0.1 * one)


def embedding_cost(model: ModelConfig, tokens: Array, machine: Machine) -> Cost:
    seconds = 6.0 * tokens * model.width / machine.memory
    return {"elementwise": (seconds, 2 * seconds)}


def head_cost(model: ModelConfig, grid: Grid, tokens: Array, machine: Machine, last_layer: Cost) -> Cost:
    """Return the seconds of logits and loss, in bf16 with fp32 sums, and of the modules that predict further ahead."""
    vocabulary = model.vocab_size / grid.tp
    forward, backward = _product(tokens, model.width, vocabulary, machine.bf16, machine)
    moved = tokens * vocabulary / machine.memory
    cost: Cost = {"output": (forward + 4 * moved, backward + 4 * moved)}
    for _ in range(model.num_predict):
        join = _product(tokens, 2 * model.width, model.width / grid.tp, machine.low, machine, _bytes(machine))
        cost = _add(cost, {**last_layer})
        cost = _add(cost, {"output": (forward + 4 * moved, backward + 4 * moved), "matmul": join})
    return cost


def _pipeline_seconds(model: ModelConfig, grid: Grid, tokens: Array, micro_batches: Array, machine: Machine) -> Array:
    """Return the seconds in which stages wait for each other's activations: half of all sends, for the others are beside other work."""
    if grid.pp == 1:
        return 0.0 * tokens
    links = Links.of(machine.gpu)
    stride = grid.tp * grid.cp * grid.dp
    speed = np.where(stride * grid.pp <= links.domain, links.fast, links.slow)
    one = 2.0 * tokens * model.width / grid.tp / speed + 20e-6
    return one * 2 * grid.virtual * micro_batches * machine.calibration.pp


def _state_seconds(model: ModelConfig, grid: Grid, machine: Machine, micro_batches: Array, longest: Array) -> dict[str, Array]:
    """Return the seconds of exchanging gradients and weights that no computation hides, and of the optimizer."""
    calibration, links = machine.calibration, Links.of(machine.gpu)
    dense, experts = local_parameters(model, grid)
    dense, experts = dense.max(axis=0), experts.max(axis=0)
    stride, expert_stride = grid.tp, grid.ep * grid.etp
    grads, weights = calibration.gradient_bytes, 2.0
    sharded = grid.zero >= 1
    slow = calibration.dp
    once = links.ring(grads * dense, grid.shards, stride) + links.ring(grads * experts, grid.expert_shards, expert_stride)
    gather = links.ring(weights * dense, grid.shards, stride) + links.ring(weights * experts, grid.expert_shards, expert_stride)
    plain = slow * np.where(sharded, once + gather, 2 * once)
    across = np.where(
        grid.dp_replicate > 1,
        2 * links.ring(grads * (dense / grid.shards + experts / grid.expert_shards), grid.dp_replicate, grid.shards * grid.tp),
        0.0,
    )
    # without FSDP the exchange can hide behind one backward pass of the last micro-batch and one forward pass of the first
    window = longest * calibration.dp_hidden
    exposed = np.maximum(plain - window, (1 - calibration.dp_hidden) * plain)
    # FSDP gathers for every pass and scatters every gradient, all beside the computation of that micro-batch
    every = slow * (2 * gather + once) * micro_batches
    busy = longest * micro_batches * calibration.dp_hidden
    fsdp = np.maximum(every - busy, (1 - calibration.dp_hidden) * every * 0.5)
    state = (dense / np.where(sharded, grid.shards, 1) + experts / np.where(sharded, grid.expert_shards, 1)) * 30.0
    return {
        "data parallel": np.where(grid.shards > 1, np.where((grid.zero == 3) & (grid.pp == 1), fsdp, exposed), 0.0) + across,
        "optimizer": state / machine.memory,
    }
