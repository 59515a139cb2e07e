"""The one training loop: pretraining, fine-tuning and preference learning differ in their batches and objective only."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from openmai.base.errors import OpenmaiError
from openmai.base.events import Events
from openmai.base.progress import Progress, say
from openmai.model.loss import IGNORE, summed_nats
from openmai.model.transformer import Transformer
from openmai.parallel.pipeline import Pipeline
from openmai.parallel.team import Team
from openmai.train.checkpoints import Checkpoints
from openmai.train.config import LoopConfig, OptimizerConfig, ScheduleConfig
from openmai.train.loader import Batch
from openmai.train.optimizer import make_optimizers, set_rates


class Objective(Protocol):
    """What is minimised."""

    def units(self, micro: dict[str, Tensor]) -> int:
        """Count what the loss is averaged over (tokens, pairs); known before the forward pass, so accumulation is exact."""

    def loss(self, model: Transformer, micro: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss of a micro-batch, and sums of further figures to average."""


class NextToken:
    """Cross-entropy of the next token where the target is not IGNORE: pretraining and supervised fine-tuning."""

    def units(self, micro: dict[str, Tensor]) -> int:
        return int((micro["targets"] != IGNORE).sum())

    def loss(self, model: Transformer, micro: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, ahead = summed_nats(model, micro["ids"], micro["targets"], micro.get("documents"))
        return (loss, {}) if ahead is None else (loss + model.config.predict_loss * ahead, {"next_loss": loss, "ahead_loss": ahead})


@dataclass
class Step:
    """What hooks see after each optimizer step; `number` counts finished steps."""

    number: int
    last: bool
    model: Transformer
    events: Events


Hook = Callable[[Step], dict[str, float] | None]
"called after every step; returned figures appear on the progress line"


def train(
    label: str,
    model: Transformer,
    batches: Callable[[int], Batch],
    objective: Objective,
    folder: Path,
    loop: LoopConfig,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    hooks: Sequence[Hook] = (),
    tick: Callable[[], None] = lambda: None,
    team: Team | None = None,
) -> None:
    """Run `loop.steps` optimizer steps on `model`, resuming from the newest good checkpoint under `folder`.

    Writes `folder`/events.jsonl and `folder`/checkpoints. Batches are a function of the step, so an interrupted and continued run ends
    with the same bits as an uninterrupted one with the same number of threads. Raises OpenmaiError if the loss stops being finite.
    In a `team` of several processes, `batches` gives each its share, and what is written is the same up to rounding.
    """
    team = team or Team.alone()
    optimizers = make_optimizers(model, optimizer)
    checkpoints = Checkpoints(folder / "checkpoints", loop.keep, team)
    start = checkpoints.restore(model, optimizers)
    if start:
        say(f"{label}: going on after step {start}")
    events = Events(folder / "events.jsonl" if team.processes.rank == 0 else Path(os.devnull), keep_until_step=start)
    if loop.compile:
        model.compile_blocks()
    model.train()
    with Progress(label, loop.steps, "steps", start=start) as progress:
        for step in range(start, loop.steps):
            began = time.perf_counter()
            factor = set_rates(optimizers, schedule, step, loop.steps)
            figures = _optimize(model, batches(step), objective, optimizers, optimizer.clip, f"{label}, step {step}", team)
            seconds = time.perf_counter() - began
            events.write("train", step=step + 1, lr=factor, seconds=seconds, **figures)
            shown = {"loss": figures["loss"], "tok/s": f"{figures['tokens'] / seconds:,.0f}"}
            for hook in hooks:
                shown |= hook(Step(step + 1, step + 1 == loop.steps, model, events)) or {}
            if (step + 1) % loop.checkpoint_every == 0 and step + 1 < loop.steps:
                checkpoints.save(step + 1, model, optimizers)
                tick()
            progress.advance(1, **shown)
    events.close()
    model.eval()


def _optimize(
    model: Transformer,
    batch: Batch,
    objective: Objective,
    optimizers: list[torch.optim.Optimizer],
    clip: float | None,
    where: str,
    team: Team,
) -> dict:
    """Do one optimizer step over all micro-batches of all processes; return its figures."""
    device = next(model.parameters()).device
    units = team.units(sum(objective.units(micro) for micro in batch), device)
    if units == 0:
        raise OpenmaiError(f"{where}: the batch holds nothing to learn from (every target is masked)")
    batch = [{name: value.to(device) for name, value in micro.items()} for micro in batch]
    sums = model.gradients(batch, units) if isinstance(model, Pipeline) else _gradients(model, batch, objective, units)
    sums = {name: value if name == "penalty" else value / team.layout.tp for name, value in sums.items()}
    team.finish_gradients(model)
    norm = team.clip(model, clip)
    summed = team.processes.total(list(sums.values()), device)
    tokens = team.units(sum(micro["ids"].numel() for micro in batch), device)
    sums = dict(zip(sums, summed, strict=True))
    if not math.isfinite(sums["loss"]) or not math.isfinite(norm):
        raise OpenmaiError(f"{where}: loss {sums['loss']}, gradient norm {norm}; lower the learning rate (--optimizer.lr) or clip harder")
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    figures: dict = {**sums, "grad_norm": norm, "tokens": int(tokens)}
    if loads := team.loads(model):
        figures["expert_load"] = [[round(share / sum(load), 5) for share in load] for load in loads]
    return figures


def _gradients(model: Transformer, batch: Batch, objective: Objective, units: float) -> dict[str, float]:
    """Add up the gradients of micro-batches; return the sums of their figures, losses divided by `units`."""
    sums: dict[str, float] = {"loss": 0.0, "penalty": 0.0}
    for micro in batch:
        total, extra = objective.loss(model, micro)
        penalty = model.take_penalty() * (objective.units(micro) / units)
        (total / units + penalty).backward()
        for name, value in {"loss": total / units, "penalty": penalty, **{name: value / units for name, value in extra.items()}}.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    return sums


def prepare_cpu(threads: int) -> None:
    """Fix the number of CPU threads (0: one per core), and keep freed memory in the process.

    By default glibc gives every large block back to the system and takes it anew, page by page, at each operation: a tenth of a step.
    """
    if threads:
        torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
