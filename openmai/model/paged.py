"""Attention of single tokens over a paged cache, compiled for CPUs: each key and value is read once, from where it lies."""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numba import njit, prange
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


@njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, parallel=True, cache=True, nogil=True, error_model="numpy")
def _attend(  # type: ignore[no-untyped-def]
    out, q, keys, values, tables, row_N, seen_N, window, scale, softcap, sinks, slopes
):
    """Softmax block by block (arXiv:1805.02867), one job per token and key-value head; the order of its sums is always the same."""
    tokens, heads, width = q.shape
    groups, block, value_width = keys.shape[1], keys.shape[2], out.shape[2]
    per = heads // groups
    for job in prange(tokens * groups):
        n, g = job // groups, job % groups
        seen, row = seen_N[n], row_N[n]
        first = max(np.int64(0), seen - window)
        mixed = np.zeros((per, value_width), q.dtype)
        best = np.full(per, -np.inf, q.dtype)
        total = np.zeros(per, q.dtype)
        scores = np.empty(block, q.dtype)
        for b in range(first // block, (seen + block - 1) // block):
            place = tables[row, b]
            start, stop = max(first - b * block, 0), min(block, seen - b * block)
            for h in range(per):
                head = g * per + h
                top = best[h]
                for j in range(start, stop):
                    s = q.dtype.type(0)
                    for c in range(width):
                        s += q[n, head, c] * keys[place, g, j, c]
                    s *= scale
                    if softcap > 0:
                        s = softcap * math.tanh(s / softcap)
                    if len(slopes):
                        s -= slopes[head] * (seen - 1 - b * block - j)
                    scores[j] = s
                    top = max(top, s)
                shrink = math.exp(best[h] - top)
                best[h] = top
                total[h] *= shrink
                for c in range(value_width):
                    mixed[h, c] *= shrink
                for j in range(start, stop):
                    weight = math.exp(scores[j] - top)
                    total[h] += weight
                    for c in range(value_width):
                        mixed[h, c] += weight * values[place, g, j, c]
        for h in range(per):
            head = g * per + h
            if len(sinks):
                total[h] += math.exp(sinks[head] - best[h])
            for c in range(value_width):
                out[n, head, c] = mixed[h, c] / total[h]
