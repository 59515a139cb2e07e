"""The checkpoint artifact: configuration, weights and tokenizer in one folder that needs nothing else.

model.json            ModelConfig
model.safetensors     weights under openmai's names
tokenizer/            tokenizer.json, tokenizer_config.json, chat_template.jinja
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from openmai.base.artifact import Artifact
from openmai.base.errors import OpenmaiError
from openmai.base.files import write_json
from openmai.model.config import ModelConfig, load_config
from openmai.model.hf.files import Writer
from openmai.model.transformer import Transformer

KIND = "checkpoint"


def save_model(model: Transformer, folder: Path, tokenizer: Path) -> None:
    """Write `model` and a copy of the `tokenizer` folder into `folder`."""
    tied = {"head.weight"} if model.config.tied_embeddings else set()
    weights = {name: value.detach() for name, value in model.state_dict().items() if name not in tied}
    described = {name: (value.dtype, tuple(value.shape)) for name, value in weights.items()}
    save_weights(model.config, described, weights.__getitem__, folder, tokenizer)


def save_weights(
    config: ModelConfig,
    described: dict[str, tuple[torch.dtype, tuple[int, ...]]],
    fetch: Callable[[str], Tensor],
    folder: Path,
    tokenizer: Path,
) -> None:
    """Write what `save_model` does, from types and shapes of tensors by name (tied ones once), which `fetch` returns one at a time."""
    write_json(folder / "model.json", json.loads(config.model_dump_json()))
    with Writer(folder / "model.safetensors", described) as writer:
        for name in writer.tensors:
            writer.write(name, fetch(name).cpu())
    (folder / "tokenizer").mkdir(exist_ok=True)
    for file in sorted(tokenizer.iterdir()):
        if file.suffix in (".json", ".jinja") and file.name != "manifest.json":
            shutil.copyfile(file, folder / "tokenizer" / file.name)


def load_model(checkpoint: Artifact | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """Build the model of a checkpoint artifact (or its verified folder) in evaluation mode.

    Raises OpenmaiError naming the tensor that is missing, unexpected or of another shape.
    """
    folder = checkpoint.path if isinstance(checkpoint, Artifact) else Artifact.load(checkpoint, KIND).path
    with torch.device("meta"):
        model = Transformer(load_config(folder))
    load_weights(model.to_empty(device=device), folder / "model.safetensors")
    return model.to(dtype).eval()


def load_weights(model: Transformer, file: Path) -> None:
    """Copy the weights of a safetensors file into `model`, checking names and shapes."""
    try:
        weights = load_file(file)
    except (SafetensorError, FileNotFoundError) as error:
        raise OpenmaiError(f"{file}: cannot be read ({error}); make the checkpoint again") from None
    if model.config.tied_embeddings:
        weights["head.weight"] = weights.get("embedding.weight", torch.empty(0))
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights:
            raise OpenmaiError(f"{file}: tensor {name} is missing; expected shape {tuple(own[name].shape)}")
        if name not in own:
            raise OpenmaiError(f"{file}: unexpected tensor {name} of shape {tuple(weights[name].shape)}; model.json does not have it")
        if own[name].shape != weights[name].shape:
            raise OpenmaiError(f"{file}: tensor {name} has shape {tuple(weights[name].shape)}, model.json expects {tuple(own[name].shape)}")
    model.load_state_dict(weights)
    for router in model.routers():  # buffers that are not stored start at zero
        router.load_E.zero_()
        if not router.moe.bias_rate:
            router.bias_E.zero_()
