"""python benchmarks/faults.py [--kills 50] [--seed 0] [--only NAME] [--json FILE]

Does to a run of two processes what happens to long runs: kills without warning at random moments and while a checkpoint is written, damaged
checkpoints, a full disk, batches that give not-a-numbers, a process that hangs, and processes that disappear under torchrun. Each time
the same command is simply started again, or torchrun does it. Then what the run has written must be what an undisturbed run writes:
every step once, with the same loss and gradient norm and the same hash of all data seen, and the same weights in the end.

Prints a table; exits with status 1 if anything differs. Processes are forked from this one, which saves each the import of torch. With the
right to mount (root) the full disk is a real one, a tmpfs of a few megabytes.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimizers and FSDP import it at their first use, in every process anew
from torch import Tensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from openmai.base.events import read_events
from openmai.base.files import hash_value
from openmai.base.progress import duration
from openmai.model.config import ModelConfig
from openmai.model.transformer import Transformer
from openmai.parallel.layout import Layout
from openmai.parallel.processes import Processes, whole
from openmai.parallel.team import Team
from openmai.train.config import GuardConfig, LoopConfig, OptimizerConfig, ScheduleConfig
from openmai.train.loop import NextToken, Step, train
from openmai.train.watchdog import STATUS

STEPS, EVERY, ROWS, CONTEXT, VOCABULARY = 30, 5, 4, 24, 61
EXPERTS = {"num_experts": 4, "num_active": 2, "expert_width": 16, "score": "sigmoid", "bias_rate": 0.01}
MODEL = {"vocab_size": VOCABULARY, "num_layers": 2, "width": 32, "num_heads": 2, "ffn_width": 48, "context": CONTEXT, "moe": EXPERTS}
GUILTY = "blocks.1.attention.o"


@dataclass(frozen=True)
class Trouble:
    """What goes wrong inside of the processes."""

    bad_data: tuple[int, ...] = ()
    "positions of batches for which module GUILTY of the last process gives not-a-numbers"
    hang: int = 0
    "step before which the last process hangs, once"
    slow: float = 0.0
    "seconds that the last process takes longer to load each batch"
    pause: float = 0.0
    "seconds that every step takes longer"
    guards: GuardConfig = field(default_factory=GuardConfig)


@dataclass
class Batches:
    """Rows in which each token follows from the one before it; a pure function of the position."""

    rank: int
    size: int
    folder: Path
    trouble: Trouble
    position: int = -1

    def __call__(self, step: int) -> list[dict[str, Tensor]]:
        self.position = step
        if self.rank == self.size - 1:
            time.sleep(self.trouble.slow)
            once = self.folder / "has-hung"
            if self.trouble.hang and step + 1 == self.trouble.hang and not once.exists():
                once.touch()
                time.sleep(600)
        tokens = torch.randint(VOCABULARY, (ROWS, CONTEXT + 1), generator=torch.Generator().manual_seed(step))
        for place in range(CONTEXT):
            tokens[:, place + 1] = (3 * tokens[:, place] + 5 + tokens[:, 0] % 3) % VOCABULARY
        share = slice(self.rank * ROWS // self.size, (self.rank + 1) * ROWS // self.size)
        return [{"ids": part[:, :-1], "targets": part[:, 1:]} for part in tokens[share].split(2)]


def work(folder: Path, trouble: Trouble, steps: int = STEPS) -> None:
    """What one process of the run does, from building the model to its end."""
    torch.set_num_threads(1)
    processes = Processes.start("cpu")
    attempt = os.environ.get("ATTEMPT", str(os.getpid()))
    model = Transformer(ModelConfig.model_validate(MODEL))
    model.initialize(0)
    batches = Batches(processes.rank, processes.size, folder, trouble)
    if trouble.bad_data and processes.rank == processes.size - 1:

        def spoil(module: Any, inputs: Any, output: Tensor) -> Tensor:
            return output * float("nan") if batches.position in trouble.bad_data else output

        model.get_submodule(GUILTY).register_forward_hook(spoil)
    team = Team(processes, Layout().resolve(processes.size, ROWS, ROWS // processes.size), "cpu")
    model = team.take(model)

    def note(step: Step) -> None:
        time.sleep(trouble.pause)
        if processes.rank == 0:
            with (folder / "ledger.jsonl").open("a") as ledger:
                ledger.write(json.dumps({"attempt": attempt, "step": step.number, "size": processes.size}) + "\n")

    loop = LoopConfig(steps=steps, checkpoint_every=EVERY, guards=trouble.guards)
    optimizer = OptimizerConfig(weight_decay=0.1)
    train("faults", model, batches, NextToken(), folder, loop, optimizer, ScheduleConfig(warmup=5), [note], team=team)
    state = team.state(model, [])["model"]
    weights = {name: hash_value(whole(value).tolist()) for name, value in sorted(state.items())}
    if processes.rank == 0:
        (folder / "final.json").write_text(hash_value(weights))


class Fleet:
    """Processes of this program's, forked, with their messages in files."""

    def __init__(self) -> None:
        self.statuses: dict[int, int | None] = {}

    @classmethod
    def of_run(cls, folder: Path, trouble: Trouble, size: int = 2, attempt: int = 0) -> Fleet:
        """Start the processes of a run with what torchrun tells them."""
        fleet = cls()
        common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ATTEMPT": str(attempt)}
        for rank in range(size):
            fleet.fork(folder, f"rank{rank}", {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, lambda: work(folder, trouble))
        return fleet

    def fork(self, folder: Path, name: str, environment: dict[str, str], do: Callable[[], Any]) -> int:
        messages(folder).mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        pid = os.fork()
        if pid:
            self.statuses[pid] = None
            return pid
        status = 1
        try:
            log = os.open(messages(folder) / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ |= environment
            do()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            with suppress(OSError):  # the disk may be full
                traceback.print_exc()
        finally:
            os._exit(status)

    def running(self) -> list[int]:
        """Return the processes that have not ended, in their order."""
        for pid, status in self.statuses.items():
            if status is None:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.statuses[pid] = os.waitstatus_to_exitcode(status)
        return [pid for pid, status in self.statuses.items() if status is None]

    def wait(self, seconds: float = 120.0) -> list[int]:
        """Wait until all have ended by themselves; kill those that do not. Returns their statuses."""
        limit = time.monotonic() + seconds
        while pids := self.running():
            time.sleep(0.01)
            if time.monotonic() > limit:
                self.kill(pids)
        return [status for status in self.statuses.values() if status is not None]

    def kill(self, pids: list[int], number: int = signal.SIGKILL) -> None:
        for pid in pids:
            os.kill(pid, number)

    def stop(self) -> None:
        """End those whose comrade was killed, as torchrun does: SIGTERM, and after a while SIGKILL."""
        self.kill(self.running(), signal.SIGTERM)
        self.wait(5)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def messages(folder: Path) -> Path:
    """Return where the processes of a run in `folder` write their messages: not on its disk, which may be full."""
    return folder.parent / "messages" / folder.name


def said(folder: Path) -> str:
    return "\n".join(file.read_text(errors="replace") for file in sorted(messages(folder).iterdir()))


def newest(folder: Path) -> int:
    """Return the step of the newest whole checkpoint."""
    return max((int(path.name[5:]) for path in (folder / "checkpoints").glob("step-????????")), default=0)


def result(folder: Path) -> tuple[list[tuple], str]:
    """Return what a run has written: (step, loss, gradient norm, hash of the data seen) in its order, and a hash of its weights."""
    events = [
        (event["step"], event["loss"], event["grad_norm"], event["stream"]) for event in read_events(folder / "events.jsonl", "train")
    ]
    return events, (folder / "final.json").read_text() if (folder / "final.json").exists() else "no end"


def attempts(folder: Path) -> dict[str, list[int]]:
    """Return the steps that each attempt did."""
    done: dict[str, list[int]] = {}
    for line in (folder / "ledger.jsonl").read_text().splitlines() if (folder / "ledger.jsonl").exists() else []:
        entry = json.loads(line)
        done.setdefault(entry["attempt"], []).append(entry["step"])
    return done


def until(condition: Callable[[], Any], seconds: float = 60.0, pause: float = 0.03) -> bool:
    """Wait for a condition, looking again after each `pause`; return whether it came."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(pause)
    return True


@dataclass
class Row:
    """One line of the table."""

    fault: str
    times: int
    good: bool
    found: str


@dataclass
class Faults:
    """All faults; each run is compared with an undisturbed one."""

    folder: Path
    kills: int
    seed: int
    references: dict[Trouble, tuple[list[tuple], str]] = field(default_factory=dict)

    def undisturbed(self, trouble: Trouble = Trouble()) -> tuple[list[tuple], str]:
        if trouble not in self.references:
            folder = self.folder / f"undisturbed{len(self.references)}"
            statuses = Fleet.of_run(folder, trouble).wait()
            assert statuses == [0, 0], f"the undisturbed run failed: {said(folder)[-3000:]}"
            self.references[trouble] = result(folder)
        return self.references[trouble]

    def goes_on(self, folder: Path, trouble: Trouble = Trouble(), reference: Trouble = Trouble()) -> bool:
        """Start the run again with the same command; tell whether it ends as an undisturbed one does."""
        statuses = Fleet.of_run(folder, trouble).wait()
        return statuses == [0, 0] and result(folder) == self.undisturbed(reference)

    def kill(self) -> Iterator[Row]:
        """SIGKILL to one or both processes, at any moment, or while a checkpoint is being written."""
        chance = random.Random(self.seed)
        counts = {"at a random moment": 0, "while a checkpoint is written": 0}
        runs, wrong, equal = 0, 0, True
        while sum(counts.values()) < self.kills:
            runs += 1
            folder, attempt = self.folder / f"killed{runs}", 0
            while not (folder / "final.json").exists():
                attempt += 1
                before = newest(folder)
                fleet = Fleet.of_run(folder, Trouble(), attempt=attempt)
                if sum(counts.values()) < self.kills:
                    self._kill(folder, fleet, chance, counts)
                fleet.wait()
                done = attempts(folder).get(str(attempt), [])
                wrong += done != list(range(before + 1, before + 1 + len(done)))
            equal &= result(folder) == self.undisturbed()
        for name, times in counts.items():
            yield Row(f"kill -9 {name}", times, not wrong, "every attempt goes on after the newest checkpoint")
        yield Row("runs killed several times", runs, equal, "end equal to the bit" if equal else "DIFFERENT from the undisturbed run")

    def _kill(self, folder: Path, fleet: Fleet, chance: random.Random, counts: dict[str, int]) -> None:
        began, victims = time.time(), chance.choice([[0], [1], [0, 1]])
        if chance.random() < 0.5:  # at one of the next checkpoints
            target = newest(folder) + EVERY * chance.randint(1, 2)
            until(lambda: f"step-{target:08d}.tmp" in written_now(folder, began) or not fleet.running(), 20, 0.002)
            time.sleep(chance.uniform(0, 0.02))
        else:
            limit = time.monotonic() + chance.uniform(0.05, 5.0)
            until(lambda: time.monotonic() > limit or not fleet.running())
        writing = written_now(folder, began)
        pids = [pid for rank, pid in enumerate(fleet.statuses) if rank in victims and pid in fleet.running()]
        fleet.kill(pids)
        if pids:
            fleet.stop()
            counts["while a checkpoint is written" if writing else "at a random moment"] += 1

    def damage(self) -> Iterator[Row]:
        """The newest checkpoint's largest file loses its end, or one bit of it flips."""
        for name, spoil in (("truncated", lambda data: data[: len(data) // 2]), ("one bit flipped", flip)):
            folder = self.folder / name.replace(" ", "-")
            self._cut_off(folder, after=3 * EVERY + 2)
            step = newest(folder)
            file = max((folder / "checkpoints" / f"step-{step:08d}").iterdir(), key=lambda path: path.stat().st_size)
            file.write_bytes(spoil(file.read_bytes()))
            equal = self.goes_on(folder)
            told = f"step-{step:08d}: {file.name} is damaged; falling back" in said(folder)
            back = attempts(folder)["0"][-1] == STEPS and f"going on after step {step - EVERY}" in said(folder)
            yield Row(f"checkpoint file {name}", 1, equal and told and back, f"back from step {step} to {step - EVERY}, by itself")

    def _cut_off(self, folder: Path, after: int) -> None:
        """Run until step `after` is done, then kill."""
        fleet = Fleet.of_run(folder, Trouble(pause=0.05), attempt=-1)
        assert until(lambda: after in attempts(folder).get("-1", [])), said(folder)[-3000:]
        fleet.kill(fleet.running())
        fleet.wait()

    def disk(self) -> Iterator[Row]:
        """The disk is full while checkpoints are written, then there is room again; and it is full for everything."""
        for name, what in (("of the checkpoints", "checkpoints"), ("of the whole run", "")):
            folder = self.folder / f"disk-{what or 'run'}"
            with small_disk(folder, what) as disk:
                if disk is None:
                    yield Row(f"full disk {name}", 0, True, "skipped: needs the right to mount a tmpfs (root)")
                else:
                    yield self._full(f"full disk {name}", folder, disk, bool(what))

    def _full(self, name: str, folder: Path, disk: Path, only_checkpoints: bool) -> Row:
        fleet = Fleet.of_run(folder, Trouble(pause=0.05))
        assert until(lambda: newest(folder) >= 2 * EVERY), said(folder)[-3000:]
        fill(disk / "filler")
        if only_checkpoints:
            assert until(lambda: "not written" in said(folder)), said(folder)[-3000:]
            kept = newest(folder)
            (disk / "filler").unlink()
            good = fleet.wait() == [0, 0] and result(folder) == self.undisturbed()
            return Row(name, 1, good and kept >= 2 * EVERY, f"said so, kept step {kept} and went on; wrote again when there was room")
        statuses = fleet.wait()
        kept = newest(folder)
        (disk / "filler").unlink()
        good = 0 not in statuses and "No space left" in said(folder) and self.goes_on(folder)
        return Row(name, 1, good and kept >= 2 * EVERY, f"stopped with the reason, kept step {kept}; goes on when there is room")

    def numbers(self) -> Iterator[Row]:
        """One batch, and a stretch of batches, for which one module of one process gives not-a-numbers."""
        blame = f"first not finite: output of {GUILTY} on rank 1"
        once = Trouble(bad_data=(17,), pause=0.02)
        folder = self.folder / "one-bad-batch"
        fleet = Fleet.of_run(folder, once)
        until(lambda: 19 in attempts(folder).get("0", []))
        fleet.kill(fleet.running())
        fleet.wait()
        good = self.goes_on(folder, once, once)
        skipped = list(read_events(folder / "events.jsonl", "skipped"))
        good &= len(skipped) == 1 and blame in skipped[0]["reason"] and skipped[0]["step"] == 18
        good &= len(result(folder)[0]) == STEPS - 1
        yield Row("NaN in one batch", 1, good, "left out; names module and rank")
        stretch = Trouble(bad_data=(17, 18, 19, 20), pause=0.02)
        folder = self.folder / "bad-stretch"
        fleet = Fleet.of_run(folder, stretch)
        until(lambda: "back to step" in said(folder))
        fleet.kill(fleet.running())
        fleet.wait()
        good = self.goes_on(folder, stretch, stretch)
        back = list(read_events(folder / "events.jsonl", "rollback"))
        good &= [(event["step"], event["left_out"]) for event in back] == [(15, [17, 18, 19])] and blame in back[0]["reason"]
        good &= [event["position"] for event in read_events(folder / "events.jsonl", "skipped")] == [20]
        yield Row("NaN in four batches in a row", 1, good, "back to a checkpoint, their data left out, also after a kill")

    def hang(self) -> Iterator[Row]:
        """One process hangs: the watchdog ends both, and what torchrun does starts them again."""
        trouble = Trouble(hang=13, guards=GuardConfig(hang_seconds=4.0))
        folder = self.folder / "hang"
        fleet = Fleet()
        fleet.fork(folder, "agent", {}, lambda: agent(folder, trouble))
        good = fleet.wait() == [0] and result(folder) == self.undisturbed()
        told = said(folder)
        good &= "rank 1 hangs in step 13, loading its batch" in told and f"exitcode: {STATUS}" in told.replace("exitcode  :", "exitcode:")
        dumps = [(folder / "logs" / f"hang-rank{rank}.txt").read_text() for rank in range(2)]
        good &= "in __call__" in dumps[1] and "File" in dumps[0]
        good &= "all_reduce" in (folder / "logs" / "flight-rank0.json").read_text()
        yield Row("a rank hangs", 1, good, f"named with step, stacks and collectives dumped, status {STATUS}, restarted by torchrun")

    def restart(self) -> Iterator[Row]:
        """A process is killed under torchrun's agent; then a whole agent, so that one process is left."""
        folder = self.folder / "restart"
        fleet = Fleet()
        fleet.fork(folder, "agent", {}, lambda: agent(folder, Trouble(pause=0.1)))
        assert until(lambda: 7 in [step for steps in attempts(folder).values() for step in steps]), said(folder)[-3000:]
        workers = children(next(iter(fleet.statuses)))
        fleet.kill(workers[1:])
        good = fleet.wait() == [0] and result(folder) == self.undisturbed() and len(attempts(folder)) == 2
        yield Row("kill -9 under torchrun --max-restarts", 1, good, "restarted by torchrun, equal to the bit")
        folder = self.folder / "fewer"
        fleet, port = Fleet(), free_port()
        agents = [fleet.fork(folder, f"agent{n}", {}, lambda: agent(folder, Trouble(pause=0.1), 2, port)) for n in range(2)]
        assert until(lambda: 7 in [step for steps in attempts(folder).values() for step in steps]), said(folder)[-3000:]
        fleet.kill([agents[1], *children(agents[1])])
        statuses = fleet.wait()
        sizes = [json.loads(line)["size"] for line in (folder / "ledger.jsonl").read_text().splitlines()]
        found, expected = result(folder)[0], self.undisturbed()[0]
        good = 0 in statuses and sizes[0] == 2 and sizes[-1] == 1 and [e[3] for e in found] == [e[3] for e in expected]
        apart = max(abs(one[1] - other[1]) for one, other in zip(found, expected, strict=False))
        yield Row("one of two machines is lost", 1, good and apart < 1e-4, f"goes on with 1 process; same data, losses within {apart:.0e}")

    def stop(self) -> Iterator[Row]:
        """SIGTERM to one process: all stop after a checkpoint."""
        folder = self.folder / "stopped"
        fleet = Fleet.of_run(folder, Trouble(pause=0.05))
        until(lambda: 12 in attempts(folder).get("0", []))
        fleet.kill(list(fleet.statuses)[1:], signal.SIGTERM)
        statuses, last = fleet.wait(), attempts(folder)["0"][-1]
        good = statuses == [0, 0] and newest(folder) == last < STEPS and f"stopped after step {last}" in said(folder)
        yield Row("SIGTERM to one rank", 1, good and self.goes_on(folder), f"both stop with status 0 and a checkpoint of step {last}")

    def slow(self) -> Iterator[Row]:
        """One process loads its data slowly."""
        folder = self.folder / "slow"
        Fleet.of_run(folder, Trouble(slow=0.05, guards=GuardConfig(slow_every=15))).wait()
        events = [event for event in read_events(folder / "events.jsonl", "slow") if event["what"] == "loading"]
        good = [list(event["seconds"]) for event in events] == [["1"], ["1"]] and result(folder) == self.undisturbed()
        yield Row("a rank loads slowly", 1, good, "reported by name and by what it is slow at")


def written_now(folder: Path, since: float) -> list[str]:
    """Return the names of checkpoints that are being written, without what killed attempts before `since` have left."""
    found = []
    for path in (folder / "checkpoints").glob("*.tmp"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime > since:
                found.append(path.name)
    return found


def flip(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 4
    return bytes(changed)


def agent(folder: Path, trouble: Trouble, machines: int = 1, port: int = 0) -> None:
    """What `torchrun --max-restarts 3` does, with forked workers: a machine of two, or one of two of which either may be lost."""
    settings = {"timeout": 60, "last_call_timeout": 1, "keep_alive_interval": 1, "keep_alive_max_attempt": 2, "read_timeout": 5}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=machines,
        nproc_per_node=2 // machines,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint=f"localhost:{port}",
        rdzv_configs=settings,
        local_addr="localhost",
        max_restarts=3,
        start_method="fork",
        shutdown_timeout=5,
    )
    elastic_launch(config, work)(folder, trouble)


def children(pid: int) -> list[int]:
    """Return the children of a process, oldest first."""
    return [int(number) for task in Path(f"/proc/{pid}/task").iterdir() for number in (task / "children").read_text().split()]


@contextmanager
def small_disk(folder: Path, what: str) -> Iterator[Path | None]:
    """Mount a small tmpfs at `folder`/`what`; None without the right to."""
    place = folder / what
    place.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(file: Path) -> None:
    """Leave no room on the disk of `file`."""
    with file.open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(1 << 12))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[1])
    kinds = ["kill", "damage", "disk", "numbers", "hang", "restart", "stop", "slow"]
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=kinds, default=kinds)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    options = parser.parse_args()
    began, rows = time.monotonic(), []
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    faults = Faults(folder, options.kills, options.seed)
    try:
        for kind in options.only:
            for row in getattr(faults, kind)():
                rows.append(row)
                print(f"{row.fault:<38} {row.times:>4}  {'good' if row.good else 'BAD':<4}  {row.found}", flush=True)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    good = all(row.good for row in rows)
    steps = f"{STEPS} steps, a checkpoint every {EVERY}, 2 processes"
    print(f"{'all good' if good else 'NOT ALL GOOD'}; {steps}; {duration(time.monotonic() - began)}{f'; {folder}' if options.keep else ''}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
