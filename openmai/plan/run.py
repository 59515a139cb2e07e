"""A whole run: days, GPU-hours, energy, emissions, money, storage, each as a low, an expected and a high estimate."""

from __future__ import annotations

from dataclasses import dataclass

from openmai.base.config import read_yaml
from openmai.base.errors import OpenmaiError
from openmai.plan.failures import Resilience
from openmai.plan.hardware import DATA, GPU

Range = tuple[float, float, float]

PUE = 1.1
"power of the building over power of the machines, as LLaMA reckons its energy (arXiv:2302.13971, table 15)"
TEXT_BYTES = 4.2
"UTF-8 bytes per token of mostly English text with a vocabulary of 128,000 and more, compressed by nothing"
KEPT_CHECKPOINTS = 20
"assumption: kept at the same time over a long run"
POWER = (0.75, 1.0, 1.3)
"of the board power: published averages of H100 fleets are 624 to 649 W of 700 (OLMo 3), the rest of the machine comes on top"


@dataclass(frozen=True)
class Run:
    """One training run; ranges are (low, expected, high)."""

    tokens: float
    flops: float
    steps: int
    useful_days: float
    "of steps, nothing lost"
    days: Range
    gpu_hours: Range
    energy_mwh: Range
    tonnes_co2: Range
    dollars: Range
    mfu: float
    "model FLOPs, causal, over the dense bf16 peak"
    raw_text_tb: float
    shards_tb: float
    checkpoints_tb: float
    resilience: Resilience


def emissions(grid: str) -> float:
    """Return kg CO2e per kWh."""
    known = read_yaml(DATA / "grids.yaml")
    if grid not in known:
        raise OpenmaiError(f"grid={grid}: unknown; known: {', '.join(known)}")
    return float(known[grid]["kg_per_kwh"])


def plan_run(
    tokens: float,
    flops_per_token: float,
    tokens_per_second: float,
    tokens_per_step: float,
    gpu: GPU,
    gpus: int,
    band: float,
    survives: Resilience,
    grid: str,
    vocab_size: int,
) -> Run:
    """Put a run together; `band` is the relative uncertainty of the time of a step, `gpus` all that are paid for."""
    useful = tokens / tokens_per_second / 86400
    expected = useful / survives.goodput
    days: Range = (expected / (1 + band), expected, expected / (1 - band))
    hours: Range = (days[0] * 24 * gpus, days[1] * 24 * gpus, days[2] * 24 * gpus)
    energy = tuple(hour * gpu.watts * share * PUE / 1e6 for hour, share in zip(hours, POWER, strict=True))
    low, high = gpu.dollars_per_hour
    kilograms = emissions(grid)
    flops = flops_per_token * tokens
    return Run(
        tokens=tokens,
        flops=flops,
        steps=max(1, round(tokens / tokens_per_step)),
        useful_days=useful,
        days=days,
        gpu_hours=hours,
        energy_mwh=energy,  # type: ignore[arg-type]
        tonnes_co2=tuple(value * kilograms for value in energy),  # type: ignore[arg-type]
        dollars=(hours[0] * low, hours[1] * (low + high) / 2, hours[2] * high),
        mfu=flops_per_token * tokens_per_second / (gpus * gpu.peak["bf16"] * 1e12),
        raw_text_tb=tokens * TEXT_BYTES / 1e12,
        shards_tb=tokens * (2 if vocab_size <= 65536 else 4) / 1e12,
        checkpoints_tb=KEPT_CHECKPOINTS * survives.checkpoint_bytes / 1e12,
        resilience=survives,
    )
