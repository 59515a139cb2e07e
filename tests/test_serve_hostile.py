"""OMP_NUM_THREADS=1 python -m pytest tests/test_serve_hostile.py

Bodies that mean harm, callers that leave, and what our OpenAPI document promises (schemathesis; OPENMAI_FUZZ_EXAMPLES for a long run).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from test_serve import running, until

from openmai.infer.engine import Engine
from openmai.serve.gate import Gate

EXAMPLES = int(os.environ.get("OPENMAI_FUZZ_EXAMPLES", "6"))
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[tuple[str, Engine]]:
    with running(tiny_checkpoint, max_length=48, block=4) as found:
        yield found


def nested(depth: int, opening: str = '{"a":', closing: str = "}") -> str:
    return opening * depth + "1" + closing * depth


HOSTILE = [
    (PLAIN, '{"model": "tiny", "prompt": ' + nested(50_000) + "}"),
    (PLAIN, '{"model": "tiny", "prompt": ' + nested(50_000, "[", "]") + "}"),
    (CHAT, '{"model": "tiny", "messages": ' + nested(900) + "}"),
    (PLAIN, b'{"model": "tiny", "prompt": "\xff\xfe\xc3\x28"}'),
    (PLAIN, '{"model": "tiny", "prompt": "\\ud800"}'),
    (PLAIN, '{"model": "tiny\\udfff", "prompt": "x"}'),
    (PLAIN, json.dumps({"model": "tiny", "prompt": "x", "n": 10**30})),
    (PLAIN, json.dumps({"model": "tiny", "prompt": "x", "n": -1})),
    (PLAIN, json.dumps({"model": "tiny", "prompt": [-5]})),
    (PLAIN, json.dumps({"model": "tiny", "prompt": [10**40]})),
    (PLAIN, json.dumps({"model": "tiny", "prompt": [[1], []]}).replace("[]", "[1e400]")),
    (PLAIN, json.dumps({"model": "tiny", "prompt": "x", "max_tokens": -3})),
    (PLAIN, '{"model": "tiny", "prompt": "x", "temperature": NaN}'),
    (PLAIN, '{"model": "tiny", "prompt": "x", "temperature": Infinity}'),
    (PLAIN, json.dumps({"model": "tiny", "prompt": "x", "logit_bias": {"²": 1}})),
    (PLAIN, json.dumps({"model": "tiny", "prompt": "x", "seed": 2**63})),
    (PLAIN, json.dumps({"model": "tiny", "prompt": ["x"] * 5000})),
    (CHAT, json.dumps({"model": "tiny", "messages": [{"role": "tool", "content": None}]})),
    (CHAT, json.dumps({"model": "tiny", "messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "a b"}}]})),
    (
        CHAT,
        json.dumps(
            {"model": "tiny", "messages": MESSAGES, "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}}
        ),
    ),
    (CHAT, json.dumps({"model": "tiny", "messages": MESSAGES, "structured_outputs": {"grammar": "start: start start"}, "max_tokens": 4})),
    ("/v1/embeddings", json.dumps({"model": "tiny", "input": [[]]})),
    ("/v1/responses", json.dumps({"model": "tiny", "input": [{"type": "function_call_output", "call_id": 3}]})),
    ("/detokenize", json.dumps({"tokens": [2**31 - 1]})),
]


@pytest.mark.parametrize(("path", "body"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_bodies_are_the_callers_error(path: str, body: str | bytes, server: tuple[str, Engine]) -> None:
    response = httpx.post(server[0] + path, content=body, headers={"content-type": "application/json"}, timeout=60)
    assert 400 <= response.status_code < 500, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_callers_that_leave_take_nothing_along(server: tuple[str, Engine]) -> None:
    """200 requests of 32 clients; a third leave at once or in the middle. The others are answered, and no block stays held."""
    address, engine = server
    rng = random.Random(2)

    async def client(http: httpx.AsyncClient, queue: Iterator[int]) -> int:
        answered = 0
        for number in queue:
            body = {
                "model": "tiny",
                "prompt": [20 + rng.randrange(90) for _ in range(rng.randrange(1, 30))],
                "stream": bool(number % 2),
                "n": 1 + number % 2,
            }
            if rng.random() < 1 / 3:
                try:
                    await asyncio.wait_for(http.post(address + PLAIN, json=body | {"ignore_eos": True}), rng.random() * 0.03)
                except TimeoutError:
                    continue
            else:
                answer = await http.post(address + PLAIN, json=body)
                assert "[DONE]" in answer.text or answer.json()["choices"]
            answered += 1
        return answered

    async def storm() -> int:
        queue = iter(range(200))
        async with httpx.AsyncClient(timeout=120) as http:
            return sum(await asyncio.gather(*(client(http, queue) for _ in range(32))))

    assert asyncio.run(storm()) >= 100
    until(lambda: engine.load() == (0, 0))
    until(lambda: engine.pool.available == engine.stats.blocks)


def test_keys_never_reach_the_log(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.DEBUG), running(tiny_checkpoint, Gate("very-secret")) as (address, engine):
        headers = {"authorization": "Bearer very-secret"}
        assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 200
        assert httpx.get(f"{address}/v1/models", headers={"authorization": "Bearer very-secret-not"}).status_code == 401
        monkeypatch.setattr(engine, "_advance", lambda _: 1 / 0)
        assert httpx.post(address + PLAIN, json={"model": "tiny", "prompt": "x"}, headers=headers).status_code == 500
    written = capfd.readouterr()
    assert "ZeroDivisionError" in written.err
    assert "very-secret" not in caplog.text + written.err + written.out


def test_the_document_finds_no_failure_of_ours(server: tuple[str, Engine]) -> None:
    """Requests drawn from our OpenAPI document, valid and not, end in what is below 500."""
    schema = schemathesis.openapi.from_url(f"{server[0]}/openapi.json")
    tried = []
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
        def check(case: schemathesis.Case) -> None:
            tried.append(case.path)
            case.call_and_validate(checks=[not_a_server_error], timeout=60)

        given(case=operation.as_strategy())(check)()
    assert len(set(tried)) >= 10
