"""python benchmarks/vs_nanochat.py --nanochat DIR --run runs/laptop [--seconds 1800] [--seeds 3] [--ours JSON] [--theirs JSON]

Validation bits per byte of openmai's base model and nanochat's after the same time on the same text: the shards and the tokenizer of a
finished run (`openmai run recipes/laptop.yaml`), so text, split, tokenizer and vocabulary are the same for both.

DIR is a checkout of karpathy/nanochat (nothing of it is here). Its model, optimizer and packing loader run as they are, under the
schedules, scaling laws and compilation of its scripts/base_train.py. Both sides of a seed run at the same time on one core each, which
they exchange from seed to seed: they begin together once both have compiled, and each stops after the same CPU seconds of training, its
schedule following that clock. What else the machine does meets both alike. Compilation, loading and validation do not count, for neither
side. Settings that a side is not given are those found best for it (docs/LOG.md).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openmai.base.artifact import Artifact
from openmai.base.config import merge
from openmai.model.loss import token_nats
from openmai.model.transformer import Transformer, num_parameters
from openmai.tokenizer.shards import Shard
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.train.config import PretrainConfig
from openmai.train.dial import turn
from openmai.train.loader import Mixture, PretrainBatches
from openmai.train.loop import NextToken, Step, prepare_cpu, train

CONTEXT = 512
# The law `nanochat` with the rates of half a million tokens at this batch, as THEIRS has them; what is left out follows from the law.
OURS: dict[str, Any] = {
    "depth": 3,
    "family": "speed",
    "batch_rows": 4,
    "micro_rows": 4,
    "packing": "none",
    "document_masks": False,
    "optimizer": {
        "lr": 0.02,
        "per_head": True,
        "weight_decay": 0.7,
        "embedding_lr": 0.3,
        "head_lr": 0.008,
        "other_lr": 0.01,
        "groups": {
            "value_embedding": {"lr": 0.15},
            "embedding_scale": {"lr": 0.5},
            "stream_scale": {"lr": 0.001},
            "scalar": {"lr": 0.5},
        },
    },
    "loop": {"compile": True},
}
THEIRS = {"depth": 3, "rows": 4, "head": 64, "lr": 16.0, "loader": "stream", "compile": True}


class Text:
    """The shards of a run: documents to train on, one stream to validate on."""

    def __init__(self, run: Path) -> None:
        self.shards = shards = Artifact.load(run / "shards", "shards")
        self.tokenizer = Tokenizer.load(run / "tokenizer")
        train, val = shards.metrics["splits"]["train"], shards.metrics["splits"]["val"]
        self.end = self.tokenizer.end_of_text
        self.documents = [ids for name in train for ids in Shard(shards.path / f"train-{name}").documents()]
        self.validation = np.concatenate([Shard(shards.path / f"val-{name}").tokens for name in val if val[name]["tokens"]])
        self.bytes = sum(count["bytes"] for count in val.values())

    def bits_per_byte(self, nats: Callable[[Tensor, Tensor], Tensor]) -> float:
        """Return bits per validation byte: `nats` (B, T) of targets by ids, over windows of CONTEXT; end-of-text is not counted."""
        total = 0.0
        whole = (len(self.validation) - 1) // CONTEXT * CONTEXT
        windows = torch.from_numpy(self.validation[: whole + 1].astype(np.int64))
        ids, targets = windows[:-1].view(-1, CONTEXT), windows[1:].view(-1, CONTEXT)
        for part, wanted in zip(ids.split(8), targets.split(8), strict=True):
            total += (nats(part, wanted).view_as(wanted) * (wanted != self.end)).sum().item()
        return total / math.log(2) / (self.bytes * whole / (len(self.validation) - 1))


def meet() -> None:
    """Wait until the other side is ready to train as well."""
    print("ready", flush=True)
    sys.stdin.readline()


def theirs(folder: Path, text: Text, seed: int, seconds: float, settings: dict[str, Any]) -> dict[str, Any]:
    """Train nanochat as its scripts/base_train.py does, for `seconds` instead of a number of steps."""
    sys.path.insert(0, str(folder))
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    rows, depth = settings["rows"], settings["depth"]

    def config(depth: int) -> Any:
        width = -(-depth * 64 // settings["head"]) * settings["head"]
        heads = width // settings["head"]
        return GPTConfig(CONTEXT, text.tokenizer.vocab_size, depth, heads, heads, width, "L")

    def scaling(model: Any) -> int:
        counts = model.num_scaling_params()
        return counts["transformer_matrices"] + counts["lm_head"]

    model = GPT(config(depth)).train()
    model.init_weights()
    with torch.device("meta"):
        horizon = scaling(GPT(config(12))) / scaling(model)
    batch = rows * CONTEXT / 2**19
    decay = settings.get("decay", 1.0) * 0.28 * math.sqrt(batch) * horizon
    lr = settings["lr"] * math.sqrt(batch)
    run = torch.compile(model, dynamic=False) if settings["compile"] else model

    def optimizer() -> Any:
        return model.setup_optimizer(
            unembedding_lr=0.008 * lr, embedding_lr=0.3 * lr, scalar_lr=0.5 * lr, matrix_lr=0.02 * lr, weight_decay=decay
        )

    batches = packed(text, rows, seed) if settings["loader"] == "bestfit" else streamed(text, rows, seed)
    step_with = optimizer()
    for _ in range(3):  # compile, then begin anew
        run(*next(batches)).backward()
        step_with.step()
        model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    model.init_weights()
    step_with = optimizer()
    meet()
    began, step, used = time.process_time(), 0, 0.0
    while used < seconds:
        done = used / seconds
        warm = min(1.0, (step + 1) / 40)
        factor = warm if warm < 1 else min(1.0, (1 - done) / 0.65 * 0.95 + 0.05)
        momentum = 0.85 + 0.12 * step / 400 if step < 400 else 0.97
        if step >= 400 and done > 0.35:
            momentum = 0.97 - 0.07 * (done - 0.35) / 0.65
        for group in step_with.param_groups:
            group["lr"] = group["initial_lr"] * factor
            if group["kind"] == "muon":
                group["momentum"], group["weight_decay"] = momentum, decay * 0.5 * (1 + math.cos(math.pi * done))
        run(*next(batches)).backward()
        step_with.step()
        model.zero_grad(set_to_none=True)
        step, used = step + 1, time.process_time() - began
    model.eval()
    with torch.no_grad():
        bpb = text.bits_per_byte(lambda ids, targets: model(ids, targets, loss_reduction="none"))
    return {
        "bpb": bpb,
        "steps": step,
        "tokens": step * rows * CONTEXT,
        "cpu_seconds": used,
        "parameters": model.num_scaling_params()["total"],
    }


def packed(text: Text, rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """nanochat's own loader, fed with the ids of shuffled documents in place of its Parquet files."""
    from nanochat import dataloader  # type: ignore[import-not-found]

    random = np.random.default_rng(seed)

    def documents(*_: Any) -> Iterator[tuple[list[np.ndarray], tuple[int, int, int]]]:
        epoch = 0
        while True:
            order = random.permutation(len(text.documents))
            for start in range(0, len(order), 64):
                yield [text.documents[index] for index in order[start : start + 64]], (0, 0, epoch)
            epoch += 1

    class Encoded:
        def get_bos_token_id(self) -> int:
            return text.end

        def encode(self, documents: list[np.ndarray], prepend: int, num_threads: int) -> list[list[int]]:
            return [[prepend, *document[:-1].tolist()] for document in documents]

    dataloader._document_batches = documents
    wanted = min(1000, len(text.documents))
    loader = dataloader.tokenizing_distributed_data_loader_bos_bestfit(Encoded(), rows, CONTEXT, "train", device="cpu", buffer_size=wanted)
    for ids, targets in loader:
        yield ids.clone(), targets.clone()


def streamed(text: Text, rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of the joined documents in a new order every epoch: what nanochat advises for little text in long documents."""
    random = np.random.default_rng(seed)
    stream = np.concatenate(text.documents).astype(np.int64)
    while True:
        order = random.permutation((len(stream) - 1) // CONTEXT)
        for start in range(0, len(order) - rows + 1, rows):
            windows = torch.from_numpy(np.stack([stream[i * CONTEXT : i * CONTEXT + CONTEXT + 1] for i in order[start : start + rows]]))
            yield windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def ours(text: Text, seed: int, seconds: float, settings: dict[str, Any]) -> dict[str, Any]:
    """Train with the engine of `train pretrain`, for `seconds` instead of a number of steps."""
    config = PretrainConfig.model_validate(
        merge({"shards": text.shards.path, "tokenizer": "", "out": "", "context": CONTEXT, "loop": {"seed": seed}}, settings)
    )
    shape = config.architecture(text.tokenizer.vocab_size)

    def run(steps: int, seconds: float = math.inf, usual: float = 0.0) -> tuple[Transformer, int, list[float]]:
        chosen, _ = turn(config.model_copy(update={"loop": config.loop.model_copy(update={"steps": steps})}), text.tokenizer.vocab_size)
        assert chosen.batch_rows
        assert chosen.micro_rows
        mixture = Mixture.open(text.shards, CONTEXT, config.upsample, seed, config.packing, config.document_masks)
        batches = PretrainBatches(mixture, chosen.batch_rows, chosen.micro_rows)
        model = Transformer(shape)
        model.initialize(seed)
        loop = chosen.loop.model_copy(update={"checkpoint_every": 10 * steps})
        clock: list[float] = []

        def look(step: Step) -> None:
            now = time.process_time()
            clock.extend([now] if clock else [now - usual, now])  # the first step compiled: it counts as a usual one
            used = now - clock[0]
            if seconds < math.inf and (step.number % 20 == 0 or used >= seconds):
                # configurations are frozen for everyone else: here the number of steps is what the clock says
                left = max(0, round((seconds - used) / used * step.number))
                object.__setattr__(loop, "steps", step.number + left)

        with tempfile.TemporaryDirectory() as folder:
            train("ours", model, batches, NextToken(), Path(folder), loop, chosen.optimizer, chosen.schedule, [look])
        return model, chosen.batch_rows, clock

    _, _, clock = run(60)
    usual = statistics.median(after - before for before, after in pairwise(clock))
    meet()
    model, rows, clock = run(round(seconds / usual), seconds, usual)
    with torch.no_grad():
        bpb = text.bits_per_byte(lambda ids, targets: token_nats(model, ids, targets))
    steps = len(clock) - 1
    return {
        "bpb": bpb,
        "steps": steps,
        "tokens": steps * rows * CONTEXT,
        "cpu_seconds": clock[-1] - clock[0],
        "parameters": num_parameters(model),
    }


def side(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one side in this process."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[((name == "ours") + arguments.seed) % len(cores)]})
    os.environ["OPENMAI_QUIET"] = "1"
    prepare_cpu(1)
    text = Text(arguments.run)
    if name == "ours":
        return ours(text, arguments.seed, arguments.seconds, merge(OURS, json.loads(arguments.ours)))
    return theirs(arguments.nanochat, text, arguments.seed, arguments.seconds, THEIRS | json.loads(arguments.theirs))


def both(arguments: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """Train both sides of one seed at the same time, each in a process of its own; return their results."""
    running = {}
    for name in ("ours", "nanochat"):
        command = [sys.executable, __file__, "--side", name, "--seed", str(seed), "--seconds", str(arguments.seconds)]
        command += ["--nanochat", str(arguments.nanochat), "--run", str(arguments.run)]
        command += ["--ours", arguments.ours, "--theirs", arguments.theirs]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    for process in running.values():
        while process.stdout and process.stdout.readline() not in ("ready\n", ""):
            pass
    for process in running.values():
        if process.stdin and process.poll() is None:
            process.stdin.write("go\n")
            process.stdin.flush()
    results = {}
    for name, process in running.items():
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{name}: failed with status {process.returncode}")
        results[name] = json.loads(output.splitlines()[-1])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("--nanochat", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ours", default="{}", help="settings of `train pretrain` in place of the best ones")
    parser.add_argument("--theirs", default="{}", help="depth, rows, head, lr (a factor), decay (a factor), loader, compile")
    parser.add_argument("--out", type=Path, help="JSON file of all results")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(side(arguments.side, arguments)))
        return
    print(f"{platform.machine()}, torch {torch.__version__}, {arguments.seconds:,.0f} CPU seconds a side, load {os.getloadavg()[0]:.1f}")
    print(f"{'seed':>4}  {'':9}{'bits/byte':>10}{'steps':>8}{'tokens':>12}{'tokens/s':>10}{'CPU s':>8}{'parameters':>12}")
    seeds = []
    for seed in range(arguments.seeds):
        seeds.append(both(arguments, seed))
        for name, found in seeds[-1].items():
            speed = found["tokens"] / found["cpu_seconds"]
            print(
                f"{seed:4}  {name:9}{found['bpb']:10.4f}{found['steps']:8,}{found['tokens']:12,}{speed:10,.0f}"
                f"{found['cpu_seconds']:8,.0f}{found['parameters']:12,}",
                flush=True,
            )
    bpb = {name: [seed[name]["bpb"] for seed in seeds] for name in seeds[0]}
    for name, values in bpb.items():
        print(f"{name:9} {statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f} bits per byte")
    wins = sum(a < b for a, b in zip(*bpb.values(), strict=True))
    print(f"ours is lower in {wins} of {len(seeds)} seeds, by {statistics.mean(bpb['nanochat']) - statistics.mean(bpb['ours']):.4f}")
    if arguments.out:
        settings = {"seconds": arguments.seconds, "ours": merge(OURS, json.loads(arguments.ours))}
        settings |= {"nanochat": THEIRS | json.loads(arguments.theirs), "machine": platform.machine(), "torch": torch.__version__}
        arguments.out.write_text(json.dumps({"settings": settings, "seeds": seeds}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
