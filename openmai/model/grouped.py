"""Grouped matrix products as one operator that the compiler can trace in any precision.

`F.grouped_mm` computes fp32 on a CPU, but PyTorch 2.13 traces it for bf16 only, and its backward pass refuses expanded gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


@torch.library.custom_op("openmai::grouped_product", mutates_args=())
def grouped_product(left: Tensor, right: Tensor, ends_E: Tensor) -> Tensor:
    """Multiply groups of `left`, which end at `ends_E` (int32), each with its own matrix.

    (M, K) rows in groups, times (E, K, N), is (M, N). (I, M) columns in groups, times (M, J) rows in the same groups, is (E, I, J).
    """
    return F.grouped_mm(left, right, offs=ends_E)


@grouped_product.register_fake
def _(left: Tensor, right: Tensor, ends_E: Tensor) -> Tensor:
    if right.ndim == 3:
        return left.new_empty(left.shape[0], right.shape[2])
    return left.new_empty(ends_E.shape[0], left.shape[0], right.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    left_MK, right_EKN, ends_E = ctx.saved_tensors
    grad_MN = grad_MN.contiguous()
    left = grouped_product(grad_MN, right_EKN.mT, ends_E) if ctx.needs_input_grad[0] else None
    right = grouped_product(grad_MN.mT, left_MK, ends_E).mT if ctx.needs_input_grad[1] else None
    return left, right, None


grouped_product.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.openmai.grouped_product)
def _flops(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Return the FLOPs for the shapes of a call: every row meets one matrix, a multiply-add counted as two."""
    return 2 * left[0] * left[1] * right[-1]
