"""Linear layers whose products are of 8-bit floats (arXiv:2209.05433), on GPUs that have them and, slowly, on CPUs.

Each row of what is multiplied gets its own scale, worked out anew at every step, and is stored as e4m3. The gradient of the weights is the
product where rounding hurts most (its sums run over all tokens); it keeps the precision of the input. This is what torchao calls
"rowwise with the weight's gradient in high precision". Weights themselves, their gradients and the optimizer do not change.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmai.base.errors import OpenmaiError
from openmai.model.transformer import Transformer

LARGEST = 448.0  # of e4m3
STEP = 16  # the kernels take matrices whose sides are multiples of it


class Float8Linear(nn.Linear):
    """A linear layer of which the product and the gradient of the input are computed in 8 bits."""

    def forward(self, x: Tensor) -> Tensor:
        return float8_linear(x, self.weight, self.bias)


def use_float8(model: Transformer, device: str) -> None:
    """Let the linear layers of the blocks multiply in 8 bits; experts, routers, embedding and head stay as they are. Works in place.

    Raises OpenmaiError for a GPU without such products.
    """
    if device.startswith("cuda") and torch.cuda.get_device_capability(device) < (8, 9):
        raise OpenmaiError(f"precision=float8: {torch.cuda.get_device_name(device)} has no products of 8-bit floats; take precision=bf16")
    for module in model.blocks.modules():
        if type(module) is nn.Linear and _fits(module.weight):
            module.__class__ = Float8Linear


def product_of(linear: nn.Module) -> Any:
    """Return the function (x, weight, bias) that a linear layer multiplies with."""
    return float8_linear if isinstance(linear, Float8Linear) else F.linear


def float8_linear(x: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """Return x W^T + b of x (..., D), in the precision of `x`; parts of a matrix that the kernels do not take are multiplied as usual."""
    if not _fits(weight_FD):
        return F.linear(x, weight_FD, bias_F)
    y = _Product.apply(x.reshape(-1, x.shape[-1]), weight_FD).view(*x.shape[:-1], -1)
    return y if bias_F is None else y + bias_F


def _fits(weight_FD: Tensor) -> bool:
    return weight_FD.shape[0] % STEP == 0 and weight_FD.shape[1] % STEP == 0


def _rounded(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of a matrix in 8 bits and what each has to be multiplied with, (N, 1)."""
    scale_N1 = x_ND.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (x_ND.float() / scale_N1).to(torch.float8_e4m3fn), scale_N1


def _multiply(a_ND: Tensor, b_FD: Tensor) -> Tensor:
    """Return A B^T, (N, F), of matrices whose rows are rounded to 8 bits."""
    (a8, a_scale), (b8, b_scale) = _rounded(a_ND), _rounded(b_FD)
    return torch._scaled_mm(a8, b8.t(), scale_a=a_scale, scale_b=b_scale.t(), out_dtype=a_ND.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_FD: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight_FD)
        return _multiply(x_ND, weight_FD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x_ND, weight_FD = ctx.saved_tensors
        grad_NF = grads[0].contiguous()
        return _multiply(grad_NF, weight_FD.t().contiguous()), grad_NF.t() @ x_ND
