"""A thread that notices when a run of several processes stands still, says which of them is behind, and ends it so that it is restarted.

It must fire before the timeouts of collective operations (`parallel/processes.py`), which kill without saying who is to blame.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import torch._C._distributed_c10d as c10d
import torch.distributed as dist

from openmai.parallel.processes import Processes

STATUS = 75
"exit status of a process that stood still: EX_TEMPFAIL of sysexits.h, try again"
_OVER = "over"


class Watchdog:
    """Watches over the calls of `beat`; with one process there is nobody to wait for, so it does nothing."""

    def __init__(self, seconds: float, logs: Path, processes: Processes) -> None:
        self.seconds, self.logs, self.processes = seconds, logs, processes
        self.count, self.step, self.doing, self.last = 0, 0, "starting", time.monotonic()
        self.over = threading.Event()
        self.crash: IO[str] | None = None

    def __enter__(self) -> Watchdog:
        if self.processes.size > 1:
            self.logs.mkdir(exist_ok=True)
            self.crash = (self.logs / f"hang-rank{self.processes.rank}.txt").open("a")
            default: Any = dist.distributed_c10d._get_default_store()
            # a connection of its own: that of the process may be taken by whoever waits in it
            self.store = dist.PrefixStore(f"beats-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", default.clone())
            self.beat(0, "starting")
            self._tell()
            self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.crash is not None:
            self.over.set()
            self.thread.join()
            faulthandler.cancel_dump_traceback_later()
            self.crash.close()
            if not os.path.getsize(self.crash.name):
                os.unlink(self.crash.name)

    def beat(self, step: int, doing: str) -> None:
        """Say that this process is alive and what it does now, for step number `step` (from 1)."""
        self.count, self.step, self.doing, self.last = self.count + 1, step, doing, time.monotonic()

    def _watch(self) -> None:
        pause = min(5.0, self.seconds / 4)
        while not self.over.wait(pause):
            try:
                still = self._tell()
            except RuntimeError:  # the store is gone, and with it the process that all others will fail at
                return
            if self.crash is not None:  # if even this thread does not run: code that keeps the interpreter's lock
                faulthandler.dump_traceback_later(2 * self.seconds, exit=True, file=self.crash)
            if still > self.seconds or self.store.check([_OVER]):
                self._end(pause)

    def _tell(self) -> float:
        """Tell the others where this process is; return for how many seconds it has been there."""
        still = time.monotonic() - self.last
        self.store.set(str(self.processes.rank), json.dumps([self.count, self.step, self.doing, still]))
        return still

    def _end(self, pause: float) -> None:
        """Leave stacks and collective operations in files, as all others do now, say who is behind, and end this process."""
        assert self.crash is not None
        self.store.set(_OVER, "")
        print(f"rank {self.processes.rank} of {self.processes.size}, step {self.step}, {self.doing}", file=self.crash, flush=True)
        faulthandler.dump_traceback(file=self.crash, all_threads=True)
        (self.logs / f"flight-rank{self.processes.rank}.json").write_bytes(c10d._dump_fr_trace_json())  # type: ignore[attr-defined]
        time.sleep(2 * pause)  # the first to end takes the others with it
        print(f"openmai: rank {self.processes.rank}: {self.verdict()}", file=sys.stderr, flush=True)
        os._exit(STATUS)

    def verdict(self) -> str:
        """Say which processes did least: the others wait for them."""
        told = {rank: json.loads(self.store.get(str(rank))) for rank in range(self.processes.size) if self.store.check([str(rank)])}
        silent = [str(rank) for rank in range(self.processes.size) if rank not in told]
        least = min(count for count, *_ in told.values())
        behind = [rank for rank, (count, *_) in told.items() if count == least]
        _, step, doing, still = told[behind[0]]
        names = ", ".join(map(str, behind[:8])) + ", …" * (len(behind) > 8)
        who = (
            "all ranks hang" if len(behind) == self.processes.size else f"rank {names} hangs" if len(behind) == 1 else f"ranks {names} hang"
        )
        never = f"; rank {', '.join(silent)} never spoke" if silent else ""
        return f"nothing has moved for {still:.0f} s: {who} in step {step}, {doing}{never}; stacks are in {self.logs}"
