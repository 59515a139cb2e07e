"""`train dry-run`: one training step of one process of any cluster, on tensors that have shapes but no memory.

The real code runs: model, layout, schedule, optimizers. Only the processes that it talks to and the numbers in its tensors are missing, so
experts are taken to get equal numbers of tokens. Bytes are counted as PyTorch's storages come and go; collectives as they are called.
"""

from __future__ import annotations

import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from openmai.base.errors import OpenmaiError
from openmai.base.files import write_json
from openmai.base.progress import say
from openmai.model.config import ModelConfig
from openmai.model.loss import summed_nats
from openmai.model.moe import Experts
from openmai.model.transformer import Transformer, num_parameters
from openmai.parallel.experts import AllToAll
from openmai.parallel.pipeline import Pipeline
from openmai.parallel.processes import Processes, local
from openmai.parallel.team import Team
from openmai.train.config import DryRunConfig
from openmai.train.dial import turn
from openmai.train.optimizer import make_optimizers

KINDS = {
    "allgather": "all-gather",
    "_allgather_base_": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "_reduce_scatter_base_": "reduce-scatter",
    "allreduce_": "all-reduce",
    "alltoall_base_": "all-to-all",
    "alltoall_": "all-to-all",
    "send": "send",
    "recv_": "receive",
}


ACTIVATIONS = "activations, at the peak of the passes"


@dataclass
class Counted(TorchDispatchMode):
    """Counts bytes of storages that live, and the collectives that are called, while it is entered."""

    alive: int = 0
    peak: int = 0
    collectives: dict[tuple[str, int], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    "by kind and size of group: how many, and bytes that this process puts in (gets, where it receives or gathers)"
    look: Callable[[], dict[str, int]] = dict
    "says what some of the bytes are for"
    seen: dict[str, int] = field(default_factory=dict)
    "what it said at the peak, or a few thousandths below it"
    looked: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self.sizes: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = operation(*arguments, **(options or {}))
        if operation.namespace == "c10d":
            self._count_collective(operation, arguments, result)
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self.watch(local(value))
        return result

    def watch(self, value: Tensor) -> None:
        """Count the storage of a tensor from now until it goes."""
        storage = value.untyped_storage()
        if storage in self.sizes:
            return
        size = [storage.nbytes()]
        self.sizes[storage] = size
        weakref.finalize(storage, self._gone, size)
        self.alive += size[0]
        if self.alive > 1.01 * self.peak:
            self.recount()
        self.peak = max(self.peak, self.alive)
        if self.peak > 1.003 * self.looked:
            self.looked, self.seen = self.peak, self.look()

    def recount(self) -> None:
        """Notice storages that were given back without going: FSDP empties those of gathered weights."""
        for storage, size in list(self.sizes.items()):
            self.alive += storage.nbytes() - size[0]
            size[0] = storage.nbytes()

    def _gone(self, size: list[int]) -> None:
        self.alive -= size[0]

    def _count_collective(self, operation: Any, arguments: Any, _: Any) -> None:
        name = operation._schema.name.removeprefix("c10d::")
        if name not in KINDS:
            return
        tensors = [value for value in tree_iter(arguments[:2]) if isinstance(value, Tensor)]
        sizes = [value.numel() * value.element_size() for value in tensors]
        group = next((value for value in tree_iter(arguments) if isinstance(value, torch.ScriptObject)), None)
        members = dist.ProcessGroup.unbox(group).size() if group is not None else 0
        entry = self.collectives[KINDS[name], members]
        entry[0] += 1
        entry[1] += max(sizes, default=0)


@contextmanager
def pretend(processes: int, rank: int) -> Iterator[None]:
    """Be process `rank` of so many, the others of which do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def dry_run(config: DryRunConfig) -> None:
    """Print what one process of the configured run holds and sends in one optimizer step; write it to `config.out`, if that is given."""
    began = time.perf_counter()
    chosen, _ = turn(config, config.vocab_size, config.processes)
    assert chosen.batch_rows
    assert chosen.micro_rows
    layout = config.layout.resolve(config.processes, chosen.batch_rows, chosen.micro_rows)
    if not 0 <= config.rank < config.processes:
        raise OpenmaiError(f"rank={config.rank}: there are processes 0 to {config.processes - 1}")
    architecture = config.architecture(config.vocab_size)
    layout.check_model(architecture, config.context)
    config = config.model_copy(update={name: getattr(chosen, name) for name in ("batch_rows", "micro_rows", "optimizer")})
    micro_batches = chosen.batch_rows // (layout.data * chosen.micro_rows)
    with pretend(config.processes, config.rank):
        team = Team(Processes(config.rank, config.processes), layout, "cpu", architecture.tied_embeddings, config.precision)
        found = _symbolic(config, team, architecture, micro_batches)
    _show(found)
    say(f"{time.perf_counter() - began:.0f} s")
    if config.out is not None:
        write_json(config.out, found)


def _symbolic(config: DryRunConfig, team: Team, architecture: ModelConfig, micro_batches: int) -> dict[str, Any]:
    """Build the model and do one step, all of it on tensors without memory; return the figures."""
    with torch.device("meta"):
        model: Any = Transformer(architecture)
    parameters = num_parameters(model)
    assert config.micro_rows
    print(
        f"{parameters / 1e9:,.1f}B parameters on {config.processes:,} processes ({_named(team.layout)}); process {config.rank:,}, "
        f"{micro_batches} micro-batches of {config.micro_rows} x {config.context:,} tokens, "
        f"{micro_batches * config.micro_rows * team.layout.data * config.context / 1e6:,.1f}M per step",
        flush=True,
    )
    model = team.take(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        team.give_memory(model, "cpu")
        model.train()
        for module in model.modules():
            if isinstance(module, Experts) and isinstance(module.exchange, AllToAll):
                module.exchange.balanced = True
        optimizers = make_optimizers(model, config.optimizer)
        counted = Counted()
        with counted:
            for parameter in model.parameters():
                counted.watch(local(parameter))
            found = one_step(model, team, optimizers, config, micro_batches, counted)
    return {"parameters": parameters, "processes": config.processes, "rank": config.rank, "layout": team.layout.model_dump(), **found}


def one_step(model: Any, team: Team, optimizers: list[torch.optim.Optimizer], config: DryRunConfig, count: int, counted: Counted) -> dict:
    """Do one optimizer step; return bytes by what they are for, and the collectives."""
    assert config.micro_rows
    weights = sum(_bytes(local(parameter)) for parameter in model.parameters())
    batch = []
    for _ in range(count):
        ids = torch.zeros(config.micro_rows, config.context, dtype=torch.int64)
        batch.append({"ids": ids, "targets": ids.clone()})
    start = counted.alive
    counted.look = partial(_whole, model)
    if isinstance(model, Pipeline):
        model.symbolic = True
        model.run(batch, backward=True)
    else:
        for micro in batch:
            loss, ahead = summed_nats(model, micro["ids"], micro["targets"])
            (loss + model.take_penalty() + (0 if ahead is None else ahead)).backward()
    team.finish_gradients(model)
    gradients = sum(_bytes(local(parameter.grad)) for parameter in model.parameters() if parameter.grad is not None)
    passes, seen = counted.peak, counted.seen
    counted.look = dict
    del batch
    counted.recount()
    counted.peak = rest = counted.alive
    dist.all_reduce(team.gradient_squares(model))
    for optimizer in optimizers:
        optimizer.step()
    state = sum(_bytes(local(value)) for optimizer in optimizers for values in optimizer.state.values() for value in values.values())
    collectives = [
        {"kind": kind, "group": group, "count": entry[0], "bytes": entry[1]} for (kind, group), entry in sorted(counted.collectives.items())
    ]
    return {
        "bytes": {
            "weights (fp32)": weights,
            "gradients (fp32)": gradients,
            "optimizer state": state,
            **{f"{name}, at the peak of the passes": size for name, size in seen.items()},
            ACTIVATIONS: passes - start - sum(seen.values()),
            "work of the optimizer, peak": counted.peak - rest - state,
            "peak of the passes with optimizer state": passes + state,
        },
        "collectives": collectives,
    }


def _whole(model: Any) -> dict[str, int]:
    """Return the bytes of what FSDP has gathered or not scattered yet, and of gradients that it has."""
    gathered: dict[Any, int] = {}
    gradients: dict[Any, int] = {}
    for module in model.modules():
        if not isinstance(module, FSDPModule):
            continue
        for group in module._get_fsdp_state()._fsdp_param_groups:
            for parameter in group.fsdp_params:
                whole = getattr(parameter, "_unsharded_param", None)
                for found, value in (
                    (gathered, whole),
                    (gradients, None if whole is None else whole.grad),
                    (gradients, parameter.unsharded_accumulated_grad),
                    (gradients, parameter.sharded_param.grad),
                ):
                    if value is not None:
                        storage = local(value).untyped_storage()
                        found[storage] = storage.nbytes()
    return {"gathered weights": sum(gathered.values()), "gradients, whole and scattered": sum(gradients.values())}


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _named(layout: Any) -> str:
    axes = ("pp", "dp_replicate", "dp_shard", "cp", "tp", "ep")
    return " x ".join(f"{axis}={getattr(layout, axis)}" for axis in axes if getattr(layout, axis) > 1) or "alone"


def _show(found: dict) -> None:
    for name, size in found["bytes"].items():
        print(f"  {name:<60} {_size(size):>12}")
    print(f"  {'collective':<16} {'processes':>9} {'calls':>9} {'together':>12}")
    for row in found["collectives"]:
        print(f"  {row['kind']:<16} {row['group']:>9,} {row['count']:>9,} {_size(row['bytes']):>12}")


def _size(size: int) -> str:
    for unit, scale in (("GiB", 30), ("MiB", 20)):
        if size >= 1 << scale:
            return f"{size / (1 << scale):,.2f} {unit}"
    return f"{size / 1024:,.2f} KiB"
