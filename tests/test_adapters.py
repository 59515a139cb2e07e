"""OMP_NUM_THREADS=1 python -m pytest tests/test_adapters.py: a model with adapters against copies of it that they were merged into."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from conftest import randomize
from safetensors.torch import save_file
from test_serve import running

from openmai.base.errors import OpenmaiError
from openmai.infer.adapters import SETTINGS, WEIGHTS, attach, load_adapter
from openmai.infer.config import EngineConfig, Sampling
from openmai.infer.embed import embed
from openmai.infer.engine import Engine
from openmai.infer.load import load_assistant
from openmai.infer.pack import pack
from openmai.model.config import MLAConfig, ModelConfig
from openmai.model.hf.convert import our_shapes
from openmai.model.hf.family import choose
from openmai.model.hf.names import units
from openmai.model.transformer import Transformer
from openmai.serve.gate import Gate
from openmai.serve.keys import Key
from openmai.tokenizer.tokenizer import Tokenizer

COMMON = {"num_layers": 2, "width": 32, "num_heads": 4, "ffn_width": 48, "context": 96}
MLA = MLAConfig(query_rank=24, kv_rank=16, nope_width=8, rope_width=4, value_width=8)
GPT2 = {"positions": "learned", "norm": "layer", "norm_bias": True, "gated": False, "activation": "gelu_tanh", "tied_embeddings": True}
BIASED = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
MOE = {"num_experts": 4, "num_active": 2, "expert_width": 16, "score": "sigmoid", "bias_rate": 0.001, "num_shared": 1, "first_dense": 1}
QWEN3 = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
LATENT = ("self_attn.q_b_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.o_proj")
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "qwen3": ({"qk_norm": True, "num_kv_heads": 2}, QWEN3),
    "llama": ({"num_kv_heads": 2, "hf_class": "LlamaForCausalLM"}, ("self_attn.k_proj", "mlp.up_proj")),
    "phi-3": ({"num_kv_heads": 2, "hf_class": "Phi3ForCausalLM"}, ("self_attn.qkv_proj", "mlp.gate_up_proj")),
    "gpt-2": ({**GPT2, **BIASED, "hf_class": "GPT2LMHeadModel"}, ("attn.c_attn", "mlp.c_proj")),
    "deepseek": ({"mla": MLA, "moe": MOE, "hf_class": "DeepseekV3ForCausalLM"}, LATENT),
}
SCALE = 0.5


def model_of(name: str, vocab_size: int) -> Transformer:
    model = Transformer(ModelConfig.model_validate({"vocab_size": vocab_size, **COMMON, **MODELS[name][0]})).eval()
    randomize(model, seed=1)
    return model


def save_adapter(folder: Path, model: Transformer, targets: tuple[str, ...], seed: int, **settings: object) -> Path:
    """Write a folder as PEFT does."""
    shapes, generator = our_shapes(model.config), torch.Generator().manual_seed(seed)
    tensors = {}
    for unit in units(model.config, choose(model.config).names, shapes):
        if unit.theirs.endswith(tuple(f"{target}.weight" for target in targets)):
            rows, columns = sum(shapes[name][0] for name in unit.ours), shapes[unit.ours[0]][1]
            base = "base_model.model." + unit.theirs.removesuffix(".weight")
            tensors[f"{base}.lora_A.weight"] = torch.randn(4, columns, generator=generator) / 4
            tensors[f"{base}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) / 4
    assert len(tensors) == 2 * len(targets) * model.config.num_layers
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    facts = {"peft_type": "LORA", "r": 4, "lora_alpha": 4 * SCALE, "bias": "none", "target_modules": list(targets), **settings}
    (folder / SETTINGS).write_text(json.dumps(facts))
    return folder


@torch.no_grad()
def merged(model: Transformer, folder: Path) -> Transformer:
    """Return a copy of the model with an adapter added to its weights, in the layout of transformers."""
    from safetensors.torch import load_file

    lows, model = load_file(folder / WEIGHTS), copy.deepcopy(model)
    names = choose(model.config).names
    weights = dict(model.named_parameters())
    for unit in units(model.config, names, our_shapes(model.config)):
        base = "base_model.model." + unit.theirs.removesuffix(".weight")
        if f"{base}.lora_A.weight" in lows:
            added = SCALE * lows[f"{base}.lora_B.weight"] @ lows[f"{base}.lora_A.weight"]
            whole = unit.join([weights[name].data for name in unit.ours]) + (added.T if names.transposed else added)
            for name, part in zip(unit.ours, unit.split(whole), strict=True):
                weights[name].copy_(part)
    return model


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_each_request_gets_what_the_merged_model_gives(name: str, packed: bool, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """Side by side in one pass, in pieces, and with blocks of a common beginning, which differ by adapter."""
    tokenizer = Tokenizer.load(tiny_tokenizer)
    model = model_of(name, tokenizer.vocab_size)
    folders = {who: save_adapter(tmp_path / who, model, MODELS[name][1], seed) for seed, who in enumerate("ab")}
    plain = {"": model, **{who: merged(model, folder) for who, folder in folders.items()}}
    prompts = [list(range(10, 45)), [*range(10, 40), 7, 8], [9, 30]]
    sampling = Sampling(max_tokens=16, temperature=0, prompt_logprobs=0)
    expected = {}
    for who, one in plain.items():
        with Engine(one, tokenizer, EngineConfig()) as engine:
            expected[who] = engine.generate(prompts, sampling)
    assert len({tuple(answers[0].ids) for answers in expected.values()}) == 3, "the adapters change nothing that is seen"
    adapted = pack(copy.deepcopy(model)) if packed else copy.deepcopy(model)
    adapters = attach(adapted, folders)
    with Engine(adapted, tokenizer, EngineConfig(rows=5, step_tokens=24), adapters=adapters) as engine:
        for _ in range(2):  # the second time blocks are found
            requests = {
                (who, number): engine.submit(prompt, sampling.model_copy(update={"adapter": who, "prompt_logprobs": None}))
                for number, prompt in enumerate(prompts)
                for who in plain
            }
            for (who, number), request in requests.items():
                assert request.result().ids == expected[who][number].ids, (who, number)
        assert engine.stats.reused > 0
        scored = engine.submit(prompts[0], sampling.model_copy(update={"adapter": "a"})).result().prompt_logprobs
        for one, other in zip(scored, expected["a"][0].prompt_logprobs, strict=True):
            assert one.value == pytest.approx(other.value, abs=1e-4)
        with pytest.raises(OpenmaiError, match=r"adapter=c: not attached to this model; known: a, b"):
            engine.submit(prompts[0], sampling.model_copy(update={"adapter": "c"}))
    assert torch.allclose(embed(adapted, [prompts[0]])[0], embed(model, [prompts[0]])[0], atol=1e-5), "embeddings are the model's own"


def test_rank_stabilised_scale(tmp_path: Path) -> None:
    model = model_of("qwen3", 64)
    plain = load_adapter(save_adapter(tmp_path / "a", model, ("mlp.up_proj",), 0), model.config)
    other = load_adapter(save_adapter(tmp_path / "b", model, ("mlp.up_proj",), 0, use_rslora=True), model.config)
    assert torch.allclose(other["blocks.0.mlp.up"].b_FR, plain["blocks.0.mlp.up"].b_FR * 4 / 4**0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is IA3; only LORA is known"),
        ({"use_dora": True}, "use_dora=True is not supported; merge the adapter into its model"),
        ({"bias": "all"}, "bias=all is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
    ],
)
def test_other_kinds_are_refused_by_name(settings: dict, message: str, tmp_path: Path) -> None:
    model = model_of("qwen3", 64)
    with pytest.raises(OpenmaiError, match=message):
        load_adapter(save_adapter(tmp_path / "a", model, ("mlp.up_proj",), 0, **settings), model.config)


def test_broken_and_strange_folders_are_refused_by_name(tmp_path: Path) -> None:
    model = model_of("qwen3", 64)
    with pytest.raises(OpenmaiError, match=r"adapter_config.json: cannot be read .*folder of an adapter that PEFT saved"):
        load_adapter(tmp_path / "nothing", model.config)
    folder = save_adapter(tmp_path / "a", model, ("mlp.up_proj",), 0)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(OpenmaiError, match=r"adapter_model.safetensors: cannot be read"):
        load_adapter(folder, model.config)
    layer = "base_model.model.model.layers.0.mlp.up_proj"
    low = {f"{layer}.lora_A.weight": torch.ones(4, 32), f"{layer}.lora_B.weight": torch.ones(48, 4)}
    for tensors, message in (
        ({f"{layer}.lora_A.weight": torch.ones(4, 32)}, r"lora_A.weight is there, .*lora_B.weight is not"),
        ({"base_model.model.lm_head.weight": torch.ones(4, 4)}, r"lm_head.weight is no part of LoRA"),
        ({name.replace("layers.0", "layers.7"): value for name, value in low.items()}, r"has no linear layer model.layers.7.mlp.up_proj"),
        (low | {f"{layer}.lora_B.weight": torch.ones(40, 4)}, r"up_proj: expected matrices for \(48, 32\), found \(40, 4\) x \(4, 32\)"),
    ):
        save_file(tensors, folder / WEIGHTS)
        with pytest.raises(OpenmaiError, match=message):
            load_adapter(folder, model.config)
    latent = model_of("deepseek", 64)
    with pytest.raises(OpenmaiError, match=r"it changes blocks.0.attention.kv_up, which adapters cannot change here"):
        attach(latent, {"a": save_adapter(tmp_path / "b", latent, ("self_attn.kv_b_proj",), 0)})


def test_requests_name_an_adapter_as_their_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer, _ = load_assistant(tiny_checkpoint)
    folder = save_adapter(tmp_path / "polite", model, ("mlp.up_proj", "self_attn.q_proj"), 3)
    with Engine(merged(model, folder), tokenizer, EngineConfig()) as engine:
        expected = engine.generate([[5, 6, 7]], Sampling(max_tokens=12, temperature=0))[0].text

    class OnlyBase(Gate):
        async def identify(self, request: object) -> Key:
            return Key("1", "someone", ("tiny",))

    settings: dict[str, Any] = {"prompt": [5, 6, 7], "max_tokens": 12, "temperature": 0}
    with running(tiny_checkpoint, adapters={"polite": folder}) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
        assert [(card.id, getattr(card, "parent", None)) for card in client.models.list()] == [("tiny", None), ("polite", "tiny")]
        answer = client.completions.create(model="polite", **settings)
        assert (answer.model, answer.choices[0].text) == ("polite", expected)
        assert client.completions.create(model="tiny", **settings).choices[0].text != expected
        with pytest.raises(openai.NotFoundError, match="this server has 'tiny', 'polite'"):
            client.completions.create(model="rude", **settings)
    with running(tiny_checkpoint, OnlyBase(), adapters={"polite": folder}) as (address, _):
        response = httpx.post(f"{address}/v1/completions", json={"model": "polite", **settings})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
