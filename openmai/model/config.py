"""The architecture of a model as data: one configuration for dense and mixture-of-experts transformers."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from openmai.base.config import Config, read_yaml, validate
from openmai.base.errors import OpenmaiError
from openmai.base.files import read_json

PRESETS = Path(__file__).parent / "presets"


# What only grouped-query attention has.
LATENT_LACKS = ["num_kv_heads", "head_width", "qk_norm", "qkv_bias", "o_bias", "sinks", "clip_qkv", "value_embeddings", "rope_share"]


class RopeScaling(Config):
    """Rotary positions beyond the length that a model was first trained on."""

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    "linear (arXiv:2306.15595), Llama 3.1's, YaRN (arXiv:2309.00071), LongRoPE (arXiv:2402.13753)"
    factor: float | None = Field(None, gt=0)
    "how many times the original context; default with longrope: context / original_context"
    original_context: int | None = Field(None, gt=0)
    "context of the first training; all kinds but linear need it"
    low_freq_factor: float = Field(1.0, gt=0)
    "llama3: waves longer than original_context / this are stretched by the whole factor"
    high_freq_factor: float = Field(4.0, gt=0)
    "llama3: waves shorter than original_context / this stay as they are"
    beta_fast: float = Field(32.0, gt=0)
    "yarn: pairs that turn more often than this within the original context stay as they are"
    beta_slow: float = Field(1.0, gt=0)
    "yarn: pairs that turn less often are stretched by the whole factor"
    truncate: bool = True
    "yarn: round the borders between the two to whole pairs"
    mscale: float | None = None
    mscale_all_dim: float | None = None
    "yarn in DeepSeek-V3: what the attention scale grows by, in place of a factor on the rotated parts"
    attention_factor: float | None = None
    "yarn, longrope: factor on the rotated queries and keys; default: the paper's formula"
    short_factor: tuple[float, ...] = ()
    "longrope: divisor of each frequency up to original_context"
    long_factor: tuple[float, ...] = ()
    "longrope: divisor of each frequency beyond it"
    short_mscale: float | None = None
    long_mscale: float | None = None
    "longrope in Phi-3.5-MoE: attention_factor up to and beyond original_context"
    global_only: bool = False
    "layers with a window keep the unscaled frequencies (Gemma 3, OLMo 3)"

    @model_validator(mode="after")
    def _complete(self) -> RopeScaling:
        if self.kind != "longrope" and self.factor is None:
            raise ValueError(f"kind={self.kind} needs a factor")
        if self.kind != "linear" and self.original_context is None:
            raise ValueError(f"kind={self.kind} needs original_context")
        if self.kind == "longrope" and (not self.short_factor or len(self.short_factor) != len(self.long_factor)):
            raise ValueError("kind=longrope needs short_factor and long_factor of equal length, one number per rotated pair")
        return self


class MLAConfig(Config):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1)."""

    query_rank: int | None = Field(1536, gt=0)
    "width of the compressed query; null: not compressed (DeepSeek-V2-Lite)"
    kv_rank: int = Field(512, gt=0)
    "width of the compressed key-value"
    nope_width: int = Field(128, gt=0)
    "head width without positions"
    rope_width: int = Field(64, gt=0, multiple_of=2)
    "head width with rotary positions (the key part is shared by all heads)"
    value_width: int = Field(128, gt=0)
    "head width of the values"


class MoEConfig(Config):
    """A mixture of experts in place of the feed-forward block."""

    num_experts: int = Field(gt=1)
    "routed experts per layer"
    num_active: int = Field(gt=0)
    "routed experts used by each token"
    expert_width: int = Field(gt=0)
    "hidden width of one routed expert"
    num_shared: int = Field(0, ge=0)
    "experts of the same width that every token uses"
    latent_width: int | None = Field(None, gt=0)
    "routed experts work at this width, between two shared projections (LatentMoE)"
    first_dense: int = Field(0, ge=0)
    "the first layers keep a dense feed-forward"
    every: int = Field(1, gt=0)
    "a mixture in every n-th layer, the last of each n"
    score: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    "router score: softmax over all experts (Mixtral, Qwen3-MoE), a sigmoid each (DeepSeek-V3), or SparseMixer (arXiv:2409.12136)"
    jitter: float = Field(0.01, ge=0)
    "sparsemixer: experts within 2 x this of the best one share its softmax"
    normalize: bool = True
    "let the weights of the chosen experts add up to one"
    scale: float = Field(1.0, gt=0)
    "factor on the routed output"
    num_groups: int = Field(1, gt=0)
    "experts are chosen within the best active_groups of this many equal groups (DeepSeek-V3, arXiv:2412.19437, section 2.1.2)"
    active_groups: int = Field(1, gt=0)
    "groups that a token may choose from; a group counts as its two best experts"
    weigh_input: bool = False
    "the score multiplies what goes into an expert instead of what comes out (Llama 4)"
    router_bias: bool = False
    "bias on the router's logits (gpt-oss)"
    expert_bias: bool = False
    "biases in the experts (gpt-oss)"
    bias_rate: float = Field(0.0, ge=0)
    "step of the selection bias that balances load without an auxiliary loss (arXiv:2408.15664); 0 has no bias"
    aux_loss: float = Field(0.0, ge=0)
    "coefficient of the load-balancing loss (arXiv:2101.03961, eq. 4)"
    aux_span: Literal["batch", "sequence"] = "batch"
    "balance over all tokens of a forward pass, or within each sequence (DeepSeek-V3, arXiv:2412.19437, eq. 17)"
    z_loss: float = Field(0.0, ge=0)
    "coefficient of the router z-loss (arXiv:2202.08906, eq. 5)"

    @model_validator(mode="after")
    def _possible(self) -> MoEConfig:
        if self.num_active > self.num_experts:
            raise ValueError(f"num_active={self.num_active} exceeds num_experts={self.num_experts}")
        if self.num_experts % self.num_groups or self.active_groups > self.num_groups:
            raise ValueError(
                f"num_experts={self.num_experts}, num_groups={self.num_groups}, active_groups={self.active_groups}: "
                "the groups must divide the experts, and no more groups can be active than there are"
            )
        if self.num_groups > 1 and self.num_experts // self.num_groups * self.active_groups < max(self.num_active, 2 * self.active_groups):
            raise ValueError(f"num_groups={self.num_groups} leaves too few experts for num_active={self.num_active}, or less than two each")
        if self.score == "sparsemixer" and (self.num_active != 2 or self.normalize):
            raise ValueError("score=sparsemixer chooses two experts with a weight each: num_active must be 2 and normalize false")
        if self.score == "sparsemixer" and (self.bias_rate or self.num_groups > 1):
            raise ValueError("score=sparsemixer has its own choice of experts: bias_rate must be 0 and num_groups 1")
        return self


class ModelConfig(Config):
    """A decoder-only transformer: norms, positions, attention, feed-forward or experts, each in the forms that the field uses."""

    vocab_size: int = Field(gt=0)
    "rows of the embedding; training sets it from the tokenizer"
    num_layers: int = Field(gt=0)
    "transformer blocks"
    width: int = Field(gt=0)
    "width of the residual stream (D)"
    num_heads: int = Field(gt=0)
    "query heads (H)"
    num_kv_heads: int | None = Field(None, gt=0)
    "key-value heads (G); default: as many as query heads"
    head_width: int | None = Field(None, gt=0, multiple_of=2)
    "width of one head (K); default: width / num_heads"
    ffn_width: int = Field(gt=0)
    "hidden width of the dense feed-forward (F)"
    gated: bool = True
    "gated feed-forward (SwiGLU, GeGLU) rather than up-activation-down"
    activation: Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu2"] = "silu"
    "activation of the feed-forward; quick_gelu is x sigmoid(1.702 x)"
    glu_limit: float | None = Field(None, gt=0)
    "gated: clamp the gate from above, and the other factor from both sides (gpt-oss: 7)"
    glu_offset: float = 0.0
    "gated: add this to the other factor (gpt-oss: 1)"
    parallel: bool = False
    "attention and feed-forward read the same norm and are added together (PaLM, Phi-2)"
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True
    "norm=layer: with a bias"
    norm_weight: Literal["scale", "offset", "none"] = "scale"
    "weights of the norms: factors, factors less one (Gemma), or none"
    norm_place: Literal["before", "after", "both"] = "before"
    "norms before attention and feed-forward (the usual), after them (OLMo 2), or both (Grok-1, Gemma 2)"
    norm_eps: float = Field(1e-6, gt=0)
    qk_norm: bool = False
    "norm on queries and keys (Qwen3)"
    qk_norm_span: Literal["head", "all"] = "head"
    "with qk_norm: normalise each head by itself, or all heads together (OLMo 2)"
    qk_norm_place: Literal["before", "after"] = "before"
    "with qk_norm: before the rotation, or after it (nanochat)"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied_embeddings: bool = False
    "use the embedding as output matrix"
    embedding_scale: float = Field(1.0, gt=0)
    "factor on the embedding (Gemma: square root of the width)"
    embedding_norm: bool = False
    "norm behind the embedding (BLOOM, nanochat)"
    positions: Literal["rope", "learned", "alibi"] = "rope"
    rope_theta: float = Field(10_000.0, gt=0)
    rope_local_theta: float | None = Field(None, gt=0)
    "base of the layers with a window, if another (Gemma 3)"
    rope_share: float = Field(1.0, gt=0, le=1)
    "share of each head, from its beginning, that is rotated (Phi-2: 0.4)"
    rope_scaling: RopeScaling | None = None
    context: int = Field(2048, gt=0)
    "longest sequence, in tokens"
    window: int | None = Field(None, gt=0)
    "sliding-window attention over this many tokens"
    global_every: int | None = Field(None, gt=0)
    "with a window: every n-th layer attends to everything"
    global_layers: tuple[int, ...] | None = None
    "with a window: the layers that attend to everything, counted from 0, where they follow no rhythm"
    global_rope: bool = True
    "with a window: layers that attend to everything rotate queries and keys as well"
    attention_scale: float | None = Field(None, gt=0)
    "factor on the scores; default: head width ** -0.5"
    attention_softcap: float | None = Field(None, gt=0)
    "scores become c tanh(scores / c) (Gemma 2: 50)"
    logit_softcap: float | None = Field(None, gt=0)
    "logits become c tanh(logits / c) (Gemma 2: 30, nanochat: 15)"
    sinks: bool = False
    "each head may attend to nothing, with a learned score (gpt-oss)"
    clip_qkv: float | None = Field(None, gt=0)
    "clamp queries, keys and values to this from both sides (DBRX: 8)"
    value_embeddings: bool = False
    "every second layer, the last one included, adds a gated embedding of the token to its values (nanochat, after arXiv:2410.17897)"
    residual_scalars: bool = False
    "each layer starts from a learned mixture of the stream and the embedding (nanochat, after modded-nanogpt)"
    smear: bool = False
    "add a gated share of the token before to each embedding (nanochat)"
    backout: bool = False
    "subtract a learned share of the stream at half depth before the last norm (nanochat)"
    mla: MLAConfig | None = None
    "latent attention in place of grouped-query attention"
    moe: MoEConfig | None = None
    "mixture of experts"
    num_predict: int = Field(0, ge=0)
    "modules that predict tokens further ahead while training (DeepSeek-V3, arXiv:2412.19437, section 2.2)"
    predict_loss: float = Field(0.3, ge=0)
    "weight of their loss"
    hf_class: str | None = None
    "class of transformers that an imported model had; an export takes it again where it still fits"
    source: str = ""
    "where the numbers of a preset come from"

    @model_validator(mode="after")
    def _divides(self) -> ModelConfig:
        if self.head_width is None and self.width % self.num_heads:
            raise ValueError(
                f"width={self.width} is not divisible by num_heads={self.num_heads}; "
                f"choose num_heads among {[h for h in range(1, 129) if self.width % (2 * h) == 0]} or set head_width"
            )
        if self.head_width is None and (self.width // self.num_heads) % 2:
            raise ValueError(f"head width {self.width // self.num_heads} is odd; rotary positions need an even one")
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is not divisible by num_kv_heads={self.kv_heads}")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if (self.global_every or self.global_layers is not None) and not self.window:
            raise ValueError(f"{'global_every' if self.global_every else 'global_layers'} needs a window")
        if self.global_every and self.global_layers is not None:
            raise ValueError("give either global_every or global_layers")
        if self.rope_width % 2:
            raise ValueError(f"rope_share={self.rope_share} of a head of {self.head} rotates an odd number of values")
        scaling = self.rope_scaling
        if scaling and scaling.kind == "longrope" and len(scaling.short_factor) != self.rope_width // 2:
            raise ValueError(f"rope_scaling.short_factor has {len(scaling.short_factor)} numbers, {self.rope_width // 2} pairs are rotated")
        if self.parallel and self.norm_place != "before":
            raise ValueError("parallel needs norm_place=before")
        ignored = [
            *(name for name in LATENT_LACKS if self.mla and getattr(self, name) != type(self).model_fields[name].default),
            *(name for name in ("glu_limit", "glu_offset") if not self.gated and getattr(self, name)),
            *(["norm_weight=offset"] if self.norm == "layer" and self.norm_weight == "offset" else []),
            *(["qk_norm_place=after"] if self.qk_norm_span == "all" and self.qk_norm_place == "after" else []),
            *(["rope_scaling"] if self.rope_scaling and self.positions != "rope" else []),
            *(["global_layers"] if any(layer >= self.num_layers for layer in self.global_layers or ()) else []),
        ]
        if ignored:
            raise ValueError(
                f"{', '.join(ignored)} would have no effect beside the other settings (mla, gated, norm, positions, num_layers)"
            )
        return self

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head(self) -> int:
        """Width of one query or key head."""
        if self.mla:
            return self.mla.nope_width + self.mla.rope_width
        return self.head_width or self.width // self.num_heads

    @property
    def rope_width(self) -> int:
        """How many values of each head are rotated."""
        return self.mla.rope_width if self.mla else int(self.head * self.rope_share)

    @property
    def value_gate_width(self) -> int:
        """How many channels of the stream decide how much of a value embedding is added (nanochat, gpt.py)."""
        return min(12, self.width)

    @property
    def smear_gate_width(self) -> int:
        """How many channels of the embedding decide how much of the token before is added (nanochat, gpt.py)."""
        return min(24, self.width)

    @property
    def score_scale(self) -> float:
        """Factor on the attention scores; YaRN as DeepSeek-V3 has it adds its own."""
        scaling, scale = self.rope_scaling, self.attention_scale or self.head**-0.5
        if self.mla and scaling and scaling.kind == "yarn" and scaling.mscale_all_dim:
            scale *= yarn_growth(scaling.factor or 1, scaling.mscale_all_dim) ** 2
        return scale

    def is_moe(self, layer: int) -> bool:
        """Tell whether layer (counted from 0) is a mixture of experts."""
        return self.moe is not None and layer >= self.moe.first_dense and (layer + 1) % self.moe.every == 0

    def is_global(self, layer: int) -> bool:
        """Tell whether layer attends to the whole context."""
        if self.window is None or self.global_layers is not None:
            return self.window is None or layer in (self.global_layers or ())
        return self.global_every is not None and (layer + 1) % self.global_every == 0

    def has_rope(self, layer: int) -> bool:
        """Tell whether layer rotates queries and keys."""
        return self.positions == "rope" and (self.window is None or self.global_rope or not self.is_global(layer))

    def has_value_embedding(self, layer: int) -> bool:
        """Tell whether layer adds an embedding to its values."""
        return self.value_embeddings and (self.num_layers - 1 - layer) % 2 == 0


def yarn_growth(factor: float, mscale: float = 1.0) -> float:
    """Return what YaRN multiplies rotated values by (arXiv:2309.00071, eq. 22; `mscale` is DeepSeek's)."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def preset_names() -> list[str]:
    """List the shipped architectures."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(name: str) -> ModelConfig:
    """Read a shipped architecture by name, a YAML file with the fields of ModelConfig, or the model.json of a checkpoint folder.

    Raises OpenmaiError for an unknown name, listing the closest ones.
    """
    if (Path(name) / "model.json").is_file():
        return load_config(Path(name))
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.exists():
        close = difflib.get_close_matches(name.lower(), preset_names(), n=5, cutoff=0.4) or preset_names()
        raise OpenmaiError(
            f"{name}: unknown model; did you mean {', '.join(close)}? "
            "`openmai plan` lists all; the path of a YAML file or of a checkpoint folder also does"
        )
    return validate(ModelConfig, read_yaml(path), str(path))


def load_config(folder: Path) -> ModelConfig:
    """Read the ModelConfig of a checkpoint folder."""
    return validate(ModelConfig, read_json(folder / "model.json"), str(folder / "model.json"))
