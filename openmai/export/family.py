"""Which published architecture computes exactly what a ModelConfig says, and the one error when none does."""

from __future__ import annotations

from dataclasses import dataclass

from openmai.base.errors import OpenmaiError
from openmai.model.config import ModelConfig


@dataclass(frozen=True)
class Family:
    """A class of `transformers` and the architecture of llama.cpp that computes the same.

    The sets hold names as `features` gives them; `llamacpp_lacks` are allowed ones that llama.cpp cannot compute.
    """

    hf_class: str
    model_type: str
    gguf: str
    needs: frozenset[str]
    allows: frozenset[str]
    llamacpp_lacks: frozenset[str]


def _family(hf_class: str, model_type: str, gguf: str, needs: str, allows: str, lacks: str = "") -> Family:
    basic = "activation tied_embeddings"  # every class has these; llama.cpp has only the SiLU
    words = (needs, f"{basic} {needs} {allows}", f"activation {lacks}")
    return Family(hf_class, model_type, gguf, *(frozenset(names.split()) for names in words))


SIGMOID_MOE = "moe moe.score moe.num_shared"
SIGMOID_OPTIONS = "moe.normalize moe.first_dense moe.scale moe.bias_rate"
FAMILIES = [
    _family("LlamaForCausalLM", "llama", "llama", "", "attention_bias mlp_bias head_width"),
    _family("Qwen2ForCausalLM", "qwen2", "qwen2", "qkv_bias", "head_width num_heads", "head_width num_heads"),
    _family("Qwen3ForCausalLM", "qwen3", "qwen3", "qk_norm", "attention_bias head_width num_heads", "attention_bias"),
    _family("MixtralForCausalLM", "mixtral", "llama", "moe", "head_width num_heads"),
    _family(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        "qwen3moe",
        "moe qk_norm",
        "attention_bias head_width num_heads moe.normalize moe.first_dense moe.every",
        "attention_bias moe.normalize moe.first_dense moe.every",
    ),
    _family("Glm4MoeForCausalLM", "glm4_moe", "glm4moe", SIGMOID_MOE, f"qk_norm qkv_bias head_width num_heads {SIGMOID_OPTIONS}"),
    _family("DeepseekV3ForCausalLM", "deepseek_v3", "deepseek2", f"mla {SIGMOID_MOE}", f"num_layers {SIGMOID_OPTIONS}", "num_layers"),
]


def features(config: ModelConfig) -> dict[str, str]:
    """Name what `config` has beyond the plainest Llama, each with its value as a user would write it."""
    moe, mla = config.moe, config.mla is not None
    present = {
        "norm": config.norm != "rms" and "layer",
        "norm_place": config.norm_place != "before" and config.norm_place,
        "head_bias": config.head_bias,
        "positions": config.positions != "rope" and config.positions,
        "gated": not config.gated and "false",
        "window": config.window,
        "activation": config.activation != "silu" and config.activation,
        "tied_embeddings": config.tied_embeddings,
        "mlp_bias": config.mlp_bias,
        "mla": mla,
        "norm_eps": mla and config.norm_eps != 1e-6 and config.norm_eps,  # fixed for the latents' norms in transformers
        "qk_norm": not mla and config.qk_norm,
        "qk_norm_span": not mla and config.qk_norm and config.qk_norm_span != "head" and config.qk_norm_span,
        "attention_bias": not mla and config.qkv_bias and config.o_bias,
        "qkv_bias": not mla and config.qkv_bias and not config.o_bias,
        "o_bias": not mla and config.o_bias and not config.qkv_bias,
        "head_width": not mla and config.num_heads * config.head != config.width and config.head,
        "num_heads": not mla and config.width % config.num_heads != 0 and config.num_heads,
        "num_layers": mla and config.num_layers in (26, 27) and config.num_layers,  # llama.cpp takes these for DeepSeek-V2-Lite
        "moe": moe is not None,
    }
    if moe is not None:
        present |= {
            "moe.score": moe.score != "softmax" and moe.score,
            "moe.num_shared": moe.num_shared,
            "moe.latent_width": moe.latent_width,
            "moe.first_dense": moe.first_dense,
            "moe.every": moe.every != 1 and moe.every,
            "moe.normalize": not moe.normalize and "false",
            "moe.scale": moe.scale != 1 and moe.scale,
            "moe.bias_rate": moe.bias_rate,
        }
    return {name: "true" if value is True else str(value) for name, value in present.items() if value}


def choose(config: ModelConfig) -> Family:
    """Return the family that computes exactly what `config` says.

    Raises OpenmaiError that names the features which the nearest family lacks or needs.
    """
    present = features(config)
    misfits = {family: 2 * len(family.needs - present.keys()) + len(present.keys() - family.allows) for family in FAMILIES}
    best = min(FAMILIES, key=lambda family: (misfits[family], -len(family.needs)))
    problems = [f"{name}={present[name]}" for name in sorted(present.keys() - best.allows)]
    problems += [f"{name} unset" for name in sorted(best.needs - present.keys())]
    if problems:
        raise OpenmaiError(
            f"model.json: no known class has this architecture; {', '.join(problems)} does not fit the nearest, {best.hf_class}; "
            "train a model without it, or use the openmai checkpoint as it is"
        )
    return best


def refuse_for_llamacpp(config: ModelConfig, family: Family) -> None:
    """Raise OpenmaiError naming features that `transformers` has and llama.cpp's architecture lacks."""
    present = features(config)
    lacking = [f"{name}={present[name]}" for name in sorted(present.keys() & family.llamacpp_lacks)]
    if lacking:
        raise OpenmaiError(f"model.json: llama.cpp's architecture {family.gguf} lacks {', '.join(lacking)}; use `openmai export hf`")
