"""python tests/plan_worker.py OUT: what training toy models really holds and sends, per process, under several layouts of 4 processes.

One pass of a model in fp32 and one step of its optimizer; bytes of local weights, gradients and optimizer state, and of the exchanges.
tests/test_plan_memory.py compares them with the plan.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from parallel_worker import launch
from torch.distributed.tensor import DTensor

from openmai.base.files import write_json
from openmai.model.config import ModelConfig
from openmai.model.loss import summed_nats
from openmai.model.transformer import Transformer
from openmai.parallel import collectives
from openmai.parallel.layout import Layout
from openmai.parallel.processes import Processes
from openmai.parallel.team import Team
from openmai.train.config import OptimizerConfig
from openmai.train.optimizer import make_optimizers

PROCESSES, ROWS = 4, 2
TOY = {"vocab_size": 1024, "num_layers": 4, "width": 64, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 160, "context": 64}
MODELS = {
    "dense": TOY,
    "moe": {**TOY, "moe": {"num_experts": 8, "num_active": 2, "expert_width": 96, "num_shared": 1, "first_dense": 1}},
    "tied": {**TOY, "tied_embeddings": True, "qk_norm": True},
}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((name, optimizer, {"dp_replicate": 2, "dp_shard": 2}) for name in MODELS for optimizer in ("adamw", "muon")),
    ("dense", "adamw", {"dp_shard": 4}),
    ("moe", "adamw", {"dp_shard": 4, "ep": 4}),
    ("moe", "adamw", {"dp_shard": 4, "ep": 2}),
    ("dense", "adamw", {"tp": 2, "dp_shard": 2}),
    ("moe", "adamw", {"tp": 2, "dp_shard": 2, "ep": 4}),
    ("dense", "adamw", {"pp": 2, "dp_shard": 2}),
    ("moe", "adamw", {"pp": 2, "tp": 2, "dp_shard": 1}),
]


def local_bytes(values: list[torch.Tensor]) -> int:
    parts = [value.to_local() if isinstance(value, DTensor) else value for value in values]
    return sum(part.numel() * part.element_size() for part in parts)


class Counter:
    """Counts what FSDP's collectives and our own exchanges send; a ring sends (n - 1) / n of the whole."""

    def __init__(self) -> None:
        self.sent = {"gather weights": 0, "scatter gradients": 0, "tensor parallel": 0, "all-to-all": 0}
        self.shards: set[int] = set()
        self.ours = False  # in one of our own exchanges, which use the same calls
        self._weights("all_gather_single", "gather weights", 0)  # (output, input): what FSDP2 calls
        self._weights("reduce_scatter_single", "scatter gradients", 1)
        self._own("_gathered", "tensor parallel", whole=False)
        self._own("_scattered", "tensor parallel", whole=True)
        self._exchanged()

    def _weights(self, name: str, what: str, place: int) -> None:
        original = getattr(dist, name)

        def counted(*tensors: torch.Tensor, group: dist.ProcessGroup, **keywords: Any) -> object:
            tensor, size = [*tensors, keywords.get("output"), keywords.get("input")][place], dist.get_world_size(group)
            if size in self.shards and not self.ours:  # not between replicas
                self.sent[what] += tensor.numel() * tensor.element_size() * (size - 1) // size
            return original(*tensors, group=group, **keywords)

        setattr(dist, name, counted)

    def _own(self, name: str, what: str, whole: bool) -> None:
        original = getattr(collectives, name)

        def counted(x: torch.Tensor, axis: Any) -> torch.Tensor:
            size = x.numel() * x.element_size() * (1 if whole else axis.size)
            self.sent[what] += size * (axis.size - 1) // axis.size
            self.ours = True
            result = original(x, axis)
            self.ours = False
            return result

        setattr(collectives, name, counted)

    def _exchanged(self) -> None:
        original = collectives._exchanged

        def counted(x: torch.Tensor, sent: list[int], received: list[int], axis: Any) -> torch.Tensor:
            away = sum(rows for place, rows in enumerate(sent) if place != axis.rank)
            self.sent["all-to-all"] += away * x[0:1].numel() * x.element_size()
            return original(x, sent, received, axis)

        collectives._exchanged = counted


def run(counter: Counter, model: str, optimizer: str, layout: dict[str, Any]) -> dict[str, int]:
    """Build, pass once, step once, and measure."""
    config = ModelConfig.model_validate(MODELS[model])
    resolved = Layout.model_validate(layout).resolve(PROCESSES, ROWS * PROCESSES, ROWS)
    region = resolved.dp_shard * resolved.cp * resolved.tp
    counter.shards = {resolved.dp_shard * resolved.cp, region // resolved.ep}
    with torch.device("meta"):
        network = Transformer(config)
    team = Team(Processes.start("cpu"), resolved, "cpu", config.tied_embeddings)
    network = team.take(network)
    team.initialize(network, 0, "cpu")
    found = {"weights": local_bytes(list(network.parameters()))}
    if resolved.pp > 1:
        return found
    optimizers = make_optimizers(network, OptimizerConfig(name=optimizer))  # type: ignore[arg-type]
    ids = torch.randint(config.vocab_size, (ROWS, config.context), generator=torch.Generator().manual_seed(0))
    counter.sent.update(dict.fromkeys(counter.sent, 0))
    summed_nats(network, ids, ids)[0].backward()
    found |= counter.sent
    for one in optimizers:
        one.step()
    states = [value for one in optimizers for state in one.state.values() for value in state.values() if value.ndim > 0]
    gradients = [value.grad for value in network.parameters() if value.grad is not None]
    return found | {"optimizer": local_bytes(states), "gradients": local_bytes(gradients)}


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)

    def work() -> None:
        counter = Counter()
        write_json(out / f"{dist.get_rank()}.json", [run(counter, *case) for case in CASES])

    sys.exit(launch(PROCESSES, work, out / f"store-{os.getpid()}"))


if __name__ == "__main__":
    main()
