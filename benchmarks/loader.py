"""python benchmarks/loader.py --shards DIR [--context 512 2048] [--nanochat DIR] [--train SECONDS]

Tokens per second that the pretraining loader delivers from disk, for windows and for best-fit packing, beside those that a trainer on
this machine takes; padding, short pieces cut, and whether memory stays constant over several epochs.

DIR is a shards artifact (`openmai tokenizer encode`, or the shards step of any recipe). Figures are per CPU second of one thread. With
--nanochat its loader is fed the same documents, tokenized beforehand, so that neither side tokenizes. With --train a model of depth 3, the
one of `openmai quickstart`, is trained for SECONDS first.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from openmai.base.artifact import Artifact
from openmai.model.transformer import Transformer, num_parameters
from openmai.tokenizer.shards import Shard
from openmai.train.config import LoopConfig, OptimizerConfig, PretrainConfig, ScheduleConfig
from openmai.train.loader import Mixture, PretrainBatches
from openmai.train.loop import NextToken, Step, prepare_cpu, train

ROWS, SECONDS = 16, 3.0


def memory() -> int:
    """Memory of this process that is not mapped from files, in KiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0])


def rate(context: int, next_batch: Callable[[int], Any], least: int) -> tuple[float, int]:
    """Return tokens per CPU second over at least SECONDS and `least` batches, and how much memory grew after the first tenth."""
    began, step, early = time.process_time(), 0, 0
    while step < least or time.process_time() - began < SECONDS:
        next_batch(step)
        step += 1
        if step == max(1, least // 10):
            early = memory()
    return step * ROWS * context / (time.process_time() - began), memory() - early


def trainer(shards: Artifact, seconds: float) -> float:
    """Return the tokens per CPU second that training the model of the quickstart takes on one thread."""
    config = PretrainConfig.model_validate({"shards": shards.path, "tokenizer": "", "out": "", "depth": 3})
    model = Transformer(config.architecture(shards.metrics["vocab_size"]))
    model.initialize(0)
    batches = PretrainBatches(Mixture.open(shards, 512, {}, 0, "best-fit", True), 4, 4)
    clock: list[float] = []

    class Enough(Exception):
        pass

    def hook(step: Step) -> None:
        clock.append(time.process_time())
        if clock[-1] - clock[0] > seconds:
            raise Enough

    with tempfile.TemporaryDirectory() as folder:
        try:
            loop = LoopConfig(steps=100_000, checkpoint_every=100_000)
            train("trainer", model, batches, NextToken(), Path(folder), loop, OptimizerConfig(), ScheduleConfig(), [hook])
        except Enough:
            pass
    speed = 4 * 512 * (len(clock) - 1) / (clock[-1] - clock[0])
    print(f"trainer: {num_parameters(model):,} parameters, {speed:,.0f} tokens per CPU second, {2 * speed:,.0f} on two cores")
    return 2 * speed


def nanochat(folder: Path, documents: list[list[int]], end: int, context: int) -> Callable[[int], Any]:
    """nanochat's packing loader on the same documents."""
    sys.path.insert(0, str(folder))
    from nanochat import dataloader  # type: ignore[import-not-found]

    def batches(*_: Any) -> Iterator[tuple[list[list[int]], tuple[int, int, int]]]:
        while True:
            for start in range(0, len(documents), 128):
                yield documents[start : start + 128], (0, 0, 1)

    class Encoded:
        def get_bos_token_id(self) -> int:
            return end

        def encode(self, documents: list[list[int]], prepend: int, num_threads: int) -> list[list[int]]:
            return [[prepend, *document] for document in documents]

    dataloader._document_batches = batches
    loader = dataloader.tokenizing_distributed_data_loader_bos_bestfit(Encoded(), ROWS, context, "train", device="cpu")
    return lambda _: next(loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--context", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--nanochat", type=Path)
    parser.add_argument("--train", type=float, default=0.0)
    arguments = parser.parse_args()
    os.environ["OPENMAI_QUIET"] = "1"
    prepare_cpu(1)
    shards = Artifact.load(arguments.shards, "shards")
    counts = shards.metrics["splits"]["train"]
    tokens = sum(count["tokens"] for count in counts.values())
    documents = sum(count["documents"] for count in counts.values())
    print(f"{platform.machine()}, load {os.getloadavg()[0]:.1f}; {tokens:,} tokens in {documents:,} documents")
    eaten = trainer(shards, arguments.train) if arguments.train else None
    print(f"{'':28}{'tokens per CPU s':>18}{'x trainer':>11}{'padding':>9}{'cut':>8}{'growth':>10}")
    for context in arguments.context:
        ways: dict[str, Callable[[int], Any]] = {}
        facts = {}
        for packing in ("none", "best-fit"):
            mixture = Mixture.open(shards, context, {}, 0, packing, masks=True)
            ways[f"{packing}, {context}"] = PretrainBatches(mixture, ROWS, ROWS)
            facts[f"{packing}, {context}"] = waste(mixture, counts)
        if arguments.nanochat:
            texts = [ids.tolist()[:-1] for name in mixture.names for ids in Shard(shards.path / f"train-{name}").documents()]
            ways[f"nanochat, {context}"] = nanochat(arguments.nanochat, texts, int(mixture.streams[0][-1]), context)
        for name, way in ways.items():
            speed, grown = rate(context, way, 3 * tokens // (ROWS * context) if "nanochat" not in name else 1)
            times = f"{speed / eaten:10,.0f}x" if eaten else ""
            padding, cut = facts.get(name, ("", ""))
            print(f"{name:28}{speed:18,.0f}{times:>11}{padding:>9}{cut:>8}{grown:>6,} KiB")
    print(f"largest resident memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


def waste(mixture: Mixture, counts: dict[str, dict[str, int]]) -> tuple[str, str]:
    """Return the shares of an epoch's positions that are padding, and of short pieces (also ends of long documents) that are cut."""
    size = sum(mixture._size(source) for source in range(len(mixture.names)))
    if not mixture.packers:
        return "0.00%", ""
    used = sum(packer.tokens for packer in mixture.packers)
    cut = short = 0
    for packer in mixture.packers:
        lengths = np.diff(np.append(packer.begins // packer.unit, packer.tokens))
        short += int((lengths % mixture.context > 0).sum())
        pieces = sum(len(packer.row(0, place)) for place in range(packer.rows))
        cut += pieces - int((-(-lengths // mixture.context)).sum())
    return f"{1 - used / (size * mixture.context):.2%}", f"{cut / max(short, 1):.1%}"


if __name__ == "__main__":
    main()
