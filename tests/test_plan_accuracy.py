"""pytest tests/test_plan_accuracy.py: how far predictions are from published runs, counted over rows that nothing was fitted to."""

from __future__ import annotations

import csv
import importlib.util
import statistics
from pathlib import Path

import pytest

from openmai.base.config import read_yaml
from openmai.plan.accuracy import Compared, compare, family_of
from openmai.plan.calibration import Calibration, choose_calibration, families, merge_factors
from openmai.plan.hardware import DATA, known_gpus
from openmai.plan.published import read_rows

CALIBRATE = Path(__file__).resolve().parent.parent / "benchmarks" / "plan_calibrate.py"


@pytest.fixture(scope="module")
def compared() -> list[Compared]:
    return compare()


def held_out(compared: list[Compared], moe: bool) -> list[Compared]:
    return [one for one in compared if one.row.is_moe == moe and not one.fitted]


def test_held_out_errors(compared: list[Compared]) -> None:
    """At most 6 % for dense models and 12 % for mixtures in the mean; more rows are held out than fitted, by far."""
    for moe, limit in ((False, 0.06), (True, 0.12)):
        held = held_out(compared, moe)
        assert statistics.fmean(abs(one.error) for one in held) <= limit
        fitted = [one for one in compared if one.row.is_moe == moe and one.fitted]
        assert len(held) >= 4 * len(fitted)


def test_large_errors_are_explained_and_no_others(compared: list[Compared]) -> None:
    far = {one.row.name for one in compared if abs(one.error) > 0.20 and not one.fitted}
    assert far == set(read_yaml(DATA / "explanations.yaml"))


def test_four_of_five_rows_lie_within_the_band(compared: list[Compared]) -> None:
    """What a plan prints as its uncertainty is what held-out rows of its family show."""
    for name, family in families().items():
        held = [one for one in compared if one.family == name and not one.fitted]
        inside = sum(abs(one.error) <= family.band + 0.005 for one in held)
        assert inside >= 0.78 * len(held), name


def test_every_row_is_used_or_left_out_with_a_reason() -> None:
    rows, left = read_rows()
    with open(DATA / "throughput.csv", newline="", encoding="utf-8") as file:
        raw = list(csv.DictReader(file))
    assert len(rows) + len(left) == len(raw)
    assert all(row["source"] for row in raw)
    assert all(reason for _, reason in left)
    assert {row.gpu for row in rows} <= set(known_gpus())
    assert len({row.name for row in rows}) == len(rows)


def test_fitted_rows_are_of_their_family() -> None:
    by_name = {row.name: row for row in read_rows()[0]}
    for name, family in families().items():
        for row in family.fitted:
            assert family_of(by_name[row]) == name


@pytest.mark.parametrize("name", ["megatron-2022", "llama-3", "megascale"])
def test_factors_are_what_fitting_gives(name: str) -> None:
    """The shipped file is what benchmarks/plan_calibrate.py writes from the rows that it names."""
    spec = importlib.util.spec_from_file_location("plan_calibrate", CALIBRATE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["plan_calibrate"] = module
    spec.loader.exec_module(module)
    wanted = module.SPECS[name]
    by_name = {row.name: row for row in read_rows()[0]}
    found = module.solve(wanted, [by_name[row] for row in wanted.rows], {"": dict(wanted.base)})
    shipped = families()[name]
    assert shipped.fitted == list(wanted.rows)
    for scope, values in shipped.factors.items():
        assert found[scope] == pytest.approx(values, rel=0.01)


def test_the_nearest_calibration_is_chosen_and_says_what_it_lacks() -> None:
    fp8 = choose_calibration("auto", "h100", "fp8", moe=False)
    assert (fp8.family, fp8.remark) == ("megatron", "")
    sister = choose_calibration("auto", "h200", "bf16", moe=False)
    assert "fitted on H100" in sister.remark
    strange = choose_calibration("auto", "a100", "bf16", moe=True)
    assert "nothing published was fitted for mixtures on a100" in strange.remark
    assert strange.band >= 0.3
    assert choose_calibration("torchtitan", "h100", "bf16", moe=False).family == "torchtitan"


def test_particular_factors_win_and_speeds_multiply() -> None:
    factors = {"": {"matmul": 0.5, "tp": 0.3}, "h100": {"matmul": 0.6}, "h100/fp8": {"matmul": 0.7}, "new": {"speed": 1.1}}
    assert merge_factors(factors, "h100", "fp8", "new", ()) == Calibration(matmul=0.7, tp=0.3, speed=1.1)
    assert merge_factors(factors, "h100-96", "bf16", "old", ()) == Calibration(matmul=0.6, tp=0.3)
    assert merge_factors(factors, "a100", "bf16", "old", ()) == Calibration(matmul=0.5, tp=0.3)
