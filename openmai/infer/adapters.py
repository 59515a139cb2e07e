"""LoRA adapters (arXiv:2106.09685) beside one base model: each request may have its own, and all share a forward pass.

    adapters = attach(pack(model), {"polite": Path("adapters/polite")})
    with Engine(model, tokenizer, adapters=adapters) as engine:
        engine.submit(ids, Sampling(adapter="polite"))

A folder is what PEFT saves: adapter_config.json and adapter_model.safetensors, by the names that transformers has for the model.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from openmai.base.errors import OpenmaiError
from openmai.model.config import ModelConfig
from openmai.model.hf.convert import our_shapes
from openmai.model.hf.family import choose
from openmai.model.hf.names import units
from openmai.model.transformer import Transformer

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
A, B = ".lora_A.weight", ".lora_B.weight"
_WITHOUT: dict[str, Any] = {"bias": "none", "use_dora": False, "modules_to_save": None, "alpha_pattern": {}, "rank_pattern": {}}
"what an adapter may not have, and the value that says that it has not"


@dataclass(frozen=True)
class Low:
    """What an adapter adds to one linear layer: x A^T B^T, with its scale in B; A (R, D), B (F, R)."""

    a_RD: Tensor
    b_FR: Tensor


Adapter = dict[str, Low]
"by our name of the layer"


class Adapters:
    """Which rows of the pass that is under way have which adapter; each thread has its own pass."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._pass = threading.local()

    @property
    def rows(self) -> list[tuple[str, Tensor]]:
        """Return the adapters in use, each with its rows."""
        return getattr(self._pass, "rows", [])

    @contextmanager
    def over(self, runs: Sequence[tuple[str, int]]) -> Iterator[None]:
        """Run a pass over rows of which each run of so many has the adapter of this name, or none ("")."""
        if not self.names:
            yield
            return
        places: dict[str, list[int]] = {}
        start = 0
        for name, count in runs:
            if name:
                places.setdefault(name, []).extend(range(start, start + count))
            start += count
        self._pass.rows = [(name, torch.tensor(rows)) for name, rows in places.items()]
        try:
            yield
        finally:
            self._pass.rows = []


class Adapted(nn.Module):
    """A linear layer, in whatever form, with what adapters add to its results; `parts` says from which column on and for which."""

    def __init__(self, inner: nn.Module, adapters: Adapters, parts: Mapping[str, Sequence[tuple[int, Low]]]) -> None:
        super().__init__()
        self.inner, self.adapters, self.parts = inner, adapters, parts

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        for name, rows_N in self.adapters.rows:
            for start, low in self.parts.get(name, ()):
                added = (x.reshape(-1, x.shape[-1])[rows_N] @ low.a_RD.T) @ low.b_FR.T
                y.view(-1, y.shape[-1])[rows_N, start : start + added.shape[1]] += added
        return y


def attach(model: Transformer, folders: Mapping[str, Path]) -> Adapters:
    """Load adapters and wrap the layers that they change, in place; pack the model before. Raises OpenmaiError, naming file and field."""
    loaded = {name: load_adapter(folder, model.config) for name, folder in folders.items()}
    adapters, weight = Adapters(tuple(folders)), model.embedding.weight
    for prefix, module in list(model.named_modules()):
        for place, inner, parts in _sites(module):
            found: dict[str, list[tuple[int, Low]]] = {}
            for start, child in parts:
                for name, adapter in loaded.items():
                    if low := adapter.pop(f"{prefix}.{child}", None):
                        found.setdefault(name, []).append((start, Low(low.a_RD.to(weight), low.b_FR.to(weight))))
            if found:
                setattr(place, inner, Adapted(getattr(place, inner), adapters, found))
    if (few := model.few) is not None:  # which knows of no adapters: not for passes in which a row has one
        model.few = lambda batch, wanted: None if adapters.rows else few(batch, wanted)
    for name, adapter in loaded.items():
        if adapter:
            raise OpenmaiError(f"{folders[name]}: it changes {next(iter(adapter))}, which adapters cannot change here; only linear layers")
    return adapters


def _sites(module: nn.Module) -> Iterator[tuple[nn.Module, str, list[tuple[int, str]]]]:
    """Yield the layers inside a module that may be wrapped: (who holds it, its name there, first column and name of what it computes)."""
    joint = getattr(module, "joint", None)
    if joint is not None:
        starts = [sum(joint.widths[:number]) for number in range(len(joint.widths))]
        yield joint, "whole", list(zip(starts, joint.names, strict=True))
    for name, child in module.named_children():
        if name not in ("joint", "kv_up", "whole", "inner") and not list(child.children()):
            yield module, name, [(0, name)]


def load_adapter(folder: Path, config: ModelConfig) -> Adapter:
    """Read a PEFT folder for a model. Raises OpenmaiError for a broken file, what is not LoRA, and names or shapes that do not fit."""
    settings, tensors = _read_settings(folder / SETTINGS), _read_tensors(folder / WEIGHTS)
    rank = settings.get("r", 8)
    scale = settings.get("lora_alpha", 8) / (rank**0.5 if settings.get("use_rslora") else rank)
    family, shapes = choose(config), our_shapes(config)
    layers = {
        unit.theirs.removesuffix(".weight"): unit
        for unit in units(config, family.names, shapes)
        if unit.theirs.endswith(".weight")
        and unit.our_row is None
        and len(shapes[unit.ours[0]]) == 2
        and unit.ours[0].startswith("blocks.")
    }
    adapter: Adapter = {}
    for name in [name for name in tensors if name.endswith(A)]:
        layer = name.removeprefix("base_model.model.").removesuffix(A)
        if layer not in layers:
            raise OpenmaiError(
                f"{folder / WEIGHTS}: {family.hf_class} has no linear layer {layer}, or none that an adapter can change here"
            )
        ours = layers[layer].ours
        a_RD, b_FR = tensors[name], tensors.pop(name.removesuffix(A) + B)
        found = (b_FR.shape[0], a_RD.shape[1])
        expected = (sum(shapes[part][0] for part in ours), shapes[ours[0]][1])
        if found != expected or a_RD.shape[0] != b_FR.shape[1]:
            raise OpenmaiError(
                f"{folder / WEIGHTS}: {layer}: expected matrices for {expected}, found {tuple(b_FR.shape)} x {tuple(a_RD.shape)}"
            )
        parts = layers[layer].split(scale * (b_FR.mT if family.names.transposed else b_FR))
        adapter |= {part.removesuffix(".weight"): Low(a_RD, low_FR) for part, low_FR in zip(ours, parts, strict=True)}
    return adapter


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise OpenmaiError(f"{file}: cannot be read ({error}); give the folder of an adapter that PEFT saved") from None
    for name in tensors:
        other = name.removesuffix(A) + B if name.endswith(A) else name.removesuffix(B) + A
        if not name.endswith((A, B)) or other not in tensors:
            raise OpenmaiError(
                f"{file}: {name}" + (f" is there, {other} is not" if name.endswith((A, B)) else " is no part of LoRA on a linear layer")
            )
    return tensors


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OpenmaiError(f"{file}: cannot be read ({error}); give the folder of an adapter that PEFT saved") from None
    if settings.get("peft_type") != "LORA":
        raise OpenmaiError(f"{file}: peft_type is {settings.get('peft_type')}; only LORA is known")
    for name, wanted in _WITHOUT.items():
        if settings.get(name) and settings[name] != wanted:
            raise OpenmaiError(f"{file}: {name}={settings[name]} is not supported; merge the adapter into its model")
    return settings
