"""python benchmarks/plan_calibrate.py [--dry]: fit the plan's factors to few published rows and write openmai/plan/data/calibrations.yaml.

Each family of software has its rows and its factors, each with a prior (value and relative spread); Gauss-Newton on the logarithms of the
errors, with a spread of 3 % per row. Rows that are not named here are never looked at; benchmarks/plan_accuracy.py holds the result
against them. The band of a family is the error that four of five held-out rows of its kind stay within.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from openmai.plan.accuracy import log_error
from openmai.plan.calibration import CALIBRATIONS, Calibration, merge_factors
from openmai.plan.published import Row, read_rows

Factor = tuple[str, str, float, float]
"scope, name, prior, relative spread"

NOISE = 0.03


@dataclass(frozen=True)
class Spec:
    """What to fit."""

    title: str
    software: tuple[str, ...]
    moe: bool
    rows: tuple[str, ...]
    factors: tuple[Factor, ...]
    base: dict[str, Any] = field(default_factory=dict)
    default: str = ""
    begins_with: str = ""
    "family whose factors are the priors, with a spread of 10 %"


def bridge(*names: str) -> tuple[str, ...]:
    return tuple(f"megatron_bridge_{name}" for name in names)


def mpt(*numbers: int) -> tuple[str, ...]:
    return tuple(f"llmfoundry_mpt-{number:03d}" for number in numbers)


RELEASES = ("bridge-25.11", "bridge-26.02", "bridge-26.02.01", "bridge-26.04", "bridge-26.04.01", "bridge-26.06")
COMMON: tuple[Factor, ...] = (("", "matmul", 0.9, 0.2), ("", "memory", 1.2, 0.3), ("", "tp", 1.0, 0.2), ("", "attention", 0.6, 0.3))

SPECS: dict[str, Spec] = {
    "megatron": Spec(
        "Megatron-Bridge 26.04, NVIDIA's tuned recipes",
        RELEASES,
        moe=False,
        rows=bridge(
            *(f"26.04.01_pretrain-{n:03d}" for n in (1, 2, 3, 4, 5, 6, 7, 11)),
            "25.11_pretrain-017",
            "26.02_pretrain-007",
            "25.11_pretrain-024",
            "25.11_pretrain-023",
        ),
        factors=(
            *(
                (place, "matmul", 0.9, 0.15)
                for place in (
                    "b200/fp8",
                    "gb200/fp8",
                    "gb200/mxfp8",
                    "gb200/nvfp4",
                    "gb300/fp8",
                    "gb300/mxfp8",
                    "gb300/nvfp4",
                    "h100/fp8",
                )
            ),
            ("", "attention", 0.6, 0.15),
            ("", "memory", 1.2, 0.3),
            ("", "tp", 0.5, 0.4),
            ("", "pp", 0.2, 0.5),
            ("", "dp", 1.2, 0.3),
            ("bridge-25.11", "speed", 1.0, 0.04),
            ("bridge-26.02", "speed", 1.0, 0.04),
        ),
        default="bridge-26.04.01",
    ),
    "megatron-moe": Spec(
        "Megatron-Bridge 26.04, NVIDIA's tuned recipes for mixtures, routing forced to be even",
        RELEASES,
        moe=True,
        rows=bridge(
            *(f"26.04.01_pretrain-{n:03d}" for n in (16, 17, 19, 22, 23, 24, 27, 30, 31, 33)),
            "26.02_pretrain-015",
            "26.02_pretrain-023",
            "25.11_pretrain-015",
            "25.11_pretrain-022",
            "25.11_pretrain-004",
        ),
        factors=(
            *((place, "matmul", 0.85, 0.15) for place in ("b200/bf16", "b300/bf16", "b300/mxfp8", "gb300/bf16", "h100/bf16")),
            ("b200/mxfp8", "matmul", 0.7, 0.2),
            ("gb200/mxfp8", "matmul", 0.8, 0.1),
            ("gb300/mxfp8", "matmul", 1.0, 0.1),
            ("h100/fp8", "matmul", 1.0, 0.1),
            ("", "attention", 0.6, 0.2),
            ("mxfp8", "experts", 0.7, 0.3),
            ("fp8", "experts", 0.7, 0.3),
            ("bf16", "experts", 0.7, 0.3),
            ("", "dispatch", 2.5, 0.4),
            ("", "launch_us", 14.0, 0.5),
            ("", "ep", 1.0, 0.3),
            ("", "ep_hidden", 0.3, 0.6),
            ("", "pp", 0.5, 0.5),
            ("", "dp", 1.2, 0.3),
            ("bridge-25.11", "speed", 1.0, 0.06),
            ("bridge-26.02", "speed", 1.0, 0.06),
        ),
        base={"memory": 1.15, "tp": 0.44},
        default="bridge-26.04.01",
    ),
    "megatron-bf16-moe": Spec(
        "Megatron-Core with the recipes of MoE-ModelZoo",
        ("megatron-modelzoo",),
        moe=True,
        rows=(
            "moe_modelzoo_qwen3_h100-001",
            "moe_modelzoo_qwen3_h100-005",
            "moe_modelzoo_qwen3_longctx-005",
            "moe_modelzoo_qwen3_longctx-002",
            "moe_modelzoo_qwen3_blackwell-002",
        ),
        factors=(
            ("h100/bf16", "matmul", 0.8, 0.2),
            ("mxfp8", "matmul", 0.85, 0.1),
            ("", "attention", 0.7, 0.25),
            ("", "experts", 0.7, 0.3),
            ("", "dispatch", 2.5, 0.4),
            ("", "ep", 1.0, 0.3),
            ("", "ep_hidden", 0.15, 0.5),
            ("natural-routing", "imbalance", 1.3, 0.2),
            ("", "tp", 0.6, 0.4),
        ),
        base={"gradient_bytes": 2.0},
    ),
    "llama-3": Spec(
        "Meta's training of Llama 3.1 405B",
        ("llama-3",),
        moe=False,
        rows=("llama3_405b_t4-001",),
        factors=(("", "matmul", 0.8, 0.2), ("", "tp", 0.8, 0.3), ("", "pp", 0.5, 0.4)),
    ),
    "torchtitan": Spec(
        "torchtitan, PyTorch's own parallelism, which openmai trains with",
        ("torchtitan-2024-12", "torchtitan-2025-06"),
        moe=False,
        rows=(
            "torchtitan_t1-001",
            "torchtitan_t1-002",
            "torchtitan_t1-003",
            "torchtitan_t4-001",
            "torchtitan_t2-003",
            "torchtitan_async70b-001",
            "torchtitan_async70b-004",
            "torchtitan_async8b-002",
            "torchtitan_t5-001",
        ),
        factors=(
            ("bf16", "matmul", 0.85, 0.2),
            ("fp8", "matmul", 0.75, 0.2),
            ("", "attention", 0.55, 0.2),
            ("", "memory", 1.2, 0.3),
            ("no-compile", "memory", 3.0, 0.4),
            ("", "tp", 1.0, 0.3),
            ("async-tp", "tp", 0.5, 0.4),
            ("", "pp", 0.5, 0.5),
            ("", "dp", 1.2, 0.1),
        ),
    ),
    "llm-foundry": Spec(
        "MosaicML's llm-foundry, PyTorch FSDP of 2023",
        ("llm-foundry",),
        moe=False,
        rows=mpt(1, 11, 29, 36, 39, 59, 73, 77, 78, 89, 92, 95, 145, 203),
        factors=(
            ("h100/bf16", "matmul", 0.8, 0.2),
            ("h100/fp8", "matmul", 0.8, 0.3),
            ("a100", "matmul", 0.9, 0.2),
            ("h100", "attention", 0.4, 0.3),
            ("a100", "attention", 0.6, 0.3),
            ("", "memory", 1.5, 0.3),
            ("", "dp", 1.2, 0.1),
            ("", "dp_hidden", 0.8, 0.1),
        ),
    ),
    "megatron-2025": Spec(
        "Megatron-LM of 2025 without tuning, one node (SimuMax's measurements)",
        ("megatron-2025",),
        moe=False,
        rows=("simumax_b200_real-001", "simumax_b200_real-031", "simumax_b200_real-041"),
        factors=(
            ("", "matmul", 0.7, 0.2),
            ("", "attention", 0.6, 0.25),
            ("", "memory", 1.2, 0.3),
            ("", "tp", 0.8, 0.3),
            ("", "pp", 0.5, 0.5),
        ),
    ),
    "megatron-2025-moe": Spec(
        "Megatron-LM of 2025 without tuning, mixtures on one node (SimuMax's measurements)",
        ("megatron-2025",),
        moe=True,
        rows=("simumax_b200_real-005", "simumax_b200_real-015"),
        factors=(("", "experts", 0.7, 0.3), ("", "dispatch", 2.5, 0.4), ("", "ep", 1.0, 0.3)),
        begins_with="megatron-2025",
    ),
    "megascale": Spec(
        "ByteDance's MegaScale of 2024",
        ("megascale",),
        moe=False,
        rows=("megascale_t2-005", "megascale_t2-014"),
        factors=(("", "matmul", 0.9, 0.2), ("", "memory", 1.2, 0.3), ("", "tp", 0.5, 0.4), ("", "dp", 1.0, 0.5)),
    ),
    "megatron-2023": Spec(
        "Megatron-LM of 2023 (MegaScale's baseline)",
        ("megatron-2023",),
        moe=False,
        rows=("megascale_t2-002", "megascale_t2-010"),
        factors=(*COMMON[:3], ("", "dp", 3.0, 0.5)),
        base={"dp_hidden": 0.0},
    ),
    "megatron-2022": Spec(
        "Megatron-LM of 2022, selective recomputation and sequence parallelism",
        ("megatron-2022",),
        moe=False,
        rows=("korthikanti2022_t5-001", "korthikanti2022_t5-004"),
        factors=(*COMMON, ("", "pp", 0.5, 0.5)),
        base={"plain_attention": True},
    ),
    "megatron-2021": Spec(
        "Megatron-LM of 2021",
        ("megatron-2021", "megatron-2021-01"),
        moe=False,
        rows=("narayanan2021_t1-002", "narayanan2021_t1-005", "narayanan2021_t1-009", "megatron_readme_jan2021-007"),
        factors=(*COMMON, ("", "pp", 0.5, 0.5), ("megatron-2021-01", "speed", 0.95, 0.05)),
        base={"plain_attention": True},
        default="megatron-2021",
    ),
    "zero-3-2021": Spec(
        "DeepSpeed's ZeRO-3 of 2021",
        ("zero-3-2021",),
        moe=False,
        rows=("narayanan2021_t2-002",),
        factors=(("", "dp", 3.0, 0.8),),
        base={"plain_attention": True, "dp_hidden": 0.0, "matmul": 0.9},
    ),
}


def solve(spec: Spec, rows: list[Row], base: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return factors by scope that fit `rows`: Levenberg-Marquardt on the logarithms, priors as further residuals."""
    priors = list(spec.factors)
    spread = np.array([factor[3] for factor in priors])

    def factors(x: np.ndarray) -> dict[str, dict[str, Any]]:
        found = {scope: dict(values) for scope, values in base.items()}
        for (scope, name, prior, _), value in zip(priors, x, strict=True):
            number = prior * math.exp(value)
            found.setdefault(scope, {})[name] = (
                min(number, 1.0) if name == "dp_hidden" else max(number, 1.0) if name == "imbalance" else number
            )
        return found

    def errors(x: np.ndarray) -> np.ndarray:
        values = factors(x)
        return np.array([log_error(row, merge_factors(values, row.gpu, row.precision, row.software, row.options)) for row in rows])

    x, damping = np.zeros(len(priors)), 1.0
    error = errors(x)
    cost = float(((error / NOISE) ** 2).sum() + ((x / spread) ** 2).sum())
    for _ in range(15):
        slope = np.array([(errors(x + 1e-3 * unit) - error) / 1e-3 for unit in np.eye(len(x))]).T
        curve = slope.T @ slope / NOISE**2 + np.diag(1 / spread**2)
        pull = slope.T @ error / NOISE**2 + x / spread**2
        for _ in range(6):
            moved = x - np.clip(np.linalg.solve(curve + damping * np.diag(np.diag(curve)), pull), -0.5, 0.5)
            new = errors(moved)
            lower = float(((new / NOISE) ** 2).sum() + ((moved / spread) ** 2).sum())
            if lower < cost:
                break
            damping *= 4
        else:
            break
        done = cost - lower < 1e-3 * cost
        x, error, cost, damping = moved, new, lower, max(damping / 4, 1e-4)
        if done:
            break
    return {
        scope: {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
        for scope, values in factors(x).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="print and write nothing")
    dry = parser.parse_args().dry
    by_name = {row.name: row for row in read_rows()[0]}
    result: dict[str, Any] = {}
    for name, spec in SPECS.items():
        base: dict[str, dict[str, Any]] = {"": dict(spec.base)}
        if spec.begins_with:
            base = {scope: dict(values) for scope, values in result[spec.begins_with]["factors"].items()}
        fitted = [by_name[row] for row in spec.rows]
        assert all(row.software in spec.software and row.is_moe == spec.moe for row in fitted), name
        factors = solve(spec, fitted, base)
        held = [row for row in by_name.values() if row.software in spec.software and row.is_moe == spec.moe and row.name not in spec.rows]
        errors = [
            abs(math.expm1(log_error(row, merge_factors(factors, row.gpu, row.precision, row.software, row.options)))) for row in held
        ]
        band = float(np.quantile(errors, 0.8, method="higher")) if len(errors) > 4 else 0.15
        print(
            f"{name:18} {len(fitted):3} fitted, {len(held):3} held out: mean error {100 * np.mean(errors):5.1f} %, "
            f"four of five within {100 * band:.0f} %"
        )
        result[name] = {
            "title": spec.title,
            "moe": spec.moe,
            "gpus": sorted({f"{row.gpu.split('-')[0]}/{row.precision}" for row in fitted}),
            "fitted": list(spec.rows),
            "default": spec.default,
            "band": round(max(band, 0.05), 3),
            "factors": factors,
        }
        for values in factors.values():
            Calibration.model_validate(values)
    if not dry:
        head = (
            "# Written by benchmarks/plan_calibrate.py, which says how. Factors on the formulas of plan/step.py; see plan/calibration.py.\n"
        )
        CALIBRATIONS.write_text(head + yaml.safe_dump(result, sort_keys=False, width=140), encoding="utf-8")


if __name__ == "__main__":
    main()
