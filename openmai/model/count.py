"""What an architecture amounts to, by formula and without torch: parameters, FLOPs per token, bytes."""

from __future__ import annotations

from dataclasses import dataclass

from openmai.model.config import MLAConfig, ModelConfig, MoEConfig

# Bytes per parameter. int4 holds groups of 32 values that share one fp16 scale, as llama.cpp's Q4_0 does: 4.5 bits.
WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int4": 0.5625}

# Bytes per parameter that mixed-precision Adam keeps, Megatron-LM's 18 (arXiv:2104.04473 and its distributed optimizer's documentation).
TRAINING_STATE_BYTES = {"bf16 weights": 2, "fp32 gradients": 4, "fp32 master weights": 4, "fp32 first moment": 4, "fp32 second moment": 4}


@dataclass(frozen=True)
class Parameters:
    """Numbers of stored values, routers' selection biases included, as published totals count them.

    `active` leaves out the routed experts that a token does not use; `active_matmul` also the embeddings that are only looked up, norms
    and biases: what a token is multiplied with. Tied embeddings are counted once, and as output matrix in `active_matmul`.
    """

    total: int
    active: int
    active_without_input_embedding: int
    active_matmul: int
    embedding: int
    "input, position and output embeddings"


def count_parameters(config: ModelConfig) -> Parameters:
    """Count the parameters of `config`."""
    matrix = config.vocab_size * config.width
    positions = config.context * config.width if config.positions == "learned" else 0
    embedding = matrix * (1 if config.tied_embeddings else 2) + positions
    layers = range(config.num_layers)
    matmul = sum(attention_matmul(config) + mlp_matmul(config, layer) for layer in layers) + matrix
    small = sum(_small_in_layer(config, layer) for layer in layers) + _norm(config, config.width) + config.head_bias * config.vocab_size
    active = matmul + small + embedding - matrix
    looked_up = 0 if config.tied_embeddings else matrix
    return Parameters(
        total=active + sum(idle_experts(config, layer) for layer in layers),
        active=active,
        active_without_input_embedding=active - looked_up,
        active_matmul=matmul,
        embedding=embedding,
    )


def attention_matmul(config: ModelConfig) -> int:
    """Count the matrix elements of one attention layer."""
    width, heads = config.width, config.num_heads
    if config.mla is None:
        return width * config.head * (2 * heads + 2 * config.kv_heads)
    mla: MLAConfig = config.mla
    queries = mla.query_rank * (width + heads * config.head)
    keys_values = width * (mla.kv_rank + mla.rope_width) + mla.kv_rank * heads * (mla.nope_width + mla.value_width)
    return queries + keys_values + heads * mla.value_width * width


def mlp_matmul(config: ModelConfig, layer: int) -> int:
    """Count the matrix elements of one layer's feed-forward or experts that a single token is multiplied with."""
    width = config.width
    if config.moe is None or not config.is_moe(layer):
        return width * config.ffn_width * (3 if config.gated else 2)
    moe = config.moe
    shared = width * moe.num_shared * moe.expert_width * (3 if config.gated else 2)
    latent = 2 * width * moe.latent_width if moe.latent_width else 0
    return width * moe.num_experts + shared + latent + moe.num_active * expert_size(config, moe)


def expert_size(config: ModelConfig, moe: MoEConfig) -> int:
    """Count the parameters of one routed expert."""
    return 3 * (moe.latent_width or config.width) * moe.expert_width


def idle_experts(config: ModelConfig, layer: int) -> int:
    """Count the parameters of one layer's experts that a token does not use."""
    if config.moe is None or not config.is_moe(layer):
        return 0
    return (config.moe.num_experts - config.moe.num_active) * expert_size(config, config.moe)


def _norm(config: ModelConfig, width: int) -> int:
    return width * (2 if config.norm == "layer" else 1)


def _small_in_layer(config: ModelConfig, layer: int) -> int:
    """Count norms, biases and selection biases of one layer."""
    norms = _norm(config, config.width) * (4 if config.norm_place == "both" else 2)
    return norms + _small_in_attention(config) + _small_in_mlp(config, layer)


def _small_in_attention(config: ModelConfig) -> int:
    if config.mla is not None:
        return _norm(config, config.mla.query_rank) + _norm(config, config.mla.kv_rank)
    heads, groups, head = config.num_heads, config.kv_heads, config.head
    together = config.qk_norm_span == "all"
    qk_norm = _norm(config, head) * (heads + groups if together else 2) if config.qk_norm else 0
    return qk_norm + config.qkv_bias * (heads + 2 * groups) * head + config.o_bias * config.width


def _small_in_mlp(config: ModelConfig, layer: int) -> int:
    moe, hidden, selection = config.moe, config.ffn_width, 0
    if moe is not None and config.is_moe(layer):
        hidden = moe.num_shared * moe.expert_width
        selection = moe.num_experts if moe.bias_rate else 0
    biases = hidden * (2 if config.gated else 1) + config.width if config.mlp_bias and hidden else 0
    return selection + biases


def flops_per_token(config: ModelConfig, sequence: int, causal: bool = True) -> float:
    """Return the FLOPs of forward and backward per token at `sequence` tokens, a multiply-add counted as two.

    Convention: 6 * active matmul parameters (without the input embedding) plus attention over the keys that a token really sees, on
    average half the sequence, or less with windows: 6 * L * H * K * sequence for plain causal attention. Nothing for recomputation,
    norms, softmax or the optimizer. This is the convention of Megatron-Bridge's performance tables and of DeepSeek-V3's "causal" MFU
    (arXiv:2505.09343). `causal=False` counts the full square of scores, windows ignored, as the 12 * L * H * K * sequence of
    arXiv:2204.02311 does.
    """
    seen = sum(keys_seen(config, layer, sequence) if causal else sequence for layer in range(config.num_layers))
    value_width = config.mla.value_width if config.mla else config.head
    return 6 * count_parameters(config).active_matmul + 6 * seen * config.num_heads * (config.head + value_width)


def keys_seen(config: ModelConfig, layer: int, sequence: int) -> float:
    """Return the mean number of keys that a token of `sequence` attends to in `layer`, a token's own position counted as half."""
    if config.window is None or config.is_global(layer) or config.window >= sequence:
        return sequence / 2
    return config.window - config.window**2 / (2 * sequence)


def weight_bytes(config: ModelConfig, precision: str) -> float:
    """Return the bytes of all weights in one of WEIGHT_BYTES' precisions."""
    return count_parameters(config).total * WEIGHT_BYTES[precision]


def training_state_bytes(config: ModelConfig) -> int:
    """Return the bytes of weights, gradients and Adam's state in mixed precision, all ranks together and nothing held twice."""
    return count_parameters(config).total * sum(TRAINING_STATE_BYTES.values())


def cache_bytes_per_token(config: ModelConfig, precision: str = "bf16") -> float:
    """Return the bytes that one more token adds to the key-value cache before any window is full.

    Latent attention is counted by its latent and its rotary key (arXiv:2405.04434, section 2.1.3), as serving engines keep it.
    """
    return config.num_layers * _cache_width(config) * WEIGHT_BYTES[precision]


def cache_bytes(config: ModelConfig, tokens: int, precision: str = "bf16") -> float:
    """Return the bytes of one sequence's key-value cache at `tokens` tokens; a windowed layer keeps no more than its window."""
    windowed = min(tokens, config.window or tokens)
    kept = sum(tokens if config.is_global(layer) else windowed for layer in range(config.num_layers))
    return kept * _cache_width(config) * WEIGHT_BYTES[precision]


def _cache_width(config: ModelConfig) -> int:
    if config.mla:
        return config.mla.kv_rank + config.mla.rope_width
    return 2 * config.kv_heads * config.head
