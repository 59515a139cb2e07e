"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from openmai.base.artifact import create
from openmai.base.config import Config
from openmai.model.checkpoint import KIND, save_model
from openmai.model.config import ModelConfig
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.tokenizer.train import learn, save

TEXTS = [
    f"The {noun} {verb} the {thing}, naïve café 漢字 🙂."
    for noun in ("cat", "list", "module")
    for verb in ("opens", "sorts", "reads")
    for thing in ("file", "tree", "loop")
]


class TinyConfig(Config):
    """Says what the tiny checkpoint is made of."""

    seed: int = 0


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tokenizer of a few hundred tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save(learn(iter(TEXTS), 360), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a checkpoint artifact: a two-layer model of random weights, large enough that its answers vary."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    vocab_size = Tokenizer.load(tiny_tokenizer).vocab_size
    model = Transformer(ModelConfig(vocab_size=vocab_size, num_layers=2, width=32, num_heads=4, num_kv_heads=2, ffn_width=64, context=128))
    randomize(model, seed=0)
    with create(folder, kind=KIND, version=1, config=TinyConfig()) as work:
        save_model(model, folder, tiny_tokenizer)
        work.finish(metrics={})
    return folder


@torch.no_grad()
def randomize(model: Transformer, seed: int) -> None:
    """Give every matrix weights that matter; the training initialisation starts with zero outputs."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.ndim >= 2:
            parameter.normal_(0, 2 / parameter.shape[-1] ** 0.5, generator=generator)
    for router in model.routers():
        router.bias_E.zero_()
        router.load_E.zero_()
