"""The tensors of openmai's own training, one by one: what tp and ep leave of each to a process, and how FSDP2 divides that further.

`parallel/tensor.py`, `parallel/experts.py` and `parallel/apply.py` as a list. The rest of the plan divides evenly; here rows are what they
are, so that bytes come out as they do in `openmai train dry-run` (tests/test_plan_dry_run.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from openmai.model.config import ModelConfig
from openmai.model.stages import stage_spans, stages_of_process
from openmai.plan.layout import Layout


@dataclass(frozen=True)
class Share:
    """What tp and ep leave of a tensor to a process: `shape`, of which FSDP divides the first axis; of a stack perhaps the second."""

    shape: tuple[int, ...]
    matrix: bool = False
    "inside the layers: Muon's, where it is the optimizer"
    tp_dim: int | None = None
    "axis that tp has divided"
    whole: bool = False
    "tp leaves it whole and sums its gradients"
    expert: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def cut(self, shards: int) -> int:
        """Return the axis that FSDP divides over `shards` processes: rows of stacks, where these are fewer experts than processes."""
        return int(self.expert and self.shape[0] % shards != 0 and self.shape[1] % shards == 0)

    def held(self, shards: int, rank: int = 0) -> int:
        """Return the values that process `rank` of `shards` holds: chunks are equal but for the last ones."""
        axis = self.cut(shards)
        chunk = -(-self.shape[axis] // shards)
        return self.size // self.shape[axis] * max(0, min(chunk, self.shape[axis] - rank * chunk))

    def padded(self, shards: int) -> int:
        """Return the values of all chunks, each as large as the largest: what is gathered and scattered."""
        axis = self.cut(shards)
        return self.size // self.shape[axis] * -(-self.shape[axis] // shards) * shards


def layer_shares(model: ModelConfig, layer: int, tp: int, ep: int) -> list[Share]:
    """Return the parameters of a layer in the order of `named_parameters`."""
    norm = _norm(model, model.width)
    before, after = model.norm_place != "after", model.norm_place != "before"
    attention = _latent_attention(model, tp) if model.mla else _attention(model, layer, tp)
    mlp = _mixture(model, tp, ep) if model.is_moe(layer) else _feed_forward(model, model.ffn_width, tp)
    return [*norm * before, *attention, *norm * after, *norm * (before and not model.parallel), *mlp, *norm * after]


def around_shares(model: ModelConfig, tp: int, first: bool, last: bool) -> list[Share]:
    """Return the parameters that the first and the last stage hold besides layers; one tensor for both if they are tied."""
    table = Share((model.vocab_size // tp, model.width), tp_dim=0)
    positions = [Share((model.context, model.width), whole=True)] if model.positions == "learned" else []
    norms = _norm(model, model.width)
    found = [table, *positions, *norms * model.embedding_norm] if first else []
    if last:
        found += norms + ([] if model.tied_embeddings and first else [table])
        found += [Share((model.vocab_size // tp,), tp_dim=0)] * model.head_bias
    return found


def _norm(model: ModelConfig, width: int) -> list[Share]:
    if model.norm_weight == "none":
        return []
    return [Share((width,), whole=True)] * (2 if model.norm == "layer" and model.norm_bias else 1)


def _linear(rows: int, columns: int, tp: int, dim: int | None, bias: bool = False) -> list[Share]:
    shape = (rows // tp if dim == 0 else rows, columns // tp if dim == 1 else columns)
    found = [Share(shape, matrix=True, tp_dim=dim, whole=dim is None)]
    return found + [Share((shape[0],), tp_dim=0 if dim == 0 else None, whole=dim != 0)] * bias


def _attention(model: ModelConfig, layer: int, tp: int) -> list[Share]:
    heads, groups, head = model.num_heads, model.kv_heads, model.head
    keys = _linear(groups * head, model.width, tp, None if groups % tp else 0, model.qkv_bias)
    found = [Share((heads // tp,), tp_dim=0)] * model.sinks
    found += [*_linear(heads * head, model.width, tp, 0, model.qkv_bias), *keys, *keys]
    found += _linear(model.width, heads * head, tp, 1, model.o_bias)
    if model.qk_norm:
        together = model.qk_norm_span == "all"
        found += _norm(model, heads * head // tp if together else head) + _norm(model, groups * head // tp if together else head)
    if model.has_value_embedding(layer):
        found += [Share((model.vocab_size, groups * head // tp), tp_dim=1), Share((groups // tp, model.value_gate_width), tp_dim=0)]
    return found


def _latent_attention(model: ModelConfig, tp: int) -> list[Share]:
    assert model.mla is not None
    mla, heads = model.mla, model.num_heads
    found = []
    if mla.query_rank:
        found += [*_linear(mla.query_rank, model.width, tp, None), *_norm(model, mla.query_rank)]
    found += _linear(heads * model.head, mla.query_rank or model.width, tp, 0)
    found += [*_linear(mla.kv_rank + mla.rope_width, model.width, tp, None), *_norm(model, mla.kv_rank)]
    found += _linear(heads * (mla.nope_width + mla.value_width), mla.kv_rank, tp, 0)
    return found + _linear(model.width, heads * mla.value_width, tp, 1)


def _feed_forward(model: ModelConfig, hidden: int, tp: int) -> list[Share]:
    up = _linear(hidden, model.width, tp, 0, model.mlp_bias)
    return [*up * (2 if model.gated else 1), *_linear(model.width, hidden, tp, 1, model.mlp_bias)]


def _mixture(model: ModelConfig, tp: int, ep: int) -> list[Share]:
    assert model.moe is not None
    moe, width = model.moe, model.moe.latent_width or model.width
    experts, hidden = moe.num_experts // ep, moe.expert_width
    found = [Share((moe.num_experts, model.width), whole=True)] + [Share((moe.num_experts,), whole=True)] * moe.router_bias
    shapes = [(experts, hidden, width)] * 2 + [(experts, width, hidden)]
    found += [Share(shape, matrix=True, expert=True) for shape in shapes]
    found += [Share(shape, expert=True) for shape in [(experts, hidden)] * 2 + [(experts, width)]] * moe.expert_bias
    if moe.latent_width:
        found += _linear(width, model.width, tp, None) + _linear(model.width, width, tp, None)
    return found + (_feed_forward(model, moe.num_shared * moe.expert_width, tp) if moe.num_shared else [])


@dataclass(frozen=True)
class Part:
    """One chunk of layers of a process: its layers, each with its tensors, and what lies around them."""

    layers: tuple[int, ...]
    blocks: tuple[tuple[Share, ...], ...]
    around: tuple[Share, ...]
    first: bool
    last: bool


def parts_of(model: ModelConfig, layout: Layout, stage: int) -> list[Part]:
    """Return the chunks that a process of pipeline stage `stage` holds."""
    chunks = layout.pp * layout.virtual
    spans, found = stage_spans(model.num_layers, chunks), []
    for number in stages_of_process(layout.schedule, layout.pp, chunks, stage):
        first, last = number == 0, number == chunks - 1
        blocks = tuple(tuple(layer_shares(model, layer, layout.tp, layout.ep)) for layer in spans[number])
        found.append(Part(tuple(spans[number]), blocks, tuple(around_shares(model, layout.tp, first, last)), first, last))
    return found


def shards_of(layout: Layout, share: Share) -> int:
    """Return over how many processes FSDP divides a tensor."""
    region = layout.dp_shard * layout.cp * layout.tp
    return region // layout.ep if share.expert else layout.dp_shard * layout.cp


@dataclass(frozen=True)
class Held:
    """Bytes of the first process of a stage: its pieces between steps, and what is whole when the passes hold most."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    "weights in the precision that computes, while micro-batches pass: in a pipeline all, without one what lies around the layers"
    gradients_then: int
    "in fp32: in a pipeline whole ones, until the last micro-batch has passed"


def held_bytes(model: ModelConfig, layout: Layout, stage: int = 0, muon: bool = True, size: int = 2) -> Held:
    """Work out what a process holds in fp32 besides activations; `size` is that of a value that computes.

    A pipeline gathers each weight once in a step and keeps it, since schedules take micro-batches as they come; so gradients are summed
    whole before they are scattered. Without one, most is held at the loss: no layer is gathered, and gradients are those of micro-batches
    before.
    """
    weights = state = gathered = gradients = 0
    for part in parts_of(model, layout, stage):
        inside = [(share, False) for block in part.blocks for share in block]
        for share, around in [*inside, *((share, True) for share in part.around)]:
            mine = share.held(shards_of(layout, share))
            weights += 4 * mine
            state += (4 if muon and share.matrix else 8) * mine
            if layout.pp > 1 or around:
                gathered += size * share.padded(shards_of(layout, share))
            gradients += 4 * (share.size if layout.pp > 1 else mine)
    return Held(weights, weights, state, gathered, gradients)
