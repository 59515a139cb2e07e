"""The processes of a layout as meshes of named axes, and the groups in which they talk.

Ranks count through (pp, dp_replicate, dp_shard, cp, tp), the last fastest, so that the processes of one tensor-parallel group are
neighbours. Seen by dense weights it is (pp, dp_replicate, fsdp, tp) with fsdp = dp_shard x cp; seen by experts (pp, dp_replicate, edp, ep),
where ep is the innermost part of dp_shard x cp x tp, the region, and edp the rest of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from openmai.parallel.layout import Layout


@dataclass(frozen=True)
class Axis:
    """One group of processes along an axis, and this process's place in it."""

    group: dist.ProcessGroup
    rank: int
    size: int

    @classmethod
    def of(cls, mesh: DeviceMesh, name: str) -> Axis:
        """Look up this process's group along the axis `name`."""
        return cls(mesh.get_group(name), mesh.get_local_rank(name), mesh.size(mesh.mesh_dim_names.index(name)))  # type: ignore[union-attr]


class Mesh:
    """Every group that a layout needs; all processes must build it together. `tied` embeddings join the ends of a pipeline."""

    def __init__(self, layout: Layout, device: str, tied: bool = False) -> None:
        self.layout, self.device = layout, device
        pp, replicate, shard, cp, tp, ep = layout.pp, layout.dp_replicate, layout.dp_shard, layout.cp, layout.tp, layout.ep
        region = shard * cp * tp
        self.dense = init_device_mesh(device, (pp, replicate, shard * cp, tp), mesh_dim_names=("pp", "dp_replicate", "fsdp", "tp"))
        self.sparse = init_device_mesh(device, (pp, replicate, region // ep, ep), mesh_dim_names=("pp", "dp_replicate", "edp", "ep"))
        rows = init_device_mesh(device, (pp * replicate * shard, cp * tp), mesh_dim_names=("other", "row"))
        sequence = init_device_mesh(device, (pp * replicate * shard, cp, tp), mesh_dim_names=("other", "cp", "tp"))
        regions = init_device_mesh(device, (pp * replicate, region), mesh_dim_names=("other", "region"))
        stages = init_device_mesh(device, (pp, replicate * region), mesh_dim_names=("pp", "stage"))
        self.tp, self.cp, self.ep = Axis.of(self.dense, "tp"), Axis.of(sequence, "cp"), Axis.of(self.sparse, "ep")
        self.edp = Axis.of(self.sparse, "edp")
        self.pp, self.fsdp = Axis.of(self.dense, "pp"), Axis.of(self.dense, "fsdp")
        self.row, self.region, self.stage = Axis.of(rows, "row"), Axis.of(regions, "region"), Axis.of(stages, "stage")
        self.ends = self._ends() if tied and pp > 1 else None
        self.dense_state = self._state(self.dense, "fsdp", "tp")
        self.sparse_state = self._state(self.sparse, "edp", "ep")
        self.data_rank = dist.get_rank() // (cp * tp) % (replicate * shard)

    def _ends(self) -> Axis | None:
        """Return the group of the first and the last process of this one's pipeline, if it is one of them."""
        found = None
        for ranks in self.dense.mesh.flatten(1).T[:, [0, -1]].tolist():
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                found = Axis(group, ranks.index(dist.get_rank()), 2)
        return found

    def _state(self, mesh: DeviceMesh, fsdp: str, divided: str) -> DeviceMesh:
        """Return the mesh as saved tensors see it: what tp or ep divides first and FSDP afterwards is divided in this order."""
        turned = DeviceMesh(self.device, mesh.mesh.transpose(2, 3).contiguous(), mesh_dim_names=("pp", "dp_replicate", divided, fsdp))
        return turned["dp_replicate", divided, fsdp]

    def sharding(self, experts: bool) -> DeviceMesh:
        """Return the mesh over which FSDP divides dense weights, or those of experts: of two axes when there are replicas."""
        mesh, axis = (self.sparse, "edp") if experts else (self.dense, "fsdp")
        return mesh["dp_replicate", axis] if self.layout.dp_replicate > 1 else mesh[axis]
