"""Steps of a forward pass compiled for CPUs: one pass each, where PyTorch takes several calls, which for few tokens is most of their time.

All are in this file because numba, deciding whether to compile anew, looks only at the file of the function itself.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from openmai.model.cache import Batch

THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
FAST = {"reassoc", "contract", "nsz", "arcp"}  # the order of sums is the compiler's, but always the same
ALONE: dict[str, Any] = {"fastmath": FAST, "cache": True, "nogil": True, "error_model": "numpy"}
MANY = 1 << 16  # numbers; above, threads are worth waking

Array = NDArray[Any]


def compiles(x: Tensor) -> bool:
    """Tell whether compiled steps take a tensor: a plain one on a CPU, in fp32 or fp64, of a pass without gradients that is not traced."""
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function, whose outer loop is a `prange`, for one thread and for as many as PyTorch has.

    The result takes the number of numbers it is about first, and chooses by it. A step of a single thread stays out of OpenMP: a team of
    one makes OpenMP end the threads of the larger one, and start them anew.
    """
    twin = FunctionType(function.__code__, function.__globals__, function.__name__ + "_threads")
    twin.__qualname__, twin.__module__ = twin.__name__, function.__module__  # by which the compiled code is kept
    alone, together = njit(**ALONE)(function), njit(parallel=True, **ALONE)(twin)

    def run(size: int, *arguments: object) -> None:
        threads = min(torch.get_num_threads(), THREADS)
        if size < MANY or threads == 1:
            alone(*arguments)
        else:
            numba.set_num_threads(threads)
            together(*arguments)

    return run


def end_threads() -> None:
    """End the threads that OpenMP keeps for the calling thread; it starts new ones when they are wanted.

    It keeps some for each thread that has computed. Where these are more than processors, all of them sleep between steps rather than wait,
    and waking them takes as long as a step of one token in 8 bits.
    """
    with suppress(OSError, AttributeError):  # another OpenMP than GCC's
        ctypes.CDLL("libgomp.so.1").omp_pause_resource_all(1)


def exp(x):  # type: ignore[no-untyped-def]
    """e to the power of x <= 0, in code of which the compiler can do many at once; for fp64 the library's."""
    raise NotImplementedError("only inside compiled code")


@overload(exp, jit_options={"fastmath": {"contract"}})
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


def store(pool: Tensor, block_N: Tensor, offset_N: Tensor, new_NGK: Tensor) -> None:
    """Write rows to their places in blocks (blocks, G, block, K)."""
    _store(pool.numpy(), block_N.numpy(), offset_N.numpy(), new_NGK.numpy())


@njit(**ALONE)
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
                _turn_head(x[b, t, h], turned[b, t, h], cos[row, t, 0], sin[row, t, 0])
                turned[b, t, h, 2 * half :] = x[b, t, h, 2 * half :]


@njit(**ALONE)
def _turn_head(x, turned, cos, sin):  # type: ignore[no-untyped-def]
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
        _normalize_row(total[row], y[row], scale, eps)


@njit(**ALONE)
def _normalize_row(x, y, scale, eps):  # type: ignore[no-untyped-def]
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
        _gate_row(gates[row].copy(), ups[row].copy(), y[row])  # copies, that the compiler sees numbers side by side


@njit(**ALONE)
def _gate_row(gates, ups, y):  # type: ignore[no-untyped-def]
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
    _take_heads(joint_NF, q, keys, values, block_N, offset_N, cos_1N1K[0, :, 0], sin_1N1K[0, :, 0], norms, joint_NF.dtype.type(eps))
    return q


@njit(**ALONE)
def _take_heads(joint, q, keys, values, blocks, offsets, cos, sin, norms, eps):  # type: ignore[no-untyped-def]
    heads, width, groups = q.shape[1], q.shape[2], keys.shape[1]
    normed = np.empty(width, q.dtype)
    for n in range(len(joint)):
        at = min(n, len(cos) - 1)
        for h in range(heads + groups):
            target = q[n, h] if h < heads else keys[blocks[n], h - heads, offsets[n]]
            source = joint[n, h * width : (h + 1) * width]
            if norms.shape[1]:
                _normalize_row(source, normed, norms[0 if h < heads else 1], eps)
                source = normed
            _turn_head(source, target, cos[at], sin[at])
            for c in range(2 * cos.shape[1], width):
                target[c] = source[c]
        for g in range(groups):
            start = (heads + groups + g) * width
            for c in range(width):
                values[blocks[n], g, offsets[n], c] = joint[n, start + c]


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
    _attend(
        q.size * batch.tables_BM.shape[1] * batch.cache.block,
        out, q, keys.numpy(), keys.numpy() if batch.cache.config.mla else values.numpy(),
        batch.tables_BM.numpy(), batch.row_N.numpy(), batch.seen_N.numpy(), np.int64(window or 1 << 62), kind(scale), kind(softcap or 0),
        nothing if sinks_H is None else sinks_H.detach().to(q_NHK.dtype).numpy(),
        nothing if slopes_H is None else slopes_H.to(q_NHK.dtype).numpy(),
    )  # fmt: skip
    return torch.from_numpy(out)


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Emit the request for the cache line at an address: to be read, into the second cache."""
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [address, number(0), number(2), number(1)])


@intrinsic
def _prefetch(_context, row):  # type: ignore[no-untyped-def]
    """Ask for the beginning of an array before it is needed: where pages end the processor foresees nothing."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        prefetch(builder, builder.bitcast(context.make_array(row)(context, builder, args[0]).data, ir.PointerType(ir.IntType(8))))

    return types.void(row), generate


@compiled
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


@njit(**ALONE)
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
        scores[j] = exp(scores[j] - top)
        total += scores[j]
    if len(sink):
        total += exp(sink[0] - top)
    for j in range(len(scores)):
        scores[j] /= total


@njit(**ALONE)
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
