"""The HTTP routes of our own engine: models, completions, chat completions, responses, embeddings, tokens, health, metrics, pages."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from openmai.infer.config import Grammar, Sampling
from openmai.infer.embed import embed
from openmai.infer.engine import Engine
from openmai.infer.grammar import GrammarError
from openmai.infer.request import ContextLengthError
from openmai.serve import requests as bodies
from openmai.serve.answers import Answer, Part, Turn, echo_part
from openmai.serve.config import Limits
from openmai.serve.errors import APIError, explain, install
from openmai.serve.gate import BodyLimit, Gate
from openmai.serve.keys import Key
from openmai.serve.metrics import Metrics
from openmai.serve.pages import pages
from openmai.serve.runs import Runs
from openmai.serve.shapes import ChatShape, CompletionShape, ResponseShape, Shape, encode_event
from openmai.serve.tools import Function

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}}}
    for status, text in (
        (400, "invalid request"), (401, "no or a wrong API key"), (404, "no such model or path"), (413, "body too large"),
        (422, "never"), (429, "rate limit"), (503, "too many requests wait"), (504, "took too long"),
    )
}  # fmt: skip


def create_app(
    engine: Engine, name: str, gate: Gate | None = None, limits: Limits | None = None, fim: bool = False, runs: Runs | None = None
) -> FastAPI:
    """Build the application around a running `engine` that answers under the model id `name`."""
    app = FastAPI(title="openmai", docs_url=None, redoc_url=None)
    install(app)
    server = Server(engine, name, gate or Gate(), limits or Limits(), fim)
    app.add_middleware(BodyLimit, limit=server.limits.body_bytes, metrics=server.metrics)
    app.include_router(pages(server.gate, runs))
    app.include_router(_api(server))
    return app


def _api(server: Server) -> APIRouter:
    api = APIRouter(responses=ERRORS)
    known, admitted = Depends(server.gate.identify), Depends(server.gate.admit)

    @api.get("/health")
    async def health() -> dict[str, Any]:
        running, waiting = server.engine.load()
        return {"status": "ok", "model": server.name, "running": running, "waiting": waiting}

    @api.get("/metrics")
    async def metrics(key: Key = known) -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @api.get("/v1/models")
    async def models(key: Key = known) -> dict[str, Any]:
        return {"object": "list", "data": [server.card(name) for name in server.names if key.may_use(name)]}

    @api.get("/v1/models/{model:path}")
    async def model(model: str, key: Key = known) -> dict[str, Any]:
        server.gate.check_model(key, model, *server.names)
        return server.card(model)

    @api.post("/v1/chat/completions")
    async def chat_completions(body: bodies.ChatRequest, request: Request, key: Key = admitted) -> Response:
        return await server.respond(server.chat(body, key), request)

    @api.post("/v1/completions")
    async def completions(body: bodies.CompletionRequest, request: Request, key: Key = admitted) -> Response:
        return await server.respond(server.complete(body, key), request)

    @api.post("/v1/responses")
    async def responses(body: bodies.ResponsesRequest, request: Request, key: Key = admitted) -> Response:
        return await server.respond(server.answer(body, key), request)

    @api.post("/v1/embeddings")
    async def embeddings(body: bodies.EmbeddingRequest, key: Key = admitted) -> dict[str, Any]:
        return await server.embed(body, key)

    @api.post("/tokenize")
    async def tokenize(body: bodies.TokenizeRequest, key: Key = known) -> dict[str, Any]:
        ids = await run_in_threadpool(server.tokens, body)
        return {"tokens": ids, "count": len(ids), "max_model_len": server.engine.max_length}

    @api.post("/detokenize")
    async def detokenize(body: bodies.DetokenizeRequest, key: Key = known) -> dict[str, Any]:
        server.check_ids(body.tokens, "tokens")
        return {"prompt": server.engine.tokenizer.decode(body.tokens)}

    return api


@dataclass
class Call:
    """One request, ready to run: prompts as ids, settings, and the shape of its response."""

    body: bodies.SamplingRequest
    key: Key
    prompts: list[list[int]]
    max_tokens: int
    shape: Shape
    param: str
    "what of the body the prompt is"
    n: int = 1
    stop: list[str] = field(default_factory=list)
    logprobs: int | None = None
    echo: bool = False
    include_usage: bool = False
    grammar: Grammar | None = None
    functions: list[Function] = field(default_factory=list)

    def jobs(self, adapter: str) -> list[tuple[list[int], Sampling]]:
        """Return prompt and settings of each choice."""
        asked: dict[str, Any] = {"adapter": adapter} | ({"prompt_logprobs": self.logprobs} if self.echo else {})
        return [
            (prompt, self.body.choice_sampling(choice, self.max_tokens, self.logprobs, self.stop, self.grammar).model_copy(update=asked))
            for prompt in self.prompts
            for choice in range(self.n)
        ]

    def usage(self, answer: Answer) -> dict[str, Any]:
        prompt_tokens = sum(len(prompt) for prompt in self.prompts)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": answer.generated,
            "total_tokens": prompt_tokens + answer.generated,
            "prompt_tokens_details": {"cached_tokens": min(answer.reused, prompt_tokens)},
        }


class Server:
    """Turns request bodies into calls of the engine, and their answers into responses."""

    def __init__(self, engine: Engine, name: str, gate: Gate, limits: Limits, fim: bool) -> None:
        self.engine, self.name, self.gate, self.limits, self.fim = engine, name, gate, limits, fim
        self.created = int(time.time())
        self.metrics = Metrics(engine)
        self.embedding = asyncio.Lock()  # one pass at a time bounds its memory

    @property
    def names(self) -> tuple[str, ...]:
        """What may be asked for: the model, and each adapter of it."""
        return (self.name, *self.engine.adapters.names)

    def card(self, name: str) -> dict[str, Any]:
        """Return the model object; `max_model_len` is what vLLM calls the context, `parent` what an adapter belongs to."""
        card = {"id": name, "object": "model", "created": self.created, "owned_by": "openmai", "max_model_len": self.engine.max_length}
        return card if name == self.name else card | {"parent": self.name}

    # From bodies to calls

    def chat(self, body: bodies.ChatRequest, key: Key) -> Call:
        self.gate.check_model(key, body.model, *self.names)
        body.check()
        functions = [tool.function.read() for tool in body.tools or ()]
        functions, grammar = bodies.offered(functions, body.tool_choice, body.parallel_tool_calls is not False)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        return Call(
            body, key, [self.prompt(body.messages, functions)],
            body.max_completion_tokens or body.max_tokens or self.engine.max_length,
            ChatShape(self.engine, body.model, logprobs is not None), "messages",
            body.n or 1, body.stop or [], logprobs, False, body.include_usage,
            grammar or self._grammar(body, body.response_format, "response_format"), functions,
        )  # fmt: skip

    def complete(self, body: bodies.CompletionRequest, key: Key) -> Call:
        self.gate.check_model(key, body.model, *self.names)
        body.check()
        prompts = [self._filled(prompt, body.suffix) for prompt in body.prompts()]
        return Call(
            body, key, prompts, DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens,
            CompletionShape(self.engine, body.model, body.logprobs is not None), "prompt",
            body.n or 1, body.stop or [], body.logprobs, bool(body.echo), body.include_usage, self._grammar(body, None, ""),
        )  # fmt: skip

    def answer(self, body: bodies.ResponsesRequest, key: Key) -> Call:
        self.gate.check_model(key, body.model, *self.names)
        body.check()
        functions, grammar = bodies.offered(
            [tool.read() for tool in body.tools or ()], body.tool_choice, body.parallel_tool_calls is not False
        )
        wanted = body.text.format if body.text else None
        settings = {
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "text": {"format": wanted.model_dump(by_alias=True, exclude_none=True) if wanted else {"type": "text"}},
            "tool_choice": body.tool_choice.model_dump(exclude_none=True)
            if isinstance(body.tool_choice, bodies.ToolChoice)
            else body.tool_choice or "auto",
            "tools": [
                {"strict": None, "description": None, "parameters": None} | tool.model_dump(exclude_none=True) for tool in body.tools or ()
            ],
        }
        return Call(
            body, key, [self.prompt(body.messages(), functions)], body.max_output_tokens or self.engine.max_length,
            ResponseShape(self.engine, body.model, settings), "input",
            grammar=grammar or self._grammar(body, wanted, "text.format"), functions=functions,
        )  # fmt: skip

    def _grammar(self, body: bodies.SamplingRequest, wanted: bodies.ResponseFormat | None, param: str) -> Grammar | None:
        structured = body.structured_outputs.read() if body.structured_outputs else None
        return structured or (wanted.grammar(param) if wanted else None)

    def prompt(self, messages: list[bodies.ChatMessage], functions: list[Function]) -> list[int]:
        return self.engine.tokenizer.render(bodies.plain_messages(messages, functions), reply=True)[0]

    def _filled(self, prompt: str | list[int], suffix: str | None) -> list[int]:
        """Return a prompt as ids; with a suffix, as a question for what stands between the two (arXiv:2207.14255, PSM)."""
        tokenizer = self.engine.tokenizer
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if not suffix:
            return ids or [tokenizer.end_of_text]  # an empty prompt asks for the beginning of any document
        if not self.fim:
            raise APIError(400, "suffix: this model has not learned to fill in the middle", "suffix", "unsupported_parameter")
        prefix_mark, middle_mark, suffix_mark = (tokenizer.special[f"<|fim_{part}|>"] for part in ("prefix", "middle", "suffix"))
        return [prefix_mark, *ids, suffix_mark, *tokenizer.encode(suffix), middle_mark]

    def tokens(self, body: bodies.TokenizeRequest) -> list[int]:
        if (body.prompt is None) == (body.messages is None):
            raise APIError(400, "give either prompt or messages", "prompt", "invalid_value")
        return self.prompt(body.messages, []) if body.messages is not None else self.engine.tokenizer.encode(body.prompt or "")

    def check_ids(self, ids: list[int], param: str) -> None:
        if ids and max(ids) >= len(self.engine.token_bytes):
            raise APIError(400, f"{param}: token ids must lie between 0 and {len(self.engine.token_bytes) - 1}", param, "invalid_value")

    async def embed(self, body: bodies.EmbeddingRequest, key: Key) -> dict[str, Any]:
        self.gate.check_model(key, body.model, self.name)
        width = self.engine.model.config.width
        if body.dimensions not in (None, width):
            raise APIError(400, f"dimensions: this model has {width}, and its vectors cannot be cut", "dimensions", "invalid_value")
        ids = [self.engine.tokenizer.encode(text) if isinstance(text, str) else text for text in bodies.split(body.input)]
        try:
            async with asyncio.timeout(self.limits.seconds), self.embedding:
                vectors = await run_in_threadpool(embed, self.engine.model, ids)
        except ContextLengthError as error:
            raise APIError(400, str(error), "input", "context_length_exceeded") from None
        total = sum(len(one) for one in ids)
        self.gate.account(key, self.name, total, 0)
        encode = (
            (lambda v: base64.b64encode(v.numpy().astype("<f4").tobytes()).decode())
            if body.encoding_format == "base64"
            else (lambda v: v.tolist())
        )
        data = [{"object": "embedding", "index": place, "embedding": encode(vector)} for place, vector in enumerate(vectors)]
        return {"object": "list", "model": self.name, "data": data, "usage": {"prompt_tokens": total, "total_tokens": total}}

    # From calls to responses

    async def respond(self, call: Call, request: Request) -> Response:
        """Start the call, so that its errors come with a status of their own, then stream or collect it."""
        answer = await self._start(call)
        if call.body.stream:
            return StreamingResponse(self._events(call, answer), media_type="text/event-stream", headers=STREAM_HEADERS)
        collecting = asyncio.ensure_future(self._collect(call, answer))
        leaving = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            answer.cancel()  # of no effect on what is complete
        if not collecting.done():
            collecting.cancel()
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(collecting.result())

    async def _start(self, call: Call) -> Answer:
        if self.engine.load()[1] >= self.limits.waiting:
            raise APIError(503, "too many requests wait; try again later", code="overloaded", kind="server_error", retry_after=5)
        adapter = "" if call.body.model == self.name else call.body.model
        answer = Answer(self.engine, call.jobs(adapter), self.metrics)
        try:
            if call.grammar:  # compiling one may take a while
                await run_in_threadpool(answer.submit, asyncio.get_running_loop())
            else:
                answer.submit(asyncio.get_running_loop())
        except ContextLengthError as error:
            raise APIError(400, str(error), call.param, "context_length_exceeded") from None
        except GrammarError as error:
            param = "tools" if call.functions else "text.format" if call.param == "input" else "response_format"
            raise APIError(400, str(error), param, "invalid_value") from None
        return answer

    async def _parts(self, call: Call, answer: Answer) -> AsyncIterator[tuple[int, Part]]:
        """Yield the parts of all choices as they come, the prompt first where it is to be echoed; account for them at the end."""
        turns = [Turn(call.functions) for _ in answer.requests]
        echoes = set(range(len(answer.requests))) if call.echo else set()
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for index, increment in answer:
                    if index in echoes:
                        echoes.remove(index)
                        yield index, echo_part(self.engine, answer.requests[index])
                    yield index, turns[index].read(increment)
        finally:
            answer.cancel()
            self.gate.account(call.key, call.body.model, sum(len(prompt) for prompt in call.prompts), answer.generated)

    async def _collect(self, call: Call, answer: Answer) -> dict[str, Any]:
        """Wait for the whole answer."""
        parts: defaultdict[int, list[Part]] = defaultdict(list)
        async for index, part in self._parts(call, answer):
            parts[index].append(part)
        return call.shape.whole(parts, call.usage(answer))

    async def _events(self, call: Call, answer: Answer) -> AsyncIterator[str]:
        """Yield server-sent events; a failure on the way becomes an error event."""
        try:
            for event in call.shape.opening(len(answer.requests)):
                yield encode_event(event)
            async for index, part in self._parts(call, answer):
                for event in call.shape.chunk(index, part):
                    yield encode_event(event)
            for event in call.shape.closing(call.usage(answer), call.include_usage):
                yield encode_event(event)
            if call.shape.last:
                yield call.shape.last
        except Exception as error:  # the status line is out: the only way left to tell the caller
            known = explain(error)
            if known.status == 500:
                logging.getLogger(__name__).error("a streamed answer failed", exc_info=error)
            yield f"data: {json.dumps(known.body)}\n\n"
        finally:
            answer.cancel()


async def _disconnected(request: Request) -> None:
    """Return when the caller has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
