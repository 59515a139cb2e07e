"""OMP_NUM_THREADS=1 python -m pytest tests/test_infer_weights.py: packed matrices against plain arithmetic on rounded weights."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomize
from torch import nn

from openmai.base.errors import OpenmaiError
from openmai.cpu.memory import Arena
from openmai.cpu.products import has_avx512
from openmai.infer.blocked import Blocked8BitLinear, BlockedLinear
from openmai.infer.config import EngineConfig, Sampling
from openmai.infer.engine import Engine
from openmai.infer.few import FewTokens
from openmai.infer.pack import pack
from openmai.infer.stack import Stack
from openmai.infer.weights import HalfLinear, Int4Linear, Int8Linear, MklLinear, OneDnnLinear, reference
from openmai.model.cache import PagedCache, batch_of
from openmai.model.config import MLAConfig, ModelConfig, MoEConfig
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer

FORMS = {"mkl": MklLinear, "onednn": OneDnnLinear, "fp16": HalfLinear, "int8": Int8Linear, "int4": Int4Linear}
EACH_ALONE = [Int8Linear]
if has_avx512():
    FORMS |= {"blocked": BlockedLinear}
    EACH_ALONE += [BlockedLinear]
if has_avx512("vnni"):
    EACH_ALONE += [Blocked8BitLinear]
KINDS = ("", "fp16", "int8", "int4")
pytestmark = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="these kernels are for x86")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", FORMS)
def test_a_packed_layer_computes_what_its_twin_does(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    torch.backends.quantized.engine = "fbgemm"
    linear = nn.Linear(128, 64, bias=bias)
    packed = FORMS[kind](linear)
    for shape in ((1, 1, 128), (1, 7, 128), (40, 128)):
        x = torch.randn(shape)
        with torch.inference_mode():
            expected, found = reference(kind, linear, x), packed(x)
            assert found.shape == expected.shape
            assert (found - expected).norm() / expected.norm() < (5e-3 if kind == "int4" else 1e-5)  # int4 multiplies in bf16
            assert (found - linear(x)).norm() / expected.norm() < {"fp16": 1e-3, "int8": 0.02, "int4": 0.12}.get(kind, 1e-5)


@pytest.mark.skipif(not has_avx512("vnni"), reason="this processor has no AVX-512 VNNI")
@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(128, 64, False), (130, 70, True), (1, 1, True), (515, 33, False)])
def test_the_compiled_product_in_int8_is_exact(inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias)
    linear.weight.data = torch.randint(-127, 128, (outputs, inputs)).float()
    linear.weight.data[:, 0] = 127  # so that scales are 1, and rounding changes nothing
    packed = Blocked8BitLinear(linear)
    for rows in (1, 2, 3, 7, 8, 13, 16, 31, 700):
        x = torch.randint(-127, 128, (rows, inputs)).float()
        x[:, 0] = -127
        with torch.inference_mode():
            expected = (x.double() @ linear.weight.double().T + (linear.bias.double() if bias else 0)).float()
            assert torch.allclose(packed(x), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("form", EACH_ALONE)
def test_a_token_does_not_depend_on_its_batch(form: type[nn.Module]) -> None:
    torch.backends.quantized.engine = "fbgemm"
    packed, x = form(nn.Linear(96, 80)), torch.randn(21, 96) * torch.logspace(-3, 3, 21)[:, None]
    with torch.inference_mode():
        assert all(torch.equal(packed(x[row : row + 1])[0], packed(x)[row]) for row in range(21))


@pytest.mark.parametrize("kind", KINDS)
def test_engines_run_packed_models(kind: str, tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizer)
    common = {"vocab_size": 384, "num_layers": 2, "width": 64, "num_heads": 4, "ffn_width": 96, "context": 64}
    for change in (
        {"num_kv_heads": 2, "tied_embeddings": True},
        {"mla": MLAConfig(query_rank=32, kv_rank=32, nope_width=8, rope_width=8, value_width=16)},
        {"moe": MoEConfig(num_experts=4, num_active=2, expert_width=32, num_shared=1)},
    ):
        model = Transformer(ModelConfig(**common, **change)).eval()
        model.initialize(0)
        randomize(model, seed=1)
        packed = pack(copy.deepcopy(model), kind)
        prompts, sampling = [[9, 30, 60], list(range(10, 40))], Sampling(max_tokens=12, temperature=0, prompt_logprobs=0)
        with Engine(model, tokenizer, EngineConfig()) as engine:
            plain = engine.generate(prompts, sampling)
        with Engine(packed, tokenizer, EngineConfig()) as engine:
            found = engine.generate(prompts, sampling)
        if not kind:
            assert [answer.ids for answer in found] == [answer.ids for answer in plain]
        off = [
            abs(a.value - b.value)
            for x, y in zip(plain, found, strict=True)
            for a, b in zip(x.prompt_logprobs, y.prompt_logprobs, strict=True)
        ]
        assert sum(off) / len(off) < {"": 1e-4, "fp16": 0.02, "int8": 0.5, "int4": 2.0}[kind]


SHAPE = {"vocab_size": 96, "num_layers": 2, "width": 64, "num_heads": 4, "ffn_width": 96, "context": 64}
LIKE_MOST = {
    "llama": {"num_kv_heads": 2},
    "qwen3": {"qk_norm": True, "num_kv_heads": 1},
    "qwen2": {"qkv_bias": True, "mlp_bias": True, "tied_embeddings": True},
    "windows": {"window": 5, "global_every": 2, "sinks": True, "attention_softcap": 20.0},
    "partly rotated": {"rope_share": 0.5, "head_width": 32},
    "not rotated": {"positions": "alibi"},
    "mixture": {"moe": MoEConfig(num_experts=4, num_active=2, expert_width=32, num_shared=1)},
    "not gated": {"gated": False, "activation": "relu2"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", LIKE_MOST.values(), ids=list(LIKE_MOST))
def test_few_tokens_get_what_the_block_itself_gives(change: dict[str, object], kind: str) -> None:
    model = Transformer(ModelConfig(**(SHAPE | change))).eval()
    model.initialize(0)
    randomize(model, seed=1)
    pack(model, kind)
    quick = [block.few for block in model.blocks]
    assert all(isinstance(few, FewTokens) for few in quick)

    stack = model.few
    assert isinstance(stack, Stack) == (has_avx512() and kind in ("", "int8") and not {"moe", "gated"} & change.keys())

    def run(whole: bool, fewer: bool) -> list[torch.Tensor]:
        model.few = stack if whole else None
        for block, few in zip(model.blocks, quick, strict=True):
            block.few = few if fewer else None
        cache = PagedCache(model.config, 12)
        streams = []
        for new, start in (([5, 9, 30], 0), ([7], 3), ([8, 2], 4), ([60], 6), ([11], 7)):
            last = [1] if start else []
            rows = [([(token + 20 * row) % 96 for token in new], start, [2 * row, 2 * row + 1], last) for row in range(5)]
            batch = batch_of(cache, 64, rows)
            with torch.inference_mode():
                streams += model.run_pass(batch, [0, len(new) - 1, 5 * len(new) - 1])
        return [*streams, cache.keys, cache.values]

    with torch.inference_mode():
        for ways in [(False, True)] + [(True, False)] * (stack is not None):
            for found, expected in zip(run(*ways), run(False, False), strict=True):
                assert (found - expected).norm() / expected.norm() < (5e-3 if kind in ("int4", "int8") else 1e-5)  # roundings may tip over


def test_what_cannot_be_packed_is_refused() -> None:
    model = Transformer(ModelConfig(vocab_size=32, num_layers=1, width=16, num_heads=2, ffn_width=16)).eval().bfloat16()
    assert pack(model) is model
    with pytest.raises(OpenmaiError, match=r"int8: for models in fp32 on a CPU, this one is torch.bfloat16"):
        pack(model, "int8")


@pytest.mark.skipif(not has_avx512(), reason="this processor has no AVX-512")
@pytest.mark.parametrize("kind", ["", "int8"] if has_avx512("vnni") else [""])
def test_several_threads_compute_what_one_does(kind: str) -> None:
    shape = SHAPE | {"width": 256, "head_width": 64, "num_kv_heads": 2, "ffn_width": 512}
    model = Transformer(ModelConfig(**shape)).eval()
    model.initialize(0)
    randomize(model, seed=1)
    pack(model, kind)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            cache = PagedCache(model.config, 12)
            for new, start in (([5, 9, 30], 0), ([7], 3)):
                batch = batch_of(cache, 64, [(new, start, [row], []) for row in range(12)])
                with torch.inference_mode():
                    found += model.run_pass(batch, [0, len(new) * 12 - 1])
            prompt = batch_of(cache, 64, [(list(range(40)), 0, [2, 5, 7], [])])
            with torch.inference_mode():
                found += model.run_pass(prompt, [39])
    finally:
        torch.set_num_threads(before)
    alone, together = found[: len(found) // 2], found[len(found) // 2 :]
    for one, two in zip(alone, together, strict=True):
        assert torch.equal(one, two) if not kind else (one - two).norm() / one.norm() < 5e-3


def test_an_arena_gives_out_zeros_that_do_not_overlap() -> None:
    arena = Arena()
    taken = [arena.take(shape, np.float32) for shape in ((3, 5), (1, 7), (4000, 3000), (0, 2), (9,))]  # the third is more than a chunk
    for number, array in enumerate(taken):
        assert not array.any()
        assert not array.size or array.ctypes.data % 64 == 0
        array[:] = number
    assert all((array == number).all() for number, array in enumerate(taken))
