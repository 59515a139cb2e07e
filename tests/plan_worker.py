"""torchrun --nproc-per-node N tests/plan_worker.py OUT REPLICAS: what training a toy model really holds and sends, per process.

One step of a sharded model in fp32 with AdamW or Muon; bytes of local weights, gradients and optimizer state, and of the collectives
between the shards. tests/test_plan_memory.py compares them with the plan.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from openmai.base.files import write_json
from openmai.model.config import ModelConfig
from openmai.model.loss import summed_nats
from openmai.model.transformer import Transformer
from openmai.parallel.apply import make_mesh, shard
from openmai.parallel.layout import Layout
from openmai.parallel.processes import Processes
from openmai.train.config import OptimizerConfig
from openmai.train.optimizer import make_optimizers

TOY = {"vocab_size": 1024, "num_layers": 3, "width": 64, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 160, "context": 64}
MODELS = {
    "dense": TOY,
    "moe": {**TOY, "moe": {"num_experts": 8, "num_active": 2, "expert_width": 96, "num_shared": 1, "first_dense": 1}},
    "tied": {**TOY, "tied_embeddings": True, "qk_norm": True},
}


def local_bytes(values: list[torch.Tensor]) -> int:
    parts = [value.to_local() if isinstance(value, DTensor) else value for value in values]
    return sum(part.numel() * part.element_size() for part in parts)


def main() -> None:
    out, replicas = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    processes = Processes.start("cpu")
    shards = processes.size // replicas
    sent = {"gather weights": 0, "scatter gradients": 0}

    def count(name: str, what: str, place: int) -> None:
        original = getattr(dist, name)

        def counted(*tensors: torch.Tensor, group: dist.ProcessGroup, **keywords: Any) -> object:
            whole = [*tensors, keywords.get("output"), keywords.get("input")][place]
            if dist.get_world_size(group) == shards:  # not between replicas
                sent[what] += whole.numel() * whole.element_size() * (shards - 1) // shards
            return original(*tensors, group=group, **keywords)

        setattr(dist, name, counted)

    count("all_gather_single", "gather weights", 0)  # (output, input): what FSDP2 calls
    count("reduce_scatter_single", "scatter gradients", 1)
    result = {}
    for name, values in MODELS.items():
        for optimizer in ("adamw", "muon"):
            model = Transformer(ModelConfig(**values))
            model.initialize(0)
            shard(model, make_mesh(Layout(dp_replicate=replicas, dp_shard=shards), "cpu"), bf16=False)
            optimizers = make_optimizers(model, OptimizerConfig(name=optimizer))
            ids = torch.randint(values["vocab_size"], (2, values["context"]))
            sent.update(dict.fromkeys(sent, 0))
            summed_nats(model, ids, ids)[0].backward()
            found = dict(sent)
            for one in optimizers:
                one.step()
            states = [value for one in optimizers for state in one.state.values() for value in state.values() if value.ndim > 0]
            parameters = list(model.parameters())
            found |= {"weights": local_bytes(parameters), "optimizer": local_bytes(states)}
            found["gradients"] = local_bytes([value.grad for value in parameters if value.grad is not None])
            result[f"{name} {optimizer}"] = found
    write_json(out / f"{processes.rank}.json", result)


if __name__ == "__main__":
    main()
