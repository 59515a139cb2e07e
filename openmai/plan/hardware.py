"""GPUs as data: the shipped table, or a YAML file of the user's."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from openmai.base.config import Config, read_yaml, validate
from openmai.base.errors import OpenmaiError

DATA = Path(__file__).with_name("data")
GPUS = DATA / "gpus.yaml"

Precision = Literal["bf16", "fp8", "mxfp8", "nvfp4"]
PRECISION_BITS: dict[str, str] = {"bf16": "bf16", "fp8": "fp8", "mxfp8": "fp8", "nvfp4": "fp4"}


class GPU(Config):
    """One GPU and its place in a cluster, as gpus.yaml describes them."""

    name: str
    peak: dict[Literal["bf16", "fp8", "fp4"], float]
    "dense peaks in TFLOP/s"
    measured: dict[Literal["bf16", "fp8", "fp4"], float] = {}
    "TFLOP/s of the best matrix product measured"
    memory_gb: float = Field(gt=0)
    "in 10^9 bytes"
    memory_gb_s: float = Field(gt=0)
    "memory bandwidth in 10^9 bytes per second"
    nvlink_gb_s: float = Field(gt=0)
    "link within a domain, per GPU and direction"
    nic_gb_s: float = Field(gt=0)
    "link out of a domain, per GPU and direction"
    domain: int = Field(gt=0)
    "GPUs that the fast link joins"
    per_node: int = Field(8, gt=0)
    "GPUs of one machine"
    watts: float = Field(gt=0)
    "board power"
    dollars_per_hour: tuple[float, float]
    "lowest and highest listed rent"
    price_date: str
    source: str

    def ceiling(self, precision: str) -> float:
        """Return the FLOP/s that large matrix products reach; where none is measured, bf16's share of the peak (0.8 without that)."""
        kind: Any = PRECISION_BITS[precision]
        if kind not in self.peak:
            known = [name for name, bits in PRECISION_BITS.items() if bits in self.peak]
            raise OpenmaiError(f"precision={precision}: {self.name} does not compute in it; choose among {', '.join(known)}")
        share = self.measured.get("bf16", 0.8 * self.peak["bf16"]) / self.peak["bf16"]
        return 1e12 * self.measured.get(kind, share * self.peak[kind])

    @property
    def bf16_tflops(self) -> float:
        return self.peak["bf16"]


@cache
def known_gpus() -> dict[str, Any]:
    """Read the shipped table."""
    return read_yaml(GPUS)


def load_gpu(name: str) -> GPU:
    """Read one GPU by its name, or from a YAML file with the fields of `GPU`; a file may say `like: NAME` and only what differs.

    Raises OpenmaiError for an unknown name, listing the known ones.
    """
    known = known_gpus()
    if name.endswith((".yaml", ".yml")):
        own = read_yaml(Path(name))
        like = own.pop("like", None)
        if like is not None and like not in known:
            raise OpenmaiError(f"{name}: like={like}: unknown; known: {', '.join(known)}")
        return validate(GPU, {**known.get(like, {}), **own}, name)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise OpenmaiError(f"gpu={name}: unknown; {hint}known: {', '.join(known)}; a YAML file with a GPU of your own also does")
    return validate(GPU, known[name], f"{GPUS}: {name}")
