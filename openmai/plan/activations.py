"""What a process of openmai's own training holds at the peak of its passes besides weights and gradients.

memory.py describes what tuned software keeps. Ours keeps the tokens that tensor parallelism gathers, computes latents whole on each of its
processes, and with selective checkpointing keeps the results of products and attention (`parallel/recompute.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from openmai.model.config import ModelConfig
from openmai.plan.collectives import LOSS_BYTES
from openmai.plan.layout import Grid, Layout
from openmai.plan.memory import Kept, in_flight, layer_activations
from openmai.plan.shares import held_bytes, parts_of
from openmai.plan.stages import Kind


@dataclass(frozen=True)
class LayerBytes:
    """Bytes of a layer and micro-batch."""

    entry: float
    "its input"
    everything: float
    "what its operators keep if nothing is computed again"
    products: float
    "results of products and attention"
    outputs: float
    "of these the results that nothing but the next operator reads"
    working: float
    "what comes and goes while it works: gradients of hidden values, rows on their way to experts and back"
    waiting: float
    "gradients that stay, where a schedule makes those of weights later: of what products give, and of normed values in fp32"
    norm: float
    "what comes and goes in the backward pass of its first norm"

    def kept(self, checkpointing: str) -> float:
        """Return what stays from the forward to the backward pass."""
        return {"none": self.everything, "selective": self.entry + self.products, "full": self.entry}[checkpointing]

    def again(self, checkpointing: str) -> float:
        """Return what is added while its backward pass begins."""
        if checkpointing == "none":
            return self.working
        there = self.entry if checkpointing == "full" else self.entry + self.products - self.outputs
        return self.everything + self.working - there


def layer_bytes(model: ModelConfig, layout: Layout, layer: int, sequence: int, size: int) -> LayerBytes:
    """Work out a layer; `size` is that of a value that computes."""
    tokens, tp, width = layout.micro_rows * sequence / layout.cp, layout.tp, model.width
    kind = Kind(model.is_moe(layer), model.is_global(layer), model.has_value_embedding(layer), layer)
    everything = float(layer_activations(model, kind, Grid.of([layout]), sequence, tokens, Kept(bytes_each=size, fused=False))[0])
    moe = model.moe if kind.moe else None
    gathers = 1 if moe and not moe.num_shared else 2
    missing = gathers * size * width
    ranks = 0
    if model.mla:
        ranks = (model.mla.query_rank or 0) + model.mla.kv_rank
        missing += size * (ranks + model.mla.rope_width) + 8 * ranks
    everything += tokens * (1 - 1 / tp) * missing
    products = _attention_products(model, tp)
    outputs = float(width)
    routing = 0.0
    if moe is None:
        working = size * tokens * (2 if model.gated else 1) * model.ffn_width / tp  # one more, but the last product has gone
        products += (2 if model.gated else 1) * model.ffn_width / tp + width
        outputs += width
    else:
        inner = moe.latent_width or width
        products += moe.num_active / tp * (2 * moe.expert_width + inner) + (inner + width) / tp * (moe.latent_width is not None)
        products += (2 * moe.num_shared * moe.expert_width / tp + width) * (moe.num_shared > 0)
        outputs += width * (moe.num_shared > 0)
        routing = 4 * moe.num_experts / tp
        working = 3 * size * tokens * moe.num_active / tp * inner
    stored = tokens * (size * products + routing + 4 * model.num_heads / tp)
    waiting = size * tokens * (products - model.num_heads / tp * model.head) + 8 * tokens / tp * width
    if model.mla:
        waiting += 4 * tokens * ranks
    elif model.qk_norm:
        waiting += 4 * tokens * (model.num_heads + max(model.kv_heads, tp)) / tp * model.head
    return LayerBytes(
        entry=size * tokens / tp * width,
        everything=everything,
        products=stored,
        outputs=size * tokens * outputs,
        working=working,
        waiting=waiting,
        norm=5 * 4 * tokens / tp * width,
    )


def _attention_products(model: ModelConfig, tp: int) -> float:
    """Return the values per token that projections and attention give; values are made as wide as keys for the kernel."""
    heads = model.num_heads / tp
    if model.mla is None:
        return 2 * (heads + max(model.kv_heads / tp, 1)) * model.head + model.width
    mla = model.mla
    latents = (mla.query_rank or 0) + mla.kv_rank + mla.rope_width
    return latents + heads * (2 * model.head + mla.nope_width + mla.value_width) + model.width


def peak_activations(model: ModelConfig, layout: Layout, sequence: int, batch_rows: int, stage: int = 0, size: int = 2) -> float:
    """Return the bytes of activations when a process holds most: in a pipeline it works backwards, and its gradients are whole.

    They are from the second backward pass on, so the last micro-batch alone does not count. Received streams lie in a buffer for each
    micro-batch of the step (torch.distributed.pipelining), ids and targets of all are joined, and a gradient is on its way back; where a
    schedule makes the gradients of weights later, those of the buffers stay to the end.
    """
    micro_batches = batch_rows // (layout.dp_replicate * layout.dp_shard * layout.micro_rows)
    parts = parts_of(model, layout, stage)
    each = [[layer_bytes(model, layout, layer, sequence, size) for layer in part.layers] for part in parts]
    entry = each[0][0].entry
    kept = buffers = sent = 0.0
    turns = layout.schedule == "zbv" and stage == layout.pp - 1  # from its first chunk to its second: what is handed on is the buffer
    for number, (part, layers) in enumerate(zip(parts, each, strict=True)):
        kept += sum(one.kept(layout.checkpointing) for one in layers) + _tables(model, layout, sequence)
        kept += entry * (not part.last and not (turns and number == 0))  # what it hands on is kept
        if layout.checkpointing != "none" or size == 4:  # else it is cast for the norm, and only that is kept
            kept -= entry * (not part.first)  # what it got is a buffer
        buffers += entry * ((not part.first) + (not part.last))
        sent += entry * (not part.first and not (turns and number == 1))
    tokens = 16.0 * layout.micro_rows * sequence
    splits = Grid.of([layout]).splits_backward
    steady = micro_batches * (buffers + tokens) + sent * (micro_batches if splits else 1)
    loss, loss_kept = _loss(model, layout, sequence, size), _loss_kept(model, layout, sequence, size)
    peak = 0.0
    for flight, late in moments(layout, stage, max(1, micro_batches - 1)):
        for part, layers in zip(parts, each, strict=True):
            waiting = sum(one.waiting for one in layers)
            works = [(1 + late) * waiting + layers[0].norm] if splits else [one.again(layout.checkpointing) for one in layers]
            works += [loss + late * (waiting + loss_kept)] if part.last else []
            peak = max(peak, flight * kept + max(works))
    return steady + peak


def moments(layout: Layout, stage: int, micro_batches: int) -> list[tuple[float, int]]:
    """Return when a stage may hold most: micro-batches in flight, and backward passes of chunks whose weights' gradients wait besides.

    Of the orders that torch.distributed.pipelining has for ZB1P and ZBV (arXiv:2401.10241); the second of ZBV is near the end of a step.
    """
    flight = float(in_flight(Grid.of([layout]), micro_batches)[stage].max())
    if layout.schedule == "zero-bubble":
        return [(flight, stage)]
    return [(flight, 0), (min(flight, (layout.pp + stage) / 2), 2 * stage)] if layout.schedule == "zbv" else [(flight, 0)]


def _tables(model: ModelConfig, layout: Layout, sequence: int) -> float:
    """Return what a pass keeps of rotations, in fp32, and masks; masks are dense where no kernel takes windows (CPUs, and so dry runs)."""
    tokens = layout.micro_rows * sequence / layout.cp
    rotated = model.mla.rope_width if model.mla else model.head
    kinds = len({model.is_global(layer) for layer in range(model.num_layers) if model.has_rope(layer)})
    return 4 * kinds * tokens * rotated + (tokens * sequence if model.window and model.window < sequence else 0)


def _loss(model: ModelConfig, layout: Layout, sequence: int, size: int) -> float:
    """Return what the loss holds: the output matrix's gradient in fp32 and as it is handed on, tokens and their gradients, some logits."""
    tokens = layout.micro_rows * sequence / layout.cp
    matrix = model.vocab_size / layout.tp * model.width
    logits = min(LOSS_BYTES, 4 * tokens * model.vocab_size / layout.tp)
    values = tokens * model.width
    working = 4 * matrix + size * values + logits * (1 + size / 4)
    return working + _loss_kept(model, layout, sequence, size)


def _loss_kept(model: ModelConfig, layout: Layout, sequence: int, size: int) -> float:
    """Return what stays of the loss until its backward pass is done: the gradients of its inputs, and what the norm keeps."""
    values = layout.micro_rows * sequence / layout.cp * model.width
    return size * (model.vocab_size / layout.tp * model.width + values) + values / layout.tp * (8 + size * (size < 4))


def process_bytes(
    model: ModelConfig, layout: Layout, sequence: int, batch_rows: int, stage: int = 0, muon: bool = True, size: int = 2
) -> dict[str, float]:
    """Return all that `openmai train dry-run` says of a process, under its names."""
    held = held_bytes(model, layout, stage, muon, size)
    return {
        "weights (fp32)": held.weights,
        "gradients (fp32)": held.gradients,
        "optimizer state": held.optimizer,
        "gathered weights, at the peak of the passes": held.gathered,
        "gradients, whole and scattered, at the peak of the passes": held.gradients_then,
        "activations, at the peak of the passes": peak_activations(model, layout, sequence, batch_rows, stage, size),
    }
