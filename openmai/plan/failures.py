"""What failures take: how often to save, how much of the time is useful, how many spare machines.

The time between interruptions is exponential, with a rate per GPU. Large jobs fail more often than average rates say (arXiv:2410.21680:
7.9 h at 1,024 GPUs against 28.8 h by scaling), so fleets.yaml holds the rates of whole large jobs where there are any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from openmai.base.config import Config, read_yaml, validate
from openmai.base.errors import OpenmaiError
from openmai.plan.hardware import DATA

REPAIR_HOURS = 24.0
"until a failed machine is back, an assumption"


class Fleet(Config):
    """How often jobs are interrupted."""

    per_gpu_day: float = Field(gt=0)
    "unexpected interruptions"
    restart_minutes: float = Field(gt=0)
    "from the failure to the next useful step, without what is computed again"
    source: str


def load_fleet(name: str) -> Fleet:
    """Read a fleet of fleets.yaml, or a YAML file with the fields of `Fleet`."""
    from pathlib import Path

    if name.endswith((".yaml", ".yml")):
        return validate(Fleet, read_yaml(Path(name)), name)
    known = read_yaml(DATA / "fleets.yaml")
    if name not in known:
        raise OpenmaiError(f"fleet={name}: unknown; known: {', '.join(known)}; a YAML file of your own also does")
    return validate(Fleet, known[name], f"fleets.yaml: {name}")


@dataclass(frozen=True)
class Resilience:
    """How a run survives."""

    hours_between_failures: float
    failures: float
    "expected over the run"
    checkpoint_bytes: float
    save_seconds: float
    "to storage, beside the training where saving is asynchronous"
    stall_seconds: float
    "that training waits for a checkpoint"
    interval_minutes: float
    "between checkpoints: Young and Daly's, at least as long as saving takes"
    goodput: float
    "by Daly's formula"
    simulated_goodput: float
    simulated_interval_minutes: float
    "the best of the simulation"
    spare_nodes: int
    "that are in repair at the same time, not exceeded with 99 %"


def resilience(
    gpus: int, per_node: int, fleet: Fleet, useful_hours: float, checkpoint_bytes: float, storage_gb_s: float, stall_seconds: float
) -> Resilience:
    """Work out a run of `useful_hours` hours of steps."""
    mean = 24 / (fleet.per_gpu_day * gpus)
    save = checkpoint_bytes / (storage_gb_s * 1e9)
    interval = best_interval(mean * 3600, stall_seconds, save)
    goodput = expected_goodput(mean * 3600, fleet.restart_minutes * 60, stall_seconds, interval)
    tried = interval * np.array([0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0])
    simulated = [simulate_goodput(mean * 3600, fleet.restart_minutes * 60, stall_seconds, float(one)) for one in tried]
    best = int(np.argmax(simulated))
    failing = fleet.per_gpu_day * gpus * REPAIR_HOURS / 24
    return Resilience(
        hours_between_failures=mean,
        failures=useful_hours / goodput / mean,
        checkpoint_bytes=checkpoint_bytes,
        save_seconds=save,
        stall_seconds=stall_seconds,
        interval_minutes=interval / 60,
        goodput=goodput,
        simulated_goodput=float(simulated[3]),
        simulated_interval_minutes=float(tried[best]) / 60,
        spare_nodes=_poisson_quantile(failing, 0.99),
    )


def best_interval(mean: float, stall: float, save: float) -> float:
    """Return the seconds between checkpoints that waste least: sqrt(2 w M) (Young 1974, Daly 2006), and no faster than saving goes."""
    return max(math.sqrt(2 * stall * mean), save, 60.0)


def expected_goodput(mean: float, restart: float, stall: float, interval: float) -> float:
    """Return the share of time in useful steps.

    Daly's exact expectation for exponential failures (2006, eq. 13): a segment of interval and stall is repeated until it succeeds, and
    each failure costs the restart, during which another may happen.
    """
    return interval / (math.exp(min(restart / mean, 500.0)) * mean * math.expm1(min((interval + stall) / mean, 500.0)))


def simulate_goodput(mean: float, restart: float, stall: float, interval: float, failures: int = 20_000, seed: int = 0) -> float:
    """Return the share of useful time over many failures: work up to the last whole checkpoint counts, a restart that fails begins anew."""
    generator = np.random.default_rng(seed)
    up = generator.exponential(mean, failures)
    useful = np.floor(np.maximum(up - restart, 0.0) / (interval + stall)) * interval
    return float(useful.sum() / up.sum())


def _poisson_quantile(mean: float, share: float) -> int:
    """Return the least count that is not exceeded with probability `share`."""
    if mean > 200:
        return math.ceil(mean + 2.326 * math.sqrt(mean))
    count, term = 0, math.exp(-mean)
    total = term
    while total < share:
        count += 1
        term *= mean / count
        total += term
    return count
