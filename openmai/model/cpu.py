"""Small steps of a forward pass compiled for CPUs: one pass each, where PyTorch takes several calls, which for a few tokens is most of
their time."""

from __future__ import annotations

import torch
from numba import njit
from torch import Tensor

INFERENCE = {"fastmath": {"contract"}, "cache": True, "nogil": True, "error_model": "numpy"}


def compiles(x: Tensor) -> bool:
    """Tell whether compiled steps take a tensor: a plain one on a CPU, in fp32 or fp64, of a pass without gradients that is not traced."""
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def store(pool: Tensor, block_N: Tensor, offset_N: Tensor, new_NGK: Tensor) -> None:
    """Write rows to their places in blocks (blocks, G, block, K)."""
    _store(pool.numpy(), block_N.numpy(), offset_N.numpy(), new_NGK.numpy())


@njit(**INFERENCE)
def _store(pool, blocks, offsets, new):  # type: ignore[no-untyped-def]
    for n in range(len(blocks)):
        for g in range(new.shape[1]):
            for c in range(new.shape[2]):
                pool[blocks[n], g, offsets[n], c] = new[n, g, c]


def turn(x_BTHK: Tensor, cos_BT1K: Tensor, sin_BT1K: Tensor) -> Tensor:
    """Return `x_BTHK` with the pairs (i, i + R/2) of the first R values of each head rotated; tables (B or 1, T, 1, R/2)."""
    batch, length, heads, width = x_BTHK.shape
    turned = torch.empty(batch, length, heads, width, dtype=x_BTHK.dtype)
    cos, sin = cos_BT1K.type_as(turned)[:, :, 0], sin_BT1K.type_as(turned)[:, :, 0]
    _turn(x_BTHK.numpy(), turned.numpy(), cos.numpy(), sin.numpy())
    return turned


@njit(**INFERENCE)
def _turn(x, turned, cos, sin):  # type: ignore[no-untyped-def]
    half = cos.shape[2]
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            for h in range(x.shape[2]):
                row = b if len(cos) > 1 else 0
                for i in range(half):
                    first, second = x[b, t, h, i], x[b, t, h, i + half]
                    turned[b, t, h, i] = first * cos[row, t, i] - second * sin[row, t, i]
                    turned[b, t, h, i + half] = second * cos[row, t, i] + first * sin[row, t, i]
                for i in range(2 * half, x.shape[3]):
                    turned[b, t, h, i] = x[b, t, h, i]
