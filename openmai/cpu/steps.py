"""Steps of a forward pass, one compiled pass each, where PyTorch takes several calls: for few tokens those are most of its time."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from openmai.cpu.compile import Array, compiled, exp, inner


def store(pool: Tensor, block_N: Tensor, offset_N: Tensor, new_NGK: Tensor) -> None:
    """Write rows to their places in blocks (blocks, G, block, K)."""
    _store(0, pool.numpy(), block_N.numpy(), offset_N.numpy(), new_NGK.numpy())


@compiled
def _store(pool, blocks, offsets, new):  # type: ignore[no-untyped-def]
    for n in range(len(blocks)):
        for g in range(new.shape[1]):
            for c in range(new.shape[2]):
                pool[blocks[n], g, offsets[n], c] = new[n, g, c]


def turn(x_BTHK: Tensor, cos_BT1K: Tensor, sin_BT1K: Tensor) -> Tensor:
    """Return `x_BTHK` with the pairs (i, i + R/2) of the first R values of each head rotated; tables (B or 1, T, 1, R/2)."""
    turned = torch.empty(x_BTHK.shape, dtype=x_BTHK.dtype)
    _turn(turned.numel(), x_BTHK.numpy(), turned.numpy(), cos_BT1K.type_as(turned).numpy(), sin_BT1K.type_as(turned).numpy())
    return turned


@compiled
def _turn(x, turned, cos, sin):  # type: ignore[no-untyped-def]
    half = cos.shape[3]
    for t in prange(x.shape[1]):
        for b in range(x.shape[0]):
            row = min(b, len(cos) - 1)
            for h in range(x.shape[2]):
                turn_head(x[b, t, h], turned[b, t, h], cos[row, t, 0], sin[row, t, 0])
                turned[b, t, h, 2 * half :] = x[b, t, h, 2 * half :]


@inner
def turn_head(x, turned, cos, sin):  # type: ignore[no-untyped-def]
    for i in range(len(cos)):
        first, second = x[i], x[i + len(cos)]
        turned[i] = first * cos[i] - second * sin[i]
        turned[i + len(cos)] = second * cos[i] + first * sin[i]


def normalize(x_ND: Array, scale_D: Array, eps: float, added_ND: Array | None = None) -> tuple[Array, Array]:
    """Return the sum of `x_ND` and `added_ND` (or `x_ND` itself), and its rows divided by their root mean square, times the weights."""
    total = x_ND if added_ND is None else np.empty_like(x_ND)
    y = np.empty_like(x_ND)
    _normalize(y.size, x_ND, x_ND if added_ND is None else added_ND, total, y, scale_D, x_ND.dtype.type(eps), added_ND is not None)
    return total, y


@compiled
def _normalize(x, added, total, y, scale, eps, adds):  # type: ignore[no-untyped-def]
    for row in prange(x.shape[0]):
        if adds:
            for column in range(x.shape[1]):
                total[row, column] = x[row, column] + added[row, column]
        normalize_row(total[row], y[row], scale, eps)


@inner
def normalize_row(x, y, scale, eps):  # type: ignore[no-untyped-def]
    squares = x.dtype.type(0)
    for column in range(len(x)):
        squares += x[column] * x[column]
    factor = x.dtype.type(1) / np.sqrt(squares / x.dtype.type(len(x)) + eps)
    for column in range(len(x)):
        y[column] = x[column] * factor * scale[column]


def gate(gate_NF: Array, up_NF: Array) -> Array:
    """Return silu(gate) * up."""
    y = np.empty(gate_NF.shape, gate_NF.dtype)
    _gate(y.size, gate_NF, up_NF, y)
    return y


@compiled
def _gate(gates, ups, y):  # type: ignore[no-untyped-def]
    for row in prange(y.shape[0]):
        gate_row(gates[row].copy(), ups[row].copy(), y[row])  # copies, that the compiler sees numbers side by side


@inner
def gate_row(gates, ups, y):  # type: ignore[no-untyped-def]
    one = y.dtype.type(1)
    for column in range(len(y)):
        x = gates[column]
        small = exp(-abs(x))
        y[column] = x * (one if x >= 0 else small) / (one + small) * ups[column]


def to_range(x_ND: Array) -> tuple[Array, Array]:
    """Return `x_ND` with each row divided by its greatest magnitude, and these (N, 1)."""
    scaled, top = np.empty_like(x_ND), np.empty((len(x_ND), 1), x_ND.dtype)
    _to_range(x_ND.size, x_ND, scaled, top)
    return scaled, top


@compiled
def _to_range(x, scaled, top):  # type: ignore[no-untyped-def]
    for row in prange(x.shape[0]):
        most = x.dtype.type(1e-30)
        for column in range(x.shape[1]):
            most = max(most, abs(x[row, column]))
        top[row, 0] = most
        share = x.dtype.type(1) / most
        for column in range(x.shape[1]):
            scaled[row, column] = x[row, column] * share


def take_heads(
    joint_NF: Array,
    heads: int,
    keys: Array,
    values: Array,
    block_N: Array,
    offset_N: Array,
    cos_1N1K: Array,
    sin_1N1K: Array,
    norms: Array,
    eps: float,
) -> Array:
    """Divide rows (queries, keys, values) into heads, store keys and values in blocks (blocks, G, block, K), and return queries (N, H, K).

    Queries and keys are rotated by tables (1, N, 1, R/2), (1, 1, 1, 0) without rotation, and before that normed by the weights `norms`,
    (2, K) for queries and keys, (0, ...) without.
    """
    q = np.empty((len(joint_NF), heads, keys.shape[3]), joint_NF.dtype)
    _take_heads(0, joint_NF, q, keys, values, block_N, offset_N, cos_1N1K[0, :, 0], sin_1N1K[0, :, 0], norms, joint_NF.dtype.type(eps))
    return q


@compiled
def _take_heads(joint, q, keys, values, blocks, offsets, cos, sin, norms, eps):  # type: ignore[no-untyped-def]
    divide_heads(joint, q, keys, values, blocks, offsets, cos, sin, norms, eps)


@inner
def divide_heads(joint, q, keys, values, blocks, offsets, cos, sin, norms, eps):  # type: ignore[no-untyped-def]
    heads, width, groups = q.shape[1], q.shape[2], keys.shape[1]
    normed = np.empty(width, q.dtype)
    for n in range(len(joint)):
        at = min(n, len(cos) - 1)
        for h in range(heads + groups):
            target = q[n, h] if h < heads else keys[blocks[n], h - heads, offsets[n]]
            source = joint[n, h * width : (h + 1) * width]
            if norms.shape[1]:
                normalize_row(source, normed, norms[0 if h < heads else 1], eps)
                source = normed
            turn_head(source, target, cos[at], sin[at])
            for c in range(2 * cos.shape[1], width):
                target[c] = source[c]
        for g in range(groups):
            start = (heads + groups + g) * width
            for c in range(width):
                values[blocks[n], g, offsets[n], c] = joint[n, start + c]
