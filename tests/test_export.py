"""pytest tests/test_export.py

Each architecture that has a known class: our logits and greedy tokens against transformers and llama.cpp, on tiny random models.
"""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf as ggml
import numpy as np
import pytest
import torch
import transformers
import xllamacpp

from openmai.base.artifact import Artifact, create
from openmai.base.config import Config
from openmai.base.errors import OpenmaiError
from openmai.export import hf as hf_module
from openmai.export.config import GGUFConfig, HFConfig
from openmai.export.family import choose
from openmai.export.hf import hf, to_native
from openmai.export.llamacpp import gguf
from openmai.model.checkpoint import load_model, load_weights, save_model
from openmai.model.config import MLAConfig, ModelConfig, MoEConfig
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.tokenizer.train import learn, save

UNICODE = (
    "Übergröße naïve café — 123456 3.14\t\ttabs  \n\n  two   spaces\r\nЖёлтый 東京は日本の首都です。 안녕하세요 مرحبا שלום हिन्दी "
    "🙂👩‍👩‍👧‍👦🇩🇪 e\u0301 \u200bzero\u00a0nbsp I'M he'Ll don't _x_=y**2; <|im_end|> ½ ² Ⅷ \ufeff end \n"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?\nSay why."},
    {"role": "assistant", "content": "It is 4.\n\nTwo and two."},
    {"role": "user", "content": " Grüße 🙂 "},
    {"role": "assistant", "content": "Hello!"},
]
BASE = {"vocab_size": 520, "num_layers": 2, "width": 64, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 96, "context": 128, "rope_theta": 5000.0}
SOFTMAX = {"num_experts": 6, "num_active": 2, "expert_width": 32}
SIGMOID = SOFTMAX | {"score": "sigmoid", "num_shared": 2, "first_dense": 1, "bias_rate": 0.01, "scale": 1.7}
MLA = MLAConfig(query_rank=32, kv_rank=32, nope_width=16, rope_width=8, value_width=12)
MODELS = {
    "qwen3": ModelConfig(**BASE, qk_norm=True, head_width=32, tied_embeddings=True),
    "qwen3-bias-relu2": ModelConfig(**BASE, qk_norm=True, qkv_bias=True, o_bias=True, activation="relu2"),
    "llama": ModelConfig(**BASE, qkv_bias=True, o_bias=True, mlp_bias=True, norm_eps=1e-5),
    "qwen2": ModelConfig(**BASE, qkv_bias=True, head_width=32),
    "mixtral": ModelConfig(**BASE, moe=MoEConfig(**SOFTMAX)),
    "qwen3moe": ModelConfig(**BASE, qk_norm=True, moe=MoEConfig(**SOFTMAX)),
    "qwen3moe-every": ModelConfig(**BASE | {"num_layers": 4}, qk_norm=True, moe=MoEConfig(**SOFTMAX, first_dense=2, every=2, normalize=False)),
    "glm4moe": ModelConfig(**BASE, qk_norm=True, qkv_bias=True, moe=MoEConfig(**SIGMOID)),
    "deepseek": ModelConfig(**BASE, mla=MLA, moe=MoEConfig(**SIGMOID)),
    "deepseek-unbiased": ModelConfig(**BASE, mla=MLA, tied_embeddings=True, moe=MoEConfig(**SIGMOID | {"bias_rate": 0.0, "normalize": False})),
}
CLASSES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen3-bias-relu2": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "qwen3moe-every": "Qwen3MoeForCausalLM",
    "glm4moe": "Glm4MoeForCausalLM",
    "deepseek": "DeepseekV3ForCausalLM",
    "deepseek-unbiased": "DeepseekV3ForCausalLM",
}
IN_LLAMACPP = ["qwen3", "llama", "qwen2", "mixtral", "qwen3moe", "glm4moe", "deepseek", "deepseek-unbiased"]


class Made(Config):
    """Stands for the stage that made a checkpoint."""

    model: ModelConfig


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    words = "the cat sat on a mat and the dog ate it because two and two is four. It's 12 o'clock, isn't it?\n\nÜber naïve café 東京 🙂\n"
    save(learn(iter([words * 3, UNICODE * 2, "def add(a, b):\n    return a + b\n" * 3, "user\nassistant\nsystem\n" * 3]), 500), folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    """Return a function that makes the checkpoint of a name in MODELS, once."""
    made: dict[str, Artifact] = {}

    def make(name: str) -> Artifact:
        if name not in made:
            made[name] = make_checkpoint(MODELS[name], tmp_path_factory.mktemp(name) / "checkpoint", tokenizer)
        return made[name]

    return make


def make_checkpoint(config: ModelConfig, out: Path, tokenizer: Path) -> Artifact:
    with create(out, kind="checkpoint", version=1, config=Made(model=config)) as work:
        model = Transformer(config)
        model.initialize(0)
        perturb(model)
        save_model(model, work.path, tokenizer)
        return work.finish({})


@torch.no_grad()
def perturb(model: Transformer) -> None:
    """Move every weight, so that none is zero or one and a swapped pair of tensors shows."""
    generator = torch.Generator().manual_seed(1)
    for name, value in sorted(model.state_dict().items()):
        scale = 0.3 if value.ndim == 1 else 1.5 * value.shape[-1] ** -0.5
        value += scale * torch.randn(value.shape, generator=generator)
        if name == "embedding.weight" and model.config.tied_embeddings:
            break


@torch.no_grad()
def greedy(model: Transformer, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
    return ids[-count:]


PROMPT = [7, 300, 45, 260, 99, 410, 12]


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same(name, checkpoint, tmp_path):
    ours = load_model(checkpoint(name))
    artifact = hf(HFConfig(checkpoint=checkpoint(name).path, out=tmp_path / "hf"))
    assert artifact.metrics["class"] == CLASSES[name]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(artifact.path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == CLASSES[name]
    ids = torch.randint(0, BASE["vocab_size"], (2, 100), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = ours(ids), theirs(ids).logits
    assert expected.std() > 0.3
    assert (expected - found).abs().max() < 1e-4
    answer = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert answer[0, len(PROMPT) :].tolist() == greedy(ours, PROMPT, 32)


@pytest.mark.parametrize("name", ["qwen3", "mixtral", "deepseek"])
def test_weights_come_back_bit_for_bit(name, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_module, "SHARD_BYTES", 100_000)
    folder = hf(HFConfig(checkpoint=checkpoint(name).path, out=tmp_path / "hf")).path
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    back, expected = to_native(folder, MODELS[name]), load_model(checkpoint(name)).state_dict()
    assert back.keys() == expected.keys() - ({"head.weight"} if MODELS[name].tied_embeddings else set())
    assert all(torch.equal(value, expected[key]) for key, value in back.items())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(theirs.get_input_embeddings().weight, expected["embedding.weight"])
