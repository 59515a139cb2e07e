"""OMP_NUM_THREADS=1 pytest tests/test_mask.py: what a query sees, by the fused kernel, by FlexAttention, and written plainly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from openmai.model.attention import attend, attend_flex, attend_plain
from openmai.model.mask import Mask, _blocks, alibi_slopes, make_mask

POSITIONS = torch.arange(200)[None]
DOCUMENTS = torch.tensor([[0] * 90 + [1] * 110, [0] * 20 + [1] * 150 + [2] * 30])
EXTRAS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "scale": {"scale": 0.7},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "softcap_sinks": {"softcap": 1.5, "sinks": True},
}


def inputs(length: int, heads: int, groups: int, value_width: int = 8, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, length, heads, 8), torch.randn(rows, length, groups, 8), torch.randn(rows, length, groups, value_width)


def settings(extra: str, heads: int) -> dict[str, Any]:
    found = {"scale": None, "softcap": None, "sinks_H": None, **EXTRAS[extra]}
    if found.pop("sinks", False):
        found["sinks_H"] = torch.linspace(-1, 2, heads)
    return found


def one_query(q_K: Tensor, k_SK: Tensor, v_SK: Tensor, added_S: Tensor, scale: float, cap: float | None, sink: Tensor | None) -> Tensor:
    """Attention of one query of one head, as the papers write it; `added_S` is -inf where a key is not seen."""
    scores_S = (k_SK @ q_K) * scale
    if cap is not None:
        scores_S = cap * torch.tanh(scores_S / cap)
    shares_S = torch.exp(scores_S + added_S)
    total = shares_S.sum() + (0 if sink is None else torch.exp(sink))
    return (shares_S[:, None] * v_SK).sum(0) / total


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("limit", ["none", "window", "alibi"])
@pytest.mark.parametrize(("heads", "groups", "value_width"), [(4, 4, 8), (4, 2, 8), (4, 1, 8), (4, 4, 6)])
def test_attention_equals_the_formula(extra: str, limit: str, heads: int, groups: int, value_width: int) -> None:
    """The fused kernel and its plain twin, both against one query at a time in fp64, and the gradients against each other."""
    q, k, v = (x.requires_grad_() for x in inputs(9, heads, groups, value_width))
    positions, slopes = torch.arange(9)[None], alibi_slopes(heads) if limit == "alibi" else None
    mask = make_mask(positions, positions, 4 if limit == "window" else None, False, None, slopes)
    told = settings(extra, heads)
    expected = torch.zeros(2, 9, heads, value_width)
    for b in range(2):
        for t in range(9):
            for h in range(heads):
                behind_S = t - torch.arange(9)
                added_S = -slopes[h] * behind_S if slopes is not None else torch.zeros(9)
                added_S = added_S.masked_fill((behind_S < 0) | (behind_S >= (4 if limit == "window" else 9)), float("-inf"))
                group = h * groups // heads
                sink = None if told["sinks_H"] is None else told["sinks_H"][h].double()
                arguments = (q[b, t, h].double(), k[b, :, group].double(), v[b, :, group].double(), added_S.double())
                expected[b, t, h] = one_query(*arguments, told["scale"] or 8**-0.5, told["softcap"], sink).detach()
    probe, results = torch.randn(2, 9, heads, value_width), []
    for compute in (attend, attend_plain):
        found = compute(q, k, v, mask, **told)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        results.append(torch.autograd.grad((found * probe).sum(), (q, k, v)))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)


def test_sinks_learn_alike_in_both_twins() -> None:
    q, k, v = inputs(9, 4, 2)
    gradients = []
    for compute in (attend, attend_plain):
        sinks_H = torch.linspace(-1, 2, 4).requires_grad_()
        gradients.append(torch.autograd.grad(compute(q, k, v, Mask(), sinks_H=sinks_H).square().sum(), sinks_H)[0])
    assert gradients[0].abs().min() > 1e-3
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(("window", "documents"), [(None, None), (30, None), (None, DOCUMENTS), (30, DOCUMENTS)])
@torch.no_grad()
def test_flex_attention_equals_plain(extra: str, groups: int, window: int | None, documents: Tensor | None) -> None:
    """On a GPU it is compiled; here it runs as written, over more than one block of 128 keys."""
    q, k, v = inputs(200, 4, groups)
    dense = make_mask(POSITIONS, POSITIONS, window, False, documents, None)
    blocks = None if dense.dense is None else _blocks(POSITIONS.expand(2, -1), window, documents)
    told = settings(extra, 4)
    found = attend_flex(q, k, v, Mask(blocks=blocks), **told)
    torch.testing.assert_close(found, attend_plain(q, k, v, dense, **told), rtol=0, atol=2e-6)


@pytest.mark.parametrize("window", [None, 1, 4, 9, 30])
@pytest.mark.parametrize("packed", [False, True])
def test_dense_and_block_masks_say_the_same(window: int | None, packed: bool) -> None:
    """Element by element: key j of query i is seen if it is not later, within the window, and of the same document."""
    lengths = (5, 7, 8) if packed else (20,)
    documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    expected = torch.tensor(
        [[j <= i and documents[i] == documents[j] and (window is None or i - j < window) for j in range(20)] for i in range(20)]
    )
    given = documents[None] if packed else None
    dense = make_mask(positions[None], positions[None], window, False, given, None).dense
    assert (dense is None) == (not packed and (window is None or window >= 20))
    if dense is not None:
        assert torch.equal(dense[0, 0], expected)
    seen = _blocks(positions[None], window, given).mask_mod
    assert torch.equal(seen(torch.tensor(0), torch.tensor(0), torch.arange(20)[:, None], torch.arange(20)[None]), expected)


def test_cached_keys_are_seen_up_to_the_query() -> None:
    """Two rows of one token each, at places 2 and 6 of their own; stale keys behind them stay unseen."""
    dense = make_mask(torch.tensor([[2], [6]]), torch.arange(8)[None], 4, True, None, None).dense
    assert dense is not None
    assert [row.nonzero().flatten().tolist() for row in dense[:, 0, 0]] == [[0, 1, 2], [3, 4, 5, 6]]


@pytest.mark.parametrize("heads", [1, 2, 8, 12, 16, 20, 71, 112])
def test_alibi_slopes_are_the_published_ones(heads: int) -> None:
    """arXiv:2108.12409, section 3: a geometric sequence from 2^(-8/n); other numbers take every second slope of the next power of two."""

    def of_power(n: int) -> list[float]:
        return [2 ** (-8 * (h + 1) / n) for h in range(n)]

    power = 1
    while power * 2 <= heads:
        power *= 2
    expected = of_power(power) + of_power(2 * power)[::2][: heads - power]
    torch.testing.assert_close(alibi_slopes(heads), torch.tensor(expected), rtol=1e-6, atol=0)
