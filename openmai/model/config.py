"""The architecture of a model as data: one configuration for dense and mixture-of-experts transformers."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from openmai.base.config import Config, read_yaml, validate
from openmai.base.errors import OpenmaiError
from openmai.base.files import read_json

PRESETS = Path(__file__).parent / "presets"


class MLAConfig(Config):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1)."""

    query_rank: int = Field(1536, gt=0)
    "width of the compressed query"
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
    score: Literal["softmax", "sigmoid"] = "softmax"
    "router score: softmax over all experts (Mixtral, Qwen3-MoE) or a sigmoid each (DeepSeek-V3)"
    normalize: bool = True
    "let the weights of the chosen experts add up to one"
    scale: float = Field(1.0, gt=0)
    "factor on the routed output"
    bias_rate: float = Field(0.0, ge=0)
    "step of the selection bias that balances load without an auxiliary loss (arXiv:2408.15664); 0 has no bias"
    aux_loss: float = Field(0.0, ge=0)
    "coefficient of the load-balancing loss (arXiv:2101.03961, eq. 4)"
    z_loss: float = Field(0.0, ge=0)
    "coefficient of the router z-loss (arXiv:2202.08906, eq. 5)"

    @model_validator(mode="after")
    def _possible(self) -> MoEConfig:
        if self.num_active > self.num_experts:
            raise ValueError(f"num_active={self.num_active} exceeds num_experts={self.num_experts}")
        return self


class ModelConfig(Config):
    """A decoder-only transformer: pre-norm, rotary positions, grouped-query or latent attention, gated feed-forward or experts."""

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
    activation: Literal["silu", "gelu_tanh", "relu2"] = "silu"
    "activation of the feed-forward"
    norm: Literal["rms", "layer"] = "rms"
    "RMSNorm, or LayerNorm with bias"
    norm_place: Literal["before", "after", "both"] = "before"
    "norms before attention and feed-forward (the usual), after them (OLMo 2), or both (Grok-1)"
    norm_eps: float = Field(1e-6, gt=0)
    qk_norm: bool = False
    "norm on queries and keys before the rotation (Qwen3)"
    qk_norm_span: Literal["head", "all"] = "head"
    "with qk_norm: normalise each head by itself, or all heads together (OLMo 2)"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied_embeddings: bool = False
    "use the embedding as output matrix"
    positions: Literal["rope", "learned"] = "rope"
    rope_theta: float = Field(10_000.0, gt=0)
    context: int = Field(2048, gt=0)
    "longest sequence, in tokens"
    window: int | None = Field(None, gt=0)
    "sliding-window attention over this many tokens"
    global_every: int | None = Field(None, gt=0)
    "with a window: every n-th layer attends to everything, without rotary positions"
    mla: MLAConfig | None = None
    "latent attention in place of grouped-query attention"
    moe: MoEConfig | None = None
    "mixture of experts"
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
        if self.global_every and not self.window:
            raise ValueError("global_every needs a window")
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

    def is_moe(self, layer: int) -> bool:
        """Tell whether layer (counted from 0) is a mixture of experts."""
        return self.moe is not None and layer >= self.moe.first_dense and (layer + 1) % self.moe.every == 0

    def is_global(self, layer: int) -> bool:
        """Tell whether layer attends to the whole context."""
        return self.window is None or (self.global_every is not None and (layer + 1) % self.global_every == 0)

    def has_rope(self, layer: int) -> bool:
        """Tell whether layer rotates queries and keys (global layers between windowed ones do not)."""
        return self.positions == "rope" and (self.window is None or not self.is_global(layer))


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
