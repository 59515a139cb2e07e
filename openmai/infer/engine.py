"""The engine: continuous batching over the rows of one key-value cache.

Requests wait in a queue; a free row admits one. New prompts share one right-padded forward pass, then all rows decode together, one token
a step; a row that ends is given to the next request at once. One background thread runs this loop:

    with Engine(model, tokenizer) as engine:
        for increment in engine.submit(ids, Sampling(max_tokens=100)):
            print(increment.text, end="")
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Literal

import torch

from openmai.base.errors import OpenmaiError
from openmai.infer.config import Sampling
from openmai.infer.sampling import Logprob, Sampler, measure
from openmai.infer.text import TextStream, token_bytes
from openmai.model.cache import KVCache
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer

PREFILL_TOKENS = 4096  # padded tokens in one forward pass over new prompts: bounds its memory and how long running answers pause

FinishReason = Literal["stop", "length"]


class ContextLengthError(OpenmaiError):
    """The prompt leaves no room in the context."""


@dataclass(frozen=True)
class Increment:
    """One generated token, with the text that became certain by it; the last one has a `finish_reason`.

    An end-of-turn or end-of-text token comes as an increment with its id and adds no text of its own.
    """

    id: int
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


Delivery = Increment | Exception | None
"A token; or the error that ended the engine; or None: cancelled."


class Request:
    """A submitted prompt: iterate over its increments (once, from any thread), or `cancel` it."""

    def __init__(self, prompt: list[int], sampling: Sampling, deliver: Callable[[Delivery], None] | None) -> None:
        self.prompt, self.sampling = prompt, sampling
        self.cancelled = False
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
            ids=[increment.id for increment in increments],
            text="".join(increment.text for increment in increments),
            logprobs=[increment.logprob for increment in increments if increment.logprob],
            finish_reason=increments[-1].finish_reason if increments else None,
        )


@dataclass
class _Sequence:
    """A request that holds a row of the cache. `pending` are the tokens that the model has not seen, from position `start` on."""

    request: Request
    row: int
    sampler: Sampler
    stream: TextStream
    pending: list[int]
    start: int = 0
    produced: int = 0
    done: bool = field(default=False)


class Engine:
    """Answers many requests at once with one model; thread-safe. Use as a context manager."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, max_rows: int = 8, max_length: int | None = None) -> None:
        """`max_rows` requests are answered at once, each of at most `max_length` tokens with its prompt (default: the model's context)."""
        self.model, self.tokenizer = model, tokenizer
        self.max_length = min(max_length or model.config.context, model.config.context)
        self.device = model.embedding.weight.device
        self.cache = KVCache(model.config, max_rows, self.max_length, self.device, model.embedding.weight.dtype)
        self.token_bytes = token_bytes(tokenizer)
        self.ends = {tokenizer.end_of_text, tokenizer.end_of_turn}
        self._free = list(range(max_rows))
        self._active: list[_Sequence] = []
        self._waiting: deque[Request] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Engine:
        self._thread = threading.Thread(target=self._run, name="openmai-engine", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the loop after its current step; requests that are not finished count as cancelled."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread:
            self._thread.join()

    def submit(self, prompt: Sequence[int], sampling: Sampling | None = None, deliver: Callable[[Delivery], None] | None = None) -> Request:
        """Queue a prompt of token ids. With `deliver`, the engine's thread calls it with each increment, in place of the iteration.

        Raises ContextLengthError for a prompt that leaves no room for an answer, OpenmaiError for an empty one or an id that is no token.
        """
        ids = [int(number) for number in prompt]
        if not ids:
            raise OpenmaiError("prompt: empty; give at least one token")
        if len(ids) >= self.max_length:
            raise ContextLengthError(
                f"prompt: {len(ids)} tokens leave no room for an answer; the context holds {self.max_length} tokens, prompt and answer"
            )
        if not all(0 <= number < len(self.token_bytes) for number in ids):
            raise OpenmaiError(f"prompt: token ids must lie between 0 and {len(self.token_bytes) - 1}, found {min(ids)} to {max(ids)}")
        request = Request(ids, sampling or Sampling(), deliver)
        with self._wake:
            if self._failure:
                raise self._failure
            if self._closed or self._thread is None:
                raise OpenmaiError("engine: not running; submit inside `with engine:`")
            self._waiting.append(request)
            self._wake.notify()
        return request

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling | None = None) -> list[Completion]:
        """Answer all prompts and wait for them; prompt number i uses the seed `sampling.seed + i`."""
        sampling = sampling or Sampling()
        seeds = [None if sampling.seed is None else sampling.seed + number for number in range(len(prompts))]
        requests = [self.submit(prompt, sampling.model_copy(update={"seed": seed})) for prompt, seed in zip(prompts, seeds, strict=True)]
        return [request.result() for request in requests]

    def load(self) -> tuple[int, int]:
        """Return how many requests are being answered and how many wait."""
        with self._wake:
            return len(self._active), len(self._waiting)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    self._step()
            self._end_all(None)
        except Exception as error:  # whatever it was, every caller that waits must hear of it rather than hang
            self._end_all(error)

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._waiting or self._active)
            return not self._closed

    def _end_all(self, error: Exception | None) -> None:
        with self._wake:
            self._closed, self._failure = True, error
            requests = [sequence.request for sequence in self._active] + list(self._waiting)
            self._active.clear()
            self._waiting.clear()
        for request in requests:
            request.deliver(error)

    def _step(self) -> None:
        """Drop cancelled requests, give the new ones their first token, and every other one its next."""
        self._drop_cancelled()
        running = list(self._active)
        fresh = self._admit()
        chosen = [pair for sequences in (running, fresh) if sequences for pair in self._advance(sequences)]
        with self._wake:
            self._free += [sequence.row for sequence in self._active if sequence.done]
            self._active = [sequence for sequence in self._active if not sequence.done]
        for sequence, increment in chosen:
            sequence.request.deliver(increment)

    def _drop_cancelled(self) -> None:
        with self._wake:
            gone = [request for request in self._waiting if request.cancelled]
            self._waiting = deque(request for request in self._waiting if not request.cancelled)
            gone += [sequence.request for sequence in self._active if sequence.request.cancelled]
            self._free += [sequence.row for sequence in self._active if sequence.request.cancelled]
            self._active = [sequence for sequence in self._active if not sequence.request.cancelled]
        for request in gone:
            request.deliver(None)

    def _admit(self) -> list[_Sequence]:
        """Give free rows to waiting requests, in order of arrival, as many as one padded forward pass should hold."""
        fresh: list[_Sequence] = []
        longest = 0
        with self._wake:
            while self._waiting and self._free:
                longest = max(longest, len(self._waiting[0].prompt))
                if fresh and longest * (len(fresh) + 1) > PREFILL_TOKENS:
                    break
                request = self._waiting.popleft()
                stream = TextStream(self.token_bytes, request.sampling.stop)
                fresh.append(_Sequence(request, self._free.pop(), Sampler(request.sampling), stream, pending=request.prompt))
            self._active += fresh
        return fresh

    def _advance(self, sequences: list[_Sequence]) -> list[tuple[_Sequence, Increment]]:
        """Run the pending tokens of `sequences` in one forward pass and choose the next token of each.

        Shorter ones are padded on the right; what padding writes to the cache is overwritten before any query may look at it.
        """
        width = max(len(sequence.pending) for sequence in sequences)
        ids_BT = torch.tensor([sequence.pending + [0] * (width - len(sequence.pending)) for sequence in sequences], device=self.device)
        starts_B = torch.tensor([sequence.start for sequence in sequences], device=self.device)
        positions_BT = starts_B[:, None] + torch.arange(width, device=self.device)
        rows_B = torch.tensor([sequence.row for sequence in sequences], device=self.device)
        last_B = torch.tensor([len(sequence.pending) - 1 for sequence in sequences], device=self.device)
        assert not self.model.training, "call model.eval() before generating"
        logits_BV = self.model(ids_BT, positions_BT, self.cache, rows_B, last_B)
        return [(sequence, self._choose(sequence, logits_V)) for sequence, logits_V in zip(sequences, logits_BV, strict=True)]

    def _choose(self, sequence: _Sequence, logits_V: torch.Tensor) -> Increment:
        """Choose a token and note what comes next."""
        sampling = sequence.request.sampling
        token = sequence.sampler.draw(logits_V[: len(self.token_bytes)])  # the embedding may be padded beyond the vocabulary
        sequence.start += len(sequence.pending)
        sequence.pending = [token]
        sequence.produced += 1
        text = "" if token in self.ends else sequence.stream.push(token)
        reason: FinishReason | None = None
        if token in self.ends or sequence.stream.stopped:
            reason = "stop"
        elif sequence.produced == sampling.max_tokens or sequence.start + 1 >= self.max_length:
            reason = "length"
        if reason:
            sequence.done = True
            text += sequence.stream.finish()
        logprob = None if sampling.logprobs is None else measure(logits_V, token, sampling.logprobs)
        return Increment(token, text, logprob, reason)
