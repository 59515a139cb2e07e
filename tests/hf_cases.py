"""python tests/hf_cases.py > docs/model/architectures.md

Toy models of every architecture that is imported: the cases of tests/test_hf.py, and the table of docs/model/architectures.md.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from openmai.export.config import HFConfig
from openmai.export.hf import hf
from openmai.model.checkpoint import load_model
from openmai.model.import_config import ImportConfig
from openmai.model.import_hf import import_hf
from openmai.model.transformer import Transformer

VOCABULARY, ORIGINAL, CONTEXT = 131, 32, 256  # the context is eight times what scaled rotary positions were first trained on
LENGTHS = (12, ORIGINAL, 200)
PROMPT, ANSWER = 9, 64
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 8.0}
LONG = {"rope_type": "longrope", "rope_theta": 500.0}
BEYOND = {"original_max_position_embeddings": ORIGINAL}
MOE = {"num_experts_per_tok": 2}
DEEPSEEK = MOE | {
    "num_key_value_heads": 4,
    "n_routed_experts": 16,
    "moe_intermediate_size": 24,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}


@dataclass(frozen=True)
class Case:
    """A class of transformers and the settings that make it the named model, but small."""

    title: str
    name: str
    settings: dict[str, Any]
    note: str = ""


# title -> class without "Config"/"ForCausalLM", what differs from SMALL, what is special
CASES = {
    "gpt-2": Case("GPT-2", "GPT2", {}, "learned positions, fused and transposed matrices"),
    "llama-2": Case("Llama 2", "Llama", {"num_key_value_heads": 4}, "multi-head attention"),
    "llama-3": Case("Llama 3.1", "Llama", {"rope_parameters": LLAMA3 | BEYOND, "tie_word_embeddings": True}, "Llama-3 rotary scaling"),
    "llama-linear": Case("Llama, linear", "Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 8.0}}),
    "mistral": Case("Mistral 7B", "Mistral", {"sliding_window": 16, "head_dim": 16}, "sliding window in all layers"),
    "mixtral": Case("Mixtral 8x7B", "Mixtral", MOE | {"num_local_experts": 8}, "softmax router"),
    "phi-3": Case("Phi-3, Phi-4", "Phi3", {"sliding_window": 20}, "fused matrices, window"),
    "phi-3-long": Case("Phi-3 128k", "Phi3", {"rope_scaling": LONG, "pairs": 4}, "LongRoPE"),
    "phi-4-mini": Case(
        "Phi-4-mini",
        "Phi3",
        {"rope_scaling": LONG, "pairs": 3, "partial_rotary_factor": 0.75, "tie_word_embeddings": True},
        "partial LongRoPE",
    ),
    "phi-3.5-moe": Case(
        "Phi-3.5-MoE",
        "Phimoe",
        {
            "rope_scaling": LONG | BEYOND | {"short_mscale": 1.2, "long_mscale": 1.3},
            "pairs": 4,
            "attention_bias": True,
            "lm_head_bias": True,
            "num_local_experts": 8,
        },
        "SparseMixer, LayerNorm, LongRoPE",
    ),
    "gemma": Case("Gemma 1", "Gemma", {"head_dim": 16, "num_key_value_heads": 1}, "scaled embedding, norm offset, MQA"),
    "gemma-2": Case(
        "Gemma 2", "Gemma2", {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 24}, "soft caps, norms on both sides"
    ),
    "gemma-3": Case(
        "Gemma 3",
        "Gemma3",
        {
            "head_dim": 16,
            "sliding_window": 16,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        "5 local : 1 global with another base",
    ),
    "qwen2.5": Case("Qwen2.5", "Qwen2", {"rope_parameters": YARN | BEYOND}, "biases on queries, keys, values; YaRN"),
    "qwen2.5-windows": Case(
        "Qwen2.5, windows", "Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "last layers windowed"
    ),
    "qwen3": Case("Qwen3", "Qwen3", {"head_dim": 16, "tie_word_embeddings": True}, "QK norm"),
    "qwen3-moe": Case(
        "Qwen3-MoE", "Qwen3Moe", MOE | {"num_experts": 8, "moe_intermediate_size": 24, "norm_topk_prob": True, "mlp_only_layers": [0]}
    ),
    "olmo-2": Case("OLMo 2", "Olmo2", {}, "norms behind, QK norm over all heads"),
    "olmo-3": Case(
        "OLMo 3", "Olmo3", {"num_hidden_layers": 4, "sliding_window": 16, "rope_scaling": YARN | BEYOND}, "3 local : 1 global with YaRN"
    ),
    "olmoe": Case("OLMoE", "Olmoe", MOE | {"num_experts": 8, "clip_qkv": 1.5}, "clamped queries, keys, values"),
    "deepseek-v3": Case(
        "DeepSeek-V3",
        "DeepseekV3",
        DEEPSEEK | {"n_group": 4, "topk_group": 2, "rope_scaling": YARN | BEYOND | {"mscale": 1.0, "mscale_all_dim": 1.0}},
        "MLA, groups of experts, YaRN with its own scale",
    ),
    "deepseek-plain-query": Case(
        "DeepSeek, query not compressed", "DeepseekV3", DEEPSEEK | {"q_lora_rank": None, "n_group": 1, "topk_group": 1}
    ),
    "kimi-k2": Case("Kimi K2", "DeepseekV3", DEEPSEEK | {"n_group": 1, "topk_group": 1, "rope_scaling": YARN | BEYOND}, "one group"),
    "gpt-oss": Case(
        "gpt-oss",
        "GptOss",
        MOE | {"head_dim": 16, "num_local_experts": 8, "sliding_window": 16, "rope_parameters": YARN | BEYOND | {"truncate": False}},
        "sinks, clamped gates, biased experts",
    ),
    "glm-4.5": Case(
        "GLM-4.5", "Glm4Moe", MOE | {"n_routed_experts": 8, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "use_qk_norm": True}
    ),
}
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SMALL_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def theirs(case: Case, folder: Path) -> transformers.PreTrainedModel:
    """Build and save the model of transformers in fp32, every weight away from zero and one."""
    settings = dict(case.settings)
    pairs = settings.pop("pairs", None)
    if pairs:
        searched = {"short_factor": [1 + 0.1 * i for i in range(pairs)], "long_factor": [2.0 + i for i in range(pairs)]}
        settings["rope_scaling"] = settings["rope_scaling"] | searched
        settings["original_max_position_embeddings"] = ORIGINAL
    suffix = {"GPT2": "LMHeadModel"}.get(case.name, "ForCausalLM")
    configuration = getattr(transformers, f"{case.name}TextConfig" if case.name == "Gemma3" else f"{case.name}Config")
    torch.manual_seed(0)
    model = getattr(transformers, case.name + suffix)(configuration(**(SMALL_GPT2 if case.name == "GPT2" else SMALL) | settings)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, value in sorted(model.state_dict().items()):
            value += (0.3 if value.ndim == 1 else value.shape[-1] ** -0.5) * torch.randn(value.shape, generator=generator)
    model.save_pretrained(folder)
    model = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if case.name == "Phimoe":
        _mend_phimoe(model)
    return model


def _mend_phimoe(model: Any) -> None:
    """Tell transformers 5.24 how long the text is: its Phi-3.5-MoE always takes the short factors, unlike Microsoft's own code."""

    def tell(module: Any, args: Any, kwargs: Any) -> None:
        positions = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
        module.rope_init_fn = partial(ROPE_INIT_FUNCTIONS["longrope"], seq_len=int(positions.max()) + 1)

    model.model.rotary_emb.register_forward_pre_hook(tell, with_kwargs=True)


@dataclass(frozen=True)
class Result:
    """What a comparison found."""

    differences: dict[int, float]
    "largest difference of a logit by length of the text"
    spread: float
    "standard deviation of the logits"
    same_tokens: bool
    same_bytes: bool
    "export -> import -> export"
    same_model: bool
    "what transformers loads of our export"


@torch.no_grad()
def measure(case: Case, folder: Path) -> Result:
    """Compare a toy model with what we make of it."""
    reference = theirs(case, folder / "theirs")
    imported = import_hf(ImportConfig(folder=folder / "theirs", out=folder / "imported"))
    ours = load_model(imported)
    differences, spread = {}, 0.0
    for length in LENGTHS:
        ids = torch.randint(VOCABULARY, (2, length), generator=torch.Generator().manual_seed(length))
        expected = reference(ids, use_cache=False).logits
        differences[length], spread = (ours(ids) - expected).abs().max().item(), expected.std().item()
    prompt = torch.arange(3, 3 + PROMPT)[None]
    exported = hf(HFConfig(checkpoint=imported.path, out=folder / "exported")).path
    again = import_hf(ImportConfig(folder=exported, out=folder / "again"))
    second = hf(HFConfig(checkpoint=again.path, out=folder / "second")).path
    loaded = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    mine, original = loaded.state_dict(), reference.state_dict()
    return Result(
        differences,
        spread,
        greedy(ours, prompt) == greedy_theirs(reference, prompt),
        all((exported / name).read_bytes() == (second / name).read_bytes() for name in ("config.json", "model.safetensors")),
        type(loaded) is type(reference) and mine.keys() == original.keys() and all(torch.equal(mine[key], original[key]) for key in mine),
    )


def greedy(model: Transformer, ids: Tensor) -> list[int]:
    """Return ANSWER most likely tokens, each from a whole forward pass."""
    for _ in range(ANSWER):
        ids = torch.cat((ids, model(ids)[:, -1:].argmax(-1)), dim=1)
    return ids[0, -ANSWER:].tolist()


def greedy_theirs(model: Any, ids: Tensor) -> list[int]:
    """Return the same by transformers' own `generate`; without a cache where its keys would keep the factors of a shorter text."""
    cached = "longrope" not in str(getattr(model.config, "rope_parameters", None))
    answer = model.generate(ids, max_new_tokens=ANSWER, do_sample=False, eos_token_id=None, use_cache=cached, pad_token_id=0)
    return answer[0, -ANSWER:].tolist()


HEAD = """# Every architecture against transformers

Written by `python tests/hf_cases.py` with transformers {transformers} and torch {torch}; `tests/test_hf.py` holds it. Toy models
with random weights in fp32, of three to seven layers; logits of two texts of {lengths} tokens, where scaled rotary positions were made
for {original}; {answer} greedy tokens; weights and config.json, exported, imported and exported again. Phi-3.5-MoE beyond its first
context is compared with transformers after one repair: version 5.24 does not tell it how long the text is, as Microsoft's own code does.

| model | class | special | largest difference | logits' deviation | greedy tokens | export again |
|---|---|---|--:|--:|---|---|"""


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    os.environ["OPENMAI_QUIET"] = "1"
    lengths = ", ".join(map(str, LENGTHS[:-1])) + f" and {LENGTHS[-1]}"
    print(
        HEAD.format(
            transformers=transformers.__version__, torch=torch.__version__.split("+")[0], lengths=lengths, original=ORIGINAL, answer=ANSWER
        )
    )
    for case in CASES.values():
        with tempfile.TemporaryDirectory() as folder:
            result = measure(case, Path(folder))
        verdicts = ("equal" if result.same_tokens else "DIFFER", "same bytes" if result.same_bytes and result.same_model else "DIFFERS")
        name = case.name + ("LMHeadModel" if case.name == "GPT2" else "ForCausalLM")
        figures = (f"{max(result.differences.values()):.1e}", f"{result.spread:.2f}", *verdicts)
        print(f"| {case.title} | `{name}` | {case.note} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
