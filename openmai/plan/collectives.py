"""The collectives of openmai's own training, one optimizer step of one process: how many, over how many processes, and how many bytes.

Bytes are those of the larger of what goes in and what comes out, as `openmai train dry-run` counts them: of the whole where it is gathered
or scattered, of what is sent where it is sent. Links carry (n - 1) / n of a whole (network.py).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from openmai.model.config import ModelConfig
from openmai.plan.layout import Layout
from openmai.plan.shares import Part, Share, parts_of, shards_of

Counted = dict[tuple[str, int], list[int]]
"by kind and size of group: calls, and bytes of all of them"

LOSS_BYTES = 32 << 20
"of fp32 logits at a time (model/loss.py)"


@dataclass
class Tally:
    """What a process calls."""

    model: ModelConfig
    layout: Layout
    sequence: int
    micro_batches: int
    size: int
    "bytes of a value that computes"
    found: Counted = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def add(self, kind: str, group: int, calls: int, each: int) -> None:
        """Count calls of `each` bytes; groups of one are not asked."""
        if calls:
            self.found[kind, group][0] += calls
            self.found[kind, group][1] += calls * each

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch that a tensor-parallel group shares."""
        return self.layout.micro_rows * self.sequence // self.layout.cp

    @property
    def stream(self) -> int:
        """Bytes of these tokens in the stream."""
        return self.tokens * self.model.width * self.size

    @property
    def again(self) -> int:
        """How often a layer's forward pass is computed once more."""
        return int(self.layout.checkpointing != "none")


def step_collectives(
    model: ModelConfig, layout: Layout, sequence: int, batch_rows: int, stage: int = 0, muon: bool = True, size: int = 2
) -> Counted:
    """Count what the first process of pipeline stage `stage` calls in one step; experts get equal numbers of tokens."""
    tally = Tally(model, layout, sequence, batch_rows // (layout.dp_replicate * layout.dp_shard * layout.micro_rows), size)
    parts = parts_of(model, layout, stage)
    for part in parts:
        _fully_sharded(tally, part)
        for layer in part.layers:
            _layer(tally, layer)
        _ends(tally, part)
        if layout.pp > 1:
            _pipeline(tally, part)
    shares = [share for part in parts for block in (*part.blocks, part.around) for share in block]
    _finish(tally, parts, shares)
    if muon:
        _whole_matrices(tally, [share for share in shares if share.matrix])
    return dict(tally.found)


def _fully_sharded(tally: Tally, part: Part) -> None:
    """Gather weights and scatter gradients: in every micro-batch, layers forward and backward; in a pipeline once (`parallel/apply.py`)."""
    layout = tally.layout
    passes, twice = (1, 1) if layout.pp > 1 else (tally.micro_batches, 2)
    for number, shares in enumerate((*part.blocks, part.around)):
        ways = 1 if number == len(part.blocks) else twice
        apart = [[share for share in shares if share.expert == expert] for expert in (False, True)]
        groups = [list(shares)] if layout.ep == layout.tp else apart  # else experts are divided over other processes
        for group in filter(None, groups):
            shards = shards_of(layout, group[0])
            whole = sum(share.padded(shards) for share in group)
            if shards > 1:
                tally.add("all-gather", shards, ways * passes, tally.size * whole)
                tally.add("reduce-scatter", shards, passes, 4 * whole)
            if layout.dp_replicate > 1:
                tally.add("all-reduce", layout.dp_replicate, passes, 4 * whole // shards)


def _layer(tally: Tally, layer: int) -> None:
    """Count what a layer's passes call: forward, perhaps once more, and backward."""
    model, layout, micro, again = tally.model, tally.layout, tally.micro_batches, tally.again
    moe = model.moe if model.is_moe(layer) else None
    if layout.tp > 1:
        divided = 1 if moe and not moe.num_shared else 2  # attention, and what is no routed expert
        last = int(divided == 2)  # what comes last is not needed again
        tally.add("all-gather", layout.tp, micro * divided * (2 + again), tally.stream)
        tally.add("reduce-scatter", layout.tp, micro * (divided * (2 + again) - last * again), tally.stream)
    if layout.cp > 1:
        _ring(tally)
    if moe is None:
        return
    row = layout.cp * layout.tp
    if row > 1 and moe.aux_loss:
        rows = 1 if moe.aux_span == "batch" else layout.micro_rows
        tally.add("all-reduce", row, micro * (1 + again), 4 * rows * moe.num_experts)
    width, copies = moe.latent_width or model.width, tally.tokens // layout.tp * moe.num_active
    tally.add("all-to-all", layout.ep, micro * (1 + again), 4 * moe.num_experts)
    tally.add("all-to-all", layout.ep, micro * 2 * (2 + again), copies * width * tally.size)


def ring_bytes(model: ModelConfig, layout: Layout, tokens: int, size: int) -> tuple[int, int]:
    """Return the bytes that a process sends in one layer, forward and backward: keys, values and where they are; gradients in fp32.

    Keys and values come round but for the last step home; their gradients go all the way to whom they belong (`parallel/ring.py`).
    """
    if model.mla:
        values = model.num_heads // layout.tp * (model.head + model.mla.value_width)
    else:
        values = 2 * max(model.kv_heads // layout.tp, 1) * model.head
    there = (layout.cp - 1) * tokens * (values * size + 8)
    return there, there + layout.cp * tokens * values * 4


def _ring(tally: Tally) -> None:
    layout, micro = tally.layout, tally.micro_batches
    forward, backward = ring_bytes(tally.model, layout, tally.tokens, tally.size)
    for kind in ("send", "receive"):
        calls = micro * (3 * (layout.cp - 1) * (2 + tally.again) + 2 * layout.cp)
        tally.add(kind, layout.cp, calls, 0)
        tally.found[kind, layout.cp][1] += micro * ((1 + tally.again) * forward + backward)


def _ends(tally: Tally, part: Part) -> None:
    """Count what tensor parallelism exchanges around the layers: for the embedding, and for parts of the loss."""
    tp, micro = tally.layout.tp, tally.micro_batches
    if tp == 1:
        return
    for kind in ("all-gather", "reduce-scatter"):
        tally.add(kind, tp, micro * (part.first + part.last), tally.stream)
    if part.last:
        rows = max(1, LOSS_BYTES // (4 * tally.model.vocab_size // tp))
        whole, rest = divmod(tally.tokens, rows)
        tally.add("all-reduce", tp, micro * 3 * whole, 4 * rows)
        tally.add("all-reduce", tp, micro * 3 * (rest > 0), 4 * rest)


def _pipeline(tally: Tally, part: Part) -> None:
    """Count what goes to the stages beside a chunk: the stream and the balancing penalty, which is one value."""
    streams = 1 + tally.model.residual_scalars + tally.model.backout
    turns = tally.layout.schedule == "zbv"
    for kind in ("send", "receive"):
        beside = (not part.first) + (not part.last) - (turns and _at_the_turn(tally, part))
        tally.add(kind, tally.layout.pp, tally.micro_batches * beside * streams, tally.stream // tally.layout.tp)
        tally.add(kind, tally.layout.pp, tally.micro_batches * beside, 4)


def _at_the_turn(tally: Tally, part: Part) -> bool:
    """Whether the next or the last chunk is in the same process: where a V turns."""
    layers = parts_of(tally.model, tally.layout, tally.layout.pp - 1)
    return part.layers in [one.layers for one in layers]


def _finish(tally: Tally, parts: list[Part], shares: list[Share]) -> None:
    """Count the sums of gradients that several processes hold whole, and the norm of all."""
    layout = tally.layout
    if layout.tp > 1:
        whole = sum(share.held(shards_of(layout, share)) for share in shares if share.whole)
        tally.add("all-reduce", layout.tp, 1, 4 * whole)
    if tally.model.tied_embeddings and layout.pp > 1 and any(part.first or part.last for part in parts):
        table = Share((tally.model.vocab_size // layout.tp, tally.model.width))
        tally.add("all-reduce", 2, 1, 4 * table.held(shards_of(layout, table)))
    tally.add("all-reduce", layout.processes, 1, 8)


def _whole_matrices(tally: Tally, matrices: list[Share]) -> None:
    """Count how the pieces of matrices travel to their owners and back, of whom this process is the first (`parallel/exchange.py`)."""
    layout = tally.layout
    region = layout.dp_shard * layout.cp * layout.tp
    dense = [share for share in matrices if not share.expert]
    if dense:
        shards = layout.dp_shard * layout.cp
        sent = sum(share.held(shards) for share in dense)  # the first process speaks also for what tp leaves whole
        mine = dense[::region]
        owned = sum(share.size * (layout.tp if share.tp_dim is not None else 1) for share in mine)
        given = sum(share.size * layout.tp for share in mine)  # each process gets its piece, also of what tp leaves whole
        tally.add("all-to-all", region, 1, 4 * max(sent, owned))
        tally.add("all-to-all", region, 1, 4 * max(given, sent))
    shards = region // layout.ep
    stacks = [share for share in matrices if share.expert and share.cut(shards)]
    if stacks:
        one_by_one = [share for share in stacks for _ in range(share.shape[0])]
        sent = sum(share.held(shards) for share in stacks)
        owned = sum(share.size // share.shape[0] for share in one_by_one[::shards])
        tally.add("all-to-all", shards, 2, 4 * max(sent, owned))
