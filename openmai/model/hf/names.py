"""Names and layouts of tensors: one Unit says which of their tensors holds which of ours, and how to go from one to the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from openmai.model.config import ModelConfig


@dataclass(frozen=True)
class Names:
    """Their names of our modules; those of a block stand without its prefix, without `.weight` or `.bias`; `{e}` counts experts."""

    block: Mapping[str, str]
    outside: Mapping[str, str] = field(default_factory=lambda: {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"})
    layers: str = "model.layers."
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    "their matrix that holds several of ours, one below the other"
    transposed: bool = False
    "matrices of the blocks are stored with rows and columns exchanged (GPT-2)"
    interleaved_experts: bool = False
    "experts are stacked, transposed, and gate and up alternate (gpt-oss)"
    pairs: bool = False
    "rotary pairs are neighbours instead of halves (DeepSeek)"


_ATTENTION = {f"attention.{ours}": f"self_attn.{ours}_proj" for ours in "qkvo"}
_NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
}
_MLP = {f"mlp.{ours}": f"mlp.{ours}_proj" for ours in ("gate", "up", "down")}
_EXPERTS = {
    "mlp.router.weight_ED": "mlp.gate.weight",
    "mlp.router.bias_E": "mlp.gate.e_score_correction_bias",
    "mlp.experts.gate_EFD": "mlp.experts.{e}.gate_proj.weight",
    "mlp.experts.up_EFD": "mlp.experts.{e}.up_proj.weight",
    "mlp.experts.down_EDF": "mlp.experts.{e}.down_proj.weight",
    **{f"mlp.shared.{ours}": f"mlp.shared_experts.{ours}_proj" for ours in ("gate", "up", "down")},
}
_BLOCK = _ATTENTION | _NORMS | _MLP | _EXPERTS
PLAIN = Names(_BLOCK)
BOTH_NORMS = Names(
    _BLOCK
    | {
        "attention_after": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_after": "post_feedforward_layernorm",
    }
)
NORMS_AFTER = Names(_BLOCK | {"attention_after": "post_attention_layernorm", "mlp_after": "post_feedforward_layernorm"})
PHI3 = Names(
    _BLOCK,
    joined={
        "self_attn.qkv_proj": ("attention.q", "attention.k", "attention.v"),
        "mlp.gate_up_proj": ("mlp.gate", "mlp.up"),
    },
)
MIXTRAL = Names(
    _BLOCK
    | {
        "mlp.router.weight_ED": "block_sparse_moe.gate.weight",
        "mlp.experts.gate_EFD": "block_sparse_moe.experts.{e}.w1.weight",
        "mlp.experts.up_EFD": "block_sparse_moe.experts.{e}.w3.weight",
        "mlp.experts.down_EDF": "block_sparse_moe.experts.{e}.w2.weight",
    }
)
LATENT = Names(
    _BLOCK
    | {
        "attention.q_down": "self_attn.q_a_proj",
        "attention.q_norm": "self_attn.q_a_layernorm",
        "attention.q_up": "self_attn.q_b_proj",
        "attention.kv_down": "self_attn.kv_a_proj_with_mqa",
        "attention.kv_norm": "self_attn.kv_a_layernorm",
        "attention.kv_up": "self_attn.kv_b_proj",
    },
    pairs=True,
)
GPT2 = Names(
    {
        "attention_norm": "ln_1",
        "attention.o": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    },
    {"embedding": "transformer.wte", "position_embedding": "transformer.wpe", "norm": "transformer.ln_f", "head": "lm_head"},
    layers="transformer.h.",
    joined={"attn.c_attn": ("attention.q", "attention.k", "attention.v")},
    transposed=True,
)
GPT_OSS = Names(
    _BLOCK
    | {
        "attention.sinks_H": "self_attn.sinks",
        "mlp.router.weight_ED": "mlp.router.weight",
        "mlp.router.logit_bias_E": "mlp.router.bias",
        "mlp.experts.down_EDF": "mlp.experts.down_proj",
        "mlp.experts.down_bias_ED": "mlp.experts.down_proj_bias",
    },
    joined={
        "mlp.experts.gate_up_proj": ("mlp.experts.gate_EFD", "mlp.experts.up_EFD"),
        "mlp.experts.gate_up_proj_bias": ("mlp.experts.gate_bias_EF", "mlp.experts.up_bias_EF"),
    },
    interleaved_experts=True,
)


@dataclass(frozen=True)
class Unit:
    """A tensor of theirs, or its part `row`, and our tensors, or their part `row`, that it holds."""

    theirs: str
    ours: tuple[str, ...]
    join: Callable[[list[Tensor]], Tensor]
    split: Callable[[Tensor], list[Tensor]]
    their_row: int | None = None
    our_row: int | None = None


def units(config: ModelConfig, names: Names, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Unit]:
    """List what an import or export of `config` consists of, in a fixed order; `shapes` are those of our tensors, without a tied head."""
    firsts = {members[0]: (theirs, members) for theirs, members in names.joined.items()}
    others = {member for members in names.joined.values() for member in members[1:]}
    for name in sorted(shapes):
        block, rest = split_name(name)
        module, leaf = rest.rpartition(".")[::2]
        if block is None:
            yield _plain(translate(names.outside, rest), name)
            continue
        prefix = f"{names.layers}{block}."
        key = rest if rest in firsts or rest in others else module
        if key in others:
            continue
        if key in firsts:
            theirs, members = firsts[key]
            ours = tuple(f"blocks.{block}.{member}" + ("" if key == rest else f".{leaf}") for member in members)
            yield from _joined(prefix + theirs + ("" if key == rest else f".{leaf}"), ours, names, shapes)
            continue
        theirs = prefix + translate(names.block, rest)
        if "{e}" in theirs:
            for expert in range(shapes[name][0]):
                yield _plain(theirs.format(e=expert), name, our_row=expert)
        elif names.interleaved_experts and rest in ("mlp.experts.down_EDF", "mlp.experts.down_bias_ED"):
            for expert in range(shapes[name][0]):
                yield _plain(theirs, name, their_row=expert, our_row=expert, transposed=len(shapes[name]) == 3)
        elif names.pairs and (rotary := rotary_rows(config, rest)):
            yield Unit(theirs, (name,), partial(_interleave, *rotary), partial(_deinterleave, *rotary))
        else:
            yield _plain(theirs, name, transposed=names.transposed and len(shapes[name]) == 2)


def _plain(theirs: str, ours: str, their_row: int | None = None, our_row: int | None = None, transposed: bool = False) -> Unit:
    if transposed:
        return Unit(theirs, (ours,), lambda parts: parts[0].mT, lambda tensor: [tensor.mT], their_row, our_row)
    return Unit(theirs, (ours,), lambda parts: parts[0], lambda tensor: [tensor], their_row, our_row)


def _joined(theirs: str, ours: tuple[str, ...], names: Names, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Unit]:
    if names.interleaved_experts:
        for expert in range(shapes[ours[0]][0]):
            yield Unit(theirs, ours, _alternate, _part_alternate, expert, expert)
        return
    sizes = [shapes[name][0] for name in ours]
    flip = names.transposed and len(shapes[ours[0]]) == 2
    yield Unit(theirs, ours, partial(_stack, flip), partial(_unstack, flip, sizes))


def _stack(flip: bool, parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).mT if flip else torch.cat(parts)


def _unstack(flip: bool, sizes: list[int], tensor: Tensor) -> list[Tensor]:
    return list((tensor.mT if flip else tensor).split(sizes))


def _alternate(parts: list[Tensor]) -> Tensor:
    """Gate (F, D) and up (F, D) to (D, 2F), column by column; biases (F,) to (2F,)."""
    return torch.stack(parts, dim=1).flatten(0, 1).mT if parts[0].ndim == 2 else torch.stack(parts, dim=1).flatten()


def _part_alternate(tensor: Tensor) -> list[Tensor]:
    rows = tensor.mT if tensor.ndim == 2 else tensor
    return [rows[0::2], rows[1::2]]


def _interleave(heads: int, width: int, parts: list[Tensor]) -> Tensor:
    return interleave(parts[0], heads, width)


def _deinterleave(heads: int, width: int, tensor: Tensor) -> list[Tensor]:
    return [deinterleave(tensor, heads, width)]


def interleave(rows: Tensor, heads: int, width: int) -> Tensor:
    """Reorder the last `width` rows of each head from rotary pairs (i, i + width/2) to pairs (2i, 2i + 1)."""
    return _reorder(rows, heads, torch.arange(width).view(2, -1).T.flatten())


def deinterleave(rows: Tensor, heads: int, width: int) -> Tensor:
    """Undo `interleave`."""
    return _reorder(rows, heads, torch.arange(width).view(-1, 2).T.flatten())


def _reorder(rows: Tensor, heads: int, order: Tensor) -> Tensor:
    if rows.is_meta:
        return rows
    per_head = rows.unflatten(0, (heads, -1))
    kept, rotary = per_head.split((per_head.shape[1] - len(order), len(order)), dim=1)
    return torch.cat((kept, rotary[:, order]), dim=1).flatten(0, 1)


def rotary_rows(config: ModelConfig, rest: str) -> tuple[int, int] | None:
    """Return (heads, rotary rows at the end of each) of a weight or bias whose output is rotated, else None."""
    module = rest.rpartition(".")[0]
    if config.mla:
        rotated = {"attention.q_up": config.num_heads, "attention.q": config.num_heads, "attention.kv_down": 1}
        return (rotated[module], config.mla.rope_width) if module in rotated else None
    return {"attention.q": (config.num_heads, config.head), "attention.k": (config.kv_heads, config.head)}.get(module)


def split_name(name: str) -> tuple[int | None, str]:
    """Split "blocks.3.attention.q.weight" into (3, "attention.q.weight"); names outside the blocks have no number."""
    if not name.startswith("blocks."):
        return None, name
    _, number, rest = name.split(".", 2)
    return int(number), rest


def translate(table: Mapping[str, str], name: str) -> str:
    """Look up a name whole, or without its last part (weight, bias), which is then kept."""
    if name in table:
        return table[name]
    module, leaf = name.rsplit(".", 1)
    return f"{table[module]}.{leaf}"
