"""The HTTP routes: models, completions, chat completions, health, and the chat page."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from openmai.infer.engine import ContextLengthError, Engine
from openmai.serve.answers import Answer, Part, echo_parts, part_of
from openmai.serve.errors import APIError, explain, install
from openmai.serve.requests import BaseRequest, ChatRequest, CompletionRequest
from openmai.serve.shapes import ChatShape, CompletionShape, Shape

PAGE = Path(__file__).parent / "page.html"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


def create_app(engine: Engine, name: str, api_key: str = "") -> FastAPI:
    """Build the application around a running `engine` that answers under the model id `name`."""
    app = FastAPI(title="openmai", docs_url=None, redoc_url=None)
    install(app)
    server = _Server(engine, name)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=PAGE_HEADERS)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        active, waiting = engine.load()
        return {"status": "ok", "model": name, "active": active, "waiting": waiting}

    app.include_router(_api(server), prefix="/v1", dependencies=[Depends(_key_check(api_key))])
    return app


def _api(server: _Server) -> APIRouter:
    api = APIRouter()

    @api.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [server.card()]}

    @api.get("/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        server.check_model(model)
        return server.card()

    @api.post("/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await server.chat(body, request)

    @api.post("/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await server.complete(body, request)

    return api


def _key_check(api_key: str) -> Callable[[Request], Awaitable[None]]:
    async def check(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if api_key and not (scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), api_key.encode())):
            problem = "the API key is wrong" if given else "no API key was given; send the header `Authorization: Bearer KEY`"
            raise APIError(401, problem, code="invalid_api_key")

    return check


@dataclass
class _Call:
    """One request, ready to run: prompts as ids, settings, and the shape of its response."""

    body: BaseRequest
    prompts: list[list[int]]
    max_tokens: int
    shape: Shape
    logprobs: int | None = None
    echo: bool = False

    @property
    def n(self) -> int:
        return self.body.n or 1

    def usage(self, completion_tokens: int) -> dict[str, int]:
        prompt_tokens = sum(len(prompt) for prompt in self.prompts)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }


class _Server:
    """Turns request bodies into calls of the engine."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name, self.created = engine, name, int(time.time())
        self.scoring = asyncio.Lock()  # one prompt-scoring pass at a time bounds its memory

    def card(self) -> dict[str, Any]:
        """Return the model object; `max_model_len` is what vLLM calls the context."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "openmai", "max_model_len": self.engine.max_length}

    def check_model(self, name: str) -> None:
        if name != self.name:
            raise APIError(404, f"the model '{name}' does not exist; this server has '{self.name}'", "model", "model_not_found")

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        self.check_model(body.model)
        body.check()
        prompt, _ = self.engine.tokenizer.render([message.plain() for message in body.messages], reply=True)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        max_tokens = body.max_completion_tokens or body.max_tokens or self.engine.max_length
        shape = ChatShape(self.engine, self.name, logprobs is not None)
        return await self._respond(_Call(body, [prompt], max_tokens, shape, logprobs), request)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        self.check_model(body.model)
        body.check()
        tokenizer = self.engine.tokenizer
        given = [tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in body.prompts()]
        start: list[int] = [tokenizer.end_of_text]
        prompts = [prompt or start for prompt in given]  # an empty prompt asks for the beginning of any document
        max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        shape = CompletionShape(self.engine, self.name, body.logprobs is not None)
        return await self._respond(_Call(body, prompts, max_tokens, shape, body.logprobs, bool(body.echo)), request)

    async def _respond(self, call: _Call, request: Request) -> Response:
        """Start the call, so that its errors come with a status of their own, then stream or collect it."""
        echoes = await self._echo(call)
        answer = self._start(call)
        if call.body.stream:
            return StreamingResponse(_events(call, echoes, answer), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        collecting = asyncio.ensure_future(_collect(call, echoes, answer))
        leaving = asyncio.ensure_future(_disconnected(request))
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not collecting.done():
            collecting.cancel()
            answer.cancel()
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(collecting.result())

    def _start(self, call: _Call) -> Answer:
        if not call.max_tokens:
            return Answer(self.engine, [])
        jobs = [(prompt, call.body.sampling(choice, call.max_tokens, call.logprobs)) for prompt in call.prompts for choice in range(call.n)]
        try:
            return Answer(self.engine, jobs)
        except ContextLengthError as error:
            param = "messages" if isinstance(call.shape, ChatShape) else "prompt"
            raise APIError(400, str(error), param, "context_length_exceeded") from None

    async def _echo(self, call: _Call) -> dict[int, Part]:
        """Return the prompts as the first parts of their choices, where the call wants that."""
        if not call.echo:
            return {}
        longest, limit = max(len(prompt) for prompt in call.prompts), self.engine.max_length
        if longest > limit:
            raise APIError(400, f"prompt: {longest} tokens; the context holds {limit}", "prompt", "context_length_exceeded")
        if not all(0 <= number < len(self.engine.token_bytes) for prompt in call.prompts for number in prompt):
            raise APIError(400, f"prompt: token ids must lie between 0 and {len(self.engine.token_bytes) - 1}", "prompt", "invalid_value")
        async with self.scoring:
            parts = await run_in_threadpool(echo_parts, self.engine, call.prompts, call.logprobs)
        return dict(enumerate(part for part in parts for _ in range(call.n)))


async def _collect(call: _Call, echoes: dict[int, Part], answer: Answer) -> dict[str, Any]:
    """Wait for the whole answer."""
    parts: defaultdict[int, list[Part]] = defaultdict(list, {index: [part] for index, part in echoes.items()})
    generated = 0
    async for index, increment in answer:
        parts[index].append(part_of(increment))
        generated += 1
    if not call.max_tokens:
        for index in range(len(call.prompts) * call.n):
            parts[index].append(Part("", [], "length"))
    return call.shape.whole(parts, call.usage(generated))


async def _events(call: _Call, echoes: dict[int, Part], answer: Answer) -> AsyncIterator[str]:
    """Yield server-sent events; a failure on the way becomes an error event."""
    generated = 0
    try:
        for index in range(len(call.prompts) * call.n):
            for opening in call.shape.opening(index):
                yield _event(opening)
            if index in echoes:
                yield _event(call.shape.chunk(index, echoes[index]))
            if not call.max_tokens:
                yield _event(call.shape.chunk(index, Part("", [], "length")))
        async for index, increment in answer:
            generated += 1
            if increment.text or increment.finish_reason or call.shape.logprobs:
                yield _event(call.shape.chunk(index, part_of(increment)))
        if call.body.include_usage:
            yield _event(call.shape.closing(call.usage(generated)))
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status line is out: the only way left to tell the caller
        known = explain(error)
        if known.status >= 500:
            logging.getLogger(__name__).error("a streamed answer failed", exc_info=error)
        yield _event(known.body)
    finally:
        answer.cancel()


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def _disconnected(request: Request) -> None:
    """Return when the caller has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
