"""Matrices in the forms that are fastest on a CPU: packed for MKL or oneDNN, or in fewer bits.

A step of few tokens reads every weight once, so fewer bits are more tokens per second; and packed forms compute 2 to 32 rows in
little more than the time of one, which plain ones do not (docs/LOG.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmai.cpu.steps import normalize, to_range

GROUP = 32  # weights that share a scale in int4


class MklLinear(nn.Module):
    """A linear layer in fp32 that MKL has laid out for itself; the plain matrix is given up."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = None if linear.bias is None else linear.bias.data
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(linear.weight.data.contiguous(), 16)
        self.shape = torch.empty(linear.weight.shape)  # never written nor read, so it takes no memory: the call wants the shape

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkl._mkl_linear(x, self.packed, self.shape, self.bias, x.numel() // x.shape[-1])


class OneDnnLinear(nn.Module):
    """A linear layer in fp32 that oneDNN has laid out for itself; the plain matrix is given up."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = None if linear.bias is None else linear.bias.data
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.data.contiguous(), 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class HalfLinear(nn.Module):
    """A linear layer with weights in fp16, activations and sums in fp32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.width = linear.out_features
        self.bias = torch.zeros(self.width) if linear.bias is None else linear.bias.data
        self.packed = torch.fbgemm_pack_gemm_matrix_fp16(linear.weight.data.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fbgemm_linear_fp16_weight_fp32_activation(x.reshape(-1, x.shape[-1]), self.packed, self.bias)
        return y.view(*x.shape[:-1], self.width)


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, a scale per output, and activations brought to 8 bits token by token.

    Sums are of whole numbers and each token has a scale of its own, so what a token gets does not depend on the others of its batch.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = None if linear.bias is None else linear.bias.data
        weight = linear.weight.data
        scales = (weight.abs().amax(dim=1).double() / 127).clamp(min=1e-12)
        quantized = torch.quantize_per_channel(weight, scales, torch.zeros(len(weight), dtype=torch.long), 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        # the operator itself: its wrapper looks through the arguments for what may want to be called instead
        self.product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32._op

    def forward(self, x: Tensor) -> Tensor:
        scaled, top = to_range(x.reshape(-1, x.shape[-1]).numpy())
        y = self.product(torch.from_numpy(scaled), 1 / 127, 128, self.packed).mul_(torch.from_numpy(top)).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Int4Linear(nn.Module):
    """A linear layer with 4-bit weights in groups of 32, each with its least value and its step; multiplied in bf16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = None if linear.bias is None else linear.bias.data
        groups = linear.weight.data.unflatten(1, (-1, GROUP))
        least, most = groups.amin(-1), groups.amax(-1)
        step = ((most - least) / 15).clamp(min=1e-8)
        numbers = ((groups - least.unsqueeze(-1)) / step.unsqueeze(-1)).round().clamp(0, 15).to(torch.int32).flatten(1)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 8)
        self.scales = torch.stack((step, least + 8 * step), dim=-1).transpose(0, 1).contiguous().bfloat16()  # w = (number - 8) step + zero

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scales).to(x.dtype).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Joint(nn.Module):
    """Linear layers of the same input as one product: one call, and one reading of what goes in."""

    def __init__(self, names: tuple[str, ...], parts: list[nn.Linear]) -> None:
        super().__init__()
        self.names, self.widths = names, [part.out_features for part in parts]
        self.whole = nn.Linear(parts[0].in_features, sum(self.widths), bias=parts[0].bias is not None, device="meta")
        for name in dict(parts[0].named_parameters()):
            joined = torch.cat([getattr(part, name).data for part in parts])
            setattr(self.whole, name, nn.Parameter(joined, requires_grad=False))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.whole(x).split(self.widths, dim=-1)


class PackedNorm(nn.Module):
    """RMSNorm in one compiled pass; PyTorch's takes eight on a CPU, which for one token is most of its time."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        self.eps = float(norm.eps or torch.finfo(torch.float32).eps)
        self.scale = torch.ones(norm.normalized_shape) if norm.weight is None else norm.weight.data

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(normalize(x.reshape(-1, x.shape[-1]).numpy(), self.scale.numpy(), self.eps)[1]).view(x.shape)


def reference(kind: str, linear: nn.Linear, x: Tensor) -> Tensor:
    """Return what the packed form of `linear` should give for `x`, by plain arithmetic on rounded weights: the slow twin of the above."""
    weight = linear.weight.data
    if kind == "fp16":
        weight = weight.half().float()
    elif kind == "int8":
        step = weight.abs().amax(dim=1, keepdim=True) / 127
        weight = (weight / step).round() * step
        step = x.abs().amax(dim=-1, keepdim=True) / 127
        x = (x / step).round().clamp(-128, 127) * step
    elif kind == "int4":
        groups = weight.unflatten(1, (-1, GROUP))
        least = groups.amin(-1, keepdim=True)
        step = (groups.amax(-1, keepdim=True) - least) / 15
        weight = (((groups - least) / step).round() * step + least).flatten(1)
    return F.linear(x, weight, linear.bias)
