"""What keeps a long run alive: steps that are left out, the way back to an older checkpoint, who is to blame for a NaN, and how to stop."""

from __future__ import annotations

import math
import os
import signal
import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from openmai.base.errors import OpenmaiError
from openmai.base.files import read_json, write_json
from openmai.base.progress import is_quiet, say
from openmai.model.transformer import Transformer
from openmai.parallel.processes import Processes, local
from openmai.parallel.team import named_routers, parts_of
from openmai.train.config import GuardConfig


@dataclass(frozen=True)
class LeftOut:
    """Data that a run went back for and left out: positions in the order of the loader, found bad at `step`."""

    step: int
    positions: list[int]
    reason: str


class Spikes:
    """Running statistics of loss and gradient norm: a step far above what is usual is left out.

    As OLMo-core's SkipStepOptimizer does: all finite figures count, also those of steps left out, so that a new level soon is the usual
    one. Only what is too high is judged; a fall, as at the change of a mixture, harms nobody.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.seen: dict[str, deque[float]] = {name: deque(maxlen=config.window) for name in ("loss", "gradient norm")}

    def judge(self, loss: float, norm: float) -> str:
        """Return what is wrong with a step's figures, or nothing."""
        reasons = []
        for (name, seen), value in zip(self.seen.items(), (loss, norm), strict=True):
            if not math.isfinite(value):
                reasons.append(f"{name} {value}")
                continue
            if self.config.sigmas is not None and len(seen) >= max(2, self.config.window // 2):
                mean, deviation = statistics.fmean(seen), statistics.stdev(seen)
                if value - mean > self.config.sigmas * deviation:
                    reasons.append(f"{name} {value:.4g}, usual are {mean:.4g} ± {deviation:.2g}")
            seen.append(value)
        return " and ".join(reasons)

    def forget(self) -> None:
        """Begin anew: what comes now is usual."""
        for seen in self.seen.values():
            seen.clear()


class Guards:
    """Judges each step, and knows which data are left out."""

    def __init__(self, config: GuardConfig, file: Path, processes: Processes) -> None:
        """`file` remembers what was left out, also when the run is killed before its next checkpoint."""
        self.config, self.file, self.processes = config, file, processes
        self.spikes = Spikes(config)
        self.streak: list[int] = []
        "numbers of the steps left out in a row up to now"
        self.finite = True
        "whether the figures of all of these were numbers"
        saved = read_json(file) if processes.rank == 0 and file.exists() else []
        self.left_out = [LeftOut(**entry) for entry in processes.tell(saved)]

    def position(self, step: int) -> int:
        """Return which batch of the loader step `step` is trained on: as many are passed over as were left out before it."""
        for place in sorted(place for entry in self.left_out for place in entry.positions):
            step += place <= step
        return step

    def judge(self, step: int, loss: float, norm: float) -> str:
        """Return why step number `step` (from 0) must be left out, or nothing."""
        reason = self.spikes.judge(loss, norm)
        if not reason:
            self.streak, self.finite = [], True
        else:
            self.streak.append(step)
            self.finite &= math.isfinite(loss) and math.isfinite(norm)
        return reason

    def must_go_back(self, weights_broken: bool) -> bool:
        """Tell whether leaving steps out is no longer enough.

        Raises OpenmaiError if going back has not helped before and the figures are no numbers; high ones are taken as the new usual.
        """
        if len(self.streak) < self.config.patience and not weights_broken:
            return False
        if sum(entry.step > self.streak[0] - self.config.window for entry in self.left_out) < self.config.rollbacks:
            return True
        if weights_broken or not self.finite:
            raise OpenmaiError(
                f"step {self.streak[0]}: losses or gradients are not finite, and going back {self.config.rollbacks} times did not help; "
                "lower the learning rate (--optimizer.lr) or clip harder"
            )
        say(f"step {self.streak[-1]}: the figures stay high; taken as usual from here on")
        self.spikes.forget()
        self.streak = []
        return False

    def target(self) -> int:
        """Return how many steps a checkpoint may have at most to go back to."""
        return self.streak[0] - self.config.before

    def leave_out(self, reason: str) -> LeftOut:
        """Leave out the data of the streak, and those just before it, from now on and in every resumption."""
        places = sorted({self.position(step) for step in range(max(0, self.target()), self.streak[-1] + 1)})
        entry = LeftOut(self.streak[0], places, reason)
        self.left_out.append(entry)
        if self.processes.rank == 0:
            write_json(self.file, [asdict(entry) for entry in self.left_out])
        return entry

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"seen": {name: list(seen) for name, seen in self.spikes.seen.items()}, "streak": self.streak, "finite": self.finite}

    def load(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.spikes.forget()
        for name, seen in self.spikes.seen.items():
            seen.extend(state["seen"][name])
        self.streak, self.finite = list(state["streak"]), state["finite"]


def find_non_finite(model: Transformer, again: Callable[[], float], processes: Processes) -> tuple[str, bool]:
    """Compute losses and gradients once more by `again`, watching every module of every process.

    `again` returns this process's loss and leaves gradients behind, which are dropped. Returns where the first value that is not finite
    appears, with module and rank, and whether weights themselves are not finite.
    """
    found = [_Finding(0, name, f"weight {name}") for name, parameter in model.named_parameters() if not _finite(parameter)]
    routers = [router for _, router in named_routers(model)]
    loads = [router.load_E.clone() for router in routers]
    with _watching(model, found), torch.compiler.set_stance("force_eager"):
        loss = again()
    gradients = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    found += [_Finding(4, name, f"gradient of weight {name}") for name, gradient in gradients if not _finite(gradient)]
    for parameter in model.parameters():
        parameter.grad = None
    for router, load in zip(routers, loads, strict=True):
        router.load_E.copy_(load)
    if not found and not math.isfinite(loss):
        found = [_Finding(1, "loss", "the loss itself, though all modules' outputs are finite,")]
    firsts = processes.gather(min(found, key=_Finding.order, default=None))
    earliest = min((first.order() for first in firsts if first), default=None)
    if earliest is None:
        return "computed again everything is finite: a bit may have flipped, look at the hardware if this comes back", False
    blamed: dict[str, list[str]] = {}
    for rank, first in enumerate(firsts):
        if first and first.order() == earliest:
            blamed.setdefault(first.text, []).append(str(rank))
    return "first not finite: " + "; ".join(f"{what} on rank {', '.join(ranks)}" for what, ranks in blamed.items()), earliest[0] == 0


@dataclass(frozen=True)
class _Finding:
    """Something that is not finite. A weight makes outputs go wrong, those the outputs behind them, on other ranks too, those gradients."""

    cause: int
    "0: weight, 1: output though the input is finite, 2: output as well as the input, 3: gradient of an output, 4: gradient of a weight"
    name: str
    text: str

    def order(self) -> tuple[int, int]:
        """Return what is smaller for what comes earlier in the computation: cause and layer."""
        parts = self.name.split(".")
        layer = int(parts[1]) if parts[0] == "blocks" else -1 if "embedding" in parts[0] else 1 << 30
        return self.cause, -layer if self.cause >= 3 else layer


@contextmanager
def _watching(model: nn.Module, found: list[_Finding]) -> Iterator[None]:
    """Note in `found`, in the order of computation, the modules whose outputs or whose outputs' gradients are not finite."""
    handles: list[RemovableHandle] = []

    def watch(name: str, module: nn.Module) -> None:
        def look_back(gradient: Tensor) -> None:
            if not _finite(gradient):
                found.append(_Finding(3, name, f"gradient of the output of {name}"))

        def look(_: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not _finite(tensor):
                    given = all(_finite(value) for value in _tensors(inputs))
                    found.append(_Finding(1 if given else 2, name, f"output of {name}" + ", as its input," * (not given)))
                elif tensor.requires_grad:
                    tensor.register_hook(look_back)

        handles.append(module.register_forward_hook(look))

    for part in parts_of(model):
        for name, module in part.named_modules():
            if name:
                watch(name, module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    for part in value if isinstance(value, tuple | list) else (value,):
        if isinstance(part, Tensor) and part.is_floating_point():
            yield part


@torch.no_grad()
def _finite(value: Tensor) -> bool:
    """Look at this process's part only."""
    return bool(local(value).isfinite().all())


class Stop:
    """Turns SIGTERM and Ctrl-C into a wish to stop after the current step; a second one stops at once."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.wished = ""
        "name of the signal that came"

    def __enter__(self) -> Stop:
        self.earlier: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self.earlier = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wished:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.raise_signal(number)
        self.wished = signal.Signals(number).name
        if not is_quiet():  # not by print: the signal may have come in the middle of another
            os.write(2, f"{self.wished}: stopping after this step, with a checkpoint; once more to stop at once\n".encode())
