"""The classes of `transformers` that compute what ModelConfig can say, which of them a model is, and the one error when none is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openmai.base.errors import OpenmaiError
from openmai.model.config import ModelConfig
from openmai.model.hf import names
from openmai.model.hf.settings import Settings, differences, read_settings, write_settings


@dataclass(frozen=True)
class Family:
    """One class: its config.json, its names of tensors, and the architecture of llama.cpp that we export it to, if we do."""

    hf_class: str
    model_type: str
    settings: Settings
    names: names.Names
    gguf: str | None = None
    aliases: tuple[str, ...] = ()
    "model types of the same architecture under other names"

    def read(self, config: Mapping[str, Any], where: str) -> ModelConfig:
        """Return the ModelConfig of a config.json."""
        return read_settings(self.settings, config, where).model_copy(update={"hf_class": self.hf_class})

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Return config.json, without what belongs to the tokenizer."""
        return {"architectures": [self.hf_class], "model_type": self.model_type, **write_settings(self.settings, model), "use_cache": True}


Keys = dict[str, str | tuple[str, ...]]

BASE: Keys = {
    "vocab_size": "vocab_size",
    "num_hidden_layers": "num_layers",
    "hidden_size": "width",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_width",
    "intermediate_size": "ffn_width",
    "max_position_embeddings": "context",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tied_embeddings",
    "hidden_act": "activation",
}
BIAS: Keys = {"attention_bias": ("qkv_bias", "o_bias")}
GEMMA: Keys = {key: ours for key, ours in BASE.items() if key != "hidden_act"} | BIAS
GEMMA_DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256, "rms_norm_eps": 1e-6}
GEMMA_FIXED = {"activation": "gelu_tanh", "norm_weight": "offset", "embedding_scale": lambda values: values["width"] ** 0.5}
GEMMA_WRITTEN = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
LATER_GEMMA: Keys = GEMMA | {
    "query_pre_attn_scalar": "attention_scale",
    "attn_logit_softcapping": "attention_softcap",
    "final_logit_softcapping": "logit_softcap",
}
EXPERTS: Keys = {
    "num_local_experts": "moe.num_experts",
    "num_experts_per_tok": "moe.num_active",
    "intermediate_size": ("moe.expert_width", "ffn_width"),
}
SIGMOID: Keys = {
    "n_routed_experts": "moe.num_experts",
    "num_experts_per_tok": "moe.num_active",
    "moe_intermediate_size": "moe.expert_width",
    "n_shared_experts": "moe.num_shared",
    "first_k_dense_replace": "moe.first_dense",
    "norm_topk_prob": "moe.normalize",
    "routed_scaling_factor": "moe.scale",
    "n_group": "moe.num_groups",
    "topk_group": "moe.active_groups",
}
SIGMOID_DEFAULTS = {"norm_topk_prob": True, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}
SIGMOID_FIXED = {"moe.score": "sigmoid", "moe.bias_rate": 0.001}
# transformers does not write scoring_func, but llama.cpp's converter guesses wrongly without it
SIGMOID_WRITTEN = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "num_nextn_predict_layers": 0}
SIGMOID_ONLY = {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",), "moe_layer_freq": (1,)}


QWEN_DEFAULTS = {"use_sliding_window": False}
OLMO_DEFAULTS = {"rms_norm_eps": 1e-5}
OLMO_FIXED = {"norm_place": "after", "qk_norm": True, "qk_norm_span": "all"}
# what the config.json of the published models leaves to the class
GEMMA3_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


def _needs_shared(model: ModelConfig) -> list[str]:
    return ["moe.num_shared=0 (it has 1 or more)"] if model.moe and not model.moe.num_shared else []


def _searched_positions(model: ModelConfig) -> list[str]:
    scaling = model.rope_scaling
    complete = scaling is None or (scaling.kind == "longrope" and scaling.short_mscale is not None and scaling.long_mscale is not None)
    return [] if complete else ["rope_scaling (it has longrope with short_mscale and long_mscale)"]


def _latent_limits(model: ModelConfig) -> list[str]:
    eps = [] if model.norm_eps == 1e-6 or not model.mla else [f"norm_eps={model.norm_eps} (it has 1e-06 for the latents)"]
    return _needs_shared(model) + eps


FAMILIES = [
    Family("LlamaForCausalLM", "llama", Settings(BASE | BIAS | {"mlp_bias": "mlp_bias"}), names.PLAIN, gguf="llama"),
    Family("Qwen2ForCausalLM", "qwen2", Settings(BASE, QWEN_DEFAULTS, {"qkv_bias": True}, windows="layers"), names.PLAIN, gguf="qwen2"),
    Family(
        "Qwen3ForCausalLM", "qwen3", Settings(BASE | BIAS, QWEN_DEFAULTS, {"qk_norm": True}, windows="layers"), names.PLAIN, gguf="qwen3"
    ),
    Family("MistralForCausalLM", "mistral", Settings(BASE, windows="all"), names.PLAIN),
    Family(
        "Phi3ForCausalLM",
        "phi3",
        Settings({key: ours for key, ours in BASE.items() if key != "head_dim"}, {"partial_rotary_factor": 1.0}, windows="all"),
        names.PHI3,
    ),
    Family("GemmaForCausalLM", "gemma", Settings(GEMMA, GEMMA_DEFAULTS, GEMMA_FIXED, GEMMA_WRITTEN), names.PLAIN),
    Family(
        "Gemma2ForCausalLM",
        "gemma2",
        Settings(
            LATER_GEMMA,
            GEMMA_DEFAULTS | {"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
            GEMMA_FIXED | {"norm_place": "both"},
            GEMMA_WRITTEN,
            windows="layers",
            pattern=2,
        ),
        names.BOTH_NORMS,
    ),
    Family(
        "Gemma3ForCausalLM",
        "gemma3_text",
        Settings(
            LATER_GEMMA,
            GEMMA_DEFAULTS | GEMMA3_DEFAULTS,
            GEMMA_FIXED | {"norm_place": "both", "qk_norm": True},
            GEMMA_WRITTEN,
            {"use_bidirectional_attention": (False,)},
            rope="by_layer",
            windows="layers",
            pattern=6,
        ),
        names.BOTH_NORMS,
        aliases=("gemma3",),
    ),
    Family("Olmo2ForCausalLM", "olmo2", Settings(BASE | BIAS, OLMO_DEFAULTS, OLMO_FIXED), names.NORMS_AFTER),
    Family(
        "Olmo3ForCausalLM",
        "olmo3",
        Settings(BASE | BIAS, OLMO_DEFAULTS, OLMO_FIXED, rope="by_layer", windows="layers", pattern=4),
        names.NORMS_AFTER,
    ),
    Family(
        "GPT2LMHeadModel",
        "gpt2",
        Settings(
            {
                "vocab_size": "vocab_size",
                "n_layer": "num_layers",
                "n_embd": "width",
                "n_head": "num_heads",
                "n_inner": "ffn_width",
                "n_positions": "context",
                "layer_norm_epsilon": "norm_eps",
                "tie_word_embeddings": "tied_embeddings",
                "activation_function": "activation",
            },
            {"activation_function": "gelu_new", "tie_word_embeddings": True, "layer_norm_epsilon": 1e-5},
            {
                "positions": "learned",
                "norm": "layer",
                "gated": False,
                "qkv_bias": True,
                "o_bias": True,
                "mlp_bias": True,
                "ffn_width": lambda values: values.get("ffn_width") or 4 * values["width"],
            },
            {"activation_function": lambda model: {"gelu_tanh": "gelu_new"}.get(model.activation, model.activation)},
            only={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
            rope="none",
        ),
        names.GPT2,
    ),
    Family("MixtralForCausalLM", "mixtral", Settings(BASE | EXPERTS, windows="all"), names.MIXTRAL, gguf="llama"),
    Family(
        "PhimoeForCausalLM",
        "phimoe",
        Settings(
            {key: ours for key, ours in BASE.items() if key != "head_dim"}
            | EXPERTS
            | BIAS
            | {"lm_head_bias": "head_bias", "router_jitter_noise": "moe.jitter"},
            {"router_jitter_noise": 0.01},
            {"norm": "layer", "moe.score": "sparsemixer", "moe.normalize": False},
            {"input_jitter_noise": 0.0},
            windows="all",
            refuses=_searched_positions,
        ),
        names.MIXTRAL,
    ),
    Family(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        Settings(
            BASE
            | BIAS
            | {
                "num_experts": "moe.num_experts",
                "num_local_experts": "moe.num_experts",
                "num_experts_per_tok": "moe.num_active",
                "moe_intermediate_size": "moe.expert_width",
                "norm_topk_prob": "moe.normalize",
                "decoder_sparse_step": "moe.every",
                "mlp_only_layers": "moe.first_dense",
            },
            QWEN_DEFAULTS | {"norm_topk_prob": False, "decoder_sparse_step": 1},
            {"qk_norm": True},
            windows="layers",
        ),
        names.PLAIN,
        gguf="qwen3moe",
    ),
    Family(
        "OlmoeForCausalLM",
        "olmoe",
        Settings(
            {key: ours for key, ours in BASE.items() if key != "head_dim"}
            | BIAS
            | EXPERTS
            | {"num_experts": "moe.num_experts", "norm_topk_prob": "moe.normalize", "clip_qkv": "clip_qkv"},
            OLMO_DEFAULTS | {"norm_topk_prob": False},
            {"qk_norm": True, "qk_norm_span": "all"},
        ),
        names.PLAIN,
    ),
    Family(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        Settings(
            BASE | SIGMOID | {"use_qk_norm": "qk_norm", "attention_bias": "qkv_bias"},
            SIGMOID_DEFAULTS | {"partial_rotary_factor": 0.5},
            SIGMOID_FIXED,
            SIGMOID_WRITTEN,
            SIGMOID_ONLY,
            refuses=_needs_shared,
        ),
        names.PLAIN,
        gguf="glm4moe",
    ),
    Family(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        Settings(
            {key: ours for key, ours in BASE.items() if key not in ("head_dim", "num_key_value_heads")}
            | SIGMOID
            | {
                "q_lora_rank": "mla.query_rank",
                "kv_lora_rank": "mla.kv_rank",
                "qk_nope_head_dim": "mla.nope_width",
                "qk_rope_head_dim": "mla.rope_width",
                "v_head_dim": "mla.value_width",
            },
            SIGMOID_DEFAULTS,
            SIGMOID_FIXED | {"mla.query_rank": lambda values: values.get("mla", {}).get("query_rank")},
            # DeepSeek's own order of rotary pairs is the only one that vLLM and llama.cpp know
            SIGMOID_WRITTEN | {"rope_interleave": True, "num_key_value_heads": lambda model: model.num_heads},
            SIGMOID_ONLY | {"rope_interleave": (True,), "attention_bias": (False,)},
            refuses=_latent_limits,
        ),
        names.LATENT,
        gguf="deepseek2",
        aliases=("kimi_k2",),
    ),
    Family(
        "GptOssForCausalLM",
        "gpt_oss",
        Settings(
            BASE | BIAS | EXPERTS | {"swiglu_limit": "glu_limit"},
            {"attention_bias": True, "swiglu_limit": 7.0, "rms_norm_eps": 1e-5},
            {
                "sinks": True,
                "activation": "quick_gelu",
                "glu_offset": 1.0,
                "moe.router_bias": True,
                "moe.expert_bias": True,
            },
            {"hidden_act": "silu", "swiglu_alpha": 1.702, "experts_per_token": lambda model: model.moe and model.moe.num_active},
            {"swiglu_alpha": (1.702,)},
            windows="layers",
            pattern=2,
        ),
        names.GPT_OSS,
    ),
]


def find(config: Mapping[str, Any], where: str) -> Family:
    """Return the family of a config.json; raise OpenmaiError with the known ones for an architecture that is not among them."""
    classes = [str(name).replace("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM") for name in config.get("architectures") or []]
    kind = config.get("model_type")
    for family in FAMILIES:
        if family.hf_class in classes or (not classes and kind in (family.model_type, *family.aliases)):
            return family
    known = ", ".join(family.hf_class for family in FAMILIES)
    named = ", ".join(classes) or f"model_type {kind}"
    raise OpenmaiError(f"{where}: unknown architecture {named}; known are {known}")


def choose(model: ModelConfig) -> Family:
    """Return the class that computes exactly what `model` says: what it writes, read again, is the same model.

    Of several, the one that the model was imported from, else the first. Raises OpenmaiError that names what the nearest class lacks.
    """
    for family in FAMILIES:
        if family.hf_class == model.hf_class and not differences(family.settings, model):
            return family
    lost = {family.hf_class: differences(family.settings, model) for family in FAMILIES}
    best = min(FAMILIES, key=lambda family: sum(_weight(problem) for problem in lost[family.hf_class]))
    if missing := ", ".join(lost[best.hf_class]):
        raise OpenmaiError(
            f"model.json: no known class has this architecture; the nearest, {best.hf_class}, cannot have {missing}; "
            "train a model without it, or use the openmai checkpoint as it is"
        )
    return best


def _weight(problem: str) -> int:
    """Experts and latent attention make another kind of model, the rest are variations."""
    return 5 if problem.startswith(("moe=", "mla=", "positions=")) else 1
