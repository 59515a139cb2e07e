"""A built model becomes the same model on many processes; the model itself does not know.

The order is fixed: tensor, expert and context parallelism rewrite modules, a pipeline takes this process's layers out of the model, and
FSDP divides what is left.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, HSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import Shard

from openmai.model.moe import Experts
from openmai.model.transformer import Transformer
from openmai.parallel.experts import divide_experts
from openmai.parallel.mesh import Mesh
from openmai.parallel.parts import Parts
from openmai.parallel.pipeline import Pipeline
from openmai.parallel.ring import DividedSpan, divide_rows
from openmai.parallel.tensor import divide_tensors


def let_go(model: nn.Module) -> None:
    """Let go of weights that a pass without a backward pass has left whole: optimizers and checkpoints must see the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def divide(model: Transformer, mesh: Mesh) -> Parts:
    """Give each process its part of the model's tensors along tp and ep, and let it exchange what the others need; return the parts."""
    layout, parts = mesh.layout, Parts()
    region = divide_tensors(model, mesh.tp, layout.sequence_parallel, parts) if layout.tp > 1 else None
    divide_experts(model, mesh.ep, parts)
    if layout.cp > 1:
        divide_rows(model, mesh.cp)
    if layout.cp > 1 or region is not None:
        model.span = DividedSpan(mesh.cp, mesh.row, region)
        for router in model.routers():
            router.span = model.span
    return parts


def shard(model: Transformer | Pipeline, mesh: Mesh, bf16: bool) -> None:
    """Divide the weights of each block, and those around the blocks, over the data-parallel processes (FSDP2, or HSDP with replicas).

    A block's weights are gathered before it runs and let go afterwards; gradients are summed over all processes, in fp32 also where
    `bf16` computes in bfloat16.
    """
    if isinstance(model, Pipeline):
        for stage in model.parts():
            shard(stage, mesh, bf16)
        return
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32 if bf16 else None,
        cast_forward_inputs=False,  # it would round the cosines of positions in every block; what flows has the weights' type by itself
    )
    again = mesh.layout.pp == 1  # zero-bubble schedules take weights' gradients from the graph that the forward pass left
    stacks = {parameter for module in model.modules() if isinstance(module, Experts) for parameter in module.parameters()}
    dense, sparse = mesh.sharding(experts=False), mesh.sharding(experts=True)
    info = None if dense.mesh.equal(sparse.mesh) else _mesh_info(sparse)

    def place(parameter: nn.Parameter) -> Shard | ShardPlacementResult | None:
        if parameter not in stacks:
            return None
        few = len(parameter) % mesh.edp.size != 0 and parameter.shape[1] % mesh.edp.size == 0
        by = Shard(1) if few else Shard(0)  # fewer experts than processes: each holds rows of all of them
        return ShardPlacementResult(by, info) if info else by

    for part in [*model.blocks.children(), *model.predictors]:
        fully_shard(part, mesh=dense, mp_policy=policy, reshard_after_forward=again, shard_placement_fn=place)
    fully_shard(model, mesh=dense, mp_policy=policy, reshard_after_forward=False)  # the loss takes the head after `stream`
    register_fsdp_forward_method(model, "stream")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_backward(again)  # a pipeline says itself when its last micro-batch has passed
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _mesh_info(mesh: DeviceMesh) -> FSDPMeshInfo:
    return FSDPMeshInfo(mesh, shard_mesh_dim=0) if mesh.ndim == 1 else HSDPMeshInfo(mesh, shard_mesh_dim=1, replicate_mesh_dim=0)
