"""config.json in both directions: what a class of `transformers` says of itself, and what ModelConfig says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from openmai.base.config import validate
from openmai.base.errors import OpenmaiError
from openmai.model.config import ModelConfig

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu2": "relu2",
}
FULL, SLIDING = "full_attention", "sliding_attention"
# What a class need not have: where the model comes from, and what only training knows.
TRAINING_ONLY = ("source", "hf_class", "num_predict", "predict_loss", "moe.aux_loss", "moe.aux_span", "moe.z_loss")


@dataclass(frozen=True)
class Settings:
    """How the config.json of one class maps to ModelConfig; fields of ours are paths such as "moe.num_experts"."""

    keys: Mapping[str, str | tuple[str, ...]]
    "its key -> our field, or fields that share the value"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    "its key -> the value that the class takes where config.json has none"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    "our field -> what the class always does; a function gets the values read so far"
    written: Mapping[str, Any] = field(default_factory=dict)
    "its key -> what to write besides, for readers that want it; a function gets the ModelConfig"
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    "its key -> the values that we compute; others are refused"
    rope: Literal["one", "by_layer", "none"] = "one"
    "one kind of rotary positions, or one each for full and sliding layers, or none"
    windows: Literal["none", "all", "layers"] = "none"
    "sliding windows: none, in all layers, or as `layer_types` says"
    pattern: int = 0
    "windows=layers without `layer_types`: every n-th layer is full"
    refuses: Callable[[ModelConfig], list[str]] = lambda model: []
    "what of a ModelConfig the class cannot have although a key for it exists"


# Values that are written otherwise there: key -> (to ours, to theirs)
CONVERT: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "query_pre_attn_scalar": (lambda scalar: scalar**-0.5, lambda scale: _whole(scale**-2)),
    "mlp_only_layers": (lambda layers: _prefix(layers), lambda first: list(range(first))),
}


def _whole(value: float) -> float | int:
    """Drop the rounding error of a number that was whole or short."""
    short = round(value, 6)
    return int(short) if short == int(short) else short


def _prefix(layers: list[int]) -> int:
    if sorted(layers) != list(range(len(layers))):
        raise OpenmaiError(f"config.json: mlp_only_layers={layers} is not yet supported; only the first layers may be dense")
    return len(layers)


def read_settings(settings: Settings, config: Mapping[str, Any], where: str) -> ModelConfig:
    """Return the ModelConfig of a config.json; raise OpenmaiError naming the key that we cannot compute."""
    config = {**settings.defaults, **{key: value for key, value in config.items() if value is not None or key not in settings.defaults}}
    for key, allowed in settings.only.items():
        if config.get(key, allowed[0]) not in allowed:
            raise OpenmaiError(f"{where}: {key}={config[key]!r} is not supported; expected {' or '.join(map(repr, allowed))}")
    values: dict[str, Any] = {}
    for key, fields in settings.keys.items():
        if config.get(key) is None:
            continue
        value = config[key]
        if key in CONVERT:
            value = CONVERT[key][0](value)
        for path in (fields,) if isinstance(fields, str) else fields:
            if path == "activation":
                value = _activation(value, where)
            _put(values, path, value)
    if settings.rope != "none":
        _read_rope(settings, config, values, where)
    if settings.windows != "none":
        _read_windows(settings, config, values, where)
    for path, fixed in settings.fixed.items():
        _put(values, path, fixed(values) if callable(fixed) else fixed)
    return validate(ModelConfig, values, where)


def write_settings(settings: Settings, model: ModelConfig) -> dict[str, Any]:
    """Return the keys of config.json that describe `model`; those that the class lacks are left out (`differences` finds them)."""
    config: dict[str, Any] = {}
    for key, fields in settings.keys.items():
        value = _get(model, fields if isinstance(fields, str) else fields[0])
        if value is None:
            value = {"num_key_value_heads": model.kv_heads, "head_dim": model.head}.get(key)
        elif fields == "activation":
            value = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == value), value)
        if key in CONVERT and value is not None:
            value = CONVERT[key][1](value)
        config[key] = value
    if "query_pre_attn_scalar" in config and model.attention_scale is None:
        config["query_pre_attn_scalar"] = model.head
    if settings.rope != "none":
        config |= _write_rope(settings, model)
    if settings.windows != "none":
        config |= _write_windows(settings, model)
    return config | {key: value(model) if callable(value) else value for key, value in settings.written.items()}


def differences(settings: Settings, model: ModelConfig) -> list[str]:
    """Name what of `model` is lost on the way to this class and back: "field=value", with what the class has."""
    try:
        back = canonical(read_settings(settings, write_settings(settings, model), "model.json"))
    except OpenmaiError as error:
        return [str(error), *["" for _ in range(100)]]  # what cannot even be written is the farthest away
    mine = canonical(model)
    lost = [path for path in mine.keys() | back.keys() if mine.get(path) != back.get(path)]
    outer = {path for path in lost if path.partition(".")[0] == path}
    named = sorted(path for path in lost if path in outer or path.partition(".")[0] not in outer)
    return [f"{path}={_shown(mine.get(path))} (it has {_shown(back.get(path))})" for path in named] + settings.refuses(model)


def canonical(model: ModelConfig) -> dict[str, Any]:
    """Return the fields of `model` by path, with defaults worked out, and without those that change nothing or only training."""
    values = model.model_dump()
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat[name] = True
            flat |= {f"{name}.{inner}": content for inner, content in value.items()}
        else:
            flat[name] = value
    flat |= {"num_kv_heads": model.num_heads if model.mla else model.kv_heads, "head_width": model.head}
    flat |= {"attention_scale": model.attention_scale or model.head**-0.5, "global_every": None}
    flat["global_layers"] = tuple(layer for layer in range(model.num_layers) if model.is_global(layer)) if model.window else None
    flat["rope_local_theta"] = (model.rope_local_theta or model.rope_theta) if model.window else None
    if model.window is None or model.positions != "rope" or all(map(model.has_rope, range(model.num_layers))):
        flat["global_rope"] = True
    if model.positions != "rope":
        flat |= {"rope_theta": None, "rope_share": None}
    if not model.qk_norm:
        flat |= {"qk_norm_span": None, "qk_norm_place": None}
    if model.norm == "rms":
        flat["norm_bias"] = None
    if model.rope_scaling and model.window is None:
        flat["rope_scaling.global_only"] = False
    if model.moe:
        flat["moe.bias_rate"] = model.moe.bias_rate > 0 or model.moe.score == "sigmoid"  # an export writes zeros where there is none
        flat["moe.active_groups"] = model.moe.active_groups if model.moe.num_groups > 1 else 1
        flat["moe.jitter"] = model.moe.jitter if model.moe.score == "sparsemixer" else None
        if all(map(model.is_moe, range(model.num_layers))):
            flat["ffn_width"] = None
    return {path: value for path, value in flat.items() if path not in TRAINING_ONLY}


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _activation(name: str, where: str) -> str:
    if name not in ACTIVATIONS:
        raise OpenmaiError(f"{where}: activation {name!r} is not supported; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for name in outer:
        values = values.setdefault(name, {})
    values[last] = value


def _get(model: ModelConfig, path: str) -> Any:
    value: Any = model
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return value


# Rotary positions. transformers 5 writes `rope_parameters`; before, `rope_theta` and `rope_scaling` stood beside each other. Both are
# read, and both are written, since vLLM and llama.cpp's converter know the older form.

ROPE_KEYS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_context",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "truncate",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "attention_factor": "attention_factor",
    "short_factor": "short_factor",
    "long_factor": "long_factor",
    "short_mscale": "short_mscale",
    "long_mscale": "long_mscale",
}
ROPE_USED = {
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "truncate",
        "mscale",
        "mscale_all_dim",
        "attention_factor",
    ),
    "longrope": (
        "factor",
        "original_max_position_embeddings",
        "short_factor",
        "long_factor",
        "short_mscale",
        "long_mscale",
        "attention_factor",
    ),
}


def _read_rope(settings: Settings, config: Mapping[str, Any], values: dict[str, Any], where: str) -> None:
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if FULL in found:
        parameters, local = dict(found[FULL]), found.get(SLIDING, {})
        if settings.rope != "by_layer" and parameters != local:
            raise OpenmaiError(f"{where}: rotary positions that differ between layers do not belong to this class")
        local_theta = local.get("rope_theta")
    else:
        parameters, local_theta = dict(found), config.get("rope_local_base_freq")
    theta = parameters.get("rope_theta", config.get("rope_theta", 10_000.0))
    values["rope_theta"] = float(theta)
    if local_theta is not None and local_theta != theta:
        values["rope_local_theta"] = float(local_theta)
    share = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if share != 1.0 and "partial_rotary_factor" not in settings.defaults:
        raise OpenmaiError(f"{where}: partial_rotary_factor={share} does not belong to this class, which rotates whole heads")
    values["rope_share"] = share
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # the first Phi-3 models
    if kind == "default":
        return
    if kind not in ROPE_USED:
        raise OpenmaiError(f"{where}: rotary positions of type {kind!r} are not supported; known are {', '.join(ROPE_USED)}")
    if "original_max_position_embeddings" in ROPE_USED[kind]:
        fallback = config.get("original_max_position_embeddings") or values.get("context")
        parameters.setdefault("original_max_position_embeddings", fallback)
    scaling = {ROPE_KEYS[key]: parameters[key] for key in ROPE_USED[kind] if parameters.get(key) is not None}
    values["rope_scaling"] = {"kind": kind, "global_only": settings.rope == "by_layer"} | scaling


def _write_rope(settings: Settings, model: ModelConfig) -> dict[str, Any]:
    share = {"partial_rotary_factor": model.rope_share} if "partial_rotary_factor" in settings.defaults else {}
    plain = {"rope_type": "default", "rope_theta": model.rope_theta} | share
    scaling, scaled = model.rope_scaling, plain
    if scaling:
        dump = scaling.model_dump()
        used = {key: dump[ROPE_KEYS[key]] for key in ROPE_USED[scaling.kind] if dump[ROPE_KEYS[key]] is not None}
        scaled = plain | {"rope_type": scaling.kind} | {key: list(v) if isinstance(v, tuple) else v for key, v in used.items()}
    if settings.rope == "by_layer":
        local = scaled if scaling and not scaling.global_only else plain
        local = local | {"rope_theta": model.rope_local_theta or model.rope_theta}
        return {"rope_parameters": {FULL: scaled, SLIDING: local}, "rope_theta": model.rope_theta} | (
            {"rope_local_base_freq": model.rope_local_theta} if model.rope_local_theta else {}
        )
    older: dict[str, Any] = {"rope_scaling": scaled} if scaling else {}
    if scaling and scaling.kind == "longrope":
        older |= {"original_max_position_embeddings": scaling.original_context}
    return {"rope_parameters": scaled, "rope_theta": model.rope_theta} | share | older


def _read_windows(settings: Settings, config: Mapping[str, Any], values: dict[str, Any], where: str) -> None:
    layers = values["num_layers"]
    window = config.get("sliding_window")
    if config.get("use_sliding_window") is False or window is None:
        return
    if settings.windows == "all":
        values["window"] = window
        return
    types = config.get("layer_types") or _types_without_list(settings, config, layers)
    unknown = set(types) - {FULL, SLIDING}
    if unknown or len(types) != layers:
        raise OpenmaiError(f"{where}: layer_types has {len(types)} entries for {layers} layers, or unknown ones: {sorted(set(types))}")
    full = tuple(layer for layer, kind in enumerate(types) if kind == FULL)
    if len(full) == layers:
        return
    values["window"] = window
    rhythm = next((n for n in range(2, layers + 1) if full == tuple(range(n - 1, layers, n))), None)
    if rhythm:
        values["global_every"] = rhythm
    elif full:
        values["global_layers"] = full


def _types_without_list(settings: Settings, config: Mapping[str, Any], layers: int) -> list[str]:
    if "max_window_layers" in config:  # Qwen: the first layers are full
        return [SLIDING if layer >= config["max_window_layers"] else FULL for layer in range(layers)]
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or settings.pattern
    return [FULL if every and (layer + 1) % every == 0 else SLIDING for layer in range(layers)]


def _write_windows(settings: Settings, model: ModelConfig) -> dict[str, Any]:
    written: dict[str, Any] = {"sliding_window": model.window}
    if settings.windows == "layers":
        written["layer_types"] = [FULL if model.is_global(layer) else SLIDING for layer in range(model.num_layers)]
    if "use_sliding_window" in settings.defaults:
        written["use_sliding_window"] = model.window is not None
    return written
