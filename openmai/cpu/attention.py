"""Attention of single tokens to keys and values in blocks, read where they lie."""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import prange
from torch import Tensor

from openmai.cpu.compile import LINE, compiled, exp, inner, next_job, prefetch, threads

NO_WINDOW = 1 << 62


def attend_few(
    q_NHK: Tensor,
    keys: Tensor,
    values: Tensor,
    tables_BM: Tensor,
    row_N: Tensor,
    seen_N: Tensor,
    window: int | None,
    scale: float,
    softcap: float | None,
    sinks_H: Tensor | None,
    slopes_H: Tensor | None,
) -> Tensor:
    """Return what tokens attend to, (N, H, K of values): keys and values (blocks, G, block, K), values may be a part of the keys.

    The blocks of token n are `tables_BM[row_N[n]]`, of which it sees the first `seen_N[n]` keys.
    """
    q = q_NHK.contiguous().numpy()
    out = np.empty((*q.shape[:2], values.shape[-1]), q.dtype)
    nothing = np.empty(0, q.dtype)
    kind = q.dtype.type
    whole = keys if values.data_ptr() == keys.data_ptr() else values
    _attend(
        q.size * tables_BM.shape[1] * keys.shape[2],
        out, q, keys.numpy(), whole.numpy(), tables_BM.numpy(), row_N.numpy(), seen_N.numpy(),
        np.int64(window or NO_WINDOW), kind(scale), kind(softcap or 0),
        nothing if sinks_H is None else sinks_H.detach().to(q_NHK.dtype).numpy(),
        nothing if slopes_H is None else slopes_H.to(q_NHK.dtype).numpy(), threads(),
    )  # fmt: skip
    return torch.from_numpy(out)


@compiled
def _attend(  # type: ignore[no-untyped-def]
    out, q, keys, values, tables, rows, seen, window, scale, softcap, sinks, slopes, threads
):
    claimed = np.zeros((threads, LINE), np.int64)
    for thread in prange(threads):
        claim_attention(
            claimed, np.int64(thread), out, q, keys, values, tables, rows, seen, window, scale, softcap, sinks, slopes
        )  # fmt: skip


@inner
def claim_attention(  # type: ignore[no-untyped-def]
    claimed, thread, out, q, keys, values, tables, rows, seen, window, scale, softcap, sinks, slopes
):
    """Compute what tokens attend to, a token and key-value head at a time, as long as there are."""
    groups = keys.shape[1]
    job, part = next_job(claimed, thread, 0, len(q) * groups)
    while job < len(q) * groups:
        n = job // groups
        _attend_group(n, job % groups, out, q, keys, values, tables[rows[n]], seen[n], window, scale, softcap, sinks, slopes)
        job, part = next_job(claimed, thread, part, len(q) * groups)


@inner
def _attend_group(n, g, out, q, keys, values, blocks, seen, window, scale, softcap, sinks, slopes):  # type: ignore[no-untyped-def]
    """One token and key-value head: scores of all keys, softmax, mixture; the order of its sums is always the same."""
    groups, block, value_width = keys.shape[1], keys.shape[2], out.shape[2]
    per, width = q.shape[1] // groups, q.shape[2]
    start = max(np.int64(0), seen - window) // block
    first, last = max(np.int64(0), seen - window) - start * block, seen - start * block  # of the keys from block `start` on
    scores = np.empty((per, (last + block - 1) // block * block), q.dtype)
    for b in range(scores.shape[1] // block):
        place = blocks[start + b]
        after = blocks[min(start + b + 1, len(blocks) - 1)]
        for j in range(block):
            for c in range(0, width, 16):
                prefetch(keys[after, g, j, c:])
            for c in range(0, value_width, 16):
                prefetch(values[place, g, j, c:])
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
        place = blocks[start + b]
        for h in range(per):
            _mix(mixed[h], scores[h, b * block :], values[place, g], max(first - b * block, 0), min(last - b * block, block))
    for h in range(per):
        for c in range(value_width):
            out[n, g * per + h, c] = mixed[h, c]


@inner
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


@inner
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
