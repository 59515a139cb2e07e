"""How fast a software generation is on a GPU: factors on the costs of step.py, fitted to few published runs and kept as data.

`benchmarks/plan_calibrate.py` fits them and writes data/calibrations.yaml; `benchmarks/plan_accuracy.py` says how well other rows come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import Field

from openmai.base.config import Config, read_yaml, validate
from openmai.base.errors import OpenmaiError
from openmai.plan.hardware import DATA

CALIBRATIONS = DATA / "calibrations.yaml"
SISTERS = {"h200": "h100", "h800": "h100"}
"GPUs with the same chip as another one"
UNFITTED_BAND = 0.30
"relative uncertainty on a GPU or in a precision that nothing published was fitted to"


class Calibration(Config):
    """Factors on what formulas give."""

    matmul: float = Field(0.85, gt=0)
    "matrix products: share of the measured ceiling"
    experts: float = Field(0.7, gt=0)
    "grouped products of experts: share of the former"
    attention: float = Field(0.6, gt=0)
    "fused attention: share of the bf16 ceiling"
    memory: float = Field(1.2, gt=0)
    "elementwise kernels: bytes moved, as a multiple of the fewest"
    dispatch: float = Field(2.5, gt=0)
    "sorting tokens by expert: the same"
    launch_us: float = Field(8.0, ge=0)
    "microseconds of the host per kernel; a GPU that is faster waits (CUDA graphs make it less)"
    tp: float = Field(0.8, ge=0)
    "share of tensor-parallel exchanges that nothing hides"
    ep: float = Field(1.0, ge=0)
    "the same for all-to-all"
    ep_hidden: float = Field(0.1, ge=0)
    "share of a layer's other work behind which all-to-all travels"
    pp: float = Field(0.5, ge=0)
    "share of sends between stages that nothing hides"
    dp: float = Field(1.2, ge=0)
    "time of exchanging gradients and weights, as a multiple of what the links would need"
    dp_hidden: float = Field(0.8, ge=0, le=1)
    "share of computation behind which gradients and weights travel"
    gradient_bytes: float = Field(4.0, gt=0)
    "per value of an exchanged gradient"
    speed: float = Field(1.0, gt=0)
    "everything: how many times as fast as the generation that was fitted"
    imbalance: float = Field(1.0, ge=1)
    "tokens of the fullest process over the mean"
    plain_attention: bool = False
    "attention from before fused kernels"
    once_per_domain: bool = True
    "all-to-all sends a token once to each domain"


class Family(Config):
    """One software over its releases, as calibrations.yaml keeps it."""

    title: str
    "what it is"
    moe: bool
    "fitted to mixtures, or to dense models"
    gpus: list[str]
    "what it was fitted on, as gpu/precision"
    fitted: list[str]
    "rows of throughput.csv"
    factors: dict[str, dict[str, Any]]
    "by scope: '' for all, a GPU, a precision, gpu/precision, a release or an option; the more particular one wins, speeds multiply"
    band: float
    "relative error that four of five held-out rows stay within"
    default: str = ""
    "release that a plan assumes"


@dataclass(frozen=True)
class Chosen:
    """A calibration with its name and uncertainty."""

    family: str
    title: str
    factors: Calibration
    band: float
    remark: str


@cache
def families() -> dict[str, Family]:
    """Read all families."""
    return {name: validate(Family, values, f"{CALIBRATIONS}: {name}") for name, values in read_yaml(CALIBRATIONS).items()}


def merge_factors(factors: dict[str, dict[str, Any]], gpu: str, precision: str, release: str, options: Sequence[str]) -> Calibration:
    """Join the factors of all scopes that hold."""
    values: dict[str, Any] = {}
    speed, gpu = 1.0, SISTERS.get(gpu, gpu)
    for scope in ("", gpu.split("-")[0], gpu, precision, f"{gpu.split('-')[0]}/{precision}", f"{gpu}/{precision}", release, *options):
        found = factors.get(scope, {})
        speed *= found.get("speed", 1.0)
        values |= found
        if scope == gpu.split("-")[0] == gpu:
            speed /= found.get("speed", 1.0)  # counted again as the GPU itself
    return Calibration.model_validate({**values, "speed": speed})


def choose_calibration(software: str, gpu: str, precision: str, moe: bool) -> Chosen:
    """Return the named family, or with `auto` the one that was fitted to the nearest: kind of model, then GPU and precision.

    Raises OpenmaiError for an unknown name, listing the known ones.
    """
    known = families()
    if software != "auto" and software not in known:
        raise OpenmaiError(f"software={software}: unknown; known: auto, {', '.join(known)}")
    base = gpu.split("-")[0]
    kin = SISTERS.get(base, base)

    def distance(name: str) -> tuple[bool, bool, bool, int]:
        family = known[name]
        exact, near = {f"{base}/{precision}"} & set(family.gpus), {f"{kin}/{precision}"} & set(family.gpus)
        chip = any(one.startswith(f"{kin}/") for one in family.gpus)
        return family.moe != moe, not (exact or near), not chip, list(known).index(name)

    name = min(known, key=distance) if software == "auto" else software
    family = known[name]
    factors = merge_factors(family.factors, kin, precision, family.default, ())
    if f"{kin}/{precision}" in family.gpus and family.moe == moe:
        return Chosen(name, family.title, factors, family.band, "" if kin == base else f"fitted on {kin.upper()}")
    missing = f"nothing published was fitted for {'mixtures' if moe else 'dense models'} on {gpu} in {precision}"
    return Chosen(name, family.title, factors, max(family.band, UNFITTED_BAND), f"{missing}; {name} is taken for it")
