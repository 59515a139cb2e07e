"""pytest tests/test_export.py

Each architecture that has a known class: our logits and greedy tokens against transformers and llama.cpp, on tiny random models.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.request
from collections.abc import Sequence
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
from openmai.export.config import GGUFConfig, HFConfig
from openmai.export.hf import hf
from openmai.export.llamacpp import gguf
from openmai.model.checkpoint import load_model, save_model
from openmai.model.config import MLAConfig, ModelConfig, MoEConfig
from openmai.model.hf import convert
from openmai.model.hf.family import choose
from openmai.model.hf.files import Writer
from openmai.model.import_config import ImportConfig
from openmai.model.import_hf import import_hf
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.tokenizer.train import learn, save

WORDS = "the cat sat on a mat and the dog ate it because two and two is four. It's 12 o'clock, isn't it?\n\nÜber naïve café 東京 🙂\n"
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
SIZE = {"vocab_size": 520, "num_layers": 2, "width": 64, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 96}
BASE = SIZE | {"context": 128, "rope_theta": 5000.0}
LATENT = {name: value for name, value in BASE.items() if name != "num_kv_heads"}
SOFTMAX = {"num_experts": 6, "num_active": 2, "expert_width": 32}
SIGMOID = SOFTMAX | {"score": "sigmoid", "num_shared": 2, "first_dense": 1, "bias_rate": 0.01, "scale": 1.7}
MLA = MLAConfig(query_rank=32, kv_rank=32, nope_width=16, rope_width=8, value_width=12)
# name -> class in transformers, architecture in llama.cpp ("" where it has none), configuration
CASES = {
    "qwen3": ("Qwen3ForCausalLM", "qwen3", ModelConfig(**BASE, qk_norm=True, head_width=32, tied_embeddings=True)),
    "qwen3-odd": (
        "Qwen3ForCausalLM",
        "",
        ModelConfig(**BASE | {"width": 60, "num_heads": 8}, head_width=16, qk_norm=True, qkv_bias=True, o_bias=True, activation="relu2"),
    ),
    "llama": ("LlamaForCausalLM", "llama", ModelConfig(**BASE, head_width=32, qkv_bias=True, o_bias=True, mlp_bias=True, norm_eps=1e-5)),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", ModelConfig(**BASE, qkv_bias=True)),
    "mixtral": ("MixtralForCausalLM", "llama", ModelConfig(**BASE, moe=MoEConfig(**SOFTMAX))),
    "qwen3moe": ("Qwen3MoeForCausalLM", "qwen3moe", ModelConfig(**BASE, qk_norm=True, moe=MoEConfig(**SOFTMAX))),
    "qwen3moe-every": (
        "Qwen3MoeForCausalLM",
        "",
        ModelConfig(**BASE | {"num_layers": 4}, qk_norm=True, moe=MoEConfig(**SOFTMAX, first_dense=2, every=2, normalize=False)),
    ),
    "glm4moe": ("Glm4MoeForCausalLM", "glm4moe", ModelConfig(**BASE, qk_norm=True, qkv_bias=True, moe=MoEConfig(**SIGMOID))),
    "deepseek": ("DeepseekV3ForCausalLM", "deepseek2", ModelConfig(**LATENT, mla=MLA, moe=MoEConfig(**SIGMOID))),
    "deepseek-plain": (
        "DeepseekV3ForCausalLM",
        "deepseek2",
        ModelConfig(**LATENT, mla=MLA, tied_embeddings=True, moe=MoEConfig(**SIGMOID | {"bias_rate": 0.0, "normalize": False})),
    ),
}
MODELS = {name: config for name, (_, _, config) in CASES.items()}
IN_LLAMACPP = [name for name, (_, architecture, _) in CASES.items() if architecture]


class Made(Config):
    """Stands for the stage that made a checkpoint."""

    model: ModelConfig


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save(learn(iter([WORDS * 3, UNICODE * 2, "def add(a, b):\n    return a + b\n" * 3, "user\nassistant\nsystem\n" * 3]), 500), folder)
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
    for _, value in sorted(model.state_dict().items()):
        scale = 0.3 if value.ndim == 1 else 1.5 * value.shape[-1] ** -0.5
        value += scale * torch.randn(value.shape, generator=generator)


@torch.no_grad()
def greedy(model: Transformer, ids: list[int], count: int, never: Sequence[int] = ()) -> list[int]:
    for _ in range(count):
        logits = model(torch.tensor([ids]))[0, -1]
        logits[list(never)] = float("-inf")
        ids = [*ids, int(logits.argmax())]
    return ids[-count:]


PROMPT = [7, 300, 45, 260, 99, 410, 12]


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same(name, checkpoint, tmp_path):
    ours = load_model(checkpoint(name))
    artifact = hf(HFConfig(checkpoint=checkpoint(name).path, out=tmp_path / "hf"))
    assert artifact.metrics["class"] == CASES[name][0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(artifact.path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == CASES[name][0]
    ids = torch.randint(0, BASE["vocab_size"], (2, 100), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = ours(ids), theirs(ids).logits
    assert expected.std() > 0.3
    assert (expected - found).abs().max() < 1e-4
    answer = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert answer[0, len(PROMPT) :].tolist() == greedy(ours, PROMPT, 32)


@pytest.mark.parametrize("name", ["qwen3", "mixtral", "deepseek"])
def test_weights_come_back_bit_for_bit(name, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "SHARD_BYTES", 100_000)
    folder = hf(HFConfig(checkpoint=checkpoint(name).path, out=tmp_path / "hf")).path
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    back = import_hf(ImportConfig(folder=folder, out=tmp_path / "back"))
    found, expected = load_model(back).state_dict(), load_model(checkpoint(name)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(theirs.get_input_embeddings().weight, expected["embedding.weight"])


def test_transformers_reads_and_renders_like_our_tokenizer(checkpoint, tmp_path):
    folder = hf(HFConfig(checkpoint=checkpoint("qwen3").path, out=tmp_path / "hf")).path
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    text = UNICODE.replace("<|im_end|>", "")  # transformers takes a typed "<|im_end|>" for the token; we do not
    assert theirs(text, add_special_tokens=True).input_ids == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    assert theirs.eos_token_id == ours.end_of_turn
    asked = theirs.apply_chat_template(CHAT[:4], add_generation_prompt=True, return_dict=True)
    assert asked["input_ids"] == ours.render(CHAT[:4], reply=True)[0]
    ids, mask = ours.render(CHAT)
    rendered = theirs.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    assert rendered["input_ids"] == ids
    assert [bool(bit) for bit in rendered["assistant_masks"]] == mask
    settings = transformers.GenerationConfig.from_pretrained(folder)
    assert settings.eos_token_id == [ours.end_of_turn, ours.end_of_text]
    config = json.loads((folder / "config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"], config["pad_token_id"]) == (ours.end_of_turn, None, ours.end_of_text)


def serve(file: Path) -> xllamacpp.Server:
    """Start llama.cpp's server in this process, with full-precision attention so that its numbers are comparable."""
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel, params.n_ctx, params.cpuparams.n_threads = 1, 128, 1
    params.fit_params = params.warmup = False
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.verbosity = -1
    return xllamacpp.Server(params)


def post(server: xllamacpp.Server, path: str, body: dict) -> dict:
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def generate(server: xllamacpp.Server, prompt: list[int], count: int) -> dict:
    settings = {"temperature": 0, "top_k": 1, "ignore_eos": True, "return_tokens": True, "n_probs": 5}
    return post(server, "/completion", {"prompt": prompt, "n_predict": count} | settings)


def export_gguf(checkpoint: Artifact, out: Path, quantize: str) -> Path:
    return gguf(GGUFConfig(checkpoint=checkpoint.path, out=out, quantize=quantize)).path / f"model-{quantize}.gguf"


@torch.no_grad()
def worst_probability(ours: Transformer, answer: dict) -> float:
    """Return the largest difference of the top log-probabilities of the first token that llama.cpp shows.

    It leaves out tokens that end inside a character, so the first shown need not be the first generated.
    """
    shown = answer["completion_probabilities"][0]
    before = answer["tokens"][: answer["tokens"].index(shown["id"])]
    expected = ours(torch.tensor([PROMPT + before]))[0, -1].log_softmax(-1)
    return max(abs(item["logprob"] - float(expected[item["id"]])) for item in shown["top_logprobs"])


@pytest.mark.parametrize("name", IN_LLAMACPP)
def test_llamacpp_computes_the_same(name, checkpoint, tokenizer, tmp_path):
    ours, file = load_model(checkpoint(name)), export_gguf(checkpoint(name), tmp_path / "gguf", "f32")
    assert ggml.GGUFReader(file).fields["general.architecture"].contents() == CASES[name][1]
    answer, special = generate(serve(file), PROMPT, 32), Tokenizer.load(tokenizer)
    assert answer["tokens"] == greedy(ours, PROMPT, 32, never=[special.end_of_text, special.end_of_turn])
    assert worst_probability(ours, answer) < 1e-4


def test_llamacpp_reads_and_renders_like_our_tokenizer(checkpoint, tokenizer, tmp_path):
    server, ours = serve(export_gguf(checkpoint("qwen3"), tmp_path / "gguf", "f32")), Tokenizer.load(tokenizer)
    assert post(server, "/tokenize", {"content": UNICODE, "parse_special": False})["tokens"] == ours.encode(UNICODE)
    prompt = post(server, "/apply-template", {"messages": CHAT[:4]})["prompt"]
    assert post(server, "/tokenize", {"content": prompt, "parse_special": True})["tokens"] == ours.render(CHAT[:4], reply=True)[0]
    assert post(server, "/tokenize", {"content": "cat", "add_special": True})["tokens"] == ours.encode("cat")  # no BOS


def test_an_interrupted_export_is_redone_whole(checkpoint, tmp_path, monkeypatch):
    whole = hf(HFConfig(checkpoint=checkpoint("qwen2").path, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", lambda self, name, value, row=None: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            hf(HFConfig(checkpoint=checkpoint("qwen2").path, out=tmp_path / "cut"))
    with pytest.raises(OpenmaiError, match="unfinished"):
        Artifact.load(tmp_path / "cut")
    assert hf(HFConfig(checkpoint=checkpoint("qwen2").path, out=tmp_path / "cut")).digest == whole.digest


# largest error of a weight, as a share of the largest weight of its row: half a step, for bf16 and f16 half of the last bit
BOUNDS = {"f16": 2**-11, "bf16": 2**-8, "q8_0": 0.6 / 127, "q4_0": 1.01 / 8}


@pytest.mark.parametrize("quantize", BOUNDS)
def test_quantised_weights_stay_near(quantize, checkpoint, tmp_path):
    exact = {t.name: t.data for t in ggml.GGUFReader(export_gguf(checkpoint("qwen3moe"), tmp_path / "exact", "f32")).tensors}
    file = export_gguf(checkpoint("qwen3moe"), tmp_path / "small", quantize)
    for tensor in ggml.GGUFReader(file).tensors:
        want = exact[tensor.name]
        found = ggml.dequantize(tensor.data, tensor.tensor_type).reshape(want.shape)
        bound = BOUNDS[quantize] if tensor.tensor_type.name != "F32" else 0
        assert (np.abs(found - want) <= bound * np.abs(want).max(axis=-1, keepdims=True) + 1e-7).all(), tensor.name
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in ggml.GGUFReader(file).tensors}
    assert types["blk.0.ffn_gate_exps.weight"] == types["blk.1.attn_q.weight"] == quantize
    assert types["token_embd.weight"] == ("q8_0" if quantize == "q4_0" else quantize)
    assert types["blk.0.ffn_gate_inp.weight"] == types["blk.0.attn_norm.weight"] == types["blk.0.attn_q_norm.weight"] == "f32"


def test_a_quantised_file_runs_and_keeps_the_probabilities(checkpoint, tmp_path):
    file = export_gguf(checkpoint("qwen3moe"), tmp_path / "gguf", "q8_0")
    assert 1e-4 < worst_probability(load_model(checkpoint("qwen3moe")), generate(serve(file), PROMPT, 16)) < 0.2


def test_rows_that_do_not_divide_into_blocks_become_f16(checkpoint, tmp_path, capsys):
    file = export_gguf(checkpoint("deepseek"), tmp_path / "gguf", "q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in ggml.GGUFReader(file).tensors}
    assert types["blk.0.attn_k_b.weight"] == types["blk.0.attn_output.weight"] == "F16"
    assert types["blk.0.attn_v_b.weight"] == "Q8_0"
    assert "blk.0.attn_k_b.weight with rows of 16" in capsys.readouterr().err
    assert len(generate(serve(file), PROMPT, 4)["tokens"]) == 4


def test_an_export_is_repeatable_and_recognised(checkpoint, tmp_path):
    first, again = (export_gguf(checkpoint("llama"), tmp_path / name, "q4_0") for name in ("one", "two"))
    assert first.read_bytes() == again.read_bytes()
    made = hf(HFConfig(checkpoint=checkpoint("llama").path, out=tmp_path / "hf"))
    assert hf(HFConfig(checkpoint=checkpoint("llama").path, out=tmp_path / "hf")).created == made.created
    assert hf(HFConfig(checkpoint=checkpoint("llama").path, out=tmp_path / "hf2")).digest == made.digest


UNKNOWN = {
    "norm=layer": {"norm": "layer"},
    "norm_place=after": {"norm_place": "after"},
    "qk_norm_span=all": {"qk_norm": True, "qk_norm_span": "all"},
    "head_bias=true": {"head_bias": True},
    "positions=learned": {"positions": "learned"},
    "gated=false": {"gated": False},
    "o_bias=true": {"o_bias": True},
    "mlp_bias=true": {"qk_norm": True, "mlp_bias": True},
    "moe.latent_width=16": {"moe": MoEConfig(**SIGMOID, latent_width=16)},
    "moe.scale=2.0": {"moe": MoEConfig(**SOFTMAX, scale=2.0)},
    "moe.bias_rate=true": {"qk_norm": True, "moe": MoEConfig(**SOFTMAX, bias_rate=0.1)},
    "moe.num_shared=1": {"qk_norm": True, "moe": MoEConfig(**SOFTMAX, num_shared=1)},
    "moe.every=2": {"moe": MoEConfig(**SIGMOID | {"every": 2})},
    "norm_eps=1e-05": {"mla": MLA, "moe": MoEConfig(**SIGMOID), "norm_eps": 1e-5},
    "moe.num_shared=0": {"mla": MLA, "moe": MoEConfig(**SIGMOID | {"num_shared": 0})},
    "mla=true": {"mla": MLA},
    "value_embeddings=true": {"value_embeddings": True},
    "logit_softcap=15.0": {"qk_norm": True, "logit_softcap": 15.0},
    "rope_share=0.5": {"rope_share": 0.5, "qk_norm": True},
    "global_rope=false": {"qk_norm": True, "window": 16, "global_every": 2, "global_rope": False},
}


@pytest.mark.parametrize("named", UNKNOWN)
def test_an_architecture_without_a_class_is_refused_by_the_name_of_its_feature(named):
    with pytest.raises(OpenmaiError, match=re.escape(named)):
        choose(ModelConfig(**(LATENT if "mla" in UNKNOWN[named] else BASE), **UNKNOWN[named]))


LACKING = {"qwen3-odd": "activation=relu2, o_bias=true, qkv_bias=true", "qwen3moe-every": "moe.first_dense=2, moe.normalize=false"}


@pytest.mark.parametrize("name", LACKING)
def test_what_llamacpp_lacks_is_refused(name, checkpoint, tmp_path):
    with pytest.raises(OpenmaiError, match=re.escape(LACKING[name])):
        export_gguf(checkpoint(name), tmp_path / "gguf", "f32")


def test_a_foreign_split_is_refused(checkpoint, tokenizer, tmp_path):
    foreign = tmp_path / "foreign"
    shutil.copytree(tokenizer, foreign)
    data = json.loads((foreign / "tokenizer.json").read_text())
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+"
    (foreign / "tokenizer.json").write_text(json.dumps(data))
    made = make_checkpoint(MODELS["qwen2"], tmp_path / "checkpoint", foreign)
    with pytest.raises(OpenmaiError, match="its split is not"):
        export_gguf(made, tmp_path / "gguf", "f32")
