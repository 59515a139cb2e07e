"""python tests/parallel_worker.py OUT PROCESSES CASES

Trains toy models on each process's share of fixed batches, as `train pretrain` does; tests/test_parallel.py compares the events. CASES is
a JSON list of [name, model, optimizer, layout, last step]; after the last step every process leaves the run on the spot. Processes are
forked from one that has imported torch, which saves each of them seconds.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from openmai.model.config import ModelConfig
from openmai.model.transformer import Transformer
from openmai.parallel.layout import Layout
from openmai.parallel.processes import Processes
from openmai.parallel.team import Team
from openmai.train.config import LoopConfig, OptimizerConfig, ScheduleConfig
from openmai.train.loop import NextToken, Step, train

STEPS, ROWS, CONTEXT, VOCABULARY = 20, 8, 32, 68
BASE = {"vocab_size": VOCABULARY, "num_layers": 4, "width": 32, "num_heads": 4, "ffn_width": 48, "context": CONTEXT, "head_width": 8}
EXPERTS = {"num_experts": 8, "num_active": 2, "expert_width": 20, "aux_loss": 0.01, "z_loss": 0.001}
MLA = {"query_rank": 20, "kv_rank": 12, "nope_width": 6, "rope_width": 4, "value_width": 8}
MODELS = {
    "dense": {"qk_norm": True, "num_kv_heads": 2, "window": 9, "global_every": 3},
    "tied": {
        "tied_embeddings": True,
        "norm_place": "both",
        "logit_softcap": 15.0,
        "attention_softcap": 20.0,
        "head_bias": True,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "num_kv_heads": 1,
        "sinks": True,
    },
    "alibi": {"positions": "alibi", "norm": "layer", "gated": False, "activation": "gelu", "parallel": True},
    "span": {"qk_norm": True, "qk_norm_span": "all", "norm_place": "after"},
    "moe": {"num_kv_heads": 2, "moe": {**EXPERTS, "score": "sigmoid", "bias_rate": 0.01, "num_shared": 1, "first_dense": 1}},
    "mla": {"head_width": None, "mla": MLA, "moe": EXPERTS},
    "latent": {
        "sinks": True,
        "moe": {**EXPERTS, "num_experts": 4, "aux_span": "batch", "latent_width": 16, "every": 2, "expert_bias": True, "router_bias": True},
    },
    "nanochat": {"value_embeddings": True, "residual_scalars": True, "smear": True, "backout": True, "norm_weight": "none", "gated": False},
    "values": {"value_embeddings": True, "residual_scalars": True, "backout": True, "norm_weight": "none", "gated": False},
    "ahead": {"num_predict": 2, "moe": EXPERTS},
}


def launch(processes: int, work: Callable[[], None], store: Path) -> int:
    """Run `work` in forked processes that know each other as those of torchrun do; return how many failed."""
    children = []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "OPENMAI_QUIET": "1"}
            try:
                if processes > 1:
                    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
                work()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
        children.append(pid)
    failed = 0
    while children:
        pid, status = os.wait()
        if pid not in children:
            continue
        children.remove(pid)
        if status and not failed:  # the others wait for the one that failed
            failed += 1
            for child in children:
                os.kill(child, 9)
    return failed


def batches(rank: int, size: int):  # type: ignore[no-untyped-def]
    """Return this process's share of a batch by step: micro-batches of one row; some targets count for nothing."""

    def of(step: int) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(VOCABULARY, (ROWS, CONTEXT + 1), generator=generator)
        for place in range(CONTEXT):  # something to learn: each token follows from the one before it
            tokens[:, place + 1] = (3 * tokens[:, place] + 5) % VOCABULARY
        targets = tokens[:, 1:].masked_fill(torch.rand(ROWS, CONTEXT, generator=generator) < 0.3, -100)
        share = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
        return [{"ids": i, "targets": t} for i, t in zip(tokens[share, :-1].split(1), targets[share].split(1), strict=True)]

    return of


class Left(Exception):
    """Leaves a run, as a process that is killed does."""


def run_case(out: Path, name: str, model: str, optimizer: str, layout: dict, last: int) -> None:
    """Train one model and write its events under `out`/`name`."""
    processes, precision = Processes.start("cpu"), layout.pop("precision", "fp32")
    config = ModelConfig.model_validate({**BASE, **MODELS[model]})
    resolved = Layout.model_validate(layout).resolve(processes.size, ROWS, 1)
    resolved.check_model(config, CONTEXT)
    with torch.device("meta"):
        network = Transformer(config)
    team = Team(processes, resolved, "cpu", config.tied_embeddings, precision)
    network = team.take(network)
    team.initialize(network, 0, "cpu")
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)

    def leave(step: Step) -> None:
        if step.number == last:
            raise Left

    settings = OptimizerConfig(name=optimizer, clip=1.0, weight_decay=0.1)  # type: ignore[arg-type]
    loop = LoopConfig(steps=STEPS, checkpoint_every=5, keep=10)
    mine = batches(team.data_rank, resolved.data)
    try:
        train(name, network, mine, NextToken(), folder, loop, settings, ScheduleConfig(), [leave], team=team)
    except Left:
        return


def main() -> None:
    out, processes, cases = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        for case in cases:
            run_case(out, *case)

    sys.exit(launch(processes, work, out / f"store-{os.getpid()}"))


if __name__ == "__main__":
    main()
