"""OMP_NUM_THREADS=1 python -m pytest tests/test_infer.py

The engine against its slow twin, which runs the whole sequence through the model again for every token.
"""

from __future__ import annotations

import io
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomize

from openmai.base.errors import OpenmaiError
from openmai.infer.chat import chat, fit
from openmai.infer.config import ChatConfig, EngineConfig, Sampling
from openmai.infer.engine import Engine
from openmai.infer.load import load_assistant
from openmai.infer.request import ContextLengthError
from openmai.infer.sampling import Sampler, keep_probable
from openmai.infer.score import score
from openmai.infer.text import TextStream
from openmai.model.config import MLAConfig, ModelConfig, MoEConfig
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer

COMMON = {"vocab_size": 384, "num_layers": 2, "width": 32, "num_heads": 4, "ffn_width": 48, "context": 64}
MODELS = {
    "dense": ModelConfig(**COMMON, num_kv_heads=2, qk_norm=True),
    "learned": ModelConfig(**COMMON, positions="learned", norm="layer", gated=False, activation="gelu_tanh", tied_embeddings=True),
    "moe": ModelConfig(**COMMON, moe=MoEConfig(num_experts=4, num_active=2, expert_width=16)),
    "window": ModelConfig(
        **COMMON, window=5, global_every=2,
        moe=MoEConfig(num_experts=4, num_active=2, expert_width=16, num_shared=1, latent_width=16, score="sigmoid"),
    ),
    "mla": ModelConfig(**COMMON, mla=MLAConfig(query_rank=16, kv_rank=16, nope_width=8, rope_width=4, value_width=8)),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return Tokenizer.load(tiny_tokenizer)


@pytest.fixture(scope="module")
def models() -> dict[str, Transformer]:
    torch.set_num_threads(1)
    built = {name: Transformer(config).eval() for name, config in MODELS.items()}
    for model in built.values():
        randomize(model, seed=1)
    return built


@torch.inference_mode()
def plain(model: Transformer, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling) -> tuple[list[int], str]:
    """Generate without cache, batch or incremental text."""
    ids, sampler = list(prompt), Sampler(sampling, prompt)
    ends = (tokenizer.end_of_turn, tokenizer.end_of_text)
    while len(ids) < model.config.context and len(ids) - len(prompt) < sampling.max_tokens:
        ids.append(sampler.draw(model(torch.tensor([ids]))[0, -1, : tokenizer.vocab_size].numpy()))
        if ids[-1] in ends:
            return ids[len(prompt) :], "stop"
    return ids[len(prompt) :], "length"


def requests(seed: int, count: int, vocab_size: int) -> list[tuple[list[int], Sampling]]:
    """Draw prompts and settings; every second request is greedy."""
    rng = random.Random(seed)
    drawn = []
    for number in range(count):
        prompt = [rng.randrange(6, vocab_size) for _ in range(rng.choice((1, 3, 9, 30, 63)))]
        sampling = Sampling(
            max_tokens=rng.randint(1, 40),
            temperature=0 if number % 2 else rng.uniform(0.3, 2),
            top_k=rng.choice((0, 5, 50)),
            top_p=rng.choice((1.0, 0.8)),
            min_p=rng.choice((0.0, 0.05)),
            seed=rng.randrange(1000),
        )
        drawn.append((prompt, sampling))
    return drawn


@pytest.mark.parametrize("name", MODELS)
def test_engine_equals_plain_generation_under_random_arrival(name: str, models: dict[str, Transformer], tokenizer: Tokenizer) -> None:
    model, rng = models[name], random.Random(7)
    drawn = requests(11, 16, tokenizer.vocab_size)
    with Engine(model, tokenizer, EngineConfig(rows=3)) as engine:
        answers = []
        for prompt, sampling in drawn:
            answers.append(([], iter(engine.submit(prompt, sampling))))
            for ids, increments in answers:
                if rng.random() < 0.3:  # let some answers get ahead before the next request arrives
                    ids.extend(increment.id for increment in itertools.islice(increments, 2))
        for ids, increments in answers:
            ids.extend(increment.id for increment in increments)
        assert engine.load() == (0, 0)
    for (prompt, sampling), (ids, _) in zip(drawn, answers, strict=True):
        assert ids == plain(model, tokenizer, prompt, sampling)[0]


def test_generate_matches_submit_and_text_matches_decode(models: dict[str, Transformer], tokenizer: Tokenizer) -> None:
    prompts = [prompt for prompt, _ in requests(3, 5, tokenizer.vocab_size)]
    with Engine(models["dense"], tokenizer, EngineConfig(rows=2)) as engine:
        together = engine.generate(prompts, Sampling(max_tokens=20, seed=5))
        alone = [engine.submit(prompt, Sampling(max_tokens=20, seed=5 + number)).result() for number, prompt in enumerate(prompts)]
    assert together == alone
    for completion in together:
        ids = completion.ids[:-1] if completion.finish_reason == "stop" else completion.ids
        assert completion.text == tokenizer.decode(ids)


def test_cancelled_requests_free_their_rows(models: dict[str, Transformer], tokenizer: Tokenizer) -> None:
    with Engine(models["dense"], tokenizer, EngineConfig(rows=1)) as engine:
        long = [engine.submit([9, 10], Sampling(max_tokens=60, seed=number)) for number in range(3)]
        next(iter(long[0]))
        for request in long:
            request.cancel()
        result = engine.submit([20], Sampling(max_tokens=4, temperature=0)).result()
    assert result.ids == plain(models["dense"], tokenizer, [20], Sampling(max_tokens=4, temperature=0))[0]


def test_errors_reach_the_caller(models: dict[str, Transformer], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(models["dense"], tokenizer, EngineConfig(rows=1)) as engine:
        with pytest.raises(ContextLengthError, match=r"64 tokens leave no room.*holds 64"):
            engine.submit([8] * 64)
        with pytest.raises(OpenmaiError, match="empty"):
            engine.submit([])
        with pytest.raises(OpenmaiError, match="token ids"):
            engine.submit([-1])
        monkeypatch.setattr(engine, "_advance", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.submit([8]).result()
        with pytest.raises(ZeroDivisionError):
            engine.submit([8])
    with pytest.raises(OpenmaiError, match="not running"):
        Engine(models["dense"], tokenizer).submit([8])


@pytest.mark.parametrize("stop", [("e",), ("zzz", "t"), ("\x02",)])
def test_stop_texts_end_the_answer_and_never_appear(stop: tuple[str, ...], models: dict[str, Transformer], tokenizer: Tokenizer) -> None:
    prompts = [[number] for number in range(40, 60)]
    with Engine(models["dense"], tokenizer) as engine:
        free = engine.generate(prompts, Sampling(max_tokens=40, seed=1))
        stopped = engine.generate(prompts, Sampling(max_tokens=40, seed=1, stop=stop))
    for whole, cut in zip(free, stopped, strict=True):
        places = [whole.text.find(text) for text in stop if text in whole.text]
        assert cut.text == (whole.text[: min(places)] if places else whole.text)
    assert free != stopped


def test_text_stream_never_shows_half_a_character_or_a_stop_prefix(tokenizer: Tokenizer) -> None:
    table, text = tokenizer.token_bytes, "naïve 漢字 🙂🙃 stopper STOP ignored"
    stream, shown = TextStream(table, ["STOP", "TOPS"]), []
    for token in tokenizer.encode(text):
        shown.append(stream.push(token))
        if stream.stopped:
            break
    assert "".join(shown) + stream.finish() == "naïve 漢字 🙂🙃 stopper "
    assert "�" not in "".join(shown)
    rng = random.Random(0)
    for _ in range(200):  # any ids at all, broken characters included, give what decode gives
        ids = [rng.randrange(len(table)) for _ in range(30)]
        stream = TextStream(table, ["\x00\x01"])
        assert "".join(stream.push(token) for token in ids) + stream.finish() == tokenizer.decode(ids)


def test_filters_keep_what_they_say() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.25, 0.05]))
    kept = {
        "top_k": keep_probable(logits, Sampling(top_k=2)),
        "top_p": keep_probable(logits, Sampling(top_p=0.6)),
        "min_p": keep_probable(logits, Sampling(min_p=0.5)),
        "cold": keep_probable(logits, Sampling(temperature=0.01)),
    }
    assert kept["top_k"][0].tolist() == [1, 3]
    assert kept["top_p"][0].tolist() == [1, 3]
    assert kept["min_p"][0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(kept["min_p"][1], np.array([0.4, 0.2, 0.25]) / 0.85)
    assert kept["cold"][1].max() > 0.999
    rng = np.random.default_rng(0)
    for top_p in (0.05, 0.5, 0.9, 0.999):  # the nucleus against its definition
        drawn = rng.normal(0, 3, 500)
        shares = np.sort(np.exp(drawn) / np.exp(drawn).sum())[::-1]
        assert len(keep_probable(drawn, Sampling(top_p=top_p))[0]) == int((np.cumsum(shares) < top_p).sum()) + 1
    sampler = Sampler(Sampling(seed=3))
    counts = np.bincount([sampler.draw(logits) for _ in range(5_000)], minlength=5) / 5_000
    np.testing.assert_allclose(counts, np.exp(logits), atol=0.03)


def test_penalties_and_bias() -> None:
    logits = np.array([2.0, 1.9, 1.8, -1.0])
    repeated = Sampler(Sampling(temperature=0, repetition_penalty=1.2), prompt=[0, 3])
    assert [repeated.draw(logits) for _ in range(3)] == [1, 2, 0]  # 2 / 1.2 < 1.9 / 1.2 < 1.8, then all have been seen
    assert Sampler(Sampling(temperature=0, presence_penalty=0.15), prompt=[0]).draw(logits) == 0  # the prompt does not count
    frequent = Sampler(Sampling(temperature=0, frequency_penalty=0.25))
    assert [frequent.draw(logits) for _ in range(5)] == [0, 1, 2, 0, 1]
    assert Sampler(Sampling(temperature=0, logit_bias=((3, 4.0), (0, -1.0)))).draw(logits) == 3
    allowed = np.array([False, False, True, True])
    assert {Sampler(Sampling(seed=seed)).draw(logits, allowed) for seed in range(50)} == {2, 3}


def test_prompt_logprobs_are_the_scores_even_in_pieces_and_after_preemption(models: dict[str, Transformer], tokenizer: Tokenizer) -> None:
    prompts = [prompt for prompt, _ in requests(5, 9, tokenizer.vocab_size)]
    config = EngineConfig(rows=4, block=4, cache_tokens=72, step_tokens=11)
    with Engine(models["dense"], tokenizer, config) as engine:
        for max_tokens in (0, 20):
            answers = engine.generate(prompts, Sampling(max_tokens=max_tokens, prompt_logprobs=2, seed=1, ignore_ends=True))
            for prompt, answer, scores in zip(prompts, answers, score(models["dense"], prompts, top=2), strict=True):
                assert len(answer.ids) == min(max_tokens, 64 - len(prompt))
                np.testing.assert_allclose([one.value for one in answer.prompt_logprobs], scores.logprobs_T.numpy(), atol=1e-4)
        assert engine.stats.preemptions > 0


def test_invariant_answers_do_not_depend_on_neighbours(models: dict[str, Transformer], tokenizer: Tokenizer) -> None:
    """To the last bit: log-probabilities are compared, alone and in a crowd that is preempted."""
    drawn = [(prompt, Sampling(max_tokens=15, seed=3, logprobs=1, ignore_ends=True)) for prompt, _ in requests(8, 12, tokenizer.vocab_size)]
    for name in ("dense", "moe"):
        config = EngineConfig(rows=6, block=4, step_tokens=8, cache_tokens=120, invariant=True)
        with Engine(models[name], tokenizer, config) as engine:
            crowd = [engine.submit(*request) for request in drawn]
            together = [request.result() for request in crowd]
            assert engine.stats.preemptions > 0
            assert engine.stats.reused > 0
        with Engine(models[name], tokenizer, config) as engine:
            assert [engine.submit(*request).result() for request in drawn] == together


def test_a_common_beginning_is_computed_once(models: dict[str, Transformer], tokenizer: Tokenizer) -> None:
    with Engine(models["dense"], tokenizer, EngineConfig(block=4)) as engine:
        stem = list(range(10, 50))
        first = engine.submit([*stem, 60], Sampling(max_tokens=3, temperature=0))
        first.result()
        second = engine.submit([*stem, 61, 62], Sampling(max_tokens=3, temperature=0))
        second.result()
        assert (first.reused, second.reused) == (0, 40)


def test_stop_ids_end_an_answer(models: dict[str, Transformer], tokenizer: Tokenizer) -> None:
    with Engine(models["dense"], tokenizer) as engine:
        free = engine.submit([30], Sampling(max_tokens=20, temperature=0)).result()
        stopped = engine.submit([30], Sampling(max_tokens=20, temperature=0, stop_ids=(free.ids[3],))).result()
    assert stopped.ids == free.ids[: free.ids.index(free.ids[3]) + 1]
    assert stopped.finish_reason == "stop"


def test_impossible_settings_are_refused(models: dict[str, Transformer], tokenizer: Tokenizer) -> None:
    for config, problem in (
        (EngineConfig(cache_tokens=32), "less than one request"),
        (EngineConfig(speculate="draft"), "needs a draft model"),
        (EngineConfig(invariant=True, speculate="ngram"), "excludes speculate"),
    ):
        with pytest.raises(OpenmaiError, match=problem):
            Engine(models["dense"], tokenizer, config)


@pytest.mark.parametrize("name", MODELS)
def test_scores_equal_one_full_forward(name: str, models: dict[str, Transformer], tokenizer: Tokenizer) -> None:
    model = models[name]
    prompts = [prompt for prompt, _ in requests(5, 7, tokenizer.vocab_size)]
    scores = score(model, prompts, top=3, rows=3, max_logits=3 * 384 * 7)  # seven tokens a chunk
    for prompt, found in zip(prompts, scores, strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([prompt]))[0, :-1].log_softmax(-1)
        torch.testing.assert_close(found.logprobs_T, expected.gather(1, torch.tensor(prompt[1:], dtype=torch.long)[:, None])[:, 0])
        torch.testing.assert_close(found.top_logprobs_TK, expected.topk(3).values)
    with pytest.raises(OpenmaiError, match=r"65 tokens.*64"):
        score(model, [[1] * 65])


def test_logprobs_of_an_answer_are_its_scores(models: dict[str, Transformer], tokenizer: Tokenizer) -> None:
    with Engine(models["window"], tokenizer) as engine:
        answer = engine.submit([30, 31, 32], Sampling(max_tokens=9, seed=2, top_k=20, logprobs=2)).result()
    scored = score(models["window"], [[30, 31, 32, *answer.ids]], top=2)[0]
    np.testing.assert_allclose([logprob.value for logprob in answer.logprobs], scored.logprobs_T[2:].numpy(), atol=1e-4)
    assert [[token for token, _ in logprob.top] for logprob in answer.logprobs] == scored.top_ids_TK[2:].tolist()


def test_load_finds_the_newest_model_of_a_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, _, name = load_assistant(tiny_checkpoint)
    assert (model.config.width, name) == (32, f"{tiny_checkpoint.parent.name}-tiny")
    run = tmp_path / "laptop"
    run.mkdir()
    with pytest.raises(OpenmaiError, match=r"laptop: holds no finished model.*openmai run"):
        load_assistant(run)
    for stage in ("pretrain", "sft"):
        (run / stage).symlink_to(tiny_checkpoint)
    (run / "dpo").mkdir()  # begun, not finished
    assert load_assistant(run)[2] == name
    with pytest.raises(OpenmaiError, match="no such folder"):
        load_assistant(tmp_path / "nothing")


def test_chat_prints_only_answers(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    chat(ChatConfig(path=tiny_checkpoint, prompt="The cat", max_tokens=8, seed=1))
    once = capsys.readouterr()
    assert once.out.endswith("\n")
    assert "tokens/s" in once.err
    monkeypatch.setattr("sys.stdin", io.StringIO("/help\nThe cat\n/new\nThe cat\n" + "x" * 500 + "\n/exit\nnever\n"))
    chat(ChatConfig(path=tiny_checkpoint, max_tokens=8, temperature=0))
    shown = capsys.readouterr()
    half = len(shown.out) // 2
    assert shown.out[:half] == shown.out[half:] != ""
    assert "leave no room" in shown.err


def test_a_full_context_drops_the_oldest_turns(tokenizer: Tokenizer) -> None:
    turns = [{"role": role, "content": f"{role} {number} tree loop file"} for number in range(9) for role in ("user", "assistant")]
    messages = [{"role": "system", "content": "Be short."}, *turns, {"role": "user", "content": "Now?"}]
    kept, ids = fit(tokenizer, messages, room=100)
    assert len(ids) <= 100
    assert kept[0] == messages[0]
    assert kept[1:] == messages[-len(kept) + 1 :]
    assert kept[1]["role"] == "user"
    assert fit(tokenizer, messages, room=1)[0] == [messages[0], messages[-1]]
