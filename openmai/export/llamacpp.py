"""`export gguf`: one file for llama.cpp and everything built on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf as ggml
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.progress import Progress, say
from openmai.export.config import GGUFConfig
from openmai.export.hf import load_tokenizer
from openmai.model.checkpoint import KIND as CHECKPOINT
from openmai.model.checkpoint import load_config
from openmai.model.config import MLAConfig, ModelConfig
from openmai.model.hf.convert import our_shapes
from openmai.model.hf.family import choose
from openmai.model.hf.files import Folder
from openmai.model.hf.names import interleave, rotary_rows, split_name, translate
from openmai.model.hf.settings import canonical
from openmai.tokenizer.splits import SPLITS, name_of
from openmai.tokenizer.tokenizer import Tokenizer

FILE_TYPES = {
    "f32": ggml.LlamaFileType.ALL_F32,
    "f16": ggml.LlamaFileType.MOSTLY_F16,
    "bf16": ggml.LlamaFileType.MOSTLY_BF16,
    "q8_0": ggml.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": ggml.LlamaFileType.MOSTLY_Q4_0,
}

# openmai's names and llama.cpp's; those of a block without its prefix, modules without .weight or .bias.
OUTSIDE = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}
BLOCK = {
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp.router.weight_ED": "ffn_gate_inp.weight",
    "mlp.router.bias_E": "exp_probs_b.bias",
    "mlp.experts.gate_EFD": "ffn_gate_exps.weight",
    "mlp.experts.up_EFD": "ffn_up_exps.weight",
    "mlp.experts.down_EDF": "ffn_down_exps.weight",
    "mlp.shared.gate": "ffn_gate_shexp",
    "mlp.shared.up": "ffn_up_shexp",
    "mlp.shared.down": "ffn_down_shexp",
}
LATENT = BLOCK | {
    "attention.q_down": "attn_q_a",
    "attention.q_norm": "attn_q_a_norm",
    "attention.q_up": "attn_q_b",
    "attention.kv_down": "attn_kv_a_mqa",
    "attention.kv_norm": "attn_kv_a_norm",
}
BLOCKS = {"deepseek2": LATENT, "glm4moe": BLOCK | {"mlp_norm": "post_attention_norm"}}
PAIRED = ("llama", "deepseek2")  # architectures whose rotary pairs are neighbours; the others rotate halves as openmai does

# What this exporter can say of a model to each architecture of llama.cpp, by paths of ModelConfig; "moe." stands for all below.
SIZES = (
    "vocab_size num_layers width num_heads num_kv_heads ffn_width norm_eps rope_theta context tied_embeddings attention_scale head_width"
)
MIXTURE = "moe moe.num_experts moe.num_active moe.expert_width"
KNOWS = {
    "llama": f"{SIZES} qkv_bias o_bias mlp_bias {MIXTURE}",
    "qwen2": f"{SIZES} qkv_bias",
    "qwen3": f"{SIZES} qk_norm qk_norm_span qk_norm_place",
    "qwen3moe": f"{SIZES} qk_norm qk_norm_span qk_norm_place {MIXTURE}",
    "glm4moe": f"{SIZES} qk_norm qk_norm_span qk_norm_place qkv_bias moe moe.",
    "deepseek2": f"{SIZES} mla mla. moe moe.",
}


@dataclass(frozen=True)
class Planned:
    """A tensor of the exported file that is read only when its turn comes."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def gguf(config: GGUFConfig) -> Artifact:
    """Write `model-<quantize>.gguf` with weights, tokenizer and chat template of a checkpoint."""
    checkpoint = Artifact.load(config.checkpoint, CHECKPOINT)
    with create(config.out, kind="gguf", version=1, config=config, inputs=[checkpoint]) as work:
        if work.finished:
            return work.finished
        model = load_config(checkpoint.path)
        architecture = choose_architecture(model)
        tokenizer = load_tokenizer(checkpoint.path, model)
        file = work.path / f"model-{config.quantize}.gguf"
        writer = ggml.GGUFWriter(file, architecture)
        describe(writer, model)
        writer.add_file_type(FILE_TYPES[config.quantize])
        writer.add_quantization_version(ggml.GGML_QUANT_VERSION)
        describe_tokenizer(writer, checkpoint.path / "tokenizer", tokenizer, model.vocab_size)
        write_weights(writer, list(plan(Folder(checkpoint.path), model, architecture)), config.quantize)
        size = file.stat().st_size
        say(f"{file}: {architecture}, {size / 1e6:,.1f} MB")
        return work.finish({"architecture": architecture, "bytes": size})


def choose_architecture(model: ModelConfig) -> str:
    """Return llama.cpp's architecture that computes what `model` says; raise OpenmaiError naming what it lacks."""
    family = choose(model)
    advice = "use `openmai export hf`"
    if family.gguf is None:
        raise OpenmaiError(f"model.json: GGUF files of {family.hf_class} are not written here; {advice} and llama.cpp's own converter")
    mine, known = canonical(model), set(KNOWS[family.gguf].split())
    usual = canonical(_plainest(model))
    lacking = [path for path in mine if mine[path] != usual.get(path) and not {path, path.partition(".")[0] + "."} & known]
    if model.moe and model.moe.score == "sigmoid":
        lacking += [path for path in ("moe.every", "moe.num_groups") if mine[path] != 1]
    if family.gguf == "qwen2" and model.num_heads * model.head != model.width:
        lacking.append("head_width")
    if model.mla and not model.mla.query_rank:
        lacking.append("mla.query_rank")
    if model.mla and model.num_layers in (26, 27):  # llama.cpp takes these for DeepSeek-V2-Lite
        lacking.append("num_layers")
    if lacking:
        named = ", ".join(f"{path}={str(mine[path]).lower()}" for path in sorted(set(lacking)))
        raise OpenmaiError(f"model.json: llama.cpp's architecture {family.gguf} lacks {named}, or this export of it; {advice}")
    return family.gguf


def _plainest(model: ModelConfig) -> ModelConfig:
    """Return a model with nothing but what it must say, as a mixture if `model` is one."""
    experts = {"num_experts": model.moe.num_experts, "num_active": model.moe.num_active, "expert_width": 1} if model.moe else None
    return ModelConfig(vocab_size=1, num_layers=model.num_layers, width=2, num_heads=1, ffn_width=1, moe=experts)


def describe(writer: ggml.GGUFWriter, model: ModelConfig) -> None:
    """Add the architecture's keys."""
    writer.add_type("model")
    writer.add_name("openmai")
    writer.add_vocab_size(model.vocab_size)
    writer.add_block_count(model.num_layers)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    dense = not (model.moe and all(map(model.is_moe, range(model.num_layers))))
    writer.add_feed_forward_length(model.ffn_width if dense or model.moe is None else model.moe.expert_width)
    writer.add_head_count(model.num_heads)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_rope_freq_base(model.rope_theta)
    if model.mla:
        _describe_latents(writer, model.mla)
    else:
        writer.add_head_count_kv(model.kv_heads)
        writer.add_key_length(model.head)
        writer.add_value_length(model.head)
        writer.add_rope_dimension_count(model.head)
    _describe_experts(writer, model)


def _describe_latents(writer: ggml.GGUFWriter, mla: MLAConfig) -> None:
    """Describe latent attention as llama.cpp computes it: absorbed, one key-value head as wide as the latent."""
    writer.add_head_count_kv(1)
    assert mla.query_rank is not None
    writer.add_q_lora_rank(mla.query_rank)
    writer.add_kv_lora_rank(mla.kv_rank)
    writer.add_key_length(mla.kv_rank + mla.rope_width)
    writer.add_value_length(mla.kv_rank)
    writer.add_key_length_mla(mla.nope_width + mla.rope_width)
    writer.add_value_length_mla(mla.value_width)
    writer.add_rope_dimension_count(mla.rope_width)


def _describe_experts(writer: ggml.GGUFWriter, model: ModelConfig) -> None:
    moe = model.moe
    if moe is None:
        return
    writer.add_expert_count(moe.num_experts)
    writer.add_expert_used_count(moe.num_active)
    writer.add_expert_feed_forward_length(moe.expert_width)
    if moe.score == "sigmoid":
        writer.add_expert_gating_func(ggml.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_shared_count(moe.num_shared)
        writer.add_leading_dense_block_count(moe.first_dense)
        writer.add_expert_weights_scale(moe.scale)
        writer.add_expert_weights_norm(moe.normalize)


def describe_tokenizer(writer: ggml.GGUFWriter, folder: Path, tokenizer: Tokenizer, rows: int) -> None:
    """Add vocabulary, merges, special tokens and chat template; embedding rows without a token are marked unused.

    Raises OpenmaiError for a tokenizer whose split llama.cpp would not reproduce.
    """
    data = json.loads(tokenizer.backend.to_str())
    split = name_of(tokenizer.backend)
    if split is None:
        raise OpenmaiError(
            f"{folder}: its split is not one of llama.cpp's {', '.join(SPLITS)}; use a tokenizer made by `openmai tokenizer train`"
        )
    vocab = tokenizer.backend.get_vocab(with_added_tokens=True)
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [ggml.TokenType.UNUSED] * rows
    special = {token["content"] for token in data["added_tokens"] if token["special"]}
    for token, number in vocab.items():
        tokens[number] = token
        types[number] = ggml.TokenType.CONTROL if token in special else ggml.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.end_of_turn)
    writer.add_eot_token_id(tokenizer.end_of_turn)
    writer.add_pad_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(False)
    writer.add_chat_template(plain_template((folder / "chat_template.jinja").read_text(encoding="utf-8")))


def plain_template(template: str) -> str:
    """Remove the `generation` marks, which only transformers knows and which do not change the text."""
    return template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def gguf_name(architecture: str, name: str) -> str:
    """Return llama.cpp's name of openmai's tensor `name`."""
    block, rest = split_name(name)
    if block is None:
        return translate(OUTSIDE, rest)
    return f"blk.{block}.{translate(BLOCKS.get(architecture, BLOCK), rest)}"


def plan(weights: Folder, model: ModelConfig, architecture: str) -> Iterator[Planned]:
    """List the tensors of the file in a fixed order, without reading them; experts stay stacked, and sigmoid routers have a bias."""
    shapes = our_shapes(model)
    if model.moe and model.moe.score == "sigmoid":
        shapes |= {name.replace("weight_ED", "bias_E"): (model.moe.num_experts,) for name in shapes if name.endswith("router.weight_ED")}
    for name in sorted(shapes):
        block, rest = split_name(name)
        if model.mla and rest == "attention.kv_up.weight":
            mla = model.mla
            for part, rows, columns in (("k", mla.kv_rank, mla.nope_width), ("v", mla.value_width, mla.kv_rank)):
                read = partial(_read_latent, weights, model, name, part)
                yield Planned(f"blk.{block}.attn_{part}_b.weight", (model.num_heads, rows, columns), read)
        else:
            read = partial(_read, weights, model, architecture, name, shapes[name])
            yield Planned(gguf_name(architecture, name), shapes[name], read)


def _read(weights: Folder, model: ModelConfig, architecture: str, name: str, shape: tuple[int, ...]) -> Tensor:
    value, rotary = weights.read(name) if name in weights.where else torch.zeros(shape), rotary_rows(model, split_name(name)[1])
    return interleave(value, *rotary) if architecture in PAIRED and rotary else value


def _read_latent(weights: Folder, model: ModelConfig, name: str, part: str) -> Tensor:
    """Split the matrix from latent to keys and values; keys are transposed, as they are absorbed into the queries."""
    assert model.mla is not None
    both = weights.read(name).unflatten(0, (model.num_heads, -1))
    key, value = both.split((model.mla.nope_width, model.mla.value_width), dim=1)
    return key.transpose(1, 2) if part == "k" else value


def choose_type(name: str, shape: tuple[int, ...], quantize: str) -> Type:
    """Return the type of one tensor: f32 unless it is a matrix other than a router, f16 where rows do not divide into blocks."""
    if len(shape) < 2 or "ffn_gate_inp" in name:
        return Type.F32
    if quantize == "q4_0" and name in ("token_embd.weight", "output.weight"):
        quantize = "q8_0"
    wanted = Type[quantize.upper()]
    block, _ = ggml.GGML_QUANT_SIZES[wanted]
    return Type.F16 if shape[-1] % block else wanted


def write_weights(writer: ggml.GGUFWriter, tensors: list[Planned], quantize: str) -> None:
    """Write header, keys and table, then each tensor as it is read and converted."""
    types = {tensor.name: choose_type(tensor.name, tensor.shape, quantize) for tensor in tensors}
    _report_uneven([tensor for tensor in tensors if types[tensor.name].name.lower() not in (quantize, "f32", "q8_0")], quantize)
    for tensor in tensors:
        block, size = ggml.GGML_QUANT_SIZES[types[tensor.name]]
        count = int(np.prod(tensor.shape)) // block * size
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), count, raw_dtype=types[tensor.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with Progress("export", len(tensors), "tensors") as progress:
        for tensor in tensors:
            writer.write_tensor_data(ggml.quantize(tensor.read().float().contiguous().numpy(), types[tensor.name]))
            progress.advance()
    writer.close()


def _report_uneven(tensors: list[Planned], quantize: str) -> None:
    if tensors:
        first = f"{tensors[0].name} with rows of {tensors[0].shape[-1]}"
        say(f"{len(tensors)} tensors become f16, since their rows do not divide into blocks of {quantize}: {first}, …")
