"""GPUs as data."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from openmai.base.config import Config, read_yaml, validate
from openmai.base.errors import OpenmaiError

HARDWARE = Path(__file__).with_name("hardware.yaml")


class GPU(Config):
    """One GPU as hardware.yaml describes it."""

    name: str
    bf16_tflops: float = Field(gt=0)
    "dense peak"
    memory_gb: float = Field(gt=0)
    "in 10^9 bytes"
    watts: float = Field(gt=0)
    "board power"
    dollars_per_hour: tuple[float, float]
    "lowest and highest listed rent"
    price_date: str
    source: str


def load_gpu(name: str) -> GPU:
    """Read one GPU; raises OpenmaiError for an unknown name, listing the known ones."""
    known = read_yaml(HARDWARE)
    if name not in known:
        raise OpenmaiError(f"gpu={name}: unknown; known: {', '.join(known)}")
    return validate(GPU, known[name], f"{HARDWARE}: {name}")
