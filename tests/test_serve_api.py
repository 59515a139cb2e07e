"""OMP_NUM_THREADS=1 python -m pytest tests/test_serve_api.py

Tools, constrained answers, responses, embeddings, tokens, metrics, keys, limits and an external engine, mostly with the official client.
"""

from __future__ import annotations

import base64
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import jsonschema
import numpy as np
import openai
import pytest
import uvicorn
from conftest import TinyConfig, randomize
from test_serve import running

from openmai.base.artifact import create as artifact
from openmai.base.errors import OpenmaiError
from openmai.infer.engine import Engine
from openmai.infer.request import Increment
from openmai.model.checkpoint import KIND, save_model
from openmai.model.config import ModelConfig
from openmai.model.transformer import Transformer
from openmai.serve.answers import Turn
from openmai.serve.config import CreateKeyConfig, KeyConfig, Limits, RevokeKeyConfig, ServeConfig
from openmai.serve.external import command_of, create_proxy
from openmai.serve.gate import Gate
from openmai.serve.keys import Key, KeyStore, RateLimiter, create, open_store, revoke, show
from openmai.serve.server import listen
from openmai.serve.tools import Function
from openmai.tokenizer.tokenizer import Tokenizer

QUESTION = [{"role": "user", "content": "The cat?"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Look it up.", "parameters": WEATHER}}]


@pytest.fixture(scope="module")
def server(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Engine]]:
    """A model with room for descriptions of functions, of which a tiny tokenizer makes one token a letter."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    size = Tokenizer.load(tiny_tokenizer).vocab_size
    model = Transformer(ModelConfig(vocab_size=size, num_layers=2, width=32, num_heads=4, num_kv_heads=2, ffn_width=64, context=1024))
    randomize(model, seed=0)
    with artifact(folder, kind=KIND, version=1, config=TinyConfig()) as work:
        save_model(model, folder, tiny_tokenizer)
        work.finish(metrics={})
    with running(folder) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: tuple[str, Engine]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="any", max_retries=0)


def test_a_required_call_is_made_and_streams_as_it_answers(client: openai.OpenAI) -> None:
    settings = {"model": "tiny", "messages": QUESTION, "tools": TOOLS, "max_tokens": 120, "seed": 1, "parallel_tool_calls": False}
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        whole = client.chat.completions.create(**settings, tool_choice=choice).choices[0]
        assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
        (call,) = whole.message.tool_calls
        assert call.function.name == "weather"
        jsonschema.validate(json.loads(call.function.arguments), WEATHER)
        chunks = list(client.chat.completions.create(**settings, tool_choice=choice, stream=True))
        (streamed,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        assert (streamed.index, streamed.function.arguments) == (0, call.function.arguments)
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
    answered = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    assert client.chat.completions.create(model="tiny", messages=answered, max_tokens=3).choices[0].finish_reason == "length"


def read(text: str, size: int, functions: list[Function]) -> SimpleNamespace:
    """Feed a text to the state machine, `size` characters at a time."""
    turn = Turn(functions)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    parts = [turn.read(Increment(9, piece)) for piece in pieces] + [turn.read(Increment(9, "", None, "stop"))]
    calls = [(call.name, json.loads(call.arguments)) for part in parts for call in part.calls]
    return SimpleNamespace(text="".join(part.text for part in parts), calls=calls, reason=parts[-1].finish_reason)


@pytest.mark.parametrize("size", [1, 2, 5, 11, 1000])
def test_calls_are_read_whatever_the_pieces(size: int) -> None:
    functions = [Function("weather")]
    one = '<tool_call>\n{"name": "weather", "arguments": {"a": "</b> <tool"}}\n</tool_call>'
    found = read(f"Let me see. {one}\n{one}", size, functions)
    assert (found.text, found.reason, len(found.calls)) == ("Let me see. ", "tool_calls", 2)
    assert found.calls[0] == ("weather", {"a": "</b> <tool"})
    cut = read(one.removesuffix("\n</tool_call>"), size, functions)
    assert (cut.text, len(cut.calls)) == ("", 1)
    for text in ("a < b <tool_ but no call", '<tool_call>{"name": "other"}</tool_call> x', "<tool_call>broken</tool_call>", "<tool_call>{"):
        found = read(text, size, functions)
        assert (found.text, found.calls, found.reason) == (text, [], "stop")
    assert read(one, size, []).text == one


@pytest.mark.parametrize("stream", [False, True])
def test_structured_answers(stream: bool, client: openai.OpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER, "strict": True}}
    settings = {"model": "tiny", "messages": QUESTION, "max_tokens": 60, "stream": stream}
    for extra, check in (
        ({"response_format": schema}, lambda text: jsonschema.validate(json.loads(text), WEATHER)),
        (
            {"extra_body": {"structured_outputs": {"regex": "[ab]{3}-[0-9]{2}"}}},
            lambda text: (text[3], len(text)) == ("-", 6) or pytest.fail(text),
        ),
        ({"extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}}, lambda text: text in ("yes", "no") or pytest.fail(text)),
        (
            {"extra_body": {"structured_outputs": {"grammar": 'start: "x" /[0-9]/+ "y"'}}, "seed": 5},
            lambda text: text[0] == "x" or pytest.fail(text),
        ),
    ):
        answer = client.chat.completions.create(**settings, **extra)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer) if stream else answer.choices[0].message.content
        check(text)


@pytest.mark.parametrize(
    ("format_", "named"),
    [
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "string"}}}}, "not"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}, "nothing"),
        ({"type": "json_schema"}, "schema"),
    ],
)
def test_a_keyword_that_cannot_be_followed_is_named(format_: dict, named: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=named) as caught:
        client.chat.completions.create(model="tiny", messages=QUESTION, response_format=format_)
    assert caught.value.param.startswith("response_format")


def test_responses_text_stream_and_tools(client: openai.OpenAI) -> None:
    settings = {"model": "tiny", "input": "The cat?", "instructions": "Be brief.", "temperature": 0, "max_output_tokens": 20}
    whole = client.responses.create(**settings)
    assert (whole.object, whole.status in ("completed", "incomplete"), whole.usage.total_tokens > 20) == ("response", True, True)
    events = list(client.responses.create(**settings, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", f"response.{whole.status}")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == whole.output_text != ""
    with client.responses.stream(**settings) as stream:
        assert stream.get_final_response().output_text == text if whole.status == "completed" else True
    tool = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
    asked = {"model": "tiny", "input": "Rain?", "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    asked |= {"extra_body": {"seed": 1}}
    (call,) = client.responses.create(**asked).output
    jsonschema.validate(json.loads(call.arguments), WEATHER)
    events = list(client.responses.create(**asked, stream=True))
    assert [event.arguments for event in events if event.type == "response.function_call_arguments.done"] == [call.arguments]
    history = [
        {"role": "user", "content": "Rain?"},
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "no"},
    ]
    assert client.responses.create(model="tiny", input=history, max_output_tokens=3).status in ("completed", "incomplete")
    formatted = client.responses.create(model="tiny", input="?", text={"format": {"type": "json_schema", "name": "w", "schema": WEATHER}})
    jsonschema.validate(json.loads(formatted.output_text), WEATHER)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model="tiny", input="?", previous_response_id="resp_1")


def test_embeddings_tokens_and_metrics(client: openai.OpenAI, server: tuple[str, Engine]) -> None:
    address, engine = server
    floats = client.embeddings.create(model="tiny", input=["The cat", "The list"], encoding_format="float")
    packed = httpx.post(f"{address}/v1/embeddings", json={"model": "tiny", "input": "The cat", "encoding_format": "base64"}).json()
    vector = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_allclose(vector, floats.data[0].embedding, atol=1e-6)
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert client.embeddings.create(model="tiny", input="The cat").data[0].embedding == pytest.approx(floats.data[0].embedding)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="tiny", input="x", dimensions=3)
    found = httpx.post(f"{address}/tokenize", json={"prompt": "The cat 漢"}).json()
    assert found["tokens"] == engine.tokenizer.encode("The cat 漢")
    assert httpx.post(f"{address}/detokenize", json={"tokens": found["tokens"]}).json()["prompt"] == "The cat 漢"
    assert httpx.post(f"{address}/tokenize", json={"messages": QUESTION}).json()["count"] > 5
    text = httpx.get(f"{address}/metrics").text
    for name in ("time_to_first_token_seconds_count", "generated_tokens_total", "cache_used_blocks", "prefix_hit_tokens_total"):
        value = next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"openmai_{name}"))
        assert value > 0 or name == "cache_used_blocks"


def test_penalties_bias_and_fill_in_the_middle(client: openai.OpenAI, server: tuple[str, Engine]) -> None:
    tokenizer = server[1].tokenizer
    settings = {"model": "tiny", "prompt": "The cat", "max_tokens": 30, "temperature": 0, "extra_body": {"ignore_eos": True}}
    only = client.completions.create(**settings, logit_bias={"40": 100}).choices[0].text
    assert only == tokenizer.decode([40]) * 30
    varied = client.completions.create(**settings, logit_bias={"40": 20}, frequency_penalty=2, presence_penalty=2).choices[0].text
    assert varied.count(tokenizer.decode([40])) < 30
    banned = client.completions.create(**settings, logit_bias={str(token): -100 for token in tokenizer.encode(varied)[:1]})
    assert banned.choices[0].text[:1] != varied[:1]
    filled = client.completions.create(**settings, suffix=" the tree").usage
    assert filled.prompt_tokens == len(tokenizer.encode("The cat")) + len(tokenizer.encode(" the tree")) + 3


def test_asynchronous_calls(server: tuple[str, Engine]) -> None:
    import asyncio

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server[0]}/v1", api_key="any", max_retries=0) as client:
            stream = await client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=9, temperature=0, stream=True)
            streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            whole = await client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=9, temperature=0)
            response = await client.responses.create(model="tiny", input="The cat?", max_output_tokens=9, temperature=0)
            embedded = await client.embeddings.create(model="tiny", input="x")
            assert len(embedded.data[0].embedding) == 32
            return [streamed, whole.choices[0].message.content or "", response.output_text]

    assert len(set(asyncio.run(ask()))) == 1


def test_keys_are_made_limited_accounted_for_and_revoked(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.sqlite"
    secrets = []
    for name, settings in (
        ("ann", {}),
        ("ben", {"models": ("other",)}),
        ("cat", {"requests_per_minute": 1}),
        ("dan", {"tokens_per_minute": 5}),
    ):
        create(CreateKeyConfig(keys=file, name=name, **settings))
        secrets.append(capsys.readouterr().out.strip())
    content = file.read_bytes()
    assert not any(secret.encode() in content for secret in secrets)
    assert file.stat().st_mode & 0o077 == 0
    store = KeyStore(file)
    with running(tiny_checkpoint, Gate("", store)) as (address, _):
        ann, ben, cat, dan = (openai.OpenAI(base_url=f"{address}/v1", api_key=secret, max_retries=0) for secret in secrets)
        ask = {"model": "tiny", "prompt": "The cat", "max_tokens": 5, "temperature": 0, "extra_body": {"ignore_eos": True}}
        ann.completions.create(**ask)
        with pytest.raises(openai.NotFoundError):
            ben.completions.create(**ask)
        assert ben.models.list().data == []
        for limited in (cat, dan):
            limited.completions.create(**ask)
            with pytest.raises(openai.RateLimitError) as caught:
                limited.completions.create(**ask)
            assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
            assert 0 < int(caught.value.response.headers["retry-after"]) <= 60
        for wrong in ("", "om-wrong"):
            with pytest.raises((openai.AuthenticationError, openai.APIConnectionError)):
                openai.OpenAI(base_url=f"{address}/v1", api_key=wrong or "x", max_retries=0).models.list()
        store.flush()
        show(KeyConfig(keys=file))
        table = capsys.readouterr().out
        row = next(line for line in table.splitlines() if " ann " in line)
        assert row.split()[3:6] == ["1", str(len("The cat")), "5"] or row.split()[3] == "1"
        assert row.split()[5] == "5"
        revoke(RevokeKeyConfig(keys=file, id=row.split()[0]))
        with pytest.raises(openai.AuthenticationError):
            ann.models.list()
    store.close()
    with pytest.raises(OpenmaiError, match="no active key"):
        revoke(RevokeKeyConfig(keys=file, id=row.split()[0]))
    with pytest.raises(OpenmaiError, match="keys create"):
        open_store(tmp_path / "none")


def test_a_limited_caller_tries_again(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official client makes three attempts on 429, as it is told by retry-after."""
    tries = []
    monkeypatch.setattr(RateLimiter, "admit", lambda self, key: (tries.append(1), (1, "few") if len(tries) < 3 else None)[1])
    with running(tiny_checkpoint) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=2)
        began = time.monotonic()
        client.completions.create(model="tiny", prompt="x", max_tokens=1)
    assert len(tries) == 3
    assert time.monotonic() - began >= 2


def test_buckets_fill_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limiter, key = RateLimiter(), Key("a", requests_per_minute=6, tokens_per_minute=60)
    assert [limiter.admit(key) is None for _ in range(7)] == [True] * 6 + [False]
    assert limiter.admit(key) == (10, "6 requests per minute")
    now[0] += 10
    assert limiter.admit(key) is None
    limiter.spend(key, 90)
    now[0] += 29
    assert limiter.admit(key) == (2, "60 tokens per minute")
    now[0] += 2
    assert limiter.admit(key) is None


def test_sizes_times_and_queues_are_limited(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(body_bytes=2000, seconds=0.3, waiting=1)
    with running(tiny_checkpoint, limits=limits) as (address, engine):
        for content in (b"x" * 3000, (b"x" * 100 for _ in range(30))):
            response = httpx.post(f"{address}/v1/completions", content=content, headers={"content-type": "application/json"})
            assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
        step = engine._step
        monkeypatch.setattr(engine, "_step", lambda: (time.sleep(0.05), step()))
        monkeypatch.setattr(engine, "ends", set())
        body = {"model": "tiny", "prompt": "x", "max_tokens": 100, "stream": True}
        late = httpx.post(f"{address}/v1/completions", json=body | {"stream": False})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        with httpx.stream("POST", f"{address}/v1/completions", json=body) as response:
            assert json.loads([line for line in response.iter_lines() if line][-1].removeprefix("data: "))["error"]["code"] == "timeout"
    with running(tiny_checkpoint, limits=Limits(waiting=1)) as (address, engine):
        step = engine._step
        monkeypatch.setattr(engine, "_step", lambda: (time.sleep(0.05), step()))
        with httpx.stream("POST", f"{address}/v1/completions", json=body | {"n": 5}):
            refused = httpx.post(f"{address}/v1/completions", json=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")


def test_an_external_engine_has_our_keys_in_front(server: tuple[str, Engine], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Our own server stands for vLLM's."""
    file = tmp_path / "keys.sqlite"
    create(CreateKeyConfig(keys=file, name="ann"))
    secret = capsys.readouterr().out.strip()
    store = KeyStore(file)
    app = create_proxy(server[0], "tiny", Gate("", store), Limits(), None)
    with listen("127.0.0.1", 0) as listener:
        proxy = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=proxy.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", api_key=secret, max_retries=0)
        assert client.models.list().data[0].id == "tiny"
        whole = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=8, temperature=0)
        chunks = list(client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=8, temperature=0, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=[])
        assert caught.value.param == "messages"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
        store.flush()
        show(KeyConfig(keys=file))
        row = next(line for line in capsys.readouterr().out.splitlines() if " ann " in line).split()
        assert (row[3], row[5]) == ("2", str(2 * whole.usage.completion_tokens))
        proxy.should_exit = True
        thread.join(20)
    store.close()


def test_commands_of_external_engines(tmp_path: Path) -> None:
    config = ServeConfig(path=tmp_path, engine="vllm", max_length=4096)
    assert command_of(config, "m", 9)[:3] == ["vllm", "serve", str(tmp_path)]
    assert command_of(config, "m", 9)[-2:] == ["--max-model-len", "4096"]
    assert "--served-model-name m" in " ".join(command_of(ServeConfig(path=tmp_path, engine="sglang"), "m", 9))
    own = ServeConfig(path=tmp_path, engine="vllm", engine_command=f"{sys.executable} x.py {{port}}")
    assert command_of(own, "m", 9) == [sys.executable, "x.py", "9"]
