"""OMP_NUM_THREADS=1 python -m pytest tests/test_serve.py

The official `openai` client against our server, over a real socket.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
import torch
import uvicorn

from openmai.base.errors import OpenmaiError
from openmai.infer.adapters import attach
from openmai.infer.config import EngineConfig
from openmai.infer.engine import Engine
from openmai.infer.load import load_assistant
from openmai.infer.score import score
from openmai.serve.app import create_app
from openmai.serve.config import Limits
from openmai.serve.gate import Gate
from openmai.serve.server import listen

QUESTION = [{"role": "user", "content": "The cat opens the file"}]


@contextmanager
def running(
    checkpoint: Path, gate: Gate | None = None, limits: Limits | None = None, adapters: dict[str, Path] | None = None, **settings: object
) -> Iterator[tuple[str, Engine]]:
    """Serve a checkpoint as model "tiny" on a free port; yields its address and engine."""
    torch.set_num_threads(1)
    model, tokenizer, _ = load_assistant(checkpoint)
    with (
        listen("127.0.0.1", 0) as listener,
        Engine(model, tokenizer, EngineConfig(rows=3, **settings), adapters=attach(model, adapters or {})) as engine,
    ):
        server = uvicorn.Server(uvicorn.Config(create_app(engine, "tiny", gate, limits, fim=True), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", engine
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[tuple[str, Engine]]:
    with running(tiny_checkpoint) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: tuple[str, Engine]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="any", max_retries=0)


def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`, at most 20 seconds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("some/other")
    assert caught.value.code == "model_not_found"


def test_chat_streams_what_it_answers_whole(client: openai.OpenAI) -> None:
    settings = {"model": "tiny", "messages": QUESTION, "max_tokens": 40, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content != ""
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    assert all(choice.finish_reason is None for choice in choices[:-1])
    assert chunks[-1].usage.model_dump(exclude={"prompt_tokens_details"}) == whole.usage.model_dump(exclude={"prompt_tokens_details"})
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 40
    streamed = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or []]
    assert [entry.token for entry in streamed] == [entry.token for entry in whole.choices[0].logprobs.content]
    expected = [entry.logprob for entry in whole.choices[0].logprobs.content]  # the second call found its prompt in the cache
    assert [entry.logprob for entry in streamed] == pytest.approx(expected, abs=1e-4)
    assert b"".join(bytes(entry.bytes or []) for entry in streamed).decode(errors="replace") == whole.choices[0].message.content
    assert all(entry.top_logprobs[0].logprob == pytest.approx(entry.logprob) for entry in streamed)


def test_seed_n_and_message_forms(client: openai.OpenAI) -> None:
    def ask(**changes: object) -> list[str | None]:
        answer = client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, "max_completion_tokens": 12, **changes})
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.message.content for choice in answer.choices]

    pair = ask(seed=4, n=2)
    assert pair[0] != pair[1]
    assert ask(seed=4) == pair[:1]
    assert ask(seed=5) == pair[1:]
    parts = [{"role": "user", "content": [{"type": "text", "text": "The cat opens"}, {"type": "text", "text": " the file"}]}]
    assert ask(seed=4, messages=parts) == pair[:1]
    system = [{"role": "system", "content": "Be brief."}, *QUESTION]
    assert ask(temperature=0, messages=system) == ask(temperature=0, messages=[{"role": "developer", "content": "Be brief."}, *QUESTION])


def test_completion_prompts_stop_and_streaming(client: openai.OpenAI, server: tuple[str, Engine]) -> None:
    tokenizer = server[1].tokenizer
    settings = {"model": "tiny", "temperature": 0, "max_tokens": 20}
    texts = ["The cat", "The list sorts"]
    both = client.completions.create(prompt=texts, **settings)
    ids = client.completions.create(prompt=[tokenizer.encode(text) for text in texts], **settings)
    assert [choice.text for choice in both.choices] == [choice.text for choice in ids.choices]
    alone = client.completions.create(prompt=tokenizer.encode(texts[1]), **settings).choices[0].text
    assert alone == both.choices[1].text
    stop = alone[5:7]
    stopped = client.completions.create(prompt=texts[1], stop=stop, **settings).choices[0]
    assert (stopped.text, stopped.finish_reason) == (alone[: alone.index(stop)], "stop")
    streamed = client.completions.create(prompt=texts, stream=True, **settings)
    found = {0: "", 1: ""}
    for chunk in streamed:
        found[chunk.choices[0].index] += chunk.choices[0].text
    assert list(found.values()) == [choice.text for choice in both.choices]
    assert client.completions.create(model="tiny", prompt="", max_tokens=3).usage.prompt_tokens == 1


def test_echo_gives_the_log_probabilities_that_harnesses_need(client: openai.OpenAI, server: tuple[str, Engine]) -> None:
    engine = server[1]
    prompts = [engine.tokenizer.encode(text) for text in ("The cat opens the tree 漢字", "The loop")]
    settings = {"model": "tiny", "prompt": prompts, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    answer = client.completions.create(**settings)
    for prompt, choice, scores in zip(prompts, answer.choices, score(engine.model, prompts, top=1), strict=True):
        logprobs = choice.logprobs
        assert len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.tokens) == len(prompt) + 1
        assert logprobs.token_logprobs[0] is logprobs.top_logprobs[0] is None
        assert logprobs.token_logprobs[1:-1] == pytest.approx(scores.logprobs_T.tolist(), abs=1e-5)
        assert [max(top.values()) for top in logprobs.top_logprobs[1:-1]] == pytest.approx(scores.top_logprobs_TK[:, 0].tolist(), abs=1e-5)
        assert choice.text.startswith(engine.tokenizer.decode(prompt))
        assert logprobs.text_offset == sorted(logprobs.text_offset)
    only = client.completions.create(**{**settings, "max_tokens": 0})
    assert only.choices[0].text == engine.tokenizer.decode(prompts[0])
    chunks = list(client.completions.create(**settings, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices[0].index == 0) == answer.choices[0].text


BAD = [
    ({"model": "gpt-4"}, 404, "model_not_found", "model"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, 400, "invalid_value", "messages[0].role"),
    ({"messages": []}, 400, "invalid_value", "messages"),
    ({"messages": [{"role": "user"}]}, 400, "missing_required_parameter", "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "invalid_value", "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x y " * 200}]}, 400, "context_length_exceeded", "messages"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "invalid_value", "messages[0].content"),
    ({"stop": ["a\udfff"]}, 400, "invalid_value", "stop[0]"),
    ({"temperature": -1}, 400, "invalid_value", "temperature"),
    ({"n": 10**9}, 400, "invalid_value", "n"),
    ({"top_logprobs": 2}, 400, "invalid_value", "top_logprobs"),
    ({"functions": [{"name": "f"}]}, 400, "unsupported_parameter", "functions"),
    ({"tools": [{"type": "function"}]}, 400, "missing_required_parameter", "tools[0].function"),
    ({"tool_choice": "required"}, 400, "invalid_value", "tool_choice"),
    ({"logit_bias": {"-1": 5}}, 400, "invalid_value", "logit_bias"),
    ({"logit_bias": {"99999": 5}}, 400, None, ""),
]


@pytest.mark.parametrize(("change", "status", "code", "param"), BAD)
def test_errors_of_chat(change: dict, status: int, code: str, param: str, server: tuple[str, Engine]) -> None:
    body = {"model": "tiny", "messages": QUESTION, "max_tokens": 4} | change
    response = httpx.post(f"{server[0]}/v1/chat/completions", content=json.dumps(body), headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (response.status_code, error["type"], error["code"]) == (status, "invalid_request_error", code)
    assert (error["param"] or "").startswith(param)


def test_errors_reach_the_official_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "long " * 300}])
    assert (caught.value.code, caught.value.type, caught.value.param) == ("context_length_exceeded", "invalid_request_error", "messages")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=[-1])
    assert "token ids" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.moderations.create(model="tiny", input="x")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'"text"', b"null", b"{}"])
def test_malformed_bodies_are_refused(body: bytes, server: tuple[str, Engine]) -> None:
    response = httpx.post(f"{server[0]}/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_keys(tiny_checkpoint: Path) -> None:
    with running(tiny_checkpoint, Gate("sésame")) as (address, _):
        for key in ("wrong", ""):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            response = httpx.get(f"{address}/v1/models", headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert httpx.get(f"{address}/v1/models", headers={"authorization": "Bearer sésame".encode()}).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()
        assert httpx.get(f"{address}/health").json()["status"] == "ok"
        assert "<html" in httpx.get(address).text


def test_a_caller_that_leaves_frees_its_place(server: tuple[str, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    address, engine = server
    step, steps = engine._step, []
    monkeypatch.setattr(engine, "_step", lambda: (time.sleep(0.02), steps.append(1), step()))  # slow enough to leave in the middle
    monkeypatch.setattr(engine, "ends", set())
    body = {"model": "tiny", "messages": QUESTION, "max_tokens": 80, "n": 5}  # in three rows: 160 steps
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/chat/completions", json=body, timeout=httpx.Timeout(5, read=0.2))
    until(lambda: engine.load() == (0, 0))
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body | {"stream": True}) as response:
        next(response.iter_lines())
    until(lambda: engine.load() == (0, 0))
    assert len(steps) < 160


def test_many_callers_at_once(server: tuple[str, Engine]) -> None:
    async def ask_all() -> list[str | None]:
        client = openai.AsyncOpenAI(base_url=f"{server[0]}/v1", api_key="any", max_retries=0)
        calls = [client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=10, temperature=0) for _ in range(24)]
        return [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]

    assert len(set(asyncio.run(ask_all()))) == 1


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OpenmaiError, match=r"port=\d+: in use"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(OpenmaiError, match="no such address"):
        listen("no.such.host.invalid", 0)


def test_the_command_announces_itself_and_drains(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "openmai", "serve", str(tiny_checkpoint), "--port", "0", "--name", "tiny", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        assert process.stderr is not None
        warming, first, example = (process.stderr.readline() for _ in range(3))
        assert "warming up" in warming
        address = first.split()[-1].removesuffix("/v1")
        assert "curl" in example
        body = {"model": "tiny", "messages": QUESTION, "max_tokens": 60, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert "data: [DONE]" in rest
        assert process.wait(30) == 0
        assert process.stderr.read().splitlines()[-1] == "stopped"
