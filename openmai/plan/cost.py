"""What a training run takes: FLOPs, GPU time, energy, money, each as a low, an expected and a high estimate."""

from __future__ import annotations

from dataclasses import dataclass

from openmai.plan.hardware import GPU

BAND = 0.3
"relative uncertainty of the utilisation: published runs on thousands of GPUs lie between 0.18 (MAI-Base-1) and 0.43 (Llama 3.1 405B)"
PUE = 1.1
"power of the building over power of the GPUs, as LLaMA reckons its energy (arXiv:2302.13971, table 15)"

Range = tuple[float, float, float]


@dataclass(frozen=True)
class Cost:
    """One training run; ranges are (low, expected, high)."""

    tokens: float
    flops: float
    gpu_days: Range
    days: Range | None
    "on the given number of GPUs"
    energy_mwh: Range
    dollars: Range
    assumptions: list[str]


def plan_cost(flops_per_token: float, tokens: float, gpu: GPU, gpus: int | None, mfu: float, goodput: float) -> Cost:
    """Estimate a run over `tokens`; time scales with 1 / (mfu * goodput), and no other limit of the cluster is considered."""
    flops = flops_per_token * tokens
    expected = flops / (gpu.bf16_tflops * 1e12 * mfu * goodput) / 86400
    gpu_days: Range = (expected / (1 + BAND), expected, expected / (1 - BAND))
    low, high = gpu.dollars_per_hour
    return Cost(
        tokens=tokens,
        flops=flops,
        gpu_days=gpu_days,
        days=_scale(gpu_days, 1 / gpus) if gpus else None,
        energy_mwh=_scale(gpu_days, 24 * gpu.watts * PUE / 1e6),
        dollars=(gpu_days[0] * 24 * low, expected * 24 * (low + high) / 2, gpu_days[2] * 24 * high),
        assumptions=[
            f"utilisation {mfu:.0%} of {gpu.bf16_tflops:,.0f} TFLOP/s dense bf16, taken as {BAND:.0%} uncertain",
            f"{goodput:.0%} of the wall time does useful steps",
            f"{gpu.watts:,.0f} W per GPU, times {PUE} for the building",
            f"rent {f'${low:.2f}' if low == high else f'${low:.2f} to ${high:.2f}'} per GPU-hour, listed {gpu.price_date}",
        ],
    )


def _scale(values: Range, factor: float) -> Range:
    low, expected, high = values
    return low * factor, expected * factor, high * factor
