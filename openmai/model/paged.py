"""Attention of single tokens over a paged cache, compiled for CPUs: each key and value is read once, from where it lies."""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from torch import Tensor

from openmai.model.cache import Batch

THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def attend_few(
    batch: Batch,
    layer: int,
    q_NHK: Tensor,
    window: int | None,
    scale: float,
    softcap: float | None,
    sinks_H: Tensor | None,
    slopes_H: Tensor | None,
) -> Tensor:
    """Return what the first N tokens of the pass attend to, (N, H, K of values)."""
    keys, values = batch.cache.keys[layer], batch.cache.values[layer]
    q = q_NHK.contiguous().numpy()
    out = np.empty((*q.shape[:2], values.shape[-1]), q.dtype)
    nothing = np.empty(0, q.dtype)
    kind = q.dtype.type
    numba.set_num_threads(min(torch.get_num_threads(), THREADS))
    _attend(
        out, q, keys.numpy(), keys.numpy() if batch.cache.config.mla else values.numpy(), batch.tables_BM.numpy(), batch.row_N.numpy(),
        batch.seen_N.numpy(), np.int64(window or 1 << 62), kind(scale), kind(softcap or 0),
        nothing if sinks_H is None else sinks_H.detach().to(q_NHK.dtype).numpy(),
        nothing if slopes_H is None else slopes_H.to(q_NHK.dtype).numpy(),
    )  # fmt: skip
    return torch.from_numpy(out)


def _exp(x):  # type: ignore[no-untyped-def]
    """e to the power of x <= 0, in code of which the compiler can do many at once; for fp64 the library's."""
    raise NotImplementedError("only inside compiled code")


@overload(_exp, jit_options={"fastmath": {"contract"}})
def _compile_exp(x):  # type: ignore[no-untyped-def]
    return _exp_fp32 if x == types.float32 else lambda x: math.exp(x)


def _exp_fp32(x):  # type: ignore[no-untyped-def]
    """Cephes' expf: 2^n times a polynomial of degree 7 in what is left, |r| <= ln(2) / 2; within 2e-7."""
    x = max(x, np.float32(-87))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # ln(2) in two parts, the first exact in few bits
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1)) * _as_float((np.int32(n) + np.int32(127)) << np.int32(23))


@intrinsic
def _as_float(_context, bits):  # type: ignore[no-untyped-def]
    """The float of these 32 bits."""
    return types.float32(types.int32), lambda context, builder, signature, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic
def _prefetch(_context, row):  # type: ignore[no-untyped-def]
    """Ask for the beginning of an array before it is needed: where pages end the processor foresees nothing."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        number, pointer = ir.IntType(32), ir.PointerType(ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        data = builder.bitcast(context.make_array(row)(context, builder, args[0]).data, pointer)
        builder.call(function, [data, number(0), number(2), number(1)])  # to be read, into the second cache, data

    return types.void(row), generate


@njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, parallel=True, cache=True, nogil=True, error_model="numpy")
def _attend(  # type: ignore[no-untyped-def]
    out, q, keys, values, tables, row_N, seen_N, window, scale, softcap, sinks, slopes
):
    """One job per token and key-value head: scores of all keys, softmax, mixture; the order of its sums is always the same."""
    tokens, heads, width = q.shape
    groups, block, value_width = keys.shape[1], keys.shape[2], out.shape[2]
    per = heads // groups
    for job in prange(tokens * groups):
        n, g = job // groups, job % groups
        row, seen = row_N[n], np.int64(seen_N[n])
        start = max(np.int64(0), seen - window) // block
        first, last = max(np.int64(0), seen - window) - start * block, seen - start * block  # of the keys from block `start` on
        scores = np.empty((per, (last + block - 1) // block * block), q.dtype)
        for b in range(scores.shape[1] // block):
            place = tables[row, start + b]
            after = tables[row, min(start + b + 1, tables.shape[1] - 1)]
            for j in range(block):
                for c in range(0, width, 16):
                    _prefetch(keys[after, g, j, c:])
                for c in range(0, value_width, 16):
                    _prefetch(values[place, g, j, c:])
            for h in range(per):
                for j in range(block):
                    s = q.dtype.type(0)
                    for c in range(width):
                        s += q[n, g * per + h, c] * keys[place, g, j, c]
                    scores[h, b * block + j] = s * scale
        for h in range(per):
            _soften(scores[h], first, last, softcap, slopes[g * per + h : g * per + h + 1], sinks[g * per + h : g * per + h + 1])
        mixed = np.zeros((per, value_width), q.dtype)
        for b in range(scores.shape[1] // block):
            place = tables[row, start + b]
            for h in range(per):
                _mix(mixed[h], scores[h, b * block :], values[place, g], max(first - b * block, 0), min(last - b * block, block))
        for h in range(per):
            for c in range(value_width):
                out[n, g * per + h, c] = mixed[h, c]


@njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy")
def _soften(scores, first, last, softcap, slope, sink):  # type: ignore[no-untyped-def]
    """Softmax over scores first to last, in place; `slope` and `sink` hold one number or none."""
    scores = scores[first:last]
    if softcap > 0:
        for j in range(len(scores)):
            scores[j] = softcap * math.tanh(scores[j] / softcap)
    if len(slope):
        for j in range(len(scores)):
            scores[j] -= slope[0] * (len(scores) - 1 - j)
    top = scores[0]
    for j in range(len(scores)):
        top = max(top, scores[j])
    if len(sink):
        top = max(top, sink[0])
    total = scores.dtype.type(0)
    for j in range(len(scores)):
        scores[j] = _exp(scores[j] - top)
        total += scores[j]
    if len(sink):
        total += _exp(sink[0] - top)
    for j in range(len(scores)):
        scores[j] /= total


@njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy")
def _mix(mixed, weights, values, first, last):  # type: ignore[no-untyped-def]
    """Add rows first to last of `values` times their weights, four at a time: `mixed` is read and written once for all four."""
    j = first
    while j + 4 <= last:
        for c in range(len(mixed)):
            pair = weights[j] * values[j, c] + weights[j + 1] * values[j + 1, c]
            mixed[c] += pair + weights[j + 2] * values[j + 2, c] + weights[j + 3] * values[j + 3, c]
        j += 4
    for rest in range(j, last):
        for c in range(len(mixed)):
            mixed[c] += weights[rest] * values[rest, c]
