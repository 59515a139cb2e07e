"""OMP_NUM_THREADS=1 python -m pytest tests/test_guards.py

What keeps long runs alive: steps left out, the way back, checkpoints of everything, signals; and what one sees of a run. Several processes
are killed, hung and misled by benchmarks/faults.py, of which the last test runs a part.
"""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed import FileStore

from openmai.base.artifact import create
from openmai.base.errors import OpenmaiError
from openmai.base.events import Events, read_events
from openmai.infer.load import load_model
from openmai.model.config import ModelConfig, MoEConfig
from openmai.model.transformer import Transformer
from openmai.parallel.processes import Processes
from openmai.parallel.team import Team
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.train import checkpoints as module
from openmai.train.checkpoints import Checkpoints, scratch
from openmai.train.config import ConsolidateConfig, GuardConfig, LoopConfig, OptimizerConfig, ScheduleConfig
from openmai.train.consolidate import consolidate
from openmai.train.guards import Guards, Spikes, Stop, find_non_finite
from openmai.train.loop import NextToken, Step, train
from openmai.train.sight import Sight
from openmai.train.stream import TokenStream, row_digests
from openmai.train.tensorboard import _TABLE, TensorBoard, _checksum
from openmai.train.watchdog import STATUS, Watchdog

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY, CONTEXT, ROWS = 48, 12, 4
MODEL = ModelConfig(
    vocab_size=VOCABULARY,
    num_layers=2,
    width=16,
    num_heads=2,
    ffn_width=24,
    context=CONTEXT,
    moe=MoEConfig(num_experts=4, num_active=2, expert_width=8, score="sigmoid", bias_rate=0.01, first_dense=1),
)
GUARDS = GuardConfig(window=16)
SPIKE = "blocks.1.attention.o"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Batches:
    """Batches as a pure function of the position; remembers the latest one."""

    position = -1

    def __call__(self, step: int) -> list[dict[str, Tensor]]:
        self.position = step
        tokens = torch.randint(VOCABULARY, (ROWS, CONTEXT + 1), generator=torch.Generator().manual_seed(step))
        return [{"ids": part[:, :-1], "targets": part[:, 1:]} for part in tokens.split(2)]


class Spoilt(NextToken):
    """Multiplies the loss at some positions."""

    def __init__(self, batches: Batches, factors: dict[int, float]) -> None:
        self.batches, self.factors = batches, factors

    def loss(self, model: Transformer, micro: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, extra = super().loss(model, micro)
        return loss * self.factors.get(self.batches.position, 1.0), extra


def run(folder: Path, factors: dict[int, float] | None = None, hooks: Any = (), steps: int = 24, **loop: Any) -> tuple[Transformer, list]:
    folder.mkdir(exist_ok=True)
    model = Transformer(MODEL)
    model.initialize(3)
    batches = Batches()
    settings = LoopConfig(**{"steps": steps, "checkpoint_every": 4, "guards": GUARDS, **loop})
    objective = Spoilt(batches, factors or {})
    train("test", model, batches, objective, folder, settings, OptimizerConfig(), ScheduleConfig(warmup=2), hooks)
    return model, list(read_events(folder / "events.jsonl"))


def of_kind(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["kind"] == kind]


def timeless(events: list[dict]) -> list[dict]:
    return [{name: value for name, value in event.items() if name != "seconds"} for event in events if event["kind"] != "speed"]


def weights(model: Transformer) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Killed(Exception):
    pass


def at(number: int, do: Callable[[Step], Any]) -> Callable[[Step], None]:
    def hook(step: Step) -> None:
        if step.number == number:
            do(step)

    return hook


def kill(step: Step) -> None:
    raise Killed


# ------------------------------------------------------------------------------------------------------------------- steps left out


def test_spikes_are_judged_by_the_figures_before() -> None:
    spikes = Spikes(GuardConfig(window=8, sigmas=3.0))
    losses = [2.0, 2.1, 1.9, 2.05, 1.95]
    assert not any(spikes.judge(loss, 1.0 + loss) for loss in losses)
    limit = statistics.fmean(losses) + 3 * statistics.stdev(losses)
    assert not Spikes(GuardConfig(window=8)).judge(1e9, 1e9)  # nothing to compare with yet
    assert "loss" in spikes.judge(limit + 1e-6, 3.0)
    assert spikes.seen["loss"][-1] == limit + 1e-6  # counts from now on, as in OLMo-core
    assert not spikes.judge(-100.0, 3.0)  # a fall is no spike
    assert spikes.judge(math.nan, 3.0) == "loss nan"
    assert math.nan not in spikes.seen["loss"]
    off = Spikes(GuardConfig(window=4, sigmas=None))
    assert [off.judge(value, value) for value in (1.0, 1.0, 1.0, 50.0)] == ["", "", "", ""]
    assert off.judge(math.inf, 1.0) == "loss inf"


def test_a_spike_changes_nothing(tmp_path: Path) -> None:
    seen: dict[int, list[Tensor]] = {}
    _, events = run(tmp_path / "run", {14: 60.0}, [lambda step: seen.update({step.number: weights(step.model)})])
    assert [(event["step"], event["position"]) for event in of_kind(events, "skipped")] == [(15, 14)]
    assert "loss" in of_kind(events, "skipped")[0]["reason"]
    assert [event["step"] for event in of_kind(events, "train")] == [*range(1, 15), *range(16, 25)]
    assert same(seen[14], seen[15])
    assert not same(seen[15], seen[16])


def test_after_several_the_run_goes_back_and_leaves_their_data_out(tmp_path: Path) -> None:
    bad = {14: 50.0, 15: 400.0, 16: 4000.0}
    _, events = run(tmp_path / "run", bad)
    assert [(event["step"], event["left_out"]) for event in of_kind(events, "rollback")] == [(12, [14, 15, 16])]
    assert [event["step"] for event in of_kind(events, "train")] == list(range(1, 25))
    assert not of_kind(events, "skipped")  # they are gone with the steps after the checkpoint
    stream = TokenStream(Processes())
    expected = [stream.add(Batches()(position)) for position in [*range(14), *range(17, 27)]]
    assert [event["stream"] for event in of_kind(events, "train")] == expected

    def look_back(step: Step) -> None:
        if any(event["kind"] == "rollback" for event in read_events(tmp_path / "cut" / "events.jsonl")):
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "cut", bad, [look_back])  # before a checkpoint after the way back
    _, resumed_events = run(tmp_path / "cut", bad)
    assert timeless(resumed_events) == timeless(events)


def test_batches_before_the_bad_ones_can_be_left_out_too(tmp_path: Path) -> None:
    guards = GuardConfig(window=16, patience=2, before=3)
    _, events = run(tmp_path / "run", {14: 50.0, 15: 900.0}, guards=guards)
    assert [(event["step"], event["left_out"]) for event in of_kind(events, "rollback")] == [(8, [11, 12, 13, 14, 15])]


def test_what_stays_high_is_taken_as_usual(tmp_path: Path) -> None:
    """A new level of loss, as at the change of a mixture, costs the data of two ways back and not the run."""
    guards = GuardConfig(window=16, patience=1, rollbacks=2)
    _, events = run(tmp_path / "run", dict.fromkeys(range(14, 99), 30.0), guards=guards)
    assert [event["left_out"] for event in of_kind(events, "rollback")] == [[14], [15]]
    assert of_kind(events, "train")[-1]["step"] == 24


def test_not_a_numbers_that_stay_end_the_run(tmp_path: Path) -> None:
    guards = GuardConfig(window=16, patience=1, rollbacks=1)
    with pytest.raises(OpenmaiError, match=r"step 9: .*going back 1 times did not help; lower the learning rate"):
        run(tmp_path / "run", dict.fromkeys(range(9, 99), math.nan), guards=guards)
    with pytest.raises(OpenmaiError, match=r"step 3: loss nan.*; there is no checkpoint to go back to"):
        run(tmp_path / "early", {2: math.nan}, guards=guards)
    with pytest.raises(OpenmaiError, match="no checkpoint to go back to"):
        run(tmp_path / "far", {5: math.nan}, guards=GuardConfig(patience=1, before=3))
    assert steps_kept(tmp_path / "far") == ["step-00000004"]  # what does not help is not thrown away


def test_positions_pass_over_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "left_out.json").write_text(
        json.dumps([{"step": 6, "positions": [7, 8], "reason": ""}, {"step": 3, "positions": [3], "reason": ""}])
    )
    guards = Guards(GUARDS, tmp_path / "left_out.json", Processes())
    assert [guards.position(step) for step in range(7)] == [0, 1, 2, 4, 5, 6, 9]


# --------------------------------------------------------------------------------------------------------------------- who is to blame


def blame(spoil: Callable[[Transformer], Any]) -> tuple[str, bool]:
    model = Transformer(MODEL)
    model.initialize(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    spoil(model)
    model.train()

    def again() -> float:
        loss, _ = NextToken().loss(model, Batches()(0)[0])
        (loss + model.take_penalty()).backward()
        return loss.item()

    loads = [router.load_E.clone() for router in model.routers()]
    found = find_non_finite(model, again, Processes())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert same(loads, [router.load_E for router in model.routers()])
    return found


class _Broken(torch.autograd.Function):
    """Whole forward, not-a-numbers backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * math.nan


def test_what_is_not_finite_is_found() -> None:
    def output(model: Transformer) -> None:
        model.get_submodule(SPIKE).register_forward_hook(lambda module, inputs, output: output / 0)

    def backward(model: Transformer) -> None:
        model.get_submodule("blocks.0.mlp").register_forward_hook(lambda module, inputs, output: _Broken.apply(output))

    def weight(model: Transformer) -> None:
        with torch.no_grad():
            model.blocks[1].mlp.experts.up_EFD[2, 0, 0] = math.inf  # type: ignore[union-attr]

    assert blame(output) == (f"first not finite: output of {SPIKE} on rank 0", False)
    assert blame(backward) == ("first not finite: gradient of the output of blocks.0.mlp.down on rank 0", False)
    assert blame(weight) == ("first not finite: weight blocks.1.mlp.experts.up_EFD on rank 0", True)
    assert blame(lambda model: None)[0].startswith("computed again everything is finite")


def test_broken_weights_are_not_trained_on(tmp_path: Path) -> None:
    """They cannot be skipped over: the run goes back at once."""
    once = iter([True])

    def break_weights(step: Step) -> None:
        if next(once, False):
            with torch.no_grad():
                step.model.blocks[0].attention.o.weight[0, 0] = math.nan

    _, events = run(tmp_path / "run", hooks=[at(9, break_weights)], steps=16)
    back = of_kind(events, "rollback")
    assert [(event["step"], event["left_out"]) for event in back] == [(8, [9])]
    assert "weight blocks.0.attention.o.weight on rank 0" in back[0]["reason"]
    assert math.isfinite(of_kind(events, "train")[-1]["loss"])


# -------------------------------------------------------------------------------------------------------------------------- checkpoints


def steps_kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_newest_and_every_so_many_stay(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=24, checkpoint_every=2, keep=2, keep_every=8)
    assert steps_kept(tmp_path / "run") == ["step-00000008", "step-00000016", "step-00000020", "step-00000022"]
    assert scratch(tmp_path / "run", 0) == ["checkpoints"]
    assert sorted(scratch(tmp_path / "run", 8)) == ["checkpoints/step-00000020", "checkpoints/step-00000022"]
    run(tmp_path / "front", steps=8, background=False)
    assert steps_kept(tmp_path / "front") == ["step-00000004"]


class Noisy(Spoilt):
    """Draws from all random generators."""

    def loss(self, model: Transformer, micro: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, extra = super().loss(model, micro)
        return loss * (1 + 0.1 * (random.random() + np.random.rand() + torch.rand(()).item())), extra


def test_random_generators_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "Spoilt", Noisy)

    def seed() -> None:
        random.seed(5), np.random.seed(5), torch.manual_seed(5)

    seed()
    whole, _ = run(tmp_path / "whole", steps=10)
    seed()
    with pytest.raises(Killed):
        run(tmp_path / "cut", hooks=[at(6, kill)], steps=10)
    resumed, _ = run(tmp_path / "cut", steps=10)
    assert same(weights(whole), weights(resumed))


def test_a_full_disk_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole, _ = run(tmp_path / "whole", steps=12)
    write, full = module.dcp.save, iter([False, True, True])

    def save(state: Any, checkpoint_id: Path, **options: Any) -> None:
        write(state, checkpoint_id=checkpoint_id, **options)
        if next(full, False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(checkpoint_id / "__0_0.distcp"))

    monkeypatch.setattr(module.dcp, "save", save)
    with pytest.raises(Killed):
        run(tmp_path / "run", hooks=[at(11, kill)], steps=12)
    said = capsys.readouterr().err
    assert "checkpoint of step 8 not written" in said
    assert "No space left on device; training goes on, step-00000004 is kept" in said
    assert steps_kept(tmp_path / "run") == ["step-00000004"]
    resumed, _ = run(tmp_path / "run", steps=12)
    assert "going on after step 4" in capsys.readouterr().err
    assert same(weights(whole), weights(resumed))


def test_a_run_that_stops_without_a_checkpoint_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.dcp, "save", save)
    with pytest.raises(OpenmaiError, match="stopped without a checkpoint of step 3"):
        run(tmp_path / "run", hooks=[at(2, lambda step: os.kill(os.getpid(), signal.SIGTERM))], steps=5)


def test_a_truncated_checkpoint_is_put_aside_and_not_counted(tmp_path: Path) -> None:
    """Else, with keep=1, the good one would be the one that goes."""
    with pytest.raises(Killed):
        run(tmp_path / "run", hooks=[at(10, kill)])
    file = tmp_path / "run" / "checkpoints" / "step-00000008" / "run.json"
    file.write_bytes(file.read_bytes()[:-10])
    model = Transformer(MODEL)
    saved = Checkpoints(tmp_path / "run" / "checkpoints", keep=1).restore(model, [])
    assert saved is not None
    assert saved.step == 4
    assert steps_kept(tmp_path / "run") == ["step-00000004", "step-00000008.damaged"]


def test_other_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "run", hooks=[at(6, kill)])
    monkeypatch.setattr(Batches, "__call__", lambda self, step, given=Batches.__call__: given(self, step + 1))
    with pytest.raises(OpenmaiError, match=r"step 4 was trained on other data than are loaded for it now; put the data back"):
        run(tmp_path / "run")


def test_the_hash_is_that_of_the_rows_in_their_order() -> None:
    class Two(Processes):
        def gather_bytes(self, data: bytes) -> list[bytes]:
            return [*parts, data]

    batch = Batches()(0)
    alone = TokenStream(Processes()).add(batch)
    parts: list[bytes] = []
    second = TokenStream(Two(), (1, 2))
    monkey = second.processes.gather_bytes
    assert monkey(b"x") == [b"x"]
    parts.append((0).to_bytes(8, "little") + row_digests(batch[:1]))
    assert second.add(batch[1:]) == alone
    assert TokenStream(Processes()).add(batch[::-1]) != alone


def test_a_checkpoint_becomes_a_model(tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, list[Tensor]] = {}
    size = Tokenizer.load(tiny_tokenizer).vocab_size
    monkeypatch.setattr(sys.modules[__name__], "MODEL", MODEL.model_copy(update={"vocab_size": size}))
    with pytest.raises(Killed):
        run(tmp_path / "run", hooks=[at(4, lambda step: kept.update({4: weights(step.model)})), at(6, kill)])
    vocabulary = tmp_path / "tokenizer"
    with create(vocabulary, kind="tokenizer", version=1, config=GUARDS) as work:
        for file in tiny_tokenizer.iterdir():
            (work.path / file.name).write_bytes(file.read_bytes())
        work.finish({})
    made = consolidate(ConsolidateConfig(run=tmp_path / "run", tokenizer=vocabulary, out=tmp_path / "model"))
    found = dict(load_model(made.path).state_dict())
    expected = dict(zip(Transformer(MODEL).state_dict(), kept[4], strict=True))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004"
    (checkpoint / "model.json").write_text("{}")
    with pytest.raises(OpenmaiError, match=r"model\.json is damaged"):
        consolidate(ConsolidateConfig(run=checkpoint, tokenizer=vocabulary, out=tmp_path / "again"))


# ------------------------------------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_after_a_checkpoint(number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole, _ = run(tmp_path / "whole", steps=10)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        run(tmp_path / "run", hooks=[at(5, lambda step: os.kill(os.getpid(), number))], steps=10)
    assert end.value.code == 0
    assert signal.getsignal(number) == before
    said = capfd.readouterr().err
    name = signal.Signals(number).name
    assert f"{name}: stopping after this step" in said
    assert f"stopped after step 6 by {name}; the same command goes on" in said
    assert steps_kept(tmp_path / "run") == ["step-00000004", "step-00000006"]
    resumed, _ = run(tmp_path / "run", steps=10)
    assert same(weights(whole), weights(resumed))


def test_a_signal_in_the_last_step_changes_nothing(tmp_path: Path) -> None:
    _, events = run(tmp_path / "run", hooks=[at(5, lambda step: os.kill(os.getpid(), signal.SIGTERM))], steps=6)
    assert of_kind(events, "train")[-1]["step"] == 6


def test_a_second_signal_stops_at_once() -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wished == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# -------------------------------------------------------------------------------------------------------------------------------- sight


def test_speed_norms_and_profile_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    norms: dict[int, float] = {}
    _, events = run(tmp_path / "run", steps=8, speed_every=4, norms_every=3, profile=(2, 3), peak_flops=1e9)
    speed = of_kind(events, "speed")
    assert [event["step"] for event in speed] == [4, 8]
    assert all(event["tokens_per_second"] > 0 and 0 < event["mfu"] < 10 and event["memory"] > 1e7 for event in speed)
    found = of_kind(events, "norms")
    assert [event["step"] for event in found] == [3, 6]
    for event in found:
        assert set(event["gradient"]) == set(event["activation"]) == {"blocks.0", "blocks.1"}
        norms[event["step"]] = sum(value**2 for value in event["gradient"].values()) ** 0.5
        total = next(e["grad_norm"] for e in of_kind(events, "train") if e["step"] == event["step"])
        assert 0 < norms[event["step"]] < total  # the rest is embedding, norm and head
    trace = json.loads((tmp_path / "run" / "logs" / "profile-rank0.json").read_text())
    assert any("aten::mm" in str(event.get("name")) for event in trace["traceEvents"])
    assert "mfu" in capsys.readouterr().err


def test_a_slow_process_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Three(Processes):
        def gather(self, value: Any) -> list[Any]:
            loading, computing = value
            return [(loading, computing), (loading, computing), (loading + 0.5, computing)]

    events = Events(tmp_path / "events.jsonl")
    team = Team.alone()
    team.processes = Three(0, 3)
    sight = Sight(Transformer(MODEL), LoopConfig(steps=9, guards=GuardConfig(slow_every=2)), team, tmp_path, events)
    for number in (1, 2):
        sight.loaded(0.02)
        sight.after(number, 10, 1.0, Batches()(0))
    (found,) = read_events(tmp_path / "events.jsonl", "slow")
    assert (found["step"], found["what"], found["usual"]) == (2, "loading", 0.02)
    assert found["seconds"] == {"2": pytest.approx(0.52)}
    assert "step 2: rank 2 is slow at loading: 0.52 s, usual is 0.02 s" in capsys.readouterr().err


def test_a_hang_is_ended_with_stacks_and_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes; the second hangs in loading, the first waits for it. benchmarks/faults.py does it to a whole run."""
    monkeypatch.setattr("torch.distributed.distributed_c10d._get_default_store", lambda: FileStore(str(tmp_path / "store"), 2))
    children = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                sys.stderr = (tmp_path / f"said{rank}").open("w")
                with Watchdog(1.0, tmp_path / "logs", Processes(rank, 2)) as watchdog:
                    watchdog.beat(7, "loading its batch")
                    if rank == 0:
                        watchdog.beat(7, "computing gradients")
                    time.sleep(60)
            finally:
                os._exit(1)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [STATUS, STATUS]
    for rank in range(2):
        said = (tmp_path / f"said{rank}").read_text()
        assert f"rank {rank}: nothing has moved for" in said
        assert "rank 1 hangs in step 7, loading its batch" in said
        assert "test_a_hang_is_ended" in (tmp_path / "logs" / f"hang-rank{rank}.txt").read_text()
        assert "version" in json.loads((tmp_path / "logs" / f"flight-rank{rank}.json").read_text())


def test_a_watchdog_that_is_fed_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.distributed_c10d._get_default_store", lambda: FileStore(str(tmp_path / "store"), 1))
    with Watchdog(0.4, tmp_path / "logs", Processes(0, 2)) as watchdog:
        for step in range(8):
            watchdog.beat(step, "working")
            time.sleep(0.1)
        assert watchdog.verdict().startswith("nothing has moved")
    assert list((tmp_path / "logs").iterdir()) == []


def scalars(file: Path) -> dict[str, list[tuple[int, float]]]:
    """Read an event file: frames of length, checksum, message, checksum; messages as in tensorboard's event.proto."""
    data, found = file.read_bytes(), {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        message = data[12 : 12 + length]
        assert data[8:12] == _checksum(data[:8])
        assert data[12 + length : 16 + length] == _checksum(message)
        data = data[16 + length :]
        fields = dict(parse(message))
        for _, value in parse(fields.get(5, b"")):
            inner = dict(parse(value))
            found.setdefault(inner[1].decode(), []).append((fields[2], struct.unpack("<f", inner[2])[0]))
    return found


def parse(data: bytes) -> Any:
    while data:
        key, data = varint(data)
        if key & 7 == 0:
            value, data = varint(data)
        elif key & 7 == 2:
            length, data = varint(data)
            value, data = data[:length], data[length:]
        else:
            size = {1: 8, 5: 4}[key & 7]
            value, data = data[:size], data[size:]
        yield key >> 3, value


def varint(data: bytes) -> tuple[int, bytes]:
    value = shift = 0
    while True:
        byte, data = data[0], data[1:]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, data


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    crc = 0xFFFFFFFF
    for byte in b"123456789":
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    assert crc ^ 0xFFFFFFFF == 0xE3069283  # the check value of CRC-32C (RFC 3720, appendix B.4)
    _, events = run(tmp_path / "run", steps=3, tensorboard=True)
    (file,) = (tmp_path / "run" / "logs" / "tensorboard").iterdir()
    written = scalars(file)
    assert written["train/loss"] == [(event["step"], pytest.approx(event["loss"])) for event in of_kind(events, "train")]
    assert len(written["train/expert_load/0/3"]) == 3
    assert {"speed/mfu", "train/grad_norm", "train/lr"} <= set(written)
    assert "train/stream" not in written
    TensorBoard(tmp_path, 0).write("left out", {"loss": 1.0})  # no step, nowhere to put it


def test_a_run_outlives_its_processes(tmp_path: Path) -> None:
    """One is killed under torchrun's agent, then one of two agents; the other faults and their table: python benchmarks/faults.py."""
    command = [sys.executable, "benchmarks/faults.py", "--only", "restart", "--json", str(tmp_path / "table.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["fault"] for row in rows] == ["kill -9 under torchrun --max-restarts", "one of two machines is lost"]
    assert all(row["good"] for row in rows)
    assert rows[1]["found"].startswith("goes on with 1 process; same data")
