"""`train consolidate`: a checkpoint for resuming becomes a model, in one process, whatever number of processes has written it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.progress import say
from openmai.model.checkpoint import KIND, save_weights
from openmai.model.config import load_config
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.train.checkpoints import FOLDER, damage, finished
from openmai.train.config import ConsolidateConfig

_PREFIX = "model."


def consolidate(config: ConsolidateConfig) -> Artifact:
    """Write the weights of a checkpoint for resuming as a checkpoint artifact, one tensor in memory at a time."""
    folder = _find(config.run)
    vocabulary = Artifact.load(config.tokenizer, "tokenizer")
    with create(config.out, kind=KIND, version=1, config=config, inputs=[folder, vocabulary]) as work:
        if work.finished:
            return work.finished
        architecture = load_config(folder)
        tokens = Tokenizer.load(vocabulary.path).vocab_size
        if tokens > architecture.vocab_size:
            raise OpenmaiError(
                f"{config.tokenizer}: {tokens} tokens, but {folder} has vocab_size={architecture.vocab_size}: another tokenizer"
            )
        stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        described = {
            name.removeprefix(_PREFIX): (about.properties.dtype, tuple(about.size))
            for name, about in stored.items()
            if name.startswith(_PREFIX) and isinstance(about, TensorStorageMetadata)
        }

        def fetch(name: str) -> Tensor:
            kind, shape = described[name]
            box = {_PREFIX + name: torch.empty(shape, dtype=kind)}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                dcp.load(box, checkpoint_id=folder, no_dist=True)
            return box[_PREFIX + name]

        save_weights(architecture, described, fetch, work.path, vocabulary.path)
        say(f"{config.out}: the model of {folder}")
        return work.finish({"parameters": sum(torch.Size(shape).numel() for _, shape in described.values())})


def _find(run: Path) -> Path:
    """Return the checkpoint at `run`, or the newest good one of the run at `run`; raise OpenmaiError if it is damaged."""
    folders = [run] if not (run / FOLDER).is_dir() else list(reversed(finished(run / FOLDER)))
    problems = []
    for folder in folders:
        if problem := damage(folder):
            problems.append(f"{folder}: {problem}")
        else:
            return folder
    raise OpenmaiError("; ".join(problems) or f"{run / FOLDER}: holds no checkpoint; a finished run keeps those of --loop.keep_every only")
