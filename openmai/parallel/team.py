"""The processes of a run at work on one model: who takes which rows, and how gradients, their norm and saved tensors become one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from openmai.model.checkpoint import save_weights
from openmai.model.float8 import use_float8
from openmai.model.loss import stream_nats
from openmai.model.moe import Router
from openmai.model.transformer import Transformer
from openmai.parallel.apply import divide, let_go, shard
from openmai.parallel.collectives import reduced
from openmai.parallel.exchange import Pieces
from openmai.parallel.layout import Layout, Precision
from openmai.parallel.mesh import Axis, Mesh
from openmai.parallel.parts import Parts, chunk_of, share_of
from openmai.parallel.pipeline import Pipeline
from openmai.parallel.processes import Processes, local, whole
from openmai.parallel.recompute import forget_activations

EVERY_STAGE = ("stream_scale_L", "embedding_scale_L")
"weights that all stages of a pipeline hold"


class Team:
    """A model under a layout. With one process in fp32 everything here is what it is without.

    "bf16" computes in bfloat16, "float8" linear layers in 8 bits besides; weights, sums of gradients and what optimizers keep stay in fp32,
    which FSDP sees to, also of one process.
    """

    def __init__(self, processes: Processes, layout: Layout, device: str, tied: bool = False, precision: Precision = "fp32") -> None:
        self.processes, self.layout, self.device, self.precision = processes, layout, device, precision
        lower = precision != "fp32"
        if lower:
            processes.form_group(device)
        self.mesh = Mesh(layout, device, tied) if processes.size > 1 or lower else None
        self.parts = Parts()
        self.data_rank = self.mesh.data_rank if self.mesh else 0

    @classmethod
    def alone(cls) -> Team:
        """Return the team of one process."""
        return cls(Processes(), Layout(dp_shard=1), "cpu")

    def take(self, model: Transformer) -> Transformer:
        """Divide a built model among the processes; return what this one has of it: the model, or a Pipeline that looks like one."""
        if self.precision == "float8":
            use_float8(model, self.device)
        if self.mesh:
            self.parts = divide(model, self.mesh)
        forget_activations(model, self.layout.checkpointing)
        if not self.mesh:
            return model
        mine = Pipeline(model, self.layout, self.mesh.pp) if self.layout.pp > 1 else model
        shard(mine, self.mesh, self.precision != "fp32")
        self._describe(mine, self.mesh)
        return cast(Transformer, mine)

    @torch.no_grad()
    def initialize(self, model: Transformer, seed: int, device: str) -> None:
        """Draw the weights of a model that was built on the meta device, each process its own part of them."""
        self.give_memory(model, device)
        for part in parts_of(model):
            for buffer in part.buffers():
                buffer.zero_()
            for name, parameter in part.named_parameters():
                local(parameter).copy_(self._draw(part, name, parameter, seed))

    def give_memory(self, model: Transformer, device: str) -> None:
        """Move a model from the meta device to one with memory, without values."""
        kept = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # tied weights stay tied
        model.to_empty(device=device)
        torch.__future__.set_swap_module_params_on_conversion(kept)
        if self.mesh:
            self._describe(model, self.mesh)  # swapped parameters have lost it

    def _draw(self, model: Transformer, name: str, parameter: Tensor, seed: int) -> Tensor:
        """Return this process's part of the initial values of a weight."""
        part, shape = self.parts.of(name), self.saved(name, parameter).shape
        if not self.mesh:
            return model.draw(name, shape, seed)
        if part.axis == "ep":
            experts = share_of(range(shape[0]), self.mesh.ep)
            if not self._by_rows(parameter):
                return model.draw(name, shape, seed, chunk_of(experts, self.mesh.edp))
            rows = chunk_of(range(shape[1]), self.mesh.edp)
            return model.draw(name, shape, seed, experts)[:, rows.start : rows.stop]
        value = model.draw(name, shape, seed)
        if part.dim is not None:
            rows = share_of(range(shape[part.dim]), self.mesh.tp)
            value = value.narrow(part.dim, rows.start, len(rows))
        rows = chunk_of(range(len(value)), self.mesh.fsdp)
        return value[rows.start : rows.stop]

    @staticmethod
    def _by_rows(parameter: Tensor) -> bool:
        """Whether a stack of experts is divided within them."""
        return isinstance(parameter, DTensor) and parameter.placements[-1] == Shard(1)

    def _describe(self, model: nn.Module, mesh: Mesh) -> None:
        """Say of each matrix where its pieces lie, for Muon; those of experts are whole, unless processes hold rows of them."""
        for name, parameter in model.named_parameters():
            part = self.parts.of(name)
            if parameter.ndim == 3 and self._by_rows(parameter):
                parameter.pieces = Pieces.of(tuple(parameter.shape[1:]), None, mesh.edp, 1)  # type: ignore[attr-defined, arg-type]
            if parameter.ndim == 2 and part.axis == "tp":
                shape = tuple(self.saved(name, parameter).shape)
                parameter.pieces = Pieces.of(shape, part.dim, mesh.region, self.layout.tp)  # type: ignore[attr-defined, arg-type]

    def units(self, count: int, device: torch.device) -> float:
        """Return the sum of what the data-parallel groups count, each in all of its processes."""
        return self.processes.total([count], device)[0] / self.layout.copies

    def stream_nats(self, model: Transformer, tokens: np.ndarray, context: int, end_of_text: int) -> float:
        """Return what `model.loss.stream_nats` does, to all processes."""
        found = model.stream_nats if isinstance(model, Pipeline) else partial(stream_nats, model)
        total = found(tokens, context, end_of_text)
        let_go(model)
        for axis in (self.mesh.cp, self.mesh.pp) if self.mesh else ():  # each part of a row, and the last stage, has its share
            total = reduced(torch.tensor(total, dtype=torch.float64, device=self.mesh.device), axis).item()  # type: ignore[union-attr]
        return total

    def loads(self, model: Transformer) -> list[list[float]]:
        """Sum what routers counted over all that passed tokens through them, move their biases, and return the loads of all layers."""
        mine = {}
        for name, router in named_routers(model):
            if self.mesh:
                dist.all_reduce(router.load_E, group=self.mesh.stage.group)
            mine[name] = router.update_bias().tolist()
        if self.layout.pp == 1:
            return list(mine.values())
        joined = {name: load for found in self._over_pipeline(mine) for name, load in found.items()}
        return [joined[name] for name in sorted(joined, key=lambda name: int(name.split(".")[1]))]

    def finish_gradients(self, model: nn.Module) -> None:
        """Sum the gradients of weights that several processes hold whole: of a tensor-parallel group, or of a pipeline."""
        if not self.mesh:
            return
        gradients = {name: local(parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None}
        if self.layout.tp > 1:
            _sum_together([gradients[name] for name in gradients if name in self.parts.summed], self.mesh.tp)
        if self.layout.pp > 1:
            _sum_together([gradients[name] for name in gradients if name in EVERY_STAGE], self.mesh.pp)
            if self.mesh.ends and "embedding.weight" in gradients:
                _sum_together([gradients["embedding.weight"]], self.mesh.ends)

    def clip(self, model: nn.Module, limit: float | None) -> float:
        """Return the norm of all gradients, and scale them down if it is above `limit`."""
        norm = self.processes.total([self.gradient_squares(model).item()], next(model.parameters()).device)[0] ** 0.5
        if limit is not None and norm > limit:
            torch._foreach_mul_(
                [local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None], limit / (norm + 1e-6)
            )
        return norm

    def gradient_squares(self, model: nn.Module) -> Tensor:
        """Return what this process adds to the sum of squares of all gradients, in fp64."""
        gradients = [(name, local(parameter.grad)) for name, parameter in model.named_parameters() if parameter.grad is not None]
        device = next(model.parameters()).device
        if not gradients:
            return torch.zeros((), dtype=torch.float64, device=device)
        norms = torch._foreach_norm([gradient.float() for _, gradient in gradients])
        weights = torch.tensor([1 / self.copies_of(name) for name, _ in gradients], dtype=torch.float64, device=device)
        return (torch.stack(norms).double().square() * weights).sum()

    def copies_of(self, name: str) -> int:
        """Return how many processes hold the same share of a tensor's gradient."""
        part = self.parts.of(name)
        alike = self.layout.tp if part.axis == "tp" and part.dim is None else 1
        if name in EVERY_STAGE:
            alike *= self.layout.pp
        elif name == "embedding.weight" and self.mesh and self.mesh.ends:
            alike *= self.mesh.ends.size
        return self.layout.dp_replicate * alike

    def state(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, dict[str, Tensor]]:
        """Return weights, buffers and moments by name, as parts of whole tensors that share memory with them: to be saved or read into."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        stored: dict[str, Tensor] = dict(model.named_parameters())
        for part in parts_of(model):
            kept = part.state_dict().keys()
            stored |= {name: value for name, value in part.named_buffers() if name in kept}
        moments: dict[str, Tensor] = {}
        for optimizer in optimizers:
            for parameter, values in optimizer.state.items():
                name = names[id(parameter)]
                moments |= {f"{name}/{key}": self.saved(name, value) for key, value in values.items()}
        return {"model": {name: self.saved(name, value.detach()) for name, value in stored.items()}, "optimizers": moments}

    def save(self, model: Transformer, folder: Path, tokenizer: Path) -> None:
        """Let the first process write the whole model as `save_model` does; each tensor is put together when its turn comes."""
        weights = self.state(model, [])["model"]
        found = self._over_pipeline({name: (value.dtype, tuple(value.shape)) for name, value in weights.items()})
        described = {name: about for stage in found for name, about in stage.items()}
        owners = {name: stage for stage in reversed(range(len(found))) for name in found[stage]}

        def fetch(name: str) -> Tensor:
            value = whole(weights[name]) if name in weights else torch.empty(0)
            return self._bring(value, owners[name], described[name]) if owners[name] else value

        if self.processes.rank == 0:
            save_weights(model.config, described, fetch, folder, tokenizer)
        else:
            for name in described:
                fetch(name)

    def _over_pipeline(self, value: Any) -> list[Any]:
        """Return the `value` of each process of this one's pipeline, in their order."""
        values = [value] * self.layout.pp
        if self.mesh and self.layout.pp > 1:
            dist.all_gather_object(values, value, group=self.mesh.pp.group)
        return values

    def _bring(self, value: Tensor, owner: int, about: tuple[torch.dtype, tuple[int, ...]]) -> Tensor:
        """Return to the first process of a pipeline a tensor that process `owner` of it has."""
        assert self.mesh
        group, rank = self.mesh.pp.group, self.mesh.pp.rank
        if rank == owner:
            dist.send(value.contiguous(), dist.get_global_rank(group, 0), group)
        elif rank == 0:
            value = torch.empty(about[1], dtype=about[0], device=self.mesh.device)
            dist.recv(value, dist.get_global_rank(group, owner), group)
        return value

    def saved(self, name: str, value: Tensor) -> Tensor:
        """Return what this process holds of a parameter, buffer or moment as a part of the whole tensor."""
        if not self.mesh or not value.ndim:
            return value
        part = self.parts.of(name)
        mesh = self.mesh.sparse_state if part.axis == "ep" else self.mesh.dense_state
        divided = Replicate() if part.dim is None else Shard(part.dim)
        sharded = value.placements[-1] if isinstance(value, DTensor) else Replicate()
        shape = list(value.shape)
        if part.dim is not None:
            shape[part.dim] *= mesh.size(1)
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            local(value), mesh, (Replicate(), divided, sharded), run_check=False, shape=torch.Size(shape), stride=stride
        )


def prepare_state(optimizers: list[torch.optim.Optimizer]) -> None:
    """Let optimizers make the state that a checkpoint is read into, by a step that changes nothing."""
    for optimizer in optimizers:
        if optimizer.state:
            continue
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0 * group["lr"]
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def parts_of(model: nn.Module) -> Sequence[Transformer]:
    """Return what of a model is here: itself, or its stages of a pipeline, in which modules have the names of the whole model."""
    return model.parts() if isinstance(model, Pipeline) else [cast(Transformer, model)]


def named_routers(model: Transformer) -> list[tuple[str, Router]]:
    """Return the routers that are here, in order, with their names in the whole model."""
    return [(name, module) for part in parts_of(model) for name, module in part.named_modules() if isinstance(module, Router)]


def _sum_together(tensors: list[Tensor], axis: Axis) -> None:
    """Replace tensors by their sums over the processes, in one message."""
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=axis.group)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))
