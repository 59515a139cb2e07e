"""How far predictions are from published measurements, row by row; rows that factors were fitted to are told from the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from openmai.base.config import read_yaml
from openmai.plan.calibration import Calibration, families, merge_factors
from openmai.plan.hardware import DATA, GPU, load_gpu
from openmai.plan.layout import Grid
from openmai.plan.published import Row, read_rows
from openmai.plan.step import Machine, StepTime, step_seconds


@dataclass(frozen=True)
class Compared:
    """One row with its prediction."""

    row: Row
    family: str
    fitted: bool
    sibling: bool
    "the same model, GPU, precision and layout as a fitted row, in another release"
    step_s: float
    explanation: str

    @property
    def error(self) -> float:
        """Predicted over measured time, less one."""
        return self.step_s / self.row.step_s - 1


@cache
def _gpu(name: str) -> GPU:
    return load_gpu(name)


def predict(row: Row, calibration: Calibration) -> StepTime:
    """Predict the step of a published row."""
    machine = Machine(_gpu(row.gpu), calibration, row.precision)
    return step_seconds(row.model, Grid.of([row.layout]), row.sequence, row.batch_rows, machine)


def log_error(row: Row, calibration: Calibration) -> float:
    """Return the logarithm of predicted over measured time."""
    return math.log(float(predict(row, calibration).total[0]) / row.step_s)


def compare() -> list[Compared]:
    """Predict every row that a plan can be made of."""
    rows, _ = read_rows()
    fitted = {name for family in families().values() for name in family.fitted}
    explanations = read_yaml(DATA / "explanations.yaml")
    kin = {_kin(row) for row in rows if row.name in fitted}
    compared = []
    for row in rows:
        name = family_of(row)
        factors = merge_factors(families()[name].factors, row.gpu, row.precision, row.software, row.options)
        seconds = float(predict(row, factors).total[0])
        is_fitted = row.name in fitted
        compared.append(Compared(row, name, is_fitted, not is_fitted and _kin(row) in kin, seconds, explanations.get(row.name, "")))
    return compared


def family_of(row: Row) -> str:
    """Return the family of a row's software and kind of model."""
    prefix = {"bridge": "megatron", "megatron-modelzoo": "megatron-bf16-moe", "deepseek-v3": "megatron"}
    found = next((name for start, name in prefix.items() if row.software.startswith(start)), row.software)
    if found not in families():
        found = next(name for name in sorted(families(), key=len, reverse=True) if row.software.startswith(name))
    return f"{found}-moe" if row.is_moe and not found.endswith("-moe") else found


def _kin(row: Row) -> tuple[object, ...]:
    return row.model_name, row.model.num_layers, row.gpu, row.precision, row.sequence, row.layout.model_dump_json(), row.options
