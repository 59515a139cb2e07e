"""Find the model that `chat`, `serve` and `eval` were pointed at."""

from __future__ import annotations

from pathlib import Path

import torch

from openmai.base.artifact import MANIFEST, Artifact
from openmai.base.errors import OpenmaiError
from openmai.model.checkpoint import KIND, load_model
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer

STAGES = ("pretrain", "sft", "dpo")  # where a recipe puts its checkpoints, in the order in which they are made


def load_assistant(path: Path) -> tuple[Transformer, Tokenizer, str]:
    """Return model, tokenizer and name (`laptop-sft`) of a checkpoint or of a run's newest one, on the GPU in bf16 if there is one.

    Raises OpenmaiError saying what to run when there is no finished model.
    """
    checkpoint = find_checkpoint(path)
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    folder = checkpoint.path.resolve()
    return load_model(checkpoint, device, dtype), Tokenizer.load(folder / "tokenizer"), f"{folder.parent.name}-{folder.name}".strip("-")


def load_draft(path: Path, model: Transformer) -> Transformer:
    """Load the small model at `path` that is to guess for `model`, to the same device and in the same precision."""
    weight = model.embedding.weight
    return load_model(find_checkpoint(path), str(weight.device), weight.dtype)


def find_checkpoint(path: Path) -> Artifact:
    """Open the checkpoint at `path`, or the newest of the run folder `path`."""
    if (path / MANIFEST).exists():
        return Artifact.load(path, KIND)
    finished = [Artifact.load(path / stage, verify=False) for stage in STAGES if (path / stage / MANIFEST).exists()]
    candidates = [(artifact.created, place, artifact) for place, artifact in enumerate(finished) if artifact.kind == KIND]
    if not candidates:
        state = "holds no finished model" if path.is_dir() else "no such folder"
        raise OpenmaiError(f"{path}: {state}; make one with `openmai run recipes/laptop.yaml`, or give the folder of a checkpoint")
    newest = max(candidates, key=lambda candidate: candidate[:2])[2]
    newest.verify()
    return newest
