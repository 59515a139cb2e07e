"""vLLM or SGLang behind our keys, limits and page: started as a process of its own, and passed on to."""

from __future__ import annotations

import json
import logging
import shlex
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

import httpx2
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from openmai.base.errors import OpenmaiError
from openmai.base.progress import say
from openmai.serve.config import Limits, ServeConfig
from openmai.serve.errors import APIError, install
from openmai.serve.gate import BodyLimit, Gate
from openmai.serve.keys import Key
from openmai.serve.metrics import Metrics
from openmai.serve.pages import pages
from openmai.serve.runs import Runs

COMMANDS = {
    "vllm": "vllm serve {path} --served-model-name {name} --host {host} --port {port}",
    "sglang": "python -m sglang.launch_server --model-path {path} --served-model-name {name} --host {host} --port {port}",
}
START_SECONDS = 1800  # a large model loads for minutes
PASSED = ("chat/completions", "completions", "responses", "embeddings")


def serve_external(config: ServeConfig, stack: ExitStack, run: Callable[[FastAPI, socket.socket, str, Gate], None]) -> None:
    """Start the engine, or only print how (`dry_run`), and answer in front of it."""
    from openmai.serve.server import find_runs, listen, open_gate  # it imports this module

    name = config.name or config.path.resolve().name
    port = free_port()
    command = command_of(config, name, port)
    if config.dry_run:
        print(shlex.join(command))
        return
    if not config.engine_url and not (config.path / "config.json").exists():
        raise OpenmaiError(f"path={config.path}: no config.json in it; {config.engine} wants a folder that `openmai export hf` wrote")
    listener = stack.enter_context(listen(config.host, config.port))
    gate = open_gate(config, stack)
    url = config.engine_url.rstrip("/") or f"http://127.0.0.1:{port}"
    if not config.engine_url:
        process = start(command)
        stack.callback(stop, process)
        wait_until_ready(url, process, config.engine)
    run(create_proxy(url, name, gate, config.limits, find_runs(config)), listener, name, gate)
    say("stopped")


def command_of(config: ServeConfig, name: str, port: int) -> list[str]:
    """Return the command that starts the external engine."""
    pattern = config.engine_command or COMMANDS[config.engine]
    extra = ["--max-model-len" if config.engine == "vllm" else "--context-length", str(config.max_length)] if config.max_length else []
    values = {"path": str(config.path), "name": name, "host": "127.0.0.1", "port": port}
    return [part.format(**values) for part in shlex.split(pattern)] + ([] if config.engine_command else extra)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start the engine. Its output goes where ours goes, on standard error."""
    say(f"starting: {shlex.join(command)}")
    try:
        return subprocess.Popen(command, stdout=2, start_new_session=True)  # Ctrl-C is for us: it stops when we have drained
    except FileNotFoundError:
        raise OpenmaiError(
            f"{command[0]}: not found; install the engine in an environment of its own and name its program with --engine_command, "
            "or give the address of one that runs with --engine_url"
        ) from None


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], engine: str) -> None:
    """Wait for the engine's health. Raises OpenmaiError when it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise OpenmaiError(f"{engine}: ended with status {process.returncode} before it answered; its messages are above")
        try:
            if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    raise OpenmaiError(f"{engine}: did not answer within {START_SECONDS} s")


def create_proxy(url: str, name: str, gate: Gate, limits: Limits, runs: Runs | None) -> FastAPI:
    """Build the application that passes calls on to `url`."""
    app = FastAPI(title="openmai", docs_url=None, redoc_url=None)
    install(app)
    metrics = Metrics(None)
    app.add_middleware(BodyLimit, limit=limits.body_bytes, metrics=metrics)
    app.include_router(pages(gate, runs))
    client = httpx2.AsyncClient(base_url=url, timeout=httpx2.Timeout(limits.seconds, connect=10))
    proxy = Proxy(client, name, gate)
    known = Depends(gate.identify)

    @app.get("/health")
    async def health() -> Response:
        try:
            answer = await client.get("/health")
        except httpx2.HTTPError:
            raise APIError(503, "the engine does not answer", code="engine_unreachable", kind="server_error") from None
        return JSONResponse({"status": "ok" if answer.status_code == 200 else "failing", "model": name}, answer.status_code)

    @app.get("/metrics")
    async def own_metrics(key: Key = known) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models(key: Key = known) -> Response:
        return await proxy.get("/v1/models") if key.may_use(name) else JSONResponse({"object": "list", "data": []})

    for route in PASSED:
        app.post(f"/v1/{route}")(proxy.route(f"/v1/{route}"))
    return app


class Proxy:
    """Passes calls on, and reads from the answers what they used."""

    def __init__(self, client: httpx2.AsyncClient, name: str, gate: Gate) -> None:
        self.client, self.name, self.gate = client, name, gate

    async def get(self, path: str) -> Response:
        try:
            answer = await self.client.get(path)
        except httpx2.HTTPError:
            raise _unreachable() from None
        return Response(answer.content, answer.status_code, media_type="application/json")

    def route(self, path: str) -> Callable[..., Any]:
        admitted = Depends(self.gate.admit)

        async def passed(request: Request, key: Key = admitted) -> Response:
            return await self._pass(path, await _body(request), key)

        return passed

    async def _pass(self, path: str, body: dict[str, Any], key: Key) -> Response:
        self.gate.check_model(key, str(body.get("model")), self.name)
        streams = body.get("stream") is True
        wants_usage = True
        if streams and not path.endswith("responses"):  # the caller's usage is to be known, whether or not it wants to know
            options = body.get("stream_options") if isinstance(body.get("stream_options"), dict) else {}
            wants_usage = bool(options.get("include_usage"))  # type: ignore[union-attr]
            body = body | {"stream_options": {**options, "include_usage": True}}  # type: ignore[dict-item]
        try:
            answer = await self.client.send(self.client.build_request("POST", path, json=body), stream=True)
        except httpx2.HTTPError:
            raise _unreachable() from None
        if streams and answer.status_code == 200:
            return StreamingResponse(self._stream(answer, key, wants_usage), media_type="text/event-stream")
        content = await answer.aread()
        await answer.aclose()
        if answer.status_code == 200:
            self._account(key, json.loads(content).get("usage"))
        return Response(content, answer.status_code, media_type="application/json")

    async def _stream(self, answer: httpx2.Response, key: Key, wants_usage: bool) -> AsyncIterator[str]:
        """Pass events on, except a usage that the caller has not asked for."""
        usage: dict[str, Any] | None = None
        try:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    usage = event.get("usage") or event.get("response", {}).get("usage") or usage
                    if not wants_usage and event.get("usage") and not event.get("choices"):
                        continue
                yield line + "\n"
        except httpx2.HTTPError as error:
            logging.getLogger(__name__).error("the engine broke off an answer", exc_info=error)
            yield f"data: {json.dumps(_unreachable().body)}\n\n"
        finally:
            await answer.aclose()
            self._account(key, usage)

    def _account(self, key: Key, usage: dict[str, Any] | None) -> None:
        usage = usage or {}
        prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0))
        self.gate.account(key, self.name, prompt, usage.get("completion_tokens", usage.get("output_tokens", 0)) or 0)


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        raise APIError(400, "the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise APIError(400, "body: a JSON object is wanted", code="invalid_value")
    return body


def _unreachable() -> APIError:
    return APIError(502, "the engine does not answer", code="engine_unreachable", kind="server_error")
