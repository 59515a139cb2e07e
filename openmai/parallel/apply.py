"""A built model becomes the same model on many processes; the model itself does not know."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from openmai.model.transformer import Transformer
from openmai.parallel.layout import Layout


def let_go(model: Transformer) -> None:
    """Let go of weights that a pass without a backward pass has left whole: optimizers and checkpoints must see the shards."""
    if isinstance(model, FSDPModule):
        model.reshard()


def make_mesh(layout: Layout, device: str) -> DeviceMesh:
    """Arrange the processes: replicas outside, the shards of one replica next to each other."""
    if layout.dp_replicate == 1:
        return init_device_mesh(device, (layout.dp_shard,), mesh_dim_names=("dp_shard",))
    return init_device_mesh(device, (layout.dp_replicate, layout.dp_shard), mesh_dim_names=("dp_replicate", "dp_shard"))


def shard(model: Transformer, mesh: DeviceMesh, bf16: bool) -> None:
    """Divide the weights of each block, and those around the blocks, over the processes (FSDP2, or HSDP with a mesh of two axes).

    A block's weights are gathered before it runs and let go afterwards; gradients are averaged over all processes, in fp32 also where
    `bf16` computes in bfloat16.
    """
    kind = torch.bfloat16 if bf16 else None
    policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32 if bf16 else None)
    parts: list[nn.Module] = [*model.blocks, *model.predictors]
    for part in parts:
        fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)  # the loss takes the head after `stream`
    register_fsdp_forward_method(model, "stream")
