"""What has to fit into each GPU: weights, gradients, optimizer, activations, buffers, per pipeline stage.

Bytes per process. `State` says which copies of the weights there are; a layer keeps for its backward pass what its operators save, and
`Kept` says which operators. Dense layers follow arXiv:2205.05198, section 4, whose 34 s b h is this list with dropout's masks;
tests/test_plan_memory.py holds it against the tensors that PyTorch really saves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from openmai.model.config import ModelConfig
from openmai.model.count import count_layer
from openmai.plan.layout import Array, Grid
from openmai.plan.stages import Kind, local_parameters, stages_of

RUNTIME_GB = 3.0
"10^9 bytes that a process takes before it computes: CUDA's context and NCCL's buffers, an assumption"
FRAGMENTATION = 0.06
"share of activations and buffers that the allocator cannot use, an assumption"


@dataclass(frozen=True)
class State:
    """Bytes per parameter of what training keeps."""

    weights: float = 2.0
    "copy that computes"
    gradients: float = 4.0
    master: float = 4.0
    "fp32 weights that the optimizer changes"
    moments: float = 8.0
    "of the optimizer: 8 for AdamW, 4 for Muon"
    matrix_moments: float | None = None
    "of matrices inside the layers, where another optimizer takes them (Muon: 4)"

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.master + self.moments


MIXED = State()
"bf16 weights, fp32 gradients and master weights, AdamW: Megatron-LM's 18 bytes"


@dataclass(frozen=True)
class Kept:
    """What decides which tensors a layer keeps."""

    bytes_each: float = 2.0
    "of an activation"
    fused: bool = True
    "norms and activations are single kernels"
    plain_attention: bool = False
    "all scores are kept, and dropout's masks"
    sequence_parallel: bool = True
    "tensor parallelism divides norms and residuals, too"
    imbalance: float = 1.0
    "tokens of the fullest process over the mean"
    logit_copies: float = 2.0
    "copies of all logits at the end; 0: the loss is worked out by pieces, as openmai does"
    sums_apart: bool = True
    "a matrix's gradient is whole before it is added to the fp32 sum (Megatron-LM without its fused kernel)"


@dataclass(frozen=True)
class StageMemory:
    """Bytes per process, (S, layouts)."""

    weights: Array
    gradients: Array
    optimizer: Array
    activations: Array
    "of all micro-batches in flight"
    buffers: Array
    "gathered weights, one layer computed again, logits, exchanged tokens"
    runtime: Array
    "context, communication, fragmentation"
    in_flight: Array
    "micro-batches whose activations a stage holds, in units of its layers"
    total: Array = field(init=False)

    def __post_init__(self) -> None:
        total = self.weights + self.gradients + self.optimizer + self.activations + self.buffers + self.runtime
        object.__setattr__(self, "total", total)

    @property
    def peak(self) -> Array:
        """Bytes of the fullest stage of each layout."""
        return self.total.max(axis=0)


def stage_memory(
    model: ModelConfig, grid: Grid, sequence: int, batch_rows: int, state: State = MIXED, kept: Kept | None = None
) -> StageMemory:
    """Work out every stage of every layout in `grid`."""
    how = kept or Kept()
    stages, zeros = stages_of(model, grid.pp, grid.virtual, grid.schedule), np.zeros((grid.pp, len(grid)))
    tokens = grid.micro_rows * sequence / grid.cp
    micro_batches = batch_rows / (grid.dp * grid.micro_rows)
    dense, experts = local_parameters(model, grid)
    held, again = zeros.copy(), zeros.copy()
    everything: Array = 0.0
    for number, kind in enumerate(stages.kinds):
        everything = layer_activations(model, kind, grid, sequence, tokens, how)
        inputs = how.bytes_each * tokens / (grid.tp if how.sequence_parallel else 1) * model.width
        some = everything - _recomputed(model, kind, grid, sequence, tokens, how)
        amount = stages.counts[:, number, None]
        held += amount * np.where(grid.full, inputs, np.where(grid.selective, some, everything))
        again = np.maximum(again, np.where((amount > 0) & grid.full, everything, 0.0))
    flight = in_flight(grid, micro_batches)
    activations = held * flight
    activations[grid.end] += tokens * how.bytes_each * 2 * model.width / grid.tp
    activations[grid.end] += model.num_predict * (everything + tokens / grid.tp * how.bytes_each * 6 * model.width)
    buffers = again + zeros
    logits = how.logit_copies * how.bytes_each * tokens * model.vocab_size / grid.tp
    buffers[grid.end] = np.maximum(buffers[grid.end], logits + state.weights * model.vocab_size * model.width / grid.tp)
    if how.sums_apart:
        hidden = 3 * model.ffn_width if model.gated else 2 * model.ffn_width
        matrix = model.width * model.ffn_width * (2 if model.gated else 1) / grid.tp * (state.weights + state.gradients)
        has_dense = sum(stages.counts[:, n, None] for n, kind in enumerate(stages.kinds) if not kind.moe)
        freed = np.maximum(matrix - how.bytes_each * hidden * tokens / grid.tp, 0.0)  # less what the layer has let go of by then
        buffers = np.maximum(buffers, np.where(has_dense > 0, freed, 0.0))
    if model.moe:
        width = model.moe.latent_width or model.width
        sent = tokens / grid.tp * model.moe.num_active * how.imbalance * width * how.bytes_each
        buffers += np.where(grid.ep > 1, 2 * sent, 0.0)
    weights, gradients, optimizer, gathered = _state_bytes(model, grid, dense, experts, state, how.bytes_each)
    buffers = buffers + gathered
    runtime = zeros + RUNTIME_GB * 1e9 + FRAGMENTATION * (activations + buffers)
    return StageMemory(weights, gradients, optimizer, activations, buffers, runtime, flight + zeros)


def in_flight(grid: Grid, micro_batches: Array) -> Array:
    """Return the micro-batches whose activations each stage holds at most, (S, layouts), in units of all its layers.

    1F1B: as many as there are stages from here on; interleaved: 2 (p - 1 - stage) + (v - 1) p + 1 chunks (arXiv:2104.04473, section 2.2,
    and Megatron-LM's schedule); zero-bubble schedules p on every stage, for a stage keeps what its weights' gradients wait for
    (arXiv:2401.10241, sections 2.3 and 6); none more than there are.
    """
    stage = np.arange(grid.pp)[:, None]
    if grid.splits_backward:
        return np.minimum(grid.pp + 0 * stage, micro_batches)
    if grid.virtual > 1:
        chunks = 2 * (grid.pp - 1 - stage) + (grid.virtual - 1) * grid.pp + 1
        return np.minimum(chunks / grid.virtual, micro_batches)
    return np.minimum(grid.pp - stage, micro_batches)


def layer_activations(model: ModelConfig, kind: Kind, grid: Grid, sequence: int, tokens: Array, how: Kept) -> Array:
    """Return the bytes that one layer keeps of a micro-batch.

    Norms keep input and output (composites in fp32: the input and the normed input once more), attention its queries, keys, values and
    output, a gated feed-forward its three hidden values (a composite a fourth), dispatched experts the same per pair of token and expert.
    """
    size, wide, width = how.bytes_each, how.bytes_each if how.fused else 8.0, model.width
    norms = 1 if model.parallel else 4 if model.norm_place == "both" else 2
    moe = model.moe if kind.moe else None
    read = min(norms, 2)  # normed streams that products read and keep; what a norm behind them gives is only added
    if moe and not (how.fused or moe.num_shared or size == 4):
        read -= 1  # the router keeps a copy in fp32, experts keep gathered copies
    stream = (norms * wide + read * size) * width + 4 * norms
    if how.plain_attention:
        stream += 2 * width
    groups = np.maximum(model.kv_heads, grid.tp)
    if model.mla:
        mla, ranks = model.mla, (model.mla.query_rank or 0) + model.mla.kv_rank
        values = mla.value_width if how.fused else mla.nope_width + mla.value_width  # there a view of the projected keys and values
        total: Array = size * (model.num_heads * (2 * model.head + mla.value_width + values) + ranks + mla.rope_width) + wide * ranks
    else:
        total = 2 * size * (model.num_heads + groups) * model.head
        total = total + (wide * (model.num_heads + groups) * model.head if model.qk_norm else 0)
    total = total + (5 * model.num_heads * sequence if how.plain_attention else 4 * model.num_heads)
    hidden = (3 if how.fused else 4) if model.gated else 2
    if moe is None:
        total = total + size * hidden * model.ffn_width
    else:
        copies, expert = moe.num_active * how.imbalance, moe.latent_width or width
        total = total + size * copies * ((2 if how.fused else 3) * expert + hidden * moe.expert_width)
        total = total + size * (2 * expert if moe.latent_width else 0) + size * hidden * moe.num_shared * moe.expert_width
        total = total + 4 * moe.num_experts + (16 + 28 * moe.num_active) + (0 if size == 4 else 4 * width)  # the router, in fp32
    return tokens * (stream / (grid.tp if how.sequence_parallel else 1) + total / grid.tp)


def _recomputed(model: ModelConfig, kind: Kind, grid: Grid, sequence: int, tokens: Array, how: Kept) -> Array:
    """Return the bytes that selective checkpointing does not keep: outputs of norms and activations, or all scores of plain attention."""
    if how.plain_attention:
        return tokens / grid.tp * 5 * model.num_heads * sequence
    moe = model.moe if kind.moe else None
    hidden = (moe.num_active * how.imbalance + moe.num_shared) * moe.expert_width if moe else model.ffn_width
    return tokens / grid.tp * how.bytes_each * (2 * model.width + (1 if how.fused else 2) * hidden)


def _state_bytes(
    model: ModelConfig, grid: Grid, dense: Array, experts: Array, state: State, bytes_each: float
) -> tuple[Array, Array, Array, Array]:
    """Return weights, gradients, optimizer state, and gathered weights with their gradients (FSDP)."""
    one, two, three = (np.where(grid.zero >= level, grid.shards, 1) for level in (1, 2, 3))
    e_one, e_two, e_three = (np.where(grid.zero >= level, grid.expert_shards, 1) for level in (1, 2, 3))
    # with FSDP the divided master weights are the weights; a copy that computes exists only of what is gathered
    weights = np.where(grid.zero == 3, 0.0 if state.master else state.weights, state.weights) * (dense / three + experts / e_three)
    gradients = state.gradients * (dense / two + experts / e_two)
    if state.matrix_moments is None:
        moments = state.moments * (dense / one + experts / e_one)
    else:
        matrices = matrix_parameters(model, grid)
        moments = state.moments * (dense / one + experts / e_one) + (state.matrix_moments - state.moments) * (
            matrices / one + experts / e_one
        )
    optimizer = state.master * (dense / one + experts / e_one) + moments
    if grid.pp == 1:
        whole = _largest_block(model, grid) * (2 * bytes_each + state.gradients)
    else:  # schedules take micro-batches as they come: PyTorch keeps what it has gathered, and whole sums of gradients, until the last
        whole = (dense + experts) * (bytes_each + state.gradients)
    gathered = np.where((grid.zero == 3) & (grid.shards > 1), whole, 0.0)
    return weights, gradients, optimizer, gathered + np.zeros((grid.pp, 1))


def matrix_parameters(model: ModelConfig, grid: Grid) -> Array:
    """Return the values of matrices inside the layers of each stage that are no routed experts, (S, layouts): what Muon updates."""
    stages = stages_of(model, grid.pp, grid.virtual, grid.schedule)
    total = np.zeros((grid.pp, len(grid)))
    for number, kind in enumerate(stages.kinds):
        held = count_layer(model, kind.layer)
        groups = np.maximum(1, np.minimum(grid.tp, model.kv_heads))
        gate = model.kv_heads * model.value_gate_width if kind.values else 0
        total += stages.counts[:, number, None] * ((held.heads + held.mlp) / grid.tp + held.keys_values / groups + held.latents - gate)
    return total


def _largest_block(model: ModelConfig, grid: Grid) -> Array:
    sizes = []
    for kind in stages_of(model, 1, 1).kinds:
        held = count_layer(model, kind.layer)
        sizes.append((held.total - held.experts) / grid.tp + held.experts / (grid.ep * grid.etp))
    return np.max(sizes, axis=0)
