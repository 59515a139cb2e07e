"""Answers on their way from the engine: one stream of parts, from which streamed and whole responses are both made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from openmai.infer.config import Sampling
from openmai.infer.engine import Engine
from openmai.infer.request import Delivery, Increment, Request
from openmai.infer.sampling import Logprob
from openmai.serve.metrics import Metrics
from openmai.serve.tools import CLOSE, OPEN, Call, Function, read_call

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Part:
    """A piece of one choice: text, calls, and the tokens with their log-probabilities (None: the first of a prompt, or not asked for)."""

    text: str
    tokens: list[tuple[int, Logprob | None]]
    finish_reason: FinishReason | None = None
    calls: tuple[Call, ...] = ()


class Turn:
    """Reads one choice as it is generated: what is text and what is a call. The one place where streamed and whole answers come from."""

    def __init__(self, functions: Sequence[Function] = ()) -> None:
        self.functions = functions
        self.held = ""
        "text that may be the beginning of a call, or is inside of one"
        self.calling = False
        self.calls = 0

    def read(self, increment: Increment) -> Part:
        """Turn a generated token into a part."""
        tokens = [] if increment.id is None else [(increment.id, increment.logprob)]
        if not self.functions:
            return Part(increment.text, tokens, increment.finish_reason)
        self.held += increment.text
        texts, calls = self._split()
        reason: FinishReason | None = increment.finish_reason
        if reason:
            rest = self._rest()
            if isinstance(rest, Call):
                calls.append(rest)
            else:
                texts.append(rest)
        self.calls += len(calls)
        if reason == "stop" and self.calls:
            reason = "tool_calls"
        return Part("".join(texts), tokens, reason, tuple(calls))

    def _split(self) -> tuple[list[str], list[Call]]:
        """Take from what is held the text and the calls that are certain."""
        texts, calls = [], []
        while True:
            mark = CLOSE if self.calling else OPEN
            before, found, after = self.held.partition(mark)
            if not found:
                break
            if self.calling:
                call = read_call(before, self.functions)
                if call:
                    calls.append(call)
                else:
                    texts.append(OPEN + before + CLOSE)  # not a call after all
            elif before.strip() or not self.calls + len(calls):  # else line ends between calls
                texts.append(before)
            self.held, self.calling = after, not self.calling
        if not self.calling:
            sure = len(self.held) - _overlap(self.held, OPEN)
            if self.held[:sure].strip() or not self.calls + len(calls):
                texts.append(self.held[:sure])
            self.held = self.held[sure:]
        return texts, calls

    def _rest(self) -> str | Call:
        """What is held when the answer ends: a call may lack its closing mark."""
        rest = self.held
        if self.calling:
            return read_call(rest, self.functions) or OPEN + rest
        return rest


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)


class Answer:
    """The choices of one call, generated side by side. Iterate once; `cancel` when the caller is gone."""

    def __init__(self, engine: Engine, jobs: Sequence[tuple[list[int], Sampling]], metrics: Metrics) -> None:
        self._queue: asyncio.Queue[tuple[int, Delivery]] = asyncio.Queue()
        self._metrics = metrics
        self.requests: list[Request] = []
        self.generated = 0
        self._began = time.monotonic()
        self._last: dict[int, float] = {}
        self._engine, self._jobs = engine, jobs

    def submit(self, loop: asyncio.AbstractEventLoop) -> None:
        """Queue all jobs, from any thread, as grammars take time. Raises what the engine raises; then none stays."""
        try:
            for index, (prompt, sampling) in enumerate(self._jobs):
                self.requests.append(self._engine.submit(prompt, sampling, self._deliver_to(index, loop)))
        except Exception:
            self.cancel()
            raise

    def _deliver_to(self, index: int, loop: asyncio.AbstractEventLoop) -> Callable[[Delivery], None]:
        def deliver(item: Delivery) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._queue.put_nowait, (index, item))

        return deliver

    async def __aiter__(self) -> AsyncIterator[tuple[int, Increment]]:
        left = len(self.requests)
        while left:
            index, item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
                continue
            self._note(index, item)
            left -= item.finish_reason is not None
            yield index, item

    def _note(self, index: int, item: Increment) -> None:
        self.generated += item.id is not None
        now, before = time.monotonic(), self._last.get(index)
        self._last[index] = now
        if before is not None:
            self._metrics.between.observe(now - before)
        else:
            self._metrics.first_token.observe(now - self._began)
            self._metrics.queued.observe(max(0.0, self.requests[index].started - self.requests[index].submitted))
        if item.finish_reason:
            self._metrics.whole.observe(now - self._began)

    @property
    def reused(self) -> int:
        """Tokens of the prompts that the cache held."""
        return sum(request.reused for request in self.requests)

    def cancel(self) -> None:
        for request in self.requests:
            request.cancel()


def echo_part(engine: Engine, request: Request) -> Part:
    """Return the prompt as the first part of a choice."""
    known: list[Logprob | None] = [None, *request.prompt_logprobs]
    if request.sampling.prompt_logprobs is None:
        known = [None] * len(request.prompt)
    return Part(engine.tokenizer.decode(request.prompt), list(zip(request.prompt, known, strict=True)))
