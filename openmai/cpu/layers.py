"""All layers of a pass of few tokens in one compiled call: between the products of one token, calls take longer than what they compute.

While it runs Python is free: a server reads and sends beside it. That takes time from one of the threads now and then, so they claim
their jobs one by one.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from openmai.cpu.attention import claim_attention
from openmai.cpu.compile import LINE, compiled, inner, next_job
from openmai.cpu.products import OUTPUTS, WIDE, add_products, claim_products, lay
from openmai.cpu.steps import divide_heads, gate_row, normalize_row

JOINT, ATTENTION_OUT, UP_GATE, DOWN = range(4)  # the matrices of a layer
ATTENTION = 4  # the fifth kind of jobs


@compiled
def run_layers(  # type: ignore[no-untyped-def]
    x, wanted, logits, laid, matrices, head, norms, eps, head_norms, head_eps, keys, values, blocks, offsets, tables, rows, seen,
    positions, frequencies, factors, turns, windows, scale, softcap, sinks, slopes, heads, threads,
):  # fmt: skip
    """Pass the stream `x` (N, D) in fp32 through layers, in place, and write the `logits` (W, V) of the rows `wanted`.

    `matrices` (L, 4, ...) describes those of each layer as products.py does, `head` the last. `norms` (L + 1, 2, D), of which the last
    ones are the head's, `head_norms` (L, 2, K) or (L, 0, 0), `sinks` (L, H) or (L, 0), `windows` (L) and `turns` (L), which says which of
    the `frequencies` (kinds, R / 2) and `factors` (kinds) a layer's heads are rotated by (model/rope.py). Keys and values are (L, blocks,
    G, block, K). `laid`, for N rows of the widest input, is of uint32 for matrices in 8 bits.
    """
    count, width = len(x), keys.shape[4]
    claimed = np.zeros((len(matrices) + 1, 5, threads, LINE), np.int64)
    all_rows = np.arange(count)
    top, normed = np.empty(count, np.float32), np.empty(x.shape[1], np.float32)
    joint = np.empty((count, matrices[0, JOINT, OUTPUTS]), np.float32)
    q, attended = np.empty((count, heads, width), np.float32), np.empty((count, heads, width), np.float32)
    both = np.empty((count, matrices[0, UP_GATE, OUTPUTS]), np.float32)
    gated = np.empty((count, both.shape[1] // 2), np.float32)
    cos = np.empty((len(frequencies), count, frequencies.shape[1]), np.float32)
    sin = np.empty_like(cos)
    for kind in range(len(frequencies)):
        for n in range(count):
            for i in range(frequencies.shape[1]):
                angle = np.float32(positions[n]) * frequencies[kind, i]
                cos[kind, n, i], sin[kind, n, i] = math.cos(angle) * factors[kind], math.sin(angle) * factors[kind]
    for layer in range(len(matrices)):
        matrix = matrices[layer]
        _lay_normed(x, all_rows, norms[layer, 0], eps, normed, laid, top)
        for thread in prange(threads):
            claim_products(claimed[layer, JOINT], np.int64(thread), laid, top, matrix[JOINT], joint, False)
        turn = turns[layer]
        divide_heads(joint, q, keys[layer], values[layer], blocks, offsets, cos[turn], sin[turn], head_norms[layer], head_eps)
        for thread in prange(threads):
            claim_attention(
                claimed[layer, ATTENTION], np.int64(thread), attended, q, keys[layer], values[layer], tables, rows, seen, windows[layer],
                scale, softcap, sinks[layer], slopes,
            )  # fmt: skip
        for n in range(count):
            lay(attended[n].reshape(heads * width), n, count, laid, top)
        for thread in prange(threads):
            claim_products(claimed[layer, ATTENTION_OUT], np.int64(thread), laid, top, matrix[ATTENTION_OUT], x, True)
        _lay_normed(x, all_rows, norms[layer, 1], eps, normed, laid, top)
        for thread in prange(threads):
            _claim_gated(claimed[layer, UP_GATE], np.int64(thread), laid, top, matrix[UP_GATE], both, gated)
        for n in range(count):
            lay(gated[n], n, count, laid, top)
        for thread in prange(threads):
            claim_products(claimed[layer, DOWN], np.int64(thread), laid, top, matrix[DOWN], x, True)
    _lay_normed(x, wanted, norms[-1, 0], eps, normed, laid, top)
    for thread in prange(threads):
        claim_products(claimed[-1, 0], np.int64(thread), laid, top, head, logits, False)


@inner
def _claim_gated(claimed, thread, laid, top, matrix, both, gated):  # type: ignore[no-untyped-def]
    """Compute blocks of `up` and `gate`, which are side by side in `matrix`, and what comes out of each pair."""
    half = gated.shape[1] // WIDE
    block, part = next_job(claimed, thread, 0, half)
    while block < half:
        add_products(laid, top, matrix, block, both, False)
        add_products(laid, top, matrix, block + half, both, False)
        first = block * WIDE
        for n in range(len(gated)):
            up, gate = both[n, first : first + WIDE], both[n, gated.shape[1] + first : gated.shape[1] + first + WIDE]
            gate_row(gate, up, gated[n, first : first + WIDE])
        block, part = next_job(claimed, thread, part, half)


@inner
def _lay_normed(x, rows, scale, eps, normed, laid, top):  # type: ignore[no-untyped-def]
    for n in range(len(rows)):
        normalize_row(x[rows[n]], normed, scale, eps)
        lay(normed, n, len(rows), laid, top)
