"""pytest tests/test_cpu.py: the steps compiled for CPUs against what PyTorch computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openmai.cpu import steps
from openmai.cpu.attention import attend_few
from openmai.cpu.compile import compiles
from openmai.model import layers, rope
from openmai.model.attention import attend
from openmai.model.cache import Batch, PagedCache, batch_of
from openmai.model.config import ModelConfig
from openmai.model.mask import alibi_slopes

SHAPE = {
    "vocab_size": 32,
    "num_layers": 1,
    "width": 96,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_width": 24,
    "ffn_width": 32,
    "context": 512,
}
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def cache_of(dtype: torch.dtype, sequences: list[tuple[int, int]], block: int) -> Batch:
    """A pass over a cache of random numbers: of each sequence (tokens before, new tokens), its blocks in no order."""
    torch.manual_seed(0)
    need = [-(-(before + new) // block) for before, new in sequences]
    cache = PagedCache(ModelConfig(**SHAPE), sum(need) + 1, block, dtype=dtype)
    cache.keys.normal_()
    cache.values.normal_()
    order = torch.randperm(sum(need) + 1).tolist()
    rows = []
    for (before, new), count in zip(sequences, need, strict=True):
        rows.append((list(range(new)), before, [order.pop() for _ in range(count)], [1] if before else []))
    return batch_of(cache, 512, rows)


def attend_first(batch: Batch, q_NHK: Tensor, *settings: Any) -> Tensor:
    """Attend in the first layer."""
    return attend_few(q_NHK, batch.cache.keys[0], batch.cache.values[0], batch.tables_BM, batch.row_N, batch.seen_N, *settings)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("block", [5, 16])
@pytest.mark.parametrize("window", [None, 1, 7, 100])
@pytest.mark.parametrize(
    ("softcap", "sinks", "slopes"), [(None, False, False), (20.0, True, False), (None, False, True), (None, True, True)]
)
def test_attention_of_few_tokens(
    dtype: torch.dtype, block: int, window: int | None, softcap: float | None, sinks: bool, slopes: bool
) -> None:
    batch = cache_of(dtype, [(0, 1), (0, 5), (30, 1), (199, 8), (64, 1)], block)
    q_NHK = torch.randn(16, 6, 24, dtype=dtype) * torch.logspace(-2, 2, 16)[:, None, None].to(dtype)
    sinks_H = torch.randn(6, dtype=dtype) * 10 if sinks else None
    slopes_H = alibi_slopes(6) if slopes else None
    with torch.no_grad():
        found = attend_first(batch, q_NHK, window, 0.3, softcap, sinks_H, slopes_H)
        k, v = batch.read_few(0)
        mask = batch.mask(None, window, slopes_H)
        expected = attend(q_NHK[:, None], k, v, mask, 0.3, softcap, sinks_H)[:, 0]
    assert off(found, expected) < 10 * TOLERANCE[dtype]


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    batch = cache_of(torch.float32, [(40, 1), (200, 3), (7, 1)], 16)
    q_NHK = torch.randn(5, 6, 24)
    with torch.no_grad():
        whole = attend_first(batch, q_NHK, None, 0.2, None, None, None)
        batch.row_N, batch.seen_N = batch.row_N[1:2], batch.seen_N[1:2]
        assert torch.equal(attend_first(batch, q_NHK[1:2], None, 0.2, None, None, None)[0], whole[1])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("batch", "length", "heads", "turned"), [(1, 1, 3, 16), (2, 5, 1, 8), (1, 400, 12, 16)])
def test_rotations(dtype: torch.dtype, batch: int, length: int, heads: int, turned: int) -> None:
    x = torch.randn(batch, length, heads, 32, dtype=dtype)[..., :16]  # a view, as a split gives it
    angles = torch.rand(1, length, 1, turned // 2, dtype=dtype) * 100
    table = angles.cos(), angles.sin()
    assert not compiles(x)  # gradients may be wanted
    expected = rope.rotate(x.float(), (table[0].float(), table[1].float()))
    with torch.no_grad():
        assert compiles(x)
        assert off(rope.rotate(x, table).float(), expected) < 1e-6


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 3, 900])
def test_gates_and_norms(dtype: torch.dtype, rows: int) -> None:
    config = ModelConfig(**SHAPE)
    both = torch.randn(1, rows, 160, dtype=dtype) * 30  # sigmoids from 0 to 1
    both[0, 0, :4] = torch.tensor([-1e4, 1e4, 0.0, -0.0])
    gate, up = both.split(80, dim=-1)
    expected = F.silu(gate) * up
    with torch.no_grad():
        assert off(layers.activate_gated(config, gate, up), expected) < TOLERANCE[dtype]
    x, added, scale = torch.randn(rows, 80, dtype=dtype), torch.randn(rows, 80, dtype=dtype), torch.rand(80, dtype=dtype)
    total, normed = steps.normalize(x.numpy(), scale.numpy(), 1e-5, added.numpy())
    assert np.array_equal(total, (x + added).numpy())
    assert off(torch.from_numpy(normed), F.rms_norm(x + added, (80,), scale, 1e-5)) < TOLERANCE[dtype]
    alone = x.numpy()
    same, normed = steps.normalize(alone, scale.numpy(), 1e-5)
    assert same is alone
    assert off(torch.from_numpy(normed), F.rms_norm(x, (80,), scale, 1e-5)) < TOLERANCE[dtype]


def test_rows_brought_to_range() -> None:
    x = torch.randn(7, 33) * torch.logspace(-6, 6, 7)[:, None]
    x[3] = 0
    scaled, top = steps.to_range(x.numpy())
    assert np.abs(scaled).max() <= 1
    assert np.allclose(scaled * top, x.numpy(), rtol=1e-6)


def test_what_is_traced_or_divided_is_left_to_pytorch() -> None:
    x = torch.zeros(1, 2, 2, 8)
    with torch.no_grad():
        assert compiles(x)
        assert not compiles(x.bfloat16())
        assert not compiles(x.to("meta"))
        assert not compiles(torch.nn.Parameter(x))  # not a plain tensor
