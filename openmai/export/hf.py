"""`export hf`: a folder that `transformers`, vLLM and SGLang load; `transformers` itself is not needed to write it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.files import read_json, write_json
from openmai.base.progress import Progress, say
from openmai.export.config import HFConfig
from openmai.export.family import Family, choose
from openmai.export.weights import Planned, Weights, deinterleave, interleave, rotary_rows, split_name, translate
from openmai.model.checkpoint import KIND as CHECKPOINT
from openmai.model.checkpoint import load_config
from openmai.model.config import ModelConfig
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer

SHARD_BYTES = 5_000_000_000
ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "relu2": "relu2"}

# openmai's names and Hugging Face's; those of a block without its prefix, modules without .weight or .bias. {e} counts experts.
OUTSIDE = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
BLOCK = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "mlp.router.weight_ED": "mlp.gate.weight",
    "mlp.router.bias_E": "mlp.gate.e_score_correction_bias",
    "mlp.experts.gate_EFD": "mlp.experts.{e}.gate_proj.weight",
    "mlp.experts.up_EFD": "mlp.experts.{e}.up_proj.weight",
    "mlp.experts.down_EDF": "mlp.experts.{e}.down_proj.weight",
    "mlp.shared.gate": "mlp.shared_experts.gate_proj",
    "mlp.shared.up": "mlp.shared_experts.up_proj",
    "mlp.shared.down": "mlp.shared_experts.down_proj",
}
MIXTRAL = BLOCK | {
    "mlp.router.weight_ED": "block_sparse_moe.gate.weight",
    "mlp.experts.gate_EFD": "block_sparse_moe.experts.{e}.w1.weight",
    "mlp.experts.up_EFD": "block_sparse_moe.experts.{e}.w3.weight",
    "mlp.experts.down_EDF": "block_sparse_moe.experts.{e}.w2.weight",
}
LATENT = BLOCK | {
    "attention.q_down": "self_attn.q_a_proj",
    "attention.q_norm": "self_attn.q_a_layernorm",
    "attention.q_up": "self_attn.q_b_proj",
    "attention.kv_down": "self_attn.kv_a_proj_with_mqa",
    "attention.kv_norm": "self_attn.kv_a_layernorm",
    "attention.kv_up": "self_attn.kv_b_proj",
}
BLOCKS = {"mixtral": MIXTRAL, "deepseek_v3": LATENT}


def hf(config: HFConfig) -> Artifact:
    """Write config.json, generation_config.json, weights and tokenizer of a checkpoint in Hugging Face's layout."""
    checkpoint = Artifact.load(config.checkpoint, CHECKPOINT)
    with create(config.out, kind="hf", version=1, config=config, inputs=[checkpoint]) as work:
        if work.finished:
            return work.finished
        model = load_config(checkpoint.path)
        family = choose(model)
        tokenizer = load_tokenizer(checkpoint.path, model)
        weights = Weights(checkpoint.path / "model.safetensors", model)
        kind = weights.read("norm.weight").dtype
        dtype = str(kind).removeprefix("torch.")
        write_json(work.path / "config.json", describe(model, family, tokenizer, dtype))
        stops = [tokenizer.end_of_turn, tokenizer.end_of_text]
        write_json(work.path / "generation_config.json", {"eos_token_id": stops, "pad_token_id": tokenizer.end_of_text, "do_sample": False})
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(checkpoint.path / "tokenizer" / name, work.path / name)
        total = write_weights(list(plan(weights, model, family)), work.path, kind.itemsize)
        say(f"{config.out}: {family.hf_class}, {total / 1e6:,.1f} MB of weights in {dtype}")
        return work.finish({"class": family.hf_class, "dtype": dtype, "weight_bytes": total})


def load_tokenizer(checkpoint: Path, model: ModelConfig) -> Tokenizer:
    """Read the checkpoint's tokenizer; raise OpenmaiError if the embedding has too few rows for it."""
    tokenizer = Tokenizer.load(checkpoint / "tokenizer")
    if tokenizer.vocab_size > model.vocab_size:
        found = f"{tokenizer.vocab_size} tokens but vocab_size={model.vocab_size}"
        raise OpenmaiError(f"{checkpoint}: {found}; the tokenizer belongs to another model")
    return tokenizer


def describe(model: ModelConfig, family: Family, tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
    """Return the content of config.json; names that changed with transformers 5 are written in both forms."""
    rope = {"rope_type": "default", "rope_theta": model.rope_theta}
    if family.model_type == "glm4_moe":
        rope["partial_rotary_factor"] = 1.0
    values = {
        "architectures": [family.hf_class],
        "model_type": family.model_type,
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.ffn_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_heads if model.mla else model.kv_heads,
        "hidden_act": ACTIVATIONS[model.activation],
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": rope,
        "rope_theta": model.rope_theta,
        "attention_bias": not model.mla and model.qkv_bias,
        "mlp_bias": model.mlp_bias,
        "tie_word_embeddings": model.tied_embeddings,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.end_of_turn,
        "pad_token_id": None,
    }
    return values | ({} if model.mla else {"head_dim": model.head}) | _describe_experts(model, family) | _describe_latents(model)


def _describe_experts(model: ModelConfig, family: Family) -> dict[str, Any]:
    moe = model.moe
    if moe is None:
        return {}
    values: dict[str, Any] = {"num_experts_per_tok": moe.num_active}
    if family.model_type == "mixtral":
        return values | {"num_local_experts": moe.num_experts, "intermediate_size": moe.expert_width}
    values |= {"moe_intermediate_size": moe.expert_width, "norm_topk_prob": moe.normalize}
    if family.model_type == "qwen3_moe":
        dense = list(range(min(moe.first_dense, model.num_layers)))
        return values | {"num_experts": moe.num_experts, "decoder_sparse_step": moe.every, "mlp_only_layers": dense}
    values |= {
        "n_routed_experts": moe.num_experts,
        "n_shared_experts": moe.num_shared,
        "first_k_dense_replace": moe.first_dense,
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": moe.scale,
        "scoring_func": "sigmoid",  # transformers does not write it, but llama.cpp's converter guesses wrongly without it
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": 0,
    }
    return values if model.mla else values | {"use_qk_norm": model.qk_norm, "partial_rotary_factor": 1.0}


def _describe_latents(model: ModelConfig) -> dict[str, Any]:
    mla = model.mla
    if mla is None:
        return {}
    return {
        "q_lora_rank": mla.query_rank,
        "kv_lora_rank": mla.kv_rank,
        "qk_nope_head_dim": mla.nope_width,
        "qk_rope_head_dim": mla.rope_width,
        "v_head_dim": mla.value_width,
        "rope_interleave": True,  # DeepSeek's own order, the only one that vLLM and llama.cpp know: `plan` permutes into it
    }


def hf_name(family: Family, name: str) -> str:
    """Return Hugging Face's name of openmai's tensor `name`; experts keep a `{e}` for their number."""
    block, rest = split_name(name)
    if block is None:
        return translate(OUTSIDE, rest)
    return f"model.layers.{block}.{translate(BLOCKS.get(family.model_type, BLOCK), rest)}"


def plan(weights: Weights, model: ModelConfig, family: Family) -> Iterator[Planned]:
    """List the tensors of the export in a fixed order, without reading them."""
    for name in weights.names:
        target, shape = hf_name(family, name), weights.shape(name)
        if "{e}" in target:
            for expert in range(shape[0]):
                yield Planned(target.format(e=expert), shape[1:], partial(weights.read_part, name, expert))
        else:
            yield Planned(target, shape, partial(_read, weights, model, name))


def _read(weights: Weights, model: ModelConfig, name: str) -> Tensor:
    """Read a tensor; rotary rows of latent attention change from openmai's halves to DeepSeek's pairs."""
    value, rotary = weights.read(name), rotary_rows(model, split_name(name)[1])
    return interleave(value, *rotary) if model.mla and rotary else value


def write_weights(tensors: list[Planned], folder: Path, dtype_bytes: int) -> int:
    """Write safetensors files of at most `SHARD_BYTES`, one in memory at a time, with an index if there are several; return all bytes."""
    shards: list[list[Planned]] = [[]]
    sizes = [0]
    for tensor in tensors:
        size = math.prod(tensor.shape) * dtype_bytes
        if shards[-1] and sizes[-1] + size > SHARD_BYTES:
            shards.append([])
            sizes.append(0)
        shards[-1].append(tensor)
        sizes[-1] += size
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else ["model.safetensors"]
    with Progress("export", len(tensors), "tensors") as progress:
        for name, shard in zip(names, shards, strict=True):
            _write_shard(folder / name, shard, progress)
    if len(shards) > 1:
        files = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": sum(sizes)}, "weight_map": files})
    return sum(sizes)


def _write_shard(file: Path, tensors: list[Planned], progress: Progress) -> None:
    values = {}
    for tensor in tensors:
        values[tensor.name] = tensor.read()
        progress.advance()
    save_file(values, file, metadata={"format": "pt"})


def to_native(folder: Path, model: ModelConfig) -> dict[str, Tensor]:
    """Read the weights of a folder that `hf` wrote back under openmai's names, bit for bit; the inverse of `plan`.

    Raises OpenmaiError for a tensor that `model` has and the folder lacks.
    """
    family = choose(model)
    index = folder / "model.safetensors.index.json"
    files = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    found = {name: value for file in files for name, value in load_file(folder / file).items()}
    with torch.device("meta"):
        wanted = Transformer(model).state_dict()
    tied = {"head.weight"} if model.tied_embeddings else set()
    return {name: _from_hf(found, model, hf_name(family, name), name, value.shape) for name, value in wanted.items() if name not in tied}


def _from_hf(found: dict[str, Tensor], model: ModelConfig, source: str, name: str, shape: torch.Size) -> Tensor:
    stacked = "{e}" in source
    sources = [source.format(e=expert) for expert in range(shape[0])] if stacked else [source]
    missing = [item for item in sources if item not in found]
    if missing:
        raise OpenmaiError(f"{missing[0]}: no such tensor in the folder, but model.json needs it for {name}")
    value = torch.stack([found[item] for item in sources]) if stacked else found[source]
    rotary = rotary_rows(model, split_name(name)[1])
    return deinterleave(value, *rotary) if model.mla and rotary else value
