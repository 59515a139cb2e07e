"""OMP_NUM_THREADS=1 pytest tests/test_rope.py: rotary positions and each way to stretch them, against the papers in fp64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from openmai.model.config import ModelConfig
from openmai.model.rope import rope_frequencies, rope_table, rotate

BASE = {"vocab_size": 97, "num_layers": 2, "width": 256, "num_heads": 2, "ffn_width": 48, "context": 131072}
PAIRS = 64  # of a head of 128
SHORT, LONG = tuple(1 + 0.02 * pair for pair in range(PAIRS)), tuple(1 + 0.9 * pair for pair in range(PAIRS))


def frequencies(length: int = 8192, is_global: bool = True, theta: float = 10_000.0, **scaling: Any) -> tuple[np.ndarray, float]:
    config = ModelConfig.model_validate({**BASE, "rope_theta": theta, **({"rope_scaling": scaling} if scaling else {})})
    found, factor = rope_frequencies(config, length, is_global)
    return found.double().numpy(), factor


def unscaled(theta: float = 10_000.0) -> np.ndarray:
    """arXiv:2104.09864, eq. 15: pair i = 0, 1, ... turns by theta^(-2 i / width) per position."""
    return np.array([theta ** (-2 * pair / 128) for pair in range(PAIRS)])


def turns(theta: float, context: int) -> np.ndarray:
    """How often each pair turns within the context: arXiv:2309.00071, eq. 12 and 17, r = L / (2 pi theta^(2 i / width))."""
    return context / (2 * math.pi / unscaled(theta))


@pytest.mark.parametrize("theta", [500.0, 10_000.0, 5e6])
def test_unscaled_frequencies(theta: float) -> None:
    found, factor = frequencies(theta=theta)
    np.testing.assert_allclose(found, unscaled(theta), rtol=1e-6)
    assert factor == 1


def test_linear_divides_every_frequency() -> None:
    """arXiv:2306.15595, eq. 4: position m becomes m L / L'."""
    found, factor = frequencies(kind="linear", factor=8.0)
    np.testing.assert_allclose(found, unscaled() / 8, rtol=1e-6)
    assert factor == 1


def test_llama3_mixes_by_wavelength() -> None:
    """meta-llama/llama-models, `apply_scaling`, one wavelength after the other, with the numbers of Llama 3.1."""
    expected = []
    for frequency in unscaled(500_000.0):
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            expected.append(frequency)
        elif wavelength > 8192 / 1:
            expected.append(frequency / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    found, factor = frequencies(theta=500_000.0, kind="llama3", factor=8.0, original_context=8192)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert factor == 1
    ratios = unscaled(500_000.0) / found
    assert ((ratios > 1.01) & (ratios < 7.9)).any()  # some lie between


def yarn_by_pair(theta: float, factor: float, context: int, fast: float, slow: float, truncate: bool) -> np.ndarray:
    """YaRN's reference code (jquesnelle/yarn), pair by pair: the ramp is linear in the pair's number, not in its turns as in eq. 18."""

    def pair_that_turns(times: float) -> float:
        return 64 * math.log(context / (2 * math.pi * times), theta)

    low, high = pair_that_turns(fast), pair_that_turns(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 127)  # past the last pair, of 63, as the code has it
    expected = []
    for pair, frequency in enumerate(unscaled(theta)):
        stretched = min(1.0, max(0.0, (pair - low) / (high - low)))
        expected.append(frequency / factor * stretched + frequency * (1 - stretched))
    return np.array(expected)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(
    ("theta", "factor", "context", "fast", "slow"),
    [(10_000.0, 40.0, 4096, 32.0, 1.0), (150_000.0, 32.0, 4096, 32.0, 1.0), (1e6, 4.0, 32768, 16.0, 2.0), (1e4, 4.0, 131072, 32.0, 1.0)],
)
def test_yarn(theta: float, factor: float, context: int, fast: float, slow: float, truncate: bool) -> None:
    """The ramp, what lies outside of it (eq. 17 and 18), and the temperature (eq. 22): sqrt(1/t) = 0.1 ln(s) + 1 on queries and keys."""
    scaling = {"kind": "yarn", "factor": factor, "original_context": context, "beta_fast": fast, "beta_slow": slow, "truncate": truncate}
    found, grown = frequencies(theta=theta, **scaling)
    np.testing.assert_allclose(found, yarn_by_pair(theta, factor, context, fast, slow, truncate), rtol=1e-5)
    assert grown == pytest.approx(0.1 * math.log(factor) + 1)
    ratios, turned = unscaled(theta) / found, turns(theta, context)
    if not truncate:
        np.testing.assert_allclose(ratios[turned > fast], 1, rtol=1e-6)
        np.testing.assert_allclose(ratios[turned < slow], factor, rtol=1e-6)
    assert (np.diff(ratios) > -1e-4).all()
    assert ((ratios > 1.001) & (ratios < factor * 0.999)).sum() > 5


def test_yarn_truncation_makes_a_difference() -> None:
    scaling = {"kind": "yarn", "factor": 40.0, "original_context": 4096}
    whole, exact = frequencies(**scaling)[0], frequencies(**scaling, truncate=False)[0]
    assert np.abs(whole / exact - 1).max() > 0.01


def test_yarn_of_deepseek_scales_the_scores_instead() -> None:
    """DeepSeek-V3's model.py: the rotated parts keep their size, mscale^2 goes into the softmax scale."""
    scaling = {"kind": "yarn", "factor": 40.0, "original_context": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}
    assert frequencies(**scaling)[1] == 1
    assert frequencies(**{**scaling, "mscale": 0.707})[1] == pytest.approx((0.0707 * math.log(40) + 1) / (0.1 * math.log(40) + 1))
    assert frequencies(**scaling, attention_factor=1.7)[1] == 1.7
    mla = {"query_rank": None, "kv_rank": 32, "nope_width": 128, "rope_width": 64, "value_width": 128}
    config = ModelConfig.model_validate({**BASE, "mla": mla, "rope_scaling": scaling})
    assert config.score_scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)


@pytest.mark.parametrize(("length", "divisors"), [(100, SHORT), (4096, SHORT), (4097, LONG), (131072, LONG)])
def test_longrope_has_two_sets_of_divisors(length: int, divisors: tuple[float, ...]) -> None:
    """arXiv:2402.13753, eq. 3 and section 3.3; the scale sqrt(1 + ln s / ln L) is that of Phi-3's code."""
    scaling = {"kind": "longrope", "original_context": 4096, "short_factor": SHORT, "long_factor": LONG}
    found, factor = frequencies(length, **scaling)
    np.testing.assert_allclose(found, unscaled() / np.array(divisors), rtol=1e-6)
    assert factor == pytest.approx(math.sqrt(1 + math.log(131072 / 4096) / math.log(4096)))
    assert frequencies(length, **scaling, short_mscale=1.25, long_mscale=1.5)[1] == (1.25 if divisors is SHORT else 1.5)
    assert frequencies(length, **scaling, factor=1.0)[1] == 1


def test_longrope_follows_the_length_of_the_sequence() -> None:
    scaling = {"kind": "longrope", "original_context": 4, "short_factor": SHORT, "long_factor": LONG}
    config = ModelConfig.model_validate({**BASE, "rope_scaling": scaling})
    angles = [rope_table(config, torch.arange(length)[None], length)[1][0, 1, 0, 5] for length in (4, 5)]
    assert angles[0] > 1.5 * angles[1]


def test_windowed_layers_have_their_own_base() -> None:
    """Gemma 3: base 10,000 without scaling where there is a window, 1,000,000 stretched by 8 where there is none."""
    linear = {"kind": "linear", "factor": 8.0, "global_only": True}
    changes = {"window": 512, "global_every": 2, "rope_theta": 1e6, "rope_local_theta": 1e4, "rope_scaling": linear}
    config = ModelConfig.model_validate({**BASE, **changes})
    np.testing.assert_allclose(rope_frequencies(config, 100, False)[0].numpy(), unscaled(1e4), rtol=1e-6)
    np.testing.assert_allclose(rope_frequencies(config, 100, True)[0].numpy(), unscaled(1e6) / 8, rtol=1e-6)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_rotation_is_multiplication_by_a_complex_number(share: float) -> None:
    """Pair i of the rotated share is the complex number x_i + i x_(i + R/2); what lies behind the share stays as it is."""
    torch.manual_seed(0)
    x, positions = torch.randn(2, 5, 3, 16), torch.tensor([[0, 1, 2, 3, 4], [9, 3, 100, 7, 0]])
    rotated = int(16 * share)
    turned = torch.complex(x[..., : rotated // 2].double(), x[..., rotated // 2 : rotated].double())
    for pair in range(rotated // 2):
        turned[..., pair] *= torch.exp(1j * positions[:, :, None] * 500.0 ** (-2 * pair / rotated))
    config = ModelConfig.model_validate({**BASE, "head_width": 16, "rope_theta": 500.0, "rope_share": share})
    found = rotate(x, rope_table(config, positions, 101))
    torch.testing.assert_close(found[..., :rotated], torch.cat((turned.real, turned.imag), dim=-1).float(), rtol=0, atol=2e-5)
    assert torch.equal(found[..., rotated:], x[..., rotated:])


def test_the_factor_multiplies_what_is_rotated() -> None:
    scaling = {"kind": "yarn", "factor": 40.0, "original_context": 4096}
    config = ModelConfig.model_validate({**BASE, "rope_scaling": scaling})
    x = torch.randn(1, 6, 2, 128)
    lengths = rotate(x, rope_table(config, torch.arange(6)[None], 6)).norm(dim=-1)
    torch.testing.assert_close(lengths, x.norm(dim=-1) * (0.1 * math.log(40) + 1))


def test_scores_depend_on_distance_alone() -> None:
    """Far out as well, where the angles of fp32 are good to a hundredth of a radian."""
    config = ModelConfig.model_validate({**BASE, "rope_theta": 1e6})
    q, k = torch.randn(1, 1, 1, 128), torch.randn(1, 1, 1, 128)

    def score(i: int, j: int) -> float:
        at = [rope_table(config, torch.tensor([[position]]), 1) for position in (i, j)]
        return (rotate(q, at[0]) * rotate(k, at[1])).sum().item()

    assert score(100_007, 100_000) == pytest.approx(score(7, 0), abs=0.05)
    assert abs(score(7, 0) - score(8, 0)) > 0.05
