"""What it takes to run the result: on servers with many requests at once, and on one device for one person.

Writing a token reads every weight that it meets and the cached keys and values of its sequence: memory bandwidth bounds it, until enough
sequences share the weights that arithmetic does. Nothing here is fitted to servers; the share of a device's bandwidth is phi-3-mini's on an
iPhone 14 (arXiv:2404.14219, section 2: over 12 tokens/s at four bits), which is one point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from openmai.base.config import Config, read_yaml, validate
from openmai.base.errors import OpenmaiError
from openmai.model.config import ModelConfig
from openmai.model.count import WEIGHT_BYTES, cache_bytes, count_layer, count_parameters, weight_bytes
from openmai.plan.hardware import DATA, GPU

READ = 0.70
"share of the memory bandwidth that serving reaches, an assumption"
COMPUTE = 0.55
"share of the measured matrix ceiling while reading prompts, an assumption"
DEVICE_READ = 0.50
"share of a device's bandwidth: 12 tokens/s of phi-3-mini at 4.5 bits are 26 of 51.2 GB/s"
BAND = 0.4


@dataclass(frozen=True)
class Serving:
    """One way to serve, per group of GPUs that hold the model together."""

    gpus: int
    batch: int
    "sequences written at the same time"
    tokens_per_s: float
    "written by the group"
    each_per_s: float
    "per sequence"
    dollars_per_million: float
    "of written tokens, at the middle of the listed rents"
    cache_gb: float


@dataclass(frozen=True)
class Inference:
    """Serving at one length."""

    precision: str
    context: int
    weights_gb: float
    cache_bytes_per_token: float
    ways: list[Serving]
    prompt_tokens_per_s: float
    "read by the smallest group"
    fewest_gpus: int


def plan_inference(model: ModelConfig, gpu: GPU, context: int, precision: str = "bf16") -> Inference:
    """Work out serving at sequences of `context` tokens, half read and half written, on the smallest group that holds the weights.

    Raises OpenmaiError if no group of one domain holds the model and one sequence.
    """
    context = min(context, model.context)
    weights, cache = weight_bytes(model, precision), cache_bytes(model, context)
    room = gpu.memory_gb * 1e9 * 0.9
    group = 1
    while group * room < weights + max(cache, 0.35 * group * room):  # a third for the sequences, else each waits for the weights alone
        group *= 2
        if group > max(gpu.domain, 8) * 8:
            raise OpenmaiError(f"{gpu.name}: {weights / 1e9:,.0f} GB of weights fit no eight machines; serve in fp8 or int4")
    ways = []
    most = int((group * room - weights) / cache)
    for batch in sorted({1, 8, 32, 128, 512, most} & set(range(1, most + 1))):
        seconds = decode_seconds(model, gpu, group, batch, context, precision)
        speed = batch / seconds
        price = group * sum(gpu.dollars_per_hour) / 2 / 3600 / speed * 1e6
        ways.append(Serving(group, batch, speed, 1 / seconds, price, batch * cache / 1e9))
    kind = "fp8" if precision == "fp8" and "fp8" in gpu.peak else "bf16"
    reading = group * gpu.ceiling(kind) * COMPUTE / (2 * count_parameters(model).active_matmul)
    return Inference(precision, context, weights / 1e9, cache / context, ways, reading, group)


def decode_seconds(model: ModelConfig, gpu: GPU, group: int, batch: int, context: int, precision: str) -> float:
    """Return the seconds in which each of `batch` sequences gets a token: the longer of reading and computing, plus exchanges."""
    read = touched_parameters(model, batch) * WEIGHT_BYTES[precision] + batch * cache_bytes(model, context * 3 // 4)
    bandwidth = group * gpu.memory_gb_s * 1e9 * READ
    kind = "fp8" if precision == "fp8" and "fp8" in gpu.peak else "bf16"
    compute = 2 * count_parameters(model).active_matmul * batch / (group * gpu.ceiling(kind) * COMPUTE)
    exchanges = 2 * model.num_layers * 8e-6 * math.log2(group) if group > 1 else 0.0
    return max(read / bandwidth, compute) + exchanges + model.num_layers * 4e-6


def touched_parameters(model: ModelConfig, batch: int) -> float:
    """Return the parameters that a step of `batch` tokens reads; of the experts those that a token uses, if all are as likely."""
    counted = count_parameters(model)
    routed = sum(count_layer(model, layer).experts for layer in range(model.num_layers))
    looked_up = 0 if model.tied_embeddings else model.vocab_size * model.width
    moe = model.moe
    used = 1 - (1 - moe.num_active / moe.num_experts) ** batch if moe else 0.0
    return counted.total - routed - looked_up + routed * used


class Device(Config):
    """A phone or a computer."""

    name: str
    memory_gb: float = Field(gt=0)
    usable: float = Field(gt=0, le=1)
    "share of the memory that a program may take"
    memory_gb_s: float = Field(gt=0)
    source: str


@dataclass(frozen=True)
class OnDevice:
    """One precision on one device."""

    precision: str
    weights_gb: float
    context: int
    "tokens that fit beside the weights, at most the model's own context; 0: the weights do not fit"
    tokens_per_s: float


def load_device(name: str) -> Device:
    """Read a device of devices.yaml or a YAML file; raises OpenmaiError for an unknown one, listing the known."""
    if name.endswith((".yaml", ".yml")):
        return validate(Device, read_yaml(Path(name)), name)
    known = read_yaml(DATA / "devices.yaml")
    if name not in known:
        raise OpenmaiError(f"device={name}: unknown; known: {', '.join(known)}; a YAML file of your own also does")
    return validate(Device, known[name], f"devices.yaml: {name}")


def plan_device(model: ModelConfig, device: Device) -> list[OnDevice]:
    """Work out every precision on one device, for one sequence."""
    room = device.memory_gb * 1e9 * device.usable
    found = []
    for precision in WEIGHT_BYTES:
        weights = weight_bytes(model, precision)
        left = room - weights
        tokens = 0
        if left > cache_bytes(model, 1):
            low, high = 1, model.context
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if cache_bytes(model, middle) <= left else (low, middle - 1)
            tokens = low
        read = touched_parameters(model, 1) * WEIGHT_BYTES[precision] + cache_bytes(model, min(tokens or 1, 1024))
        speed = device.memory_gb_s * 1e9 * DEVICE_READ / read if tokens else 0.0
        found.append(OnDevice(precision, weights / 1e9, tokens, speed))
    return found
