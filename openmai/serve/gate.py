"""Who may come in and with how much: keys, rates, sizes. The same in front of our engine and of an external one."""

from __future__ import annotations

import hmac
import json
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openmai.serve.errors import APIError
from openmai.serve.keys import ANYBODY, Key, KeyStore, RateLimiter
from openmai.serve.metrics import Metrics


class Gate:
    """Lets callers in, and accounts for what they used."""

    def __init__(self, api_key: str = "", store: KeyStore | None = None) -> None:
        self.api_key, self.store, self.rates = api_key, store, RateLimiter()

    @property
    def asks(self) -> bool:
        """Whether a key is needed."""
        return bool(self.api_key or self.store)

    async def identify(self, request: Request) -> Key:
        """Return who is calling. Raises APIError 401."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else ""
        if not self.asks:
            return ANYBODY
        if self.api_key and hmac.compare_digest(given.encode("latin-1"), self.api_key.encode()):
            return ANYBODY
        key = self.store.find(given) if self.store and given else None
        if key is None:
            problem = "the API key is wrong or revoked" if given else "no API key was given; send the header `Authorization: Bearer KEY`"
            raise APIError(401, problem, code="invalid_api_key", kind="authentication_error")
        return key

    async def admit(self, request: Request) -> Key:
        """Return who is calling, and count the call. Raises APIError 401 or 429."""
        key = await self.identify(request)
        if refused := self.rates.admit(key):
            seconds, limit = refused
            message = f"rate limit reached: {limit}; try again in {seconds} s"
            raise APIError(429, message, code="rate_limit_exceeded", kind="rate_limit_error", retry_after=seconds)
        return key

    def account(self, key: Key, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Note what a call has used."""
        self.rates.spend(key, prompt_tokens + completion_tokens)
        if self.store:
            self.store.add(key.id or "OPENMAI_API_KEY", model, prompt_tokens, completion_tokens)

    def check_model(self, key: Key, given: str, *offered: str) -> None:
        """Raise APIError 404 for a model that is not there, or not for this caller."""
        if given not in offered:
            known = ", ".join(f"'{name}'" for name in offered)
            raise APIError(404, f"the model '{given}' does not exist; this server has {known}", "model", "model_not_found")
        if not key.may_use(given):
            raise APIError(404, f"the model '{given}' is not among those of this key", "model", "model_not_found")


class BodyLimit:
    """Refuses bodies that are too large, whether they say so or not, and counts requests."""

    def __init__(self, app: ASGIApp, limit: int, metrics: Metrics) -> None:
        self.app, self.limit, self.metrics = app, limit, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen = 0
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.limit:
            await self._refuse(scope, send)
            return

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise ValueError("the body is too large")  # ends the reading, and with it the handler
            return message

        async def watched(message: Message) -> None:
            if seen > self.limit:  # what the handler made of it does not matter
                if message["type"] == "http.response.start":
                    await self._refuse(scope, send)
                return
            if message["type"] == "http.response.start":
                self._count(scope, message["status"])
            await send(message)

        with self.metrics.open.track_inprogress():
            await self.app(scope, counted, watched)

    async def _refuse(self, scope: Scope, send: Send) -> None:
        body = json.dumps(APIError(413, f"the body is larger than {self.limit} bytes", code="request_too_large").body).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        self._count(scope, 413)
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _count(self, scope: Scope, status: int) -> None:
        route: Any = scope.get("route")
        self.metrics.requests.labels(getattr(route, "path", "other"), str(status)).inc()
