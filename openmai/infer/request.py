"""What goes into the engine and what comes out of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal

from openmai.base.errors import OpenmaiError
from openmai.infer.config import Sampling
from openmai.infer.sampling import Logprob

FinishReason = Literal["stop", "length"]


class ContextLengthError(OpenmaiError):
    """The prompt leaves no room in the context."""


@dataclass(frozen=True)
class Increment:
    """One generated token, with the text that became certain by it; the last one has a `finish_reason`.

    An end-of-turn or end-of-text token comes as an increment with its id and adds no text of its own. A request for no tokens ends with
    an increment without id.
    """

    id: int | None
    text: str
    logprob: Logprob | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """All of an answer. `ids` includes the token that ended it; `finish_reason` is None if it was cancelled."""

    ids: list[int]
    text: str
    logprobs: list[Logprob]
    finish_reason: FinishReason | None
    prompt_logprobs: list[Logprob]
    "of the prompt's tokens from the second on, where they were asked for"


Delivery = Increment | Exception | None
"A token; or the error that ended the request; or None: cancelled."


class Request:
    """A submitted prompt: iterate over its increments (once, from any thread), or `cancel` it."""

    def __init__(self, prompt: list[int], sampling: Sampling, deliver: Callable[[Delivery], None] | None) -> None:
        self.prompt, self.sampling = prompt, sampling
        self.cancelled = False
        self.reused = 0
        "tokens of the prompt whose blocks were there already"
        self.prompt_logprobs: list[Logprob] = []
        "complete when the first increment arrives"
        self.submitted, self.started = time.monotonic(), 0.0
        self._arrived: SimpleQueue[Delivery] = SimpleQueue()
        self.deliver = deliver or self._arrived.put

    def __iter__(self) -> Iterator[Increment]:
        while (item := self._arrived.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
            if item.finish_reason:
                return

    def cancel(self) -> None:
        """Stop generating soon; the iteration ends without a finish reason."""
        self.cancelled = True

    def result(self) -> Completion:
        """Wait for the whole answer."""
        increments = list(self)
        return Completion(
            ids=[increment.id for increment in increments if increment.id is not None],
            text="".join(increment.text for increment in increments),
            logprobs=[increment.logprob for increment in increments if increment.logprob],
            finish_reason=increments[-1].finish_reason if increments else None,
            prompt_logprobs=self.prompt_logprobs,
        )
