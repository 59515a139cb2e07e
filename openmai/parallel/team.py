"""The processes of a run at work on one model: who takes which rows, and how gradients, their norm and saved tensors become one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from openmai.model.transformer import Transformer
from openmai.parallel.apply import divide, shard
from openmai.parallel.exchange import Pieces
from openmai.parallel.layout import Layout
from openmai.parallel.mesh import Axis, Mesh
from openmai.parallel.parts import Parts
from openmai.parallel.processes import Processes


class Team:
    """A model under a layout. With one process everything here is what it is without."""

    def __init__(self, processes: Processes, layout: Layout, device: str) -> None:
        self.processes, self.layout = processes, layout
        self.mesh = Mesh(layout, device) if processes.size > 1 else None
        self.parts = Parts()
        self.data_rank = self.mesh.data_rank if self.mesh else 0

    @classmethod
    def alone(cls) -> Team:
        """Return the team of one process."""
        return cls(Processes(), Layout(dp_shard=1), "cpu")

    def take(self, model: Transformer, bf16: bool = False) -> Transformer:
        """Divide a built model among the processes."""
        if self.mesh:
            self.parts = divide(model, self.mesh)
            shard(model, self.mesh, bf16)
            self._describe(model, self.mesh)
        return model

    def _describe(self, model: nn.Module, mesh: Mesh) -> None:
        """Say of each matrix where its pieces lie, for Muon; those of experts are whole."""
        for name, parameter in model.named_parameters():
            part = self.parts.of(name)
            if parameter.ndim == 2 and part.axis == "tp":
                shape = tuple(self.saved(name, parameter).shape)
                parameter.pieces = Pieces.of(shape, part.dim, mesh.region, self.layout.tp)  # type: ignore[attr-defined, arg-type]

    def units(self, count: int, device: torch.device) -> float:
        """Return the sum of what the data-parallel groups count, each in all of its processes."""
        return self.processes.total([count], device)[0] / self.layout.copies

    def over_rows(self, value: float) -> float:
        """Return the sum over the processes that share each row of what each found for its tokens."""
        if not self.mesh or self.layout.cp == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.mesh.device)
        dist.all_reduce(total, group=self.mesh.cp.group)
        return total.item()

    def add_loads(self, loads: list[Tensor]) -> None:
        """Sum what the routers of this process's layers counted over all that passed tokens through them."""
        if not self.mesh:
            return
        for load in loads:
            dist.all_reduce(load, group=self.mesh.stage.group)

    def finish_gradients(self, model: nn.Module) -> None:
        """Sum over tensor-parallel processes the gradients of weights that all of them hold whole."""
        if self.mesh and self.layout.tp > 1:
            named = [(name, parameter) for name, parameter in model.named_parameters() if name in self.parts.summed]
            _sum_together([local(parameter.grad) for _, parameter in named if parameter.grad is not None], self.mesh.tp)

    def clip(self, model: nn.Module, limit: float | None) -> float:
        """Return the norm of all gradients, and scale them down if it is above `limit`."""
        gradients = [(name, local(parameter.grad)) for name, parameter in model.named_parameters() if parameter.grad is not None]
        device = next(model.parameters()).device
        squares = torch.zeros((), dtype=torch.float64, device=device)
        if gradients:
            norms = torch._foreach_norm([gradient.float() for _, gradient in gradients])
            weights = torch.tensor([1 / self._copies(name) for name, _ in gradients], dtype=torch.float64, device=device)
            squares = (torch.stack(norms).double().square() * weights).sum()
        norm = self.processes.total([squares.item()], device)[0] ** 0.5
        if limit is not None and norm > limit:
            torch._foreach_mul_([gradient for _, gradient in gradients], limit / (norm + 1e-6))
        return norm

    def _copies(self, name: str) -> int:
        """Return how many processes hold the same share of a tensor's gradient."""
        part = self.parts.of(name)
        alike = self.layout.tp if part.axis == "tp" and part.dim is None else 1
        return self.layout.dp_replicate * alike

    def state(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, dict[str, Tensor]]:
        """Return weights, buffers and moments by name, as parts of whole tensors that share memory with them: to be saved or read into."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        stored = dict(model.named_parameters())
        stored |= {name: value for name, value in model.state_dict().items() if name in dict(model.named_buffers())}
        moments: dict[str, Tensor] = {}
        for optimizer in optimizers:
            for parameter, values in optimizer.state.items():
                name = names[id(parameter)]
                moments |= {f"{name}/{key}": self.saved(name, value) for key, value in values.items()}
        return {"model": {name: self.saved(name, value.detach()) for name, value in stored.items()}, "optimizers": moments}

    def saved(self, name: str, value: Tensor) -> Tensor:
        """Return what this process holds of a parameter, buffer or moment as a part of the whole tensor."""
        if not self.mesh or not value.ndim:
            return value
        part = self.parts.of(name)
        mesh = self.mesh.sparse_state if part.axis == "ep" else self.mesh.dense_state
        divided = Replicate() if part.dim is None else Shard(part.dim)
        sharded = Shard(0) if isinstance(value, DTensor) else Replicate()
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


def local(value: Tensor) -> Tensor:
    """Return what this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def _sum_together(tensors: list[Tensor], axis: Axis) -> None:
    """Replace tensors by their sums over the processes, in one message."""
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=axis.group)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))
