"""The weights of a checkpoint one tensor at a time, and the two layouts of rotary pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from openmai.model.config import ModelConfig


@dataclass(frozen=True)
class Planned:
    """A tensor of the exported file that is read only when its turn comes."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


class Weights:
    """Lazy access to a checkpoint's weights, whole tensors or one matrix of a stack.

    Router biases that the checkpoint does not store, because its model has none, are there as zeros for sigmoid routers: every class
    with such routers has them.
    """

    def __init__(self, file: Path, model: ModelConfig) -> None:
        self.file = safe_open(file, framework="pt")
        stored = self.file.keys()
        self.zeros: dict[str, int] = {}
        if model.moe and model.moe.score == "sigmoid":
            biases = [name.replace("weight_ED", "bias_E") for name in stored if name.endswith("router.weight_ED")]
            self.zeros = {name: model.moe.num_experts for name in biases if name not in stored}
        self.names: list[str] = sorted([*stored, *self.zeros])

    def shape(self, name: str) -> tuple[int, ...]:
        return (self.zeros[name],) if name in self.zeros else tuple(self.file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        return torch.zeros(self.zeros[name]) if name in self.zeros else self.file.get_tensor(name)

    def read_part(self, name: str, index: int) -> Tensor:
        """Return element `index` of the first axis."""
        return self.file.get_slice(name)[index].contiguous()


def split_name(name: str) -> tuple[int | None, str]:
    """Split "blocks.3.attention.q.weight" into (3, "attention.q.weight"); names outside the blocks have no number."""
    if not name.startswith("blocks."):
        return None, name
    _, number, rest = name.split(".", 2)
    return int(number), rest


def translate(table: dict[str, str], name: str) -> str:
    """Look up a name whole, or without its last part (weight, bias), which is then kept."""
    if name in table:
        return table[name]
    module, leaf = name.rsplit(".", 1)
    return f"{table[module]}.{leaf}"


def interleave(rows: Tensor, heads: int, width: int) -> Tensor:
    """Reorder the last `width` rows of each head from rotary pairs (i, i + width/2) to pairs (2i, 2i + 1)."""
    return _reorder(rows, heads, torch.arange(width).view(2, -1).T.flatten())


def deinterleave(rows: Tensor, heads: int, width: int) -> Tensor:
    """Undo `interleave`."""
    return _reorder(rows, heads, torch.arange(width).view(-1, 2).T.flatten())


def _reorder(rows: Tensor, heads: int, order: Tensor) -> Tensor:
    per_head = rows.unflatten(0, (heads, -1))
    kept, rotary = per_head.split((per_head.shape[1] - len(order), len(order)), dim=1)
    return torch.cat((kept, rotary[:, order]), dim=1).flatten(0, 1)


def rotary_rows(config: ModelConfig, rest: str) -> tuple[int, int] | None:
    """Return (heads, rotary rows at the end of each) of a weight or bias whose output is rotated, else None."""
    module = rest.rpartition(".")[0]
    if config.mla:
        return {"attention.q_up": (config.num_heads, config.mla.rope_width), "attention.kv_down": (1, config.mla.rope_width)}.get(module)
    return {"attention.q": (config.num_heads, config.head), "attention.k": (config.kv_heads, config.head)}.get(module)
