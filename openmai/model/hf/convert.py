"""Weights from and to Hugging Face's layout, streaming: memory holds one tensor (of experts: one expert) at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from openmai.base.errors import OpenmaiError
from openmai.base.files import write_json
from openmai.base.progress import Progress
from openmai.model.config import ModelConfig
from openmai.model.hf.family import Family
from openmai.model.hf.files import Folder, Writer
from openmai.model.hf.names import Unit, units
from openmai.model.transformer import Transformer

SHARD_BYTES = 5_000_000_000

Shapes = dict[str, tuple[int, ...]]


def our_shapes(model: ModelConfig) -> Shapes:
    """Return the shapes of the stored tensors of `model` by name: parameters and selection biases, without a tied head or predictors."""
    with torch.device("meta"):
        state = Transformer(model).state_dict()
    skipped = {"head.weight"} if model.tied_embeddings else set()
    return {name: tuple(value.shape) for name, value in state.items() if name not in skipped and not name.startswith("predictors.")}


def import_weights(folder: Folder, family: Family, model: ModelConfig, file: Path, dtype: torch.dtype | None) -> int:
    """Write the weights of a Hugging Face folder under openmai's names to the safetensors `file`; return their bytes.

    `dtype` None keeps each tensor's own. Raises OpenmaiError naming the tensor that is missing, left over, or of another shape, with
    what was expected and what was found.
    """
    shapes = our_shapes(model)
    plan = list(units(model, family.names, shapes))
    _check(folder, family, model, shapes)
    types = {name: dtype or folder.dtype(unit.theirs) for unit in plan for name in unit.ours}
    with (
        Writer(file, {name: (types[name], shapes[name]) for name in shapes}) as writer,
        Progress("import", len(plan), "tensors") as progress,
    ):
        for unit in plan:
            for name, value in zip(unit.ours, unit.split(folder.read(unit.theirs, unit.their_row)), strict=True):
                writer.write(name, value, unit.our_row)
            progress.advance()
    return writer.size


def export_weights(checkpoint: Folder, family: Family, model: ModelConfig, out: Path) -> int:
    """Write a checkpoint's weights as safetensors files of at most SHARD_BYTES, with an index if there are several; return all bytes."""
    shapes = our_shapes(model)
    if model.moe and model.moe.score == "sigmoid":  # every class with such routers has the bias, also where training had none
        experts = (model.moe.num_experts,)
        shapes |= {f"blocks.{layer}.mlp.router.bias_E": experts for layer in range(model.num_layers) if model.is_moe(layer)}
    plan = list(units(model, family.names, shapes))

    def read(name: str, row: int | None) -> Tensor:
        return checkpoint.read(name, row) if name in checkpoint.where else torch.zeros(shapes[name])

    types = {unit.theirs: checkpoint.dtype(unit.ours[0]) if unit.ours[0] in checkpoint.where else torch.float32 for unit in plan}
    theirs = {name: (types[name], shape) for name, shape in their_tensors(model, family, shapes).items()}
    shards = _shards(theirs)
    with Progress("export", len(plan), "tensors") as progress:
        for file, names in shards.items():
            with Writer(out / file, {name: theirs[name] for name in names}) as writer:
                for unit in plan:
                    if unit.theirs in names:
                        writer.write(unit.theirs, unit.join([read(name, unit.our_row) for name in unit.ours]), unit.their_row)
                        progress.advance()
    total = sum(_bytes(*entry) for entry in theirs.values())
    if len(shards) > 1:
        where = {name: file for file, names in shards.items() for name in sorted(names)}
        write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    return total


def their_tensors(model: ModelConfig, family: Family, shapes: Shapes) -> Shapes:
    """Return the shapes of the tensors of an export by their names, in a fixed order; `shapes` are those of ours."""
    return {unit.theirs: _their_shape(unit, shapes) for unit in units(model, family.names, shapes)}


def _shards(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, set[str]]:
    """Spread tensors over files, in their order."""
    shards: list[set[str]] = [set()]
    size = 0
    for name, entry in tensors.items():
        if shards[-1] and size + _bytes(*entry) > SHARD_BYTES:
            shards.append(set())
            size = 0
        shards[-1].add(name)
        size += _bytes(*entry)
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{number:05d}-of-{len(shards):05d}.safetensors": names for number, names in enumerate(shards, start=1)}


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize


def _their_shape(unit: Unit, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of the whole tensor of theirs that `unit` is about."""
    parts = [torch.empty(shapes[name] if unit.our_row is None else shapes[name][1:], device="meta") for name in unit.ours]
    shape = tuple(unit.join(parts).shape)
    return shape if unit.their_row is None else (shapes[unit.ours[0]][0], *shape)


def _check(folder: Folder, family: Family, model: ModelConfig, shapes: Shapes) -> None:
    """Compare what the folder has with what its config.json promises."""
    found, wanted = folder.names, their_tensors(model, family, shapes)
    embedding = family.names.outside["embedding"] + ".weight"
    for name, shape in wanted.items():
        if name not in found:
            hint = f"; if the model ties it to {embedding}, set tie_word_embeddings to true there" if name.startswith("lm_head") else ""
            raise OpenmaiError(f"{folder.path}: tensor {name} is missing; config.json expects it with shape {shape}{hint}")
        if folder.shape(name) != shape:
            raise OpenmaiError(f"{folder.path}: tensor {name} has shape {folder.shape(name)}, config.json expects {shape}")
    head = family.names.outside["head"] + ".weight"
    if model.tied_embeddings and head in found:
        if not torch.equal(folder.read(head), folder.read(embedding)):
            raise OpenmaiError(
                f"{folder.path}: tensor {head} differs from {embedding}, but config.json says tie_word_embeddings=true; set it to false"
            )
        found = found - {head}
    extra = sorted(found - wanted.keys() - {name for name in found if _predicts(name, family, model)})
    if extra:
        raise OpenmaiError(
            f"{folder.path}: unexpected tensor {extra[0]} of shape {folder.shape(extra[0])}"
            + (f" and {len(extra) - 1} more" if len(extra) > 1 else "")
            + f"; {family.hf_class} with this config.json does not have it"
        )


def _predicts(name: str, family: Family, model: ModelConfig) -> bool:
    """Tell whether a tensor belongs to the multi-token prediction that DeepSeek-V3 stores as further layers; it is left out."""
    rest = name.removeprefix(family.names.layers)
    return rest != name and rest.partition(".")[0].isdigit() and int(rest.partition(".")[0]) >= model.num_layers and model.mla is not None


def has_predictors(folder: Folder, family: Family, model: ModelConfig) -> bool:
    """Tell whether the folder holds modules of multi-token prediction."""
    return any(_predicts(name, family, model) for name in folder.names)
