"""A pool of worker processes for pages that may be hostile: a page that runs away, eats memory or kills its worker costs only itself."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import pyarrow as pa

from openmai.data.config import Annotation, Limits
from openmai.data.document import Raw, raw_batch
from openmai.data.engine.steps import annotate, rejected_batch

_NO_MEMORY = 77
_READY = "ready"
_FIRST_PAGE = b"<p>Compiled loops and models are loaded before any page's time is counted.</p>"
_PATIENCE = 60  # times the CPU limit: a worker that has not answered by then waits for something that never comes
_CONTEXT = "spawn"  # a fork would copy the threads' locks of numpy and pyarrow


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: tuple[tuple[int, int], pa.RecordBatch] | None = None
    since: float = 0.0
    is_ready: bool = False
    is_stuck: bool = False


@dataclass
class Pool:
    """Runs `annotate` on batches in `count` processes; use as a context.

    The CPU time per page is limited by the kernel's own timer, so that the limit means the same on a busy machine. When a worker dies
    on a batch, its rows are tried one by one, and the row that kills a worker again is rejected.
    """

    count: int
    config: Annotation
    workers: list[_Worker] = field(default_factory=list)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self.workers.clear()

    def run(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the annotated batches in the order of `batches`; at most a few are in flight."""
        source, number, due = iter(batches), 0, 0
        waiting: deque[tuple[tuple[int, int], pa.RecordBatch]] = deque()
        pieces: dict[int, dict[int, pa.RecordBatch]] = {}
        missing: dict[int, int] = {}
        exhausted = False
        while True:
            while not exhausted and len(missing) < 3 * self.count:
                batch = next(source, None)
                if batch is None:
                    exhausted = True
                    break
                waiting.append(((number, 0), batch))
                missing[number], pieces[number] = 1, {}
                number += 1
            if exhausted and not missing:
                return
            self._hand_out(waiting)
            for key, batch, result in self._collect():
                if result is None:
                    rows = [((key[0], row), batch.slice(row, 1)) for row in range(batch.num_rows)]
                    waiting.extendleft(reversed(rows))
                    missing[key[0]] = len(rows)
                else:
                    pieces[key[0]][key[1]] = result
                    missing[key[0]] -= 1
            while missing.get(due) == 0:
                done = pieces.pop(due)
                del missing[due]
                due += 1
                yield pa.Table.from_batches([done[row] for row in sorted(done)]).combine_chunks().to_batches()[0]

    def _hand_out(self, waiting: deque[tuple[tuple[int, int], pa.RecordBatch]]) -> None:
        while len(self.workers) < min(self.count, len(waiting) + sum(worker.task is not None for worker in self.workers)):
            self.workers.append(_start(self.config))
        for worker in self.workers:
            if worker.task is None and waiting:
                worker.task, worker.since = waiting.popleft(), time.monotonic()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead worker is found by _collect
                    worker.pipe.send(worker.task[1])

    def _collect(self) -> Iterator[tuple[tuple[int, int], pa.RecordBatch, pa.RecordBatch | None]]:
        """Wait; yield (key, batch, result) of what is finished, result None if the batch must be tried row by row."""
        patience = _PATIENCE * self.config.limits.seconds
        ready = set(wait([worker.pipe for worker in self.workers if worker.task is not None], timeout=patience))
        for worker in self.workers:
            if worker.is_ready and worker.task is not None and worker.pipe not in ready and time.monotonic() - worker.since > patience:
                worker.is_stuck = True
                worker.process.kill()
        for worker in [worker for worker in self.workers if worker.pipe in ready]:
            assert worker.task is not None
            key, batch = worker.task
            try:
                answer = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                yield key, batch, self._bury(worker, batch)
                continue
            if isinstance(answer, str):
                worker.is_ready, worker.since = True, time.monotonic()
                continue
            worker.task = None
            yield key, batch, answer

    def _bury(self, worker: _Worker, batch: pa.RecordBatch) -> pa.RecordBatch | None:
        worker.process.join()
        if not worker.is_ready:
            raise RuntimeError("a data worker does not start; its error stands above")
        self.workers.remove(worker)
        worker.pipe.close()
        return rejected_batch(batch, *_cause(worker, self.config.limits), self.config) if batch.num_rows == 1 else None


def _cause(worker: _Worker, limits: Limits) -> tuple[str, str]:
    exit_code = worker.process.exitcode
    if worker.is_stuck:
        return "extract.deadline", f"took more than {_PATIENCE * limits.seconds:g} seconds, mostly of waiting"
    if exit_code == -signal.SIGPROF:
        return "extract.deadline", f"took more than {limits.seconds:g} CPU seconds"
    if exit_code == _NO_MEMORY:
        return "extract.memory", f"took more than {limits.megabytes} MB"
    return "extract.crash", f"its worker died (exit code {exit_code})"


def _start(config: Annotation) -> _Worker:
    context: Any = mp.get_context(_CONTEXT)
    mine, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, config), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, mine)


def _work(pipe: Connection, config: Annotation) -> None:
    """Annotate batches until the pipe closes. The CPU timer has its default effect, which also ends C code that never returns."""
    memory = config.limits.megabytes << 20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    annotate(raw_batch([("", 0, Raw(_FIRST_PAGE, "", "text/html"))], "", ""), config)
    pipe.send(_READY)
    while True:
        try:
            batch = pipe.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, config.limits.seconds)
        try:
            result = annotate(batch, config)
        except MemoryError:
            os._exit(_NO_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send(result)
