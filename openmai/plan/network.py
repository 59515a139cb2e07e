"""What the links carry: bytes per process of each collective, and the seconds they take.

Processes are numbered tp innermost, then cp, dp_shard, dp_replicate, pp outermost, so tensor parallelism stays within a fast domain; expert
parallelism is folded over the first three. A ring moves (n - 1) / n of the whole per process; in a group that spans domains the members of
one domain share their links out of it (NCCL's rings, one per NIC).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openmai.model.config import ModelConfig
from openmai.model.count import count_around
from openmai.plan.hardware import GPU
from openmai.plan.layout import Array, Grid
from openmai.plan.stages import Kind, local_parameters, stages_of

NVLINK, NIC = 0.80, 0.85
"shares of a link's bandwidth that large collectives reach: NCCL's bus bandwidth on H100 nodes, 360 of 450 GB/s and 42 of 50"
HOP = 12e-6
"seconds that a collective needs besides its bytes, per doubling of the group"


@dataclass(frozen=True)
class Links:
    """Speeds in bytes per second after NVLINK and NIC."""

    fast: float
    slow: float
    domain: int

    @classmethod
    def of(cls, gpu: GPU) -> Links:
        return cls(gpu.nvlink_gb_s * 1e9 * NVLINK, gpu.nic_gb_s * 1e9 * NIC, gpu.domain)

    def ring(self, bytes_whole: Array, size: Array, stride: Array) -> Array:
        """Return the seconds of an all-gather or reduce-scatter of `bytes_whole` over `size` processes that lie `stride` apart."""
        return bytes_whole * (size - 1) / size / self.speed(size, stride) + HOP * np.log2(size)

    def speed(self, size: Array, stride: Array) -> Array:
        """Return the bus bandwidth of a group: the fast link, or the links out of a domain of all its members there."""
        local = np.clip(self.domain // stride, 1, size)
        return np.where(local >= size, self.fast, np.minimum(self.fast, local * self.slow))


def tensor_bytes(model: ModelConfig, kind: Kind, grid: Grid, tokens: Array) -> tuple[Array, int]:
    """Return the whole bytes of one exchange between tensor-parallel processes, and how many a layer's forward pass makes.

    With the sequence divided too, each half layer gathers its input and scatters its output (arXiv:2205.05198); a mixture without
    divided experts works on its own tokens, so only attention exchanges. The backward pass makes as many, and gathers once more for
    the weights' gradients, beside other work.
    """
    return 2.0 * tokens * model.width, 2 if kind.moe and model.moe and not model.moe.num_shared else 4


def context_bytes(model: ModelConfig, grid: Grid, tokens: Array) -> Array:
    """Return the bytes that one process sends in a layer's forward pass around the ring of keys and values; twice that backward."""
    width = model.num_heads * (model.head + model.mla.value_width) if model.mla else 2 * np.maximum(model.kv_heads, grid.tp) * model.head
    return (grid.cp - 1) * 2.0 * tokens * width / grid.tp


def expert_copies(model: ModelConfig, grid: Grid, tokens: Array) -> Array:
    """Return the pairs of token and expert that one process sends out; `tokens` of a tensor-parallel group are divided within it."""
    assert model.moe is not None
    return tokens / grid.tp * model.moe.num_active


def exchange_seconds(model: ModelConfig, grid: Grid, tokens: Array, links: Links, bytes_each: float, once_per_domain: bool) -> Array:
    """Return the seconds of one way of a layer's all-to-all.

    Within a domain every pair of token and expert goes over the fast link. Between domains a token goes to each other domain that holds
    one of its experts: once (DeepEP, arXiv:2412.19437 section 3.2.2, at most `active_groups` of them), or once per expert.
    """
    moe = model.moe
    assert moe is not None
    width = (moe.latent_width or model.width) * bytes_each
    group = grid.ep * grid.etp
    local = np.minimum(group, links.domain)
    domains = np.maximum(1, group / local)
    copies = expert_copies(model, grid, tokens)
    visits = domains * (1 - (1 - 1 / domains) ** moe.num_active)
    if moe.num_groups > 1:
        visits = np.minimum(visits, moe.active_groups)
    remote = tokens / grid.tp * visits * (domains - 1) / domains if once_per_domain else copies * (domains - 1) / domains
    fast = copies * (group - 1) / group * width / links.fast
    slow = remote * width / links.slow
    return np.where(group > 1, np.where(domains > 1, np.maximum(slow, fast), fast) + HOP * np.log2(np.maximum(group, 2)), 0.0)


def step_bytes(
    model: ModelConfig,
    grid: Grid,
    sequence: int,
    batch_rows: int,
    weight_bytes: float = 2.0,
    gradient_bytes: float = 4.0,
    bytes_each: float = 2.0,
) -> dict[str, Array]:
    """Return the bytes that one process of the first stage sends in a step, by what for; a ring sends (n - 1) / n of the whole.

    The embedding's and the output layer's tensor-parallel exchanges are those of the ends of the pipeline; `bytes_each` is of activations.
    FSDP gathers each layer for the forward and the backward pass, what lies around the layers once, and scatters all gradients, for each
    micro-batch; ZeRO-1 and 2, and FSDP in a pipeline, scatter gradients and gather weights once. collectives.py counts the calls of our own
    training.
    """
    tokens, micro_batches = grid.micro_rows * sequence / grid.cp, batch_rows / (grid.dp * grid.micro_rows)
    stages = stages_of(model, grid.pp, grid.virtual, grid.schedule)
    dense, experts = (values[0] for values in local_parameters(model, grid))
    embedding, head, small = count_around(model)
    around = (embedding + (head + small if grid.pp == 1 else 0)) / grid.tp
    share, expert_share = (grid.shards - 1) / grid.shards, (grid.expert_shards - 1) / grid.expert_shards
    once = share * dense + expert_share * experts
    twice = 2 * once - share * around
    fsdp = (grid.zero == 3) & (grid.pp == 1)
    result = {
        "gather weights": np.where(fsdp, micro_batches * weight_bytes * twice, np.where(grid.zero > 0, weight_bytes * once, 0.0)),
        "scatter gradients": np.where(fsdp, micro_batches, 1) * gradient_bytes * once,
        "pipeline": (grid.pp > 1) * micro_batches * grid.virtual * bytes_each * tokens * model.width / grid.tp,
    }
    for name in ("tensor parallel", "context parallel", "all-to-all"):
        result[name] = 0.0 * tokens
    ends = micro_batches * (4 if grid.pp == 1 else 2) * bytes_each * tokens * model.width * (grid.tp - 1) / grid.tp
    result["tensor parallel"] = result["tensor parallel"] + ends
    for number, kind in enumerate(stages.kinds):
        amount = stages.counts[0, number] * micro_batches
        whole, exchanges = tensor_bytes(model, kind, grid, tokens)
        result["tensor parallel"] += amount * exchanges * bytes_each * whole * (grid.tp - 1) / grid.tp
        result["context parallel"] += amount * 1.5 * bytes_each * context_bytes(model, grid, tokens)
        if kind.moe and model.moe:
            width = model.moe.latent_width or model.width
            group = grid.ep * grid.etp
            result["all-to-all"] += amount * 4 * bytes_each * width * expert_copies(model, grid, tokens) * (group - 1) / group
    return result
