"""OMP_NUM_THREADS=1 python -m pytest tests/test_infer_property.py

Greedy output of the engine is what a full forward pass per token gives, whatever happens on the way: random arrival, preemption, shared
beginnings, prompts in pieces, guesses. Toy models in double precision, where no two tokens are so close that rounding could decide.
"""

from __future__ import annotations

import copy
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import randomize

from openmai.cpu.products import has_avx512
from openmai.infer.config import EngineConfig, Sampling
from openmai.infer.engine import Engine
from openmai.infer.pack import pack
from openmai.model import attention
from openmai.model.config import ModelConfig
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer

COMMON = {"vocab_size": 400, "num_layers": 3, "width": 16, "num_heads": 2, "ffn_width": 24, "context": 96}
EXPERTS = {"num_experts": 4, "num_active": 2, "expert_width": 8}
MODELS = {
    "dense": {"num_kv_heads": 1, "qk_norm": True},
    "moe": {"moe": EXPERTS | {"num_shared": 1, "first_dense": 1, "score": "sigmoid"}},
    "window": {"window": 7, "global_every": 3, "attention_softcap": 5.0},
    "mla": {"mla": {"query_rank": 8, "kv_rank": 8, "nope_width": 4, "rope_width": 4, "value_width": 6}},
    "smear": {"smear": True, "embedding_norm": True, "value_embeddings": True, "residual_scalars": True, "backout": True},
    "sinks": {"sinks": True, "window": 5, "global_every": 2, "moe": EXPERTS, "positions": "rope"},
    "alibi": {"positions": "alibi", "norm": "layer", "gated": False, "activation": "gelu"},
}
ENGINES = {
    "roomy": EngineConfig(rows=8, block=4),
    "crowded": EngineConfig(rows=6, block=4, cache_tokens=100, step_tokens=24),
    "no_cache": EngineConfig(rows=5, block=8, prefix_cache=False, step_tokens=13),
    "ngram": EngineConfig(rows=4, block=4, cache_tokens=200, step_tokens=40, speculate="ngram"),
    "draft": EngineConfig(rows=4, block=4, cache_tokens=140, step_tokens=40, speculate="draft", speculate_tokens=3),
    "invariant": EngineConfig(rows=4, block=4, cache_tokens=160, step_tokens=16, invariant=True),
}
REQUESTS = 12
ROUNDS = int(os.environ.get("OPENMAI_PROPERTY_ROUNDS", "1"))  # 10 of them are 5,880 requests


@torch.inference_mode()
def check(model: Transformer, tokenizer: Tokenizer, prompt: list[int], max_tokens: int, ids: list[int]) -> None:
    """Assert that `ids` is what taking the most probable token again and again gives.

    One pass without a cache over prompt and answer tells: if every token is the best after those before it, so would generation have gone.
    """
    best = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1, : tokenizer.vocab_size].argmax(dim=-1).tolist()
    assert ids == best
    ends = (tokenizer.end_of_turn, tokenizer.end_of_text)
    assert not any(token in ends for token in ids[:-1])
    assert ids[-1] in ends or len(ids) == min(max_tokens, model.config.context - len(prompt))


@pytest.fixture(scope="module", autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return Tokenizer.load(tiny_tokenizer)


@pytest.fixture(scope="module")
def models(double_precision: None) -> dict[str, Transformer]:
    built = {}
    for name, change in MODELS.items():
        model = Transformer(ModelConfig(**COMMON, **change)).eval()
        model.initialize(seed=3)
        randomize(model, seed=3)
        built[name] = model
    return built


def draw(seed: int, size: int) -> list[tuple[list[int], int]]:
    """Draw prompts, many with a beginning in common, some repeated, some that repeat themselves, and how many tokens are wanted."""
    rng = random.Random(seed)
    stems = [[rng.randrange(6, size) for _ in range(rng.randrange(5, 60))] for _ in range(4)]
    drawn: list[tuple[list[int], int]] = []
    for _ in range(REQUESTS):
        stem = rng.choice(stems) if rng.random() < 0.7 else []
        prompt = stem[: rng.randrange(len(stem) + 1)] + [rng.randrange(6, size) for _ in range(rng.randrange(1, 30))]
        if rng.random() < 0.2:
            prompt = (prompt[:5] * 20)[: rng.randrange(1, 80)]
        if drawn and rng.random() < 0.2:
            prompt = rng.choice(drawn)[0]
        drawn.append((prompt[:95], rng.choice((1, 2, 5, 20, 60))))
    return drawn


@torch.no_grad()
def near(model: Transformer, noise: float = 0.03) -> Transformer:
    """A draft model that agrees with `model` often, not always."""
    draft = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for parameter in draft.parameters():
        parameter += noise * parameter.std(correction=0) * torch.empty_like(parameter).normal_(generator=generator)
    return draft


@pytest.mark.parametrize("name", ["window", "mla", "smear"])
def test_a_draft_model_that_always_agrees_is_always_right(name: str, models: dict[str, Transformer], tokenizer: Tokenizer) -> None:
    config = ENGINES["draft"].model_copy(update={"cache_tokens": 0})
    prompts = [prompt for prompt, _ in draw(0, tokenizer.vocab_size)[:6]]
    for sampling in (Sampling(max_tokens=17, temperature=0, ignore_ends=True), Sampling(max_tokens=17, seed=1, ignore_ends=True)):
        with Engine(models[name], tokenizer, config, models[name]) as engine:
            drafted = engine.generate(prompts, sampling)
            assert engine.stats.kept == engine.stats.guessed > 50
        with Engine(models[name], tokenizer, EngineConfig(block=4)) as engine:
            assert drafted == engine.generate(prompts, sampling)


@pytest.mark.parametrize("setting", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_plain_generation(name: str, setting: str, models: dict[str, Transformer], tokenizer: Tokenizer) -> None:
    run(models[name], near(models[name]) if ENGINES[setting].speculate == "draft" else None, setting, tokenizer)


def run(model: Transformer, draft: Transformer | None, setting: str, tokenizer: Tokenizer) -> None:
    """Let an engine answer at random times, and check each answer."""
    config = ENGINES[setting]
    for seed in range(ROUNDS):
        rng, drawn = random.Random(seed), draw(seed, tokenizer.vocab_size)
        with Engine(model, tokenizer, config, draft) as engine:
            answers: list[tuple[list[int], Iterator]] = []
            for prompt, max_tokens in drawn:
                answers.append(([], iter(engine.submit(prompt, Sampling(max_tokens=max_tokens, temperature=0)))))
                if rng.random() < 0.2:  # let some answers get ahead before the next request arrives
                    ids, increments = rng.choice(answers)
                    ids.extend(increment.id for increment in itertools.islice(increments, 3))
            for ids, increments in answers:
                ids.extend(increment.id for increment in increments)
            if setting == "roomy":  # whether the others met a common beginning is a matter of time
                drawn.append((max(drawn, key=lambda pair: len(pair[0]))[0], 1))
                answers.append((engine.submit(drawn[-1][0], Sampling(max_tokens=1, temperature=0)).result().ids, iter(())))
            assert engine.load() == (0, 0)
            assert engine.pool.available == engine.stats.blocks
        for (prompt, max_tokens), (ids, _) in zip(drawn, answers, strict=True):
            check(model, tokenizer, prompt, max_tokens, ids)
        assert setting != "crowded" or seed or engine.stats.preemptions > 0
        assert setting != "roomy" or engine.stats.reused > 0
        assert config.speculate != "draft" or engine.stats.kept > 0


@pytest.mark.parametrize("name", MODELS)
def test_the_gathering_twin_of_the_kernel(
    name: str, models: dict[str, Transformer], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other devices and types do instead of the compiled kernel."""
    monkeypatch.setattr(attention, "compiles", lambda _: False)
    test_greedy_is_plain_generation(name, "crowded", models, tokenizer)


@pytest.mark.parametrize("setting", ENGINES)
@pytest.mark.parametrize("name", ["dense", "window", "moe"])
def test_greedy_of_packed_models(name: str, setting: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the single precision that servers compute in, where rounding may decide between tokens that are as good as equal."""
    model = Transformer(ModelConfig(**(COMMON | {"width": 32, "ffn_width": 64, **MODELS[name]}))).float().eval()
    model.initialize(seed=4)
    randomize(model, seed=4)
    packed, draft = pack(copy.deepcopy(model)), pack(near(model)) if ENGINES[setting].speculate == "draft" else None
    assert (packed.few is not None) == (has_avx512() and name != "moe")

    def nearly(plain: Transformer, _: Tokenizer, prompt: list[int], max_tokens: int, ids: list[int]) -> None:
        with torch.inference_mode():
            logits_TV = plain(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1, : tokenizer.vocab_size]
        assert (logits_TV.amax(dim=-1) - logits_TV.gather(1, torch.tensor(ids)[:, None])[:, 0]).max() < 1e-4
        assert len(ids) == max_tokens or ids[-1] in (tokenizer.end_of_turn, tokenizer.end_of_text) or len(prompt + ids) == COMMON["context"]

    monkeypatch.setattr(f"{__name__}.check", lambda _, *given: nearly(model, *given))
    torch.set_default_dtype(torch.float32)
    try:
        run(packed, draft, setting, tokenizer)
    finally:
        torch.set_default_dtype(torch.float64)
