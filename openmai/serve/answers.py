"""Answers on their way from the engine: one stream of parts, from which streamed and whole responses are both made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from openmai.infer.config import Sampling
from openmai.infer.engine import Delivery, Engine, FinishReason, Increment
from openmai.infer.sampling import Logprob
from openmai.infer.score import Scores, score


@dataclass(frozen=True)
class Part:
    """A piece of one choice: text, and the tokens with their log-probabilities (None: the first of a prompt, or not asked for)."""

    text: str
    tokens: list[tuple[int, Logprob | None]]
    finish_reason: FinishReason | None = None


class Answer:
    """The choices of one call, generated side by side. Iterate once; `cancel` when the caller is gone."""

    def __init__(self, engine: Engine, jobs: Sequence[tuple[list[int], Sampling]]) -> None:
        self._queue: asyncio.Queue[tuple[int, Delivery]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._requests = []
        try:
            for index, (prompt, sampling) in enumerate(jobs):
                self._requests.append(engine.submit(prompt, sampling, self._deliver_to(index)))
        except Exception:
            self.cancel()
            raise

    def _deliver_to(self, index: int) -> Callable[[Delivery], None]:
        def deliver(item: Delivery) -> None:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, item))

        return deliver

    async def __aiter__(self) -> AsyncIterator[tuple[int, Increment]]:
        left = len(self._requests)
        while left:
            index, item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
                continue
            left -= item.finish_reason is not None
            yield index, item

    def cancel(self) -> None:
        for request in self._requests:
            request.cancel()


def part_of(increment: Increment) -> Part:
    """Turn a generated token into a part."""
    return Part(increment.text, [(increment.id, increment.logprob)], increment.finish_reason)


def echo_parts(engine: Engine, prompts: list[list[int]], logprobs: int | None) -> list[Part]:
    """Return each prompt as a part, with the log-probabilities of its tokens if asked for. Runs the model: call it in a thread."""
    scores: Sequence[Scores | None] = [None] * len(prompts) if logprobs is None else score(engine.model, prompts, top=logprobs)
    return [Part(engine.tokenizer.decode(ids), _scored(ids, found)) for ids, found in zip(prompts, scores, strict=True)]


def _scored(ids: list[int], scores: Scores | None) -> list[tuple[int, Logprob | None]]:
    if scores is None:
        return [(number, None) for number in ids]
    tops = zip(scores.top_ids_TK.tolist(), scores.top_logprobs_TK.tolist(), strict=True)
    rest = [
        (number, Logprob(number, value, tuple(zip(top_ids, top_values, strict=True))))
        for number, value, (top_ids, top_values) in zip(ids[1:], scores.logprobs_T.tolist(), tops, strict=True)
    ]
    return [(ids[0], None), *rest]
