"""torchrun --nproc-per-node N tests/parallel_worker.py OUT CASE[,CASE...] [REPLICAS [STOP]]

Trains toy models on this process's share of fixed batches, as `train pretrain` does; tests/test_parallel.py compares the events. After
step STOP every process dies on the spot.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from openmai.model.config import ModelConfig
from openmai.model.transformer import Transformer
from openmai.parallel.apply import make_mesh, shard
from openmai.parallel.layout import Layout
from openmai.parallel.processes import Processes
from openmai.train.config import LoopConfig, OptimizerConfig, ScheduleConfig
from openmai.train.loop import NextToken, Step, train

STEPS, ROWS, CONTEXT, VOCABULARY = 20, 8, 24, 67
BASE = {"vocab_size": VOCABULARY, "num_layers": 3, "width": 36, "num_heads": 2, "ffn_width": 44, "context": CONTEXT, "head_width": 16}
EXPERTS = {"num_experts": 6, "num_active": 2, "expert_width": 20, "aux_loss": 0.01, "z_loss": 0.001}
MODELS = {
    "dense": {"qk_norm": True, "num_kv_heads": 1, "window": 9, "global_every": 3},
    "tied": {"tied_embeddings": True, "norm_place": "both", "logit_softcap": 15.0, "head_bias": True, "qkv_bias": True},
    "moe": {"moe": {**EXPERTS, "score": "sigmoid", "bias_rate": 0.01, "num_shared": 1, "first_dense": 1}},
    "mla": {
        "head_width": None,
        "mla": {"query_rank": 20, "kv_rank": 12, "nope_width": 10, "rope_width": 6, "value_width": 14},
        "moe": EXPERTS,
    },
    "nanochat": {"value_embeddings": True, "residual_scalars": True, "smear": True, "backout": True, "norm_weight": "none", "gated": False},
    "ahead": {"num_predict": 2, "moe": EXPERTS},
}


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


def main() -> None:
    out, cases, replicas = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]) if len(sys.argv) > 3 else 1
    stop = int(sys.argv[4]) if len(sys.argv) > 4 else STEPS + 1
    torch.set_num_threads(1)
    processes = Processes.start("cpu")
    for case in cases:
        name, optimizer = case.split("-")
        folder = out / case
        folder.mkdir(parents=True, exist_ok=True)
        model = Transformer(ModelConfig.model_validate({**BASE, **MODELS[name]}))
        model.initialize(0)
        if processes.size > 1:
            layout = Layout(dp_replicate=replicas).resolve(processes.size, ROWS, 1)
            shard(model, make_mesh(layout, "cpu"), bf16=False)
        loop = LoopConfig(steps=STEPS, checkpoint_every=5, keep=10)

        def die(step: Step, stop: int = stop) -> None:
            if step.number == stop:
                os._exit(0)

        settings = OptimizerConfig(name=optimizer, clip=1.0, weight_decay=0.1)  # type: ignore[arg-type]
        mine = batches(processes.rank, processes.size)
        train(case, model, mine, NextToken(), folder, loop, settings, ScheduleConfig(), [die], processes=processes)
    if processes.size > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
