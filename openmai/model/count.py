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

    All but `predictors` are of the main model, which is what runs after training. `active` leaves out the routed experts that a token
    does not use; `active_matmul` also the embeddings that are only looked up, norms, biases and single factors: what a token is
    multiplied with. Tied embeddings are counted once, and as output matrix in `active_matmul`.
    """

    total: int
    active: int
    active_without_input_embedding: int
    "active, less an input embedding that is not the output matrix too, and less value embeddings"
    active_matmul: int
    embedding: int
    "input, position, output and value embeddings"
    predictors: int
    "modules of `num_predict`, which train with the model and share its embeddings (DeepSeek-V3's 11.5B besides its 671B); not in `total`"


def count_parameters(config: ModelConfig) -> Parameters:
    """Count the parameters of `config`."""
    matrix, layers = config.vocab_size * config.width, range(config.num_layers)
    positions = config.context * config.width if config.positions == "learned" else 0
    values = sum(value_embedding(config, layer) for layer in layers)
    embedding = matrix * (1 if config.tied_embeddings else 2) + positions + values
    matmul = sum(layer_matmul(config, layer) for layer in layers) + matrix + _smear_gate(config)
    active = matmul + sum(_small_in_layer(config, layer) for layer in layers) + _small_around(config) + embedding - matrix
    return Parameters(
        total=active + sum(idle_experts(config, layer) for layer in layers),
        active=active,
        active_without_input_embedding=active - values - (0 if config.tied_embeddings else matrix),
        active_matmul=matmul,
        embedding=embedding,
        predictors=config.num_predict * _predictor(config),
    )


@dataclass(frozen=True)
class LayerParameters:
    """One layer's stored values, by how a layout divides them; they add up to the layer's share of `Parameters.total`."""

    heads: int
    "matrices divided by query heads: queries and output (of latent attention all but the latents)"
    keys_values: int
    "matrices divided by key-value heads"
    latents: int
    "matrices that every process of a tensor-parallel group holds: latent attention's ways down, latent projections, value gates"
    mlp: int
    "dense feed-forward or shared experts"
    router: int
    experts: int
    "all routed experts with their biases"
    small: int
    "norms, biases, sinks, selection biases"
    value_embedding: int

    @property
    def total(self) -> int:
        return self.heads + self.keys_values + self.latents + self.mlp + self.router + self.experts + self.small + self.value_embedding


def count_layer(config: ModelConfig, layer: int) -> LayerParameters:
    """Count the parameters of one layer by how a layout divides them."""
    width, moe = config.width, config.moe if config.is_moe(layer) else None
    if config.mla is None:
        heads, keys_values = 2 * width * config.num_heads * config.head, 2 * width * config.kv_heads * config.head
        latents = attention_matmul(config, layer) - heads - keys_values
    else:
        latents = width * ((config.mla.query_rank or 0) + config.mla.kv_rank + config.mla.rope_width)
        heads, keys_values = attention_matmul(config, layer) - latents, 0
    expert = expert_matmul(config, moe) + expert_bias(config, moe) if moe else 0
    if moe and moe.latent_width:
        latents += 2 * width * moe.latent_width
    hidden = moe.num_shared * moe.expert_width if moe else config.ffn_width
    return LayerParameters(
        heads=heads,
        keys_values=keys_values,
        latents=latents,
        mlp=width * hidden * (3 if config.gated else 2),
        router=width * moe.num_experts if moe else 0,
        experts=moe.num_experts * expert if moe else 0,
        small=_small_in_layer(config, layer) - (moe.num_active * expert_bias(config, moe) if moe else 0),
        value_embedding=value_embedding(config, layer),
    )


def count_around(config: ModelConfig) -> tuple[int, int, int]:
    """Count what lies outside the layers: input and position embeddings, the output matrix with its bias (0 if tied), and small values."""
    positions = config.context * config.width if config.positions == "learned" else 0
    matrix, bias = config.vocab_size * config.width, config.head_bias * config.vocab_size
    small = _small_around(config) - bias + _smear_gate(config)
    return matrix + positions, (0 if config.tied_embeddings else matrix) + bias, small


def layer_matmul(config: ModelConfig, layer: int) -> int:
    """Count the matrix elements of one layer that a single token is multiplied with."""
    return attention_matmul(config, layer) + mlp_matmul(config, layer)


def attention_matmul(config: ModelConfig, layer: int) -> int:
    """Count the matrix elements of one layer's attention, the gate of its value embedding included."""
    width, heads = config.width, config.num_heads
    if config.mla is None:
        gate = config.value_gate_width * config.kv_heads if config.has_value_embedding(layer) else 0
        return width * config.head * (2 * heads + 2 * config.kv_heads) + gate
    mla: MLAConfig = config.mla
    queries = mla.query_rank * (width + heads * config.head) if mla.query_rank else width * heads * config.head
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
    return width * moe.num_experts + shared + latent + moe.num_active * expert_matmul(config, moe)


def expert_matmul(config: ModelConfig, moe: MoEConfig) -> int:
    """Count the matrix elements of one routed expert."""
    return 3 * (moe.latent_width or config.width) * moe.expert_width


def expert_bias(config: ModelConfig, moe: MoEConfig) -> int:
    """Count the biases of one routed expert."""
    return 2 * moe.expert_width + (moe.latent_width or config.width) if moe.expert_bias else 0


def idle_experts(config: ModelConfig, layer: int) -> int:
    """Count the parameters of one layer's experts that a token does not use."""
    moe = config.moe
    if moe is None or not config.is_moe(layer):
        return 0
    return (moe.num_experts - moe.num_active) * (expert_matmul(config, moe) + expert_bias(config, moe))


def value_embedding(config: ModelConfig, layer: int) -> int:
    """Count the embedding that one layer adds to its values."""
    return config.vocab_size * config.kv_heads * config.head if config.has_value_embedding(layer) else 0


def _norm(config: ModelConfig, width: int) -> int:
    if config.norm_weight == "none":
        return 0
    return width * (2 if config.norm == "layer" and config.norm_bias else 1)


def _smear_gate(config: ModelConfig) -> int:
    return config.smear_gate_width if config.smear else 0


def _small_around(config: ModelConfig) -> int:
    """Count norms, biases and factors outside the layers."""
    norms = _norm(config, config.width) * (2 if config.embedding_norm else 1)
    factors = 2 * config.num_layers * config.residual_scalars + config.smear + config.backout
    return norms + config.head_bias * config.vocab_size + factors


def _small_in_layer(config: ModelConfig, layer: int) -> int:
    """Count norms, biases, sinks and selection biases of one layer."""
    norms = _norm(config, config.width) * (4 if config.norm_place == "both" else 1 if config.parallel else 2)
    return norms + _small_in_attention(config) + _small_in_mlp(config, layer)


def _small_in_attention(config: ModelConfig) -> int:
    if config.mla is not None:
        return _norm(config, config.mla.query_rank or 0) + _norm(config, config.mla.kv_rank)
    heads, groups, head = config.num_heads, config.kv_heads, config.head
    together = config.qk_norm_span == "all"
    qk_norm = _norm(config, head) * (heads + groups if together else 2) if config.qk_norm else 0
    return qk_norm + config.qkv_bias * (heads + 2 * groups) * head + config.o_bias * config.width + config.sinks * heads


def _small_in_mlp(config: ModelConfig, layer: int) -> int:
    moe, hidden, routed = config.moe, config.ffn_width, 0
    if moe is not None and config.is_moe(layer):
        hidden = moe.num_shared * moe.expert_width
        routed = moe.num_experts * ((moe.bias_rate > 0) + moe.router_bias) + moe.num_active * expert_bias(config, moe)
    biases = hidden * (2 if config.gated else 1) + config.width if config.mlp_bias and hidden else 0
    return routed + biases


def _predictor(config: ModelConfig) -> int:
    """Count one module that predicts further ahead: three norms, the matrix that joins stream and embedding, and one more last layer."""
    layer = config.num_layers - 1
    block = layer_matmul(config, layer) + _small_in_layer(config, layer) + idle_experts(config, layer) + value_embedding(config, layer)
    return 3 * _norm(config, config.width) + 2 * config.width**2 + block


def flops_per_token(config: ModelConfig, sequence: int, causal: bool = True) -> float:
    """Return the FLOPs of forward and backward per token at `sequence` tokens, a multiply-add counted as two.

    Convention: 6 * active matmul parameters (without the input embedding) plus attention over the keys that a token really sees, on
    average half the sequence, or less with windows: 6 * L * H * K * sequence for plain causal attention. Nothing for recomputation,
    norms, softmax or the optimizer. This is the convention of Megatron-Bridge's performance tables and of DeepSeek-V3's "causal" MFU
    (arXiv:2505.09343). `causal=False` counts the full square of scores, windows ignored, as the 12 * L * H * K * sequence of
    arXiv:2204.02311 does. Modules of `num_predict` are included, each with the output matrix and over the tokens that it predicts for.
    """
    layers = range(config.num_layers)
    flops = 6 * count_parameters(config).active_matmul + sum(_attention_flops(config, layer, sequence, causal) for layer in layers)
    return flops + sum(_predictor_flops(config, sequence, sequence - ahead, causal) for ahead in range(1, config.num_predict + 1))


def _attention_flops(config: ModelConfig, layer: int, sequence: int, causal: bool) -> float:
    seen = keys_seen(config, layer, sequence) if causal else sequence
    return 6 * seen * config.num_heads * (config.head + (config.mla.value_width if config.mla else config.head))


def _predictor_flops(config: ModelConfig, sequence: int, predicted: int, causal: bool) -> float:
    """Return what one predictor adds per token of `sequence`; it runs on the first `predicted` of them."""
    layer = config.num_layers - 1
    matmul = layer_matmul(config, layer) + 2 * config.width**2 + config.vocab_size * config.width
    gate = _smear_gate(config)  # of the embedding that it joins
    return max(predicted, 0) / sequence * (6 * (matmul + gate) + _attention_flops(config, layer, max(predicted, 1), causal))


def keys_seen(config: ModelConfig, layer: int, sequence: int) -> float:
    """Return the mean number of keys that a token of `sequence` attends to in `layer`, a token's own position counted as half."""
    window = sequence if config.is_global(layer) else min(config.window or sequence, sequence)
    return window - (window**2 - window + sequence) / (2 * sequence)


def weight_bytes(config: ModelConfig, precision: str) -> float:
    """Return the bytes of the main model's weights in one of WEIGHT_BYTES' precisions."""
    return count_parameters(config).total * WEIGHT_BYTES[precision]


def training_state_bytes(config: ModelConfig) -> int:
    """Return the bytes of weights, gradients and Adam's state in mixed precision, all ranks together and nothing held twice.

    Modules of `num_predict` are included.
    """
    counted = count_parameters(config)
    return (counted.total + counted.predictors) * sum(TRAINING_STATE_BYTES.values())


def cache_bytes_per_token(config: ModelConfig, precision: str = "bf16") -> float:
    """Return the bytes that one more token adds to the key-value cache before any window is full.

    Latent attention is counted by its latent and its rotary key (arXiv:2405.04434, section 2.1.3), as serving engines keep it. The
    number of each token, which `smear` looks up, is not counted.
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
