"""Pipeline parallelism: each process holds some layers, and micro-batches pass by a schedule of torch.distributed.pipelining.

1F1B (arXiv:2104.04473), interleaved 1F1B, ZB1P ("zero-bubble") and ZBV (arXiv:2401.10241).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining._utils import InferenceMode
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from openmai.model.config import ModelConfig
from openmai.model.loss import IGNORE, stream_loss
from openmai.model.moe import Router
from openmai.model.stages import stage_spans, stages_of_process
from openmai.model.transformer import Carried, Transformer
from openmai.parallel.layout import Layout
from openmai.parallel.mesh import Axis

SCHEDULES = {
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zero-bubble": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
}


class Stage(Transformer):
    """Some consecutive layers of a model; the first also embeds, the last also makes the loss."""

    first: bool
    last: bool
    units: float = 1.0
    "by how much losses are divided"

    @classmethod
    def of(cls, model: Transformer, layers: range) -> Stage:
        """Take layers out of `model`, whose modules are shared."""
        stage: Any = copy.copy(model)
        stage._modules, stage._parameters = dict(model._modules), dict(model._parameters)
        stage.__class__ = cls
        stage.first, stage.last = layers.start == 0, layers.stop == model.config.num_layers
        stage.blocks = nn.ModuleDict({str(layer): model.blocks[layer] for layer in layers})
        for name in () if stage.first else ("position_embedding", "smear_gate", "smear_scale"):
            setattr(stage, name, None)
        if not stage.first:
            stage.embedding_norm = nn.Identity()
            if not (stage.last and model.config.tied_embeddings):
                stage.embedding = None
        if not stage.last:
            stage.head, stage.norm, stage.backout_scale = None, nn.Identity(), None
        return stage

    def forward(  # type: ignore[override]
        self, *arrived: Tensor, ids: Tensor, targets: Tensor, documents: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return what the next stage gets, or of the last one loss and balancing penalty, each divided by `units`: (1, 2)."""
        context = self.context(ids, documents_BT=documents)
        if self.first:
            carried, penalty = self.begin(context), None
        else:
            *streams, penalty = (_ContiguousGradient.apply(tensor) for tensor in arrived)
            carried = self._unpack(streams)
        carried = self.run(carried, context)
        mine = self.take_penalty().reshape(1).clone()
        penalty = mine if penalty is None else penalty + mine
        if not self.last:
            return (*(stream.contiguous() for stream in carried if stream is not None), penalty)
        loss, _ = stream_loss(self, self.finish(carried), ids, targets, documents)
        share = (targets != IGNORE).sum() / self.units
        return torch.cat((loss.reshape(1) / self.units, penalty * share)).unsqueeze(0).clone()

    def _unpack(self, streams: list[Tensor]) -> Carried:
        rest = streams[1:]
        first = rest.pop(0) if self.config.residual_scalars else None
        return Carried(streams[0], first, rest.pop(0) if self.config.backout else None)

    @staticmethod
    def num_streams(config: ModelConfig) -> int:
        """Return how many streams go from stage to stage."""
        return 1 + config.residual_scalars + config.backout


class _ContiguousGradient(torch.autograd.Function):
    """Gradients that are sent must lie in one piece."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


class Pipeline(nn.Module):
    """The stages of one process: to optimizers and checkpoints a model with the names of the whole one."""

    def __init__(self, model: Transformer, layout: Layout, axis: Axis) -> None:
        super().__init__()
        self.config, self.layout, self.axis = model.config, layout, axis
        spans = stage_spans(model.config.num_layers, layout.num_stages)
        self.numbers = stages_of_process(layout.schedule, layout.pp, layout.num_stages, axis.rank)
        self.stages = nn.ModuleList(Stage.of(model, spans[number]) for number in self.numbers)
        self.schedules: dict[tuple[int, ...], Any] = {}
        self.symbolic = False  # tensors have no values, so stages cannot ask each other

    def parts(self) -> list[Stage]:
        """Return the stages that are here."""
        return list(self.stages)  # type: ignore[arg-type]

    def named_parameters(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that are here under their names in the whole model."""
        for stage in self.stages:
            yield from stage.named_parameters(*arguments, **options)

    def named_buffers(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers that are here under their names in the whole model."""
        for stage in self.stages:
            yield from stage.named_buffers(*arguments, **options)

    def matrices(self) -> list[nn.Parameter]:
        """Return what Muon updates of the stages that are here."""
        return [parameter for stage in self.parts() for parameter in stage.matrices()]

    def routers(self) -> list[Router]:
        """Return the routers that are here."""
        return [router for stage in self.parts() for router in stage.routers()]

    def compile_blocks(self) -> None:
        """Compile the blocks that are here."""
        for stage in self.parts():
            stage.compile_blocks()

    def gradients(self, batch: list[dict[str, Tensor]], units: float) -> dict[str, float]:
        """Pass micro-batches forward and backward; return sums of loss and penalty (zero where the last stage is elsewhere)."""
        for stage in self.parts():
            stage.units = units
        outputs = self.run(batch, backward=True)
        loss, penalty = (0.0, 0.0) if outputs is None else outputs.detach().double().sum(0).tolist()
        return {"loss": loss, "penalty": penalty}

    @torch.no_grad()
    def stream_nats(self, tokens: np.ndarray, context: int, end_of_text: int) -> float:
        """Return what `model.loss.stream_nats` does, to the process that has the last stage, and zero to the others."""
        count = 2 * self.layout.num_stages
        windows = -(-(len(tokens) - 1) // context)
        rows = max(1, min(16, windows // count))
        self.eval()
        for stage in self.parts():
            stage.units = 1.0
        total = 0.0
        for start in range(0, windows, count * rows):
            block = torch.from_numpy(np.asarray(tokens[start * context : (start + count * rows) * context + 1], dtype=np.int64))
            missing = count * rows * context + 1 - len(block)
            ids = F.pad(block[:-1], (0, missing)).view(-1, context)
            targets = F.pad(block[1:].masked_fill(block[1:] == end_of_text, IGNORE), (0, missing), value=IGNORE).view(-1, context)
            device = next(self.parameters()).device
            batch = [
                {"ids": some_ids.to(device), "targets": some_targets.to(device)}
                for some_ids, some_targets in zip(ids.split(rows), targets.split(rows), strict=True)
            ]
            outputs = self.run(batch, backward=False)
            total += 0.0 if outputs is None else outputs[:, 0].double().sum().item()
        self.train()
        return total

    def run(self, batch: list[dict[str, Tensor]], backward: bool) -> Tensor | None:
        """Pass micro-batches through the schedule; return the results of the last stage, (N, 2), if it is here."""
        joined = {name: torch.cat([micro[name] for micro in batch]) for name in batch[0]}
        schedule = self._schedule(len(batch), batch[0]["ids"])
        arguments = (joined["ids"],) if self.parts()[0].first else ()
        call = schedule.step if backward else schedule.eval
        losses: list[Tensor] = []
        return call(*arguments, target=joined["targets"] if self._has_last else None, losses=losses, **joined)

    @property
    def _has_last(self) -> bool:
        return any(stage.last for stage in self.parts())

    def _schedule(self, count: int, ids_BT: Tensor) -> Any:
        """Return the schedule for so many micro-batches of this shape."""
        key = (count, *ids_BT.shape)
        if key not in self.schedules:
            stages = [
                PipelineStage(
                    stage,
                    number,
                    self.layout.num_stages,
                    ids_BT.device,
                    input_args=(ids_BT.to("meta"),) if stage.first else self._streams(ids_BT),
                    output_args=torch.empty(1, 2, device="meta") if stage.last else self._streams(ids_BT),
                    group=self.axis.group,
                )
                for number, stage in zip(self.numbers, self.parts(), strict=True)
            ]
            only = stages[0] if self.layout.schedule == "1f1b" else stages
            make: Any = SCHEDULES[self.layout.schedule]
            schedule = make(only, count, loss_fn=lambda output, _: output.sum(), scale_grads=False)
            if self.symbolic:
                schedule._warmup_p2p = _believe
            self.schedules[key] = schedule
        return self.schedules[key]

    def _streams(self, ids_BT: Tensor) -> tuple[Tensor, ...]:
        """Return examples of what goes from stage to stage."""
        length = self.parts()[0].span.cut(ids_BT).shape[1]
        if self.layout.tp > 1 and self.layout.sequence_parallel:
            length = -(-length // self.layout.tp)
        kind = self._kind()
        stream = torch.empty(ids_BT.shape[0], length, self.config.width, dtype=kind, device="meta", requires_grad=True)
        return *[stream] * Stage.num_streams(self.config), torch.empty(1, device="meta", requires_grad=True)

    def _kind(self) -> torch.dtype:
        """Return the type of the stream."""
        stage = self.parts()[0]
        if isinstance(stage, FSDPModule):
            policy = stage._get_fsdp_state()._mp_policy
            return policy.param_dtype or torch.float32
        return next(stage.parameters()).dtype


def _believe(stages: list[Any], *_: Any) -> None:
    """Take the shapes that were given to stages as they are, instead of voting on it."""
    for stage in stages:
        stage._inference_mode = InferenceMode.STATIC
