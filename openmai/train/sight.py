"""What one sees of a run: speed, share of the device's peak, memory, norms by block, slow processes, and a profile of some steps."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from openmai.base.events import Events
from openmai.base.progress import say
from openmai.model.count import flops_per_token
from openmai.model.transformer import Transformer
from openmai.parallel.processes import local
from openmai.parallel.team import Team, parts_of
from openmai.train.config import LoopConfig
from openmai.train.loader import Batch


class Sight:
    """Measures one run; every figure is written to its events, the most telling ones are returned for the progress line."""

    def __init__(self, model: Transformer, loop: LoopConfig, team: Team, logs: Path, events: Events) -> None:
        self.model, self.loop, self.team, self.logs, self.events = model, loop, team, logs, events
        self.processes = team.processes
        self.device = next(model.parameters()).device
        self.tokens, self.seconds = 0, 0.0
        self.loading = 0.0
        self.profiler: profile | None = None

    def loaded(self, seconds: float) -> None:
        """Count the time that this process took to make its batch."""
        self.loading += seconds

    def after(self, number: int, tokens: int, seconds: float, batch: Batch) -> dict[str, str]:
        """Take note of step `number`, over all processes, and say how fast it goes."""
        self.tokens += tokens
        self.seconds += seconds
        if self.processes.size > 1 and number % self.loop.guards.slow_every == 0:
            self._compare(number)
        if number % self.loop.speed_every and number != self.loop.steps:
            return {}
        speed = self.tokens / self.seconds
        self.tokens, self.seconds = 0, 0.0
        sequence = max(micro["ids"].shape[1] for micro in batch)
        peak = self.loop.peak_flops or matmul_peak(self.device)
        mfu = speed * flops_per_token(self.model.config, sequence) / (peak * self.processes.size)
        used = memory(self.device)
        self.events.write("speed", step=number, tokens_per_second=round(speed, 1), mfu=round(mfu, 4), memory=used)
        return {"mfu": f"{mfu:.0%}", "mem": f"{used / 1e9:.1f} GB"}

    def _compare(self, number: int) -> None:
        """Find processes that are slower than the others by themselves: at loading, or at a matrix product that waits for nobody.

        The seconds of a whole step say nothing, for all wait for the slowest in it.
        """
        own = (self.loading / self.loop.guards.slow_every, probe(self.device))
        self.loading = 0.0
        everyone = self.processes.gather(own)
        for what, values in zip(("loading", "computing"), zip(*everyone, strict=True), strict=True):
            usual = statistics.median(values)
            slow = {rank: value for rank, value in enumerate(values) if value > max(self.loop.guards.slow_factor * usual, usual + 1e-3)}
            if slow:
                self.events.write("slow", step=number, what=what, seconds=slow, usual=usual)
                worst = max(slow, key=lambda rank: slow[rank])
                others = f" ({len(slow)} such)" if len(slow) > 1 else ""
                say(f"step {number}: rank {worst} is slow at {what}: {slow[worst]:.3g} s, usual is {usual:.3g} s{others}")

    @contextmanager
    def watching(self, number: int) -> Iterator[Norms | None]:
        """Profile step `number` and watch its activations, if it is the turn of either."""
        if self.loop.profile and number == self.loop.profile[0]:
            self.profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])])
            self.profiler.start()
        if self.loop.norms_every and number % self.loop.norms_every == 0:
            with Norms(self.model, self.team, self.loop.compile) as norms:
                yield norms
            self.events.write("norms", step=number, **norms.figures())
        else:
            yield None
        if self.profiler and self.loop.profile and number >= min(self.loop.profile[1], self.loop.steps):
            self.profiler.stop()
            self.logs.mkdir(exist_ok=True)
            trace = self.logs / f"profile-rank{self.processes.rank}.json"
            self.profiler.export_chrome_trace(str(trace))
            say(f"profile of steps {self.loop.profile[0]} to {number}: {trace}, for chrome://tracing or ui.perfetto.dev")
            self.profiler = None


class Norms:
    """Norms of one step by block: of its gradients, before clipping, and the root mean square of the stream that leaves it."""

    def __init__(self, model: Transformer, team: Team, compiled: bool) -> None:
        self.team = team
        self.blocks: dict[str, nn.Module] = {
            name: module for part in parts_of(model) for name, module in part.named_modules() if _is_block(name)
        }
        self.seen = {} if compiled else self.blocks  # compiled blocks do not call hooks that come later
        self.streams = {name: [0.0, 0.0] for name in self.seen}
        self.gradients: dict[str, float] = {}
        "sums of squares, of this process's share"

    def __enter__(self) -> Norms:
        self.handles = [block.register_forward_hook(self._look(name)) for name, block in self.seen.items()]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _look(self, name: str) -> Any:
        def look(_: nn.Module, inputs: Any, output: Any) -> None:
            stream: Tensor = (output[0] if isinstance(output, tuple) else output).detach()
            self.streams[name][0] += stream.float().square().sum().item()
            self.streams[name][1] += stream.numel()

        return look

    def take_gradients(self, clipped_by: float) -> None:
        """Note the gradients, which clipping has divided by `clipped_by`."""
        for name, block in self.blocks.items():
            named = [(f"{name}.{inner}", parameter.grad) for inner, parameter in block.named_parameters() if parameter.grad is not None]
            squares = [local(grad).double().square().sum().item() / self.team.copies_of(full) for full, grad in named]
            self.gradients[name] = clipped_by**2 * sum(squares)

    def figures(self) -> dict[str, dict[str, float]]:
        """Return both by block, over all processes."""
        squares: dict[str, float] = {}
        streams: dict[str, list[float]] = {}
        for gradients, part in self.team.processes.gather((self.gradients, self.streams)):
            for name, value in gradients.items():
                squares[name] = squares.get(name, 0.0) + value
            for name, (total, count) in part.items():
                before = streams.get(name, [0.0, 0.0])
                streams[name] = [before[0] + total, before[1] + count]
        rms = {name: round((total / count) ** 0.5, 6) for name, (total, count) in streams.items() if count}
        return {"gradient": {name: round(value**0.5, 6) for name, value in squares.items()}, "activation": rms}


def _is_block(name: str) -> bool:
    parts = name.split(".")
    return len(parts) == 2 and parts[0] in ("blocks", "predictors")


def memory(device: torch.device) -> int:
    """Return the most bytes that this process has used so far, on its accelerator if it has one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def probe(device: torch.device, size: int = 256, tries: int = 5) -> float:
    """Return the fewest seconds that a small matrix product takes now."""
    return _product_seconds(device, 4096 if device.type == "cuda" else size, tries)


@cache
def matmul_peak(device: torch.device) -> float:
    """Return the FLOP/s of a large matrix product: what `device` can do at best, in bfloat16 on a GPU and float32 elsewhere."""
    size = 8192 if device.type == "cuda" else 512
    return 2 * size**3 / _product_seconds(device, size, 10)


def _product_seconds(device: torch.device, size: int, tries: int) -> float:
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    result = torch.empty_like(matrix)
    best = float("inf")
    for _ in range(tries + 1):
        began = time.perf_counter()
        torch.mm(matrix, matrix, out=result)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best
