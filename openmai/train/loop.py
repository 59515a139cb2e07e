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
from typing import Any, Protocol

import torch
from torch import Tensor

from openmai.base.errors import OpenmaiError
from openmai.base.events import Events
from openmai.base.progress import Progress, say
from openmai.model.loss import IGNORE, summed_nats
from openmai.model.transformer import Transformer
from openmai.parallel.pipeline import Pipeline
from openmai.parallel.team import Team, named_routers
from openmai.train.checkpoints import FOLDER, Checkpoints, Saved
from openmai.train.config import LoopConfig, OptimizerConfig, ScheduleConfig
from openmai.train.guards import Guards, Stop, find_non_finite
from openmai.train.loader import Batch
from openmai.train.optimizer import make_optimizers, set_rates
from openmai.train.sight import Sight
from openmai.train.stream import TokenStream
from openmai.train.tensorboard import TensorBoard
from openmai.train.watchdog import Watchdog


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

    Writes `folder`/events.jsonl, `folder`/checkpoints and `folder`/logs. Batches are a function of the step, so an interrupted and
    continued run ends with the same bits as an uninterrupted one with the same number of threads. In a `team` of several processes,
    `batches` gives each its share, and what is written is the same up to rounding.

    Raises OpenmaiError if losses or gradients stop being finite and `loop.guards` cannot help, and SystemExit of status 0 after a
    checkpoint if SIGTERM or Ctrl-C came.
    """
    team = team or Team.alone()
    with Watchdog(loop.guards.hang_seconds, folder / "logs", team.processes) as watchdog, Stop() as stop:
        run = _Run(label, model, batches, objective, folder, loop, optimizer, schedule, team, watchdog)
        try:
            with Progress(label, loop.steps, "steps", start=run.step) as progress:
                while run.step < loop.steps:
                    shown = run.advance(hooks, stop)
                    if run.saved:
                        tick()
                    progress.done = run.step - 1  # it may have gone back
                    progress.advance(1, **shown)
                    if run.stopping:
                        break
        finally:
            run.close()
    model.eval()
    if run.stopping:
        say(f"{label}: stopped after step {run.step} by {stop.wished or 'a signal'}; the same command goes on from there")
        raise SystemExit(0)


class _Run:
    """What `train` carries from step to step."""

    def __init__(
        self,
        label: str,
        model: Transformer,
        batches: Callable[[int], Batch],
        objective: Objective,
        folder: Path,
        loop: LoopConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        team: Team,
        watchdog: Watchdog,
    ) -> None:
        self.label, self.model, self.batches, self.objective, self.loop = label, model, batches, objective, loop
        self.clip, self.schedule, self.team, self.watchdog = optimizer.clip, schedule, team, watchdog
        processes = team.processes
        self.optimizers = make_optimizers(model, optimizer)
        self.checkpoints = Checkpoints(folder / FOLDER, loop.keep, team, loop.keep_every, loop.background)
        self.guards = Guards(loop.guards, folder / FOLDER / "left_out.json", processes)
        self.stream = TokenStream(processes, (team.data_rank, team.layout.data))
        self.step = 0
        self.saved = self.stopping = False
        self._load(self.checkpoints.restore(model, self.optimizers))
        if self.step:
            say(f"{label}: going on after step {self.step}")
        self.events = Events(folder / "events.jsonl" if processes.rank == 0 else Path(os.devnull), keep_until_step=self.step)
        self.sight = Sight(model, loop, team, folder / "logs", self.events)
        self.board = None
        if loop.tensorboard and processes.rank == 0:
            self.board = TensorBoard(folder / "logs" / "tensorboard", self.step)
            self.events.mirror = self.board.write
        if loop.compile:
            model.compile_blocks()
        model.train()

    def advance(self, hooks: Sequence[Hook], stop: Stop) -> dict[str, Any]:
        """Do one step, or go back because of it; return what the progress line shows."""
        number, last = self.step + 1, self.step + 1 == self.loop.steps
        self.saved = False
        began = time.perf_counter()
        self.watchdog.beat(number, "loading its batch")
        batch = self.batches(self.guards.position(self.step))
        self.sight.loaded(time.perf_counter() - began)
        self.watchdog.beat(number, "computing gradients")
        factor = set_rates(self.optimizers, self.schedule, self.step, self.loop.steps)
        stream = self.stream.add(batch)
        figures, reason = self._learn(number, batch)
        self.watchdog.beat(number, "agreeing on what to do next")
        self.stopping = self.team.processes.total([float(bool(stop.wished))], self.sight.device)[0] > 0 and not last
        seconds = time.perf_counter() - began
        if reason:
            why, broken = self._explain(number, batch, figures, reason)
            if self.guards.must_go_back(broken):
                return self._go_back(why)
            self.events.write("skipped", step=number, reason=why, position=self.guards.position(self.step), stream=stream)
            say(f"{self.label}, step {number}: left out, {why}")
        else:
            self.events.write("train", step=number, lr=factor, seconds=seconds, **figures, stream=stream)
        shown: dict[str, Any] = {"loss": figures["loss"], "tok/s": f"{figures['tokens'] / seconds:,.0f}"}
        shown |= self.sight.after(number, figures["tokens"], seconds, batch)
        self.step = number
        for hook in hooks:
            self.watchdog.beat(number, "measuring")
            shown |= hook(Step(number, last, self.model, self.events)) or {}
        if (number % self.loop.checkpoint_every == 0 and not last) or self.stopping:
            self._save()
        return shown

    def close(self) -> None:
        """Finish what is being written."""
        self.checkpoints.wait()
        self.events.close()
        if self.board:
            self.board.close()

    def _learn(self, number: int, batch: Batch) -> tuple[dict[str, Any], str]:
        """Do one optimizer step unless the guards object; return its figures and their reason."""
        reason = ""
        where = f"{self.label}, step {self.step}"
        with self.sight.watching(number) as norms:

            def accept(loss: float, norm: float) -> bool:
                nonlocal reason
                if norms is not None:
                    norms.take_gradients(max(1.0, norm / self.clip) if self.clip else 1.0)
                reason = self.guards.judge(self.step, loss, norm)
                return not reason

            figures = _optimize(self.model, batch, self.objective, self.optimizers, self.clip, where, self.team, accept)
        return figures, reason

    def _explain(self, number: int, batch: Batch, figures: dict[str, Any], reason: str) -> tuple[str, bool]:
        """Say why a step was left out, with module and process for what is not finite, and whether weights are broken.

        Raises OpenmaiError if there never was a good step.
        """
        if math.isfinite(figures["loss"]) and math.isfinite(figures["grad_norm"]):
            return reason, False
        self.watchdog.beat(number, "looking for what is not finite")
        units = self.team.units(sum(self.objective.units(micro) for micro in batch), self.sight.device)

        def again() -> float:
            return _gradients(self.model, batch, self.objective, units)["loss"]

        found, broken = find_non_finite(self.model, again, self.team.processes)
        if not any(self.guards.spikes.seen.values()):
            loss, norm = figures["loss"], figures["grad_norm"]
            remedy = "lower the learning rate (--optimizer.lr) or clip harder"
            raise OpenmaiError(f"{self.label}, step {self.step}: loss {loss}, gradient norm {norm}; {found}; {remedy}")
        return f"{reason}; {found}", broken

    def _go_back(self, why: str) -> dict[str, Any]:
        """Load the newest checkpoint from before the trouble and leave its data out from now on."""
        self.watchdog.beat(self.step + 1, "going back to a checkpoint")
        failed, most = self.step + 1, self.guards.target()
        saved = self.checkpoints.restore(self.model, self.optimizers, most)
        if saved is None:
            raise OpenmaiError(f"{self.label}, step {failed}: {why}; there is no checkpoint to go back to; lower --loop.checkpoint_every")
        entry = self.guards.leave_out(why)
        self._load(saved)
        self.events.go_back(self.step)
        if self.board:
            self.board.begin(self.step)
        self.events.write("rollback", step=self.step, failed=failed, left_out=entry.positions, reason=why)
        say(f"{self.label}, step {failed}: {why}; back to step {self.step}, leaving out {len(entry.positions)} batches")
        return {}

    def _load(self, saved: Saved | None) -> None:
        """Take up the state of a checkpoint; raise OpenmaiError if the loader does not give the data that it was made with."""
        if saved is None:
            return
        self.step = saved.step
        self.guards.load(saved.run["guards"])
        self.stream.digest, self.stream.before = saved.run["stream"], saved.run["stream_before"]
        if not self.stream.follows(self.batches(self.guards.position(self.step - 1))):
            raise OpenmaiError(
                f"{saved.folder}: step {self.step} was trained on other data than are loaded for it now; "
                f"put the data back as they were, or delete {saved.folder.parent} to begin anew"
            )

    def _save(self) -> None:
        """Begin to write a checkpoint, and wait for it if the run is stopping."""
        self.watchdog.beat(self.step, "copying a checkpoint")
        began = time.perf_counter()
        self.events.sync()
        run = {"guards": self.guards.state(), "stream": self.stream.digest, "stream_before": self.stream.before}
        self.checkpoints.save(self.step, self.model, self.optimizers, run)
        self.saved = True
        self.events.write("checkpoint", step=self.step, seconds=time.perf_counter() - began)
        self.watchdog.beat(self.step, "writing a checkpoint")
        if self.stopping and not self.checkpoints.wait():
            raise OpenmaiError(
                f"{self.label}: stopped without a checkpoint of step {self.step}; the same command goes on from an older one"
            )


def _optimize(
    model: Transformer,
    batch: Batch,
    objective: Objective,
    optimizers: list[torch.optim.Optimizer],
    clip: float | None,
    where: str,
    team: Team,
    accept: Callable[[float, float], bool],
) -> dict[str, Any]:
    """Do one optimizer step over all micro-batches of all processes, if `accept` takes its loss and gradient norm; return its figures."""
    device = next(model.parameters()).device
    units = team.units(sum(objective.units(micro) for micro in batch), device)
    if units == 0:
        raise OpenmaiError(f"{where}: the batch holds nothing to learn from (every target is masked)")
    sums = _gradients(model, batch, objective, units)
    sums = {name: value if name == "penalty" else value / team.layout.tp for name, value in sums.items()}
    team.finish_gradients(model)
    norm = team.clip(model, clip)
    summed = team.processes.total(list(sums.values()), device)
    tokens = team.units(sum(micro["ids"].numel() for micro in batch), device)
    sums = dict(zip(sums, summed, strict=True))
    figures: dict[str, Any] = {**sums, "grad_norm": norm, "tokens": int(tokens)}
    accepted = accept(sums["loss"], norm)
    for optimizer in optimizers:
        if accepted:
            optimizer.step()
        optimizer.zero_grad()
    if not accepted:
        for _, router in named_routers(model):
            router.load_E.zero_()
    elif loads := team.loads(model):
        figures["expert_load"] = [[round(share / sum(load), 5) for share in load] for load in loads]
    return figures


def _gradients(model: Transformer, batch: Batch, objective: Objective, units: float) -> dict[str, float]:
    """Add up the gradients of micro-batches; return the sums of their figures, losses divided by `units`."""
    device = next(model.parameters()).device
    batch = [{name: value.to(device) for name, value in micro.items()} for micro in batch]
    if isinstance(model, Pipeline):
        return model.gradients(batch, units)
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
