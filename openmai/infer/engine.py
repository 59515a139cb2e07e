"""The engine: continuous batching over a paged key-value cache.

Each step is one forward pass over tokens of many requests side by side: the next token of every running answer, and as much of waiting
prompts as fits. Requests share the blocks of a common beginning; when blocks run out the request that came last gives up its own and is
computed again later. One background thread runs this loop:

    with Engine(model, tokenizer) as engine:
        for increment in engine.submit(ids, Sampling(max_tokens=100)):
            print(increment.text, end="")
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from openmai.base.errors import OpenmaiError
from openmai.cpu.compile import end_threads
from openmai.infer.adapters import Adapters
from openmai.infer.blocks import BlockPool, chain
from openmai.infer.config import EngineConfig, Sampling
from openmai.infer.grammar import Constraint, GrammarError, Grammars
from openmai.infer.propose import Repeats
from openmai.infer.request import Completion, ContextLengthError, Delivery, FinishReason, Increment, Request
from openmai.infer.sampling import Sampler, measure
from openmai.infer.text import TextStream
from openmai.model.cache import FEW, PagedCache, batch_of
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer

MAX_LOGITS = 1 << 24  # logits that exist at once while the log-probabilities of a prompt are computed


@dataclass
class Stats:
    """What the engine has done since it started, and what it holds now; counts of tokens unless said otherwise."""

    steps: int = 0
    prompt: int = 0
    "computed, of prompts or again after a preemption"
    generated: int = 0
    reused: int = 0
    "of prompts, found in the cache"
    asked: int = 0
    "of prompts admitted"
    guessed: int = 0
    kept: int = 0
    "guesses that were right"
    preemptions: int = 0
    "requests that had to give up their blocks"
    blocks: int = 0
    "of the cache"
    used_blocks: int = 0
    "by requests that are being answered"


@dataclass(eq=False)
class _Sequence:
    """A request on its way. `tokens` are prompt and answer; the cache holds the first `computed` of them."""

    request: Request
    sampler: Sampler
    stream: TextStream
    tokens: list[int]
    constraint: Constraint | None
    repeats: Repeats
    computed: int = 0
    drafted: int = 0
    "how many the draft model's cache holds"
    blocks: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    "names of its full blocks, as far as they are worked out"
    published: int = 0
    produced: int = 0
    done: bool = False

    @property
    def pending(self) -> int:
        """How many tokens the model has not seen."""
        return len(self.tokens) - self.computed


@dataclass
class _Work:
    """What a sequence has in one pass: its tokens from `computed` on, `count` of them, then guesses."""

    sequence: _Sequence
    count: int
    guesses: list[int] = field(default_factory=list)

    @property
    def new(self) -> list[int]:
        sequence = self.sequence
        return sequence.tokens[sequence.computed : sequence.computed + self.count] + self.guesses

    @property
    def wanted(self) -> range:
        """The rows after which a token can be chosen, among the new ones."""
        return range(self.count - 1, self.count + len(self.guesses)) if self.completes else range(0)

    @property
    def completes(self) -> bool:
        """Whether the pass ends with the last token, so that the next one can be chosen."""
        return self.sequence.computed + self.count == len(self.sequence.tokens)


class Engine:
    """Answers many requests at once with one model; thread-safe. Use as a context manager."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        config: EngineConfig | None = None,
        draft: Transformer | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """`draft` is a small model over the same vocabulary that guesses tokens when `config.speculate` is "draft"; `adapters` are those
        attached to the model, for requests that name one.

        Raises OpenmaiError for settings that do not fit each other or the models.
        """
        self.model, self.tokenizer, self.draft, self.config = model, tokenizer, draft, config or EngineConfig()
        self.adapters = adapters or Adapters(())
        assert not model.training, "call model.eval() before generating"
        self.max_length = min(self.config.max_length or model.config.context, model.config.context)
        self.device = model.embedding.weight.device
        self.token_bytes = tokenizer.token_bytes
        self.ends = {tokenizer.end_of_text, tokenizer.end_of_turn}
        self.grammars = Grammars(tokenizer)
        self._check_draft()
        blocks = self._num_blocks()
        self.caches = [_cache_of(part, blocks, self.config.block) for part in (model, draft) if part is not None]
        self.pool = BlockPool(blocks)
        self.stats = Stats(blocks=blocks)
        self._untold: list[tuple[Request, Delivery]] = []
        self._active: list[_Sequence] = []
        self._waiting: deque[_Sequence] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def _check_draft(self) -> None:
        if (self.config.speculate == "draft") != (self.draft is not None):
            raise OpenmaiError("speculate=draft: needs a draft model, and a draft model needs speculate=draft")
        if self.draft is not None and self.draft.config.vocab_size < len(self.token_bytes):
            raise OpenmaiError(
                f"draft: its vocabulary of {self.draft.config.vocab_size} is smaller than the tokenizer's {len(self.token_bytes)}; "
                "it has to be trained on the same tokenizer"
            )
        if self.draft is not None and self.draft.config.context < self.max_length:
            raise OpenmaiError(f"draft: its context of {self.draft.config.context} is shorter than max_length={self.max_length}")
        if self.config.invariant and self.config.speculate:
            raise OpenmaiError("invariant: excludes speculate, which changes how many tokens share a pass")

    def _num_blocks(self) -> int:
        block, per_row = self.config.block, -(-self.max_length // self.config.block)
        if self.config.cache_tokens:
            blocks = self.config.cache_tokens // block
            if blocks < per_row:
                raise OpenmaiError(f"cache_tokens={self.config.cache_tokens}: less than one request of max_length={self.max_length} needs")
            return blocks
        models = [part for part in (self.model, self.draft) if part is not None]
        size = sum(_cache_of(part, 1, block).keys.nbytes * (1 if part.config.mla else 2) for part in models)
        memory = torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else _memory()
        return max(per_row, min(self.config.rows * per_row, memory // 4 // size))

    def __enter__(self) -> Engine:
        end_threads()  # the loop's own thread will have others
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

        Raises ContextLengthError for a prompt that leaves no room for an answer, OpenmaiError for an empty one, an id that is no token
        or a grammar that cannot be followed.
        """
        ids, sampling = [int(number) for number in prompt], sampling or Sampling()
        self._check(ids, sampling)
        request = Request(ids, sampling, deliver)
        sequence = _Sequence(
            request, Sampler(sampling, ids), TextStream(self.token_bytes, sampling.stop), list(ids),
            self.grammars.constraint(sampling.grammar) if sampling.grammar else None, Repeats(),
        )  # fmt: skip
        with self._wake:
            if self._failure:
                raise self._failure
            if self._closed or self._thread is None:
                raise OpenmaiError("engine: not running; submit inside `with engine:`")
            self._waiting.append(sequence)
            self._wake.notify()
        return request

    def _check(self, ids: list[int], sampling: Sampling) -> None:
        size = len(self.token_bytes)
        if not ids:
            raise OpenmaiError("prompt: empty; give at least one token")
        if len(ids) > self.max_length or (sampling.max_tokens and len(ids) == self.max_length):
            raise ContextLengthError(
                f"prompt: {len(ids)} tokens leave no room for an answer; the context holds {self.max_length} tokens, prompt and answer"
            )
        if not 0 <= min(ids) <= max(ids) < size:
            raise OpenmaiError(f"prompt: token ids must lie between 0 and {size - 1}, found {min(ids)} to {max(ids)}")
        if not all(0 <= token < size for token, _ in sampling.logit_bias):
            raise OpenmaiError(f"logit_bias: token ids must lie between 0 and {size - 1}")
        if sampling.adapter and sampling.adapter not in self.adapters.names:
            known = ", ".join(self.adapters.names) or "none"
            raise OpenmaiError(f"adapter={sampling.adapter}: not attached to this model; known: {known}")

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
        if not self._active:
            self._tell()
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._waiting or self._active)
            return not self._closed

    def _end_all(self, error: Exception | None) -> None:
        with self._wake:
            self._closed, self._failure = True, error
            sequences = [*self._active, *self._waiting]
            self._active.clear()
            self._waiting.clear()
        self._tell()
        for sequence in sequences:
            sequence.request.deliver(error)

    def _step(self) -> None:
        """Drop cancelled requests, decide what is computed, compute it, and choose tokens."""
        self._drop_cancelled()
        work = self._schedule()
        groups = [[item] for item in work] if self.config.invariant else [work]
        told = [pair for group in groups if group for pair in self._advance(group)]
        ended = [sequence for sequence in self._active if sequence.done]
        for sequence in ended:
            self._release(sequence)
        with self._wake:
            self._active = [sequence for sequence in self._active if not sequence.done]
        self.stats.used_blocks = self.stats.blocks - self.pool.available
        self._untold += told

    def _tell(self) -> None:
        """Hand over what has been chosen. That is done when a pass begins: who takes it then has all its time to work it up and send it,
        where right after the choice it would hold up the preparation of that pass."""
        told, self._untold = self._untold, []
        for request, delivery in told:
            request.deliver(delivery)

    def _drop_cancelled(self) -> None:
        with self._wake:
            gone = [sequence for sequence in [*self._active, *self._waiting] if sequence.request.cancelled]
            self._active = [sequence for sequence in self._active if not sequence.request.cancelled]
            self._waiting = deque(sequence for sequence in self._waiting if not sequence.request.cancelled)
        if gone:
            self._tell()
        for sequence in gone:
            self._release(sequence)
            sequence.request.deliver(None)

    def _release(self, sequence: _Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.computed, sequence.drafted, sequence.published = [], 0, 0, 0

    # What is computed next

    def _schedule(self) -> list[_Work]:
        """Return the work of one step, that of few tokens first: answers before prompts, and requests in order of arrival."""
        work: list[_Work] = []
        budget = self.config.step_tokens
        for sequence in sorted(self._active, key=lambda sequence: sequence.pending > 1):  # stable: by arrival otherwise
            if budget and sequence in self._active:  # else it has just been preempted
                item = _Work(sequence, self._share(sequence, budget))
                if sequence.pending == 1 and self.config.speculate:
                    item.guesses = self._room_for_guesses(sequence, budget - 1) * [0]
                if self._reserve(item, work):
                    work.append(item)
                    budget -= len(item.new)
        while budget and (fresh := self._admit()):
            item = _Work(fresh, self._share(fresh, budget))
            if not self._reserve(item, work):
                break
            work.append(item)
            budget -= item.count
        self._guess(work)
        return sorted(work, key=lambda item: len(item.new) > FEW)

    def _share(self, sequence: _Sequence, budget: int) -> int:
        """How many tokens of a sequence enter this pass. Invariant mode cuts prompts at fixed places, and repeats answers one by one."""
        if not self.config.invariant:
            return min(sequence.pending, budget)
        prompt = len(sequence.request.prompt)
        if sequence.computed >= prompt:
            return 1
        return min(prompt - sequence.computed, self._piece)

    @property
    def _piece(self) -> int:
        """Tokens in a piece of a prompt in invariant mode: whole blocks."""
        return max(1, self.config.step_tokens // self.config.block) * self.config.block

    def _room_for_guesses(self, sequence: _Sequence, budget: int) -> int:
        left = min(sequence.request.sampling.max_tokens - sequence.produced, self.max_length - len(sequence.tokens)) - 1
        return max(0, min(self.config.speculate_tokens, left, budget))

    def _reserve(self, item: _Work, work: list[_Work]) -> bool:
        """Give a sequence the blocks it needs, those of the youngest if there are no others; False if it was itself the youngest."""
        sequence = item.sequence
        need = -(-(sequence.computed + len(item.new)) // self.config.block) - len(sequence.blocks)
        while self.pool.available < need:
            youngest = self._active[-1]
            self._preempt(youngest)
            work[:] = [other for other in work if other.sequence is not youngest]
            if youngest is sequence:
                return False
        sequence.blocks += [self.pool.take() for _ in range(need)]
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        self._release(sequence)
        self.stats.preemptions += 1
        with self._wake:
            self._active.remove(sequence)
            self._waiting.appendleft(sequence)

    def _admit(self) -> _Sequence | None:
        """Take in the request that has waited longest, if there is a row for it and room for all its tokens."""
        with self._wake:
            if not self._waiting or len(self._active) >= self.config.rows:
                return None
            sequence = self._waiting[0]
        sequence.blocks = self.pool.find(self._names(sequence)) if self.config.prefix_cache else []
        if self.config.invariant:  # a piece of which a part has been overwritten is computed again as a whole
            whole = len(sequence.blocks) * self.config.block // self._piece * self._piece // self.config.block
            self.pool.release(sequence.blocks[whole:])
            sequence.blocks = sequence.blocks[:whole]
        need = -(-(len(sequence.tokens) + 1) // self.config.block) - len(sequence.blocks)
        if self.pool.available < min(need, self.stats.blocks):
            self.pool.release(sequence.blocks)
            sequence.blocks = []
            return None
        reused = len(sequence.blocks) * self.config.block
        sequence.computed, sequence.drafted, sequence.published = reused, reused, len(sequence.blocks)
        if not sequence.produced:
            sequence.request.reused = reused
            sequence.request.started = time.monotonic()
            self.stats.asked += len(sequence.tokens)
            self.stats.reused += reused
        with self._wake:
            self._waiting.popleft()
            self._active.append(sequence)
        return sequence

    def _names(self, sequence: _Sequence) -> list[bytes]:
        """Return the names of the blocks that may be found instead of computed: never all of a sequence, whose last logits are needed."""
        if sequence.request.sampling.prompt_logprobs is not None and not sequence.produced:
            return []
        usable = (len(sequence.tokens) - 1) // self.config.block
        if self.config.invariant:
            pieces = min(len(sequence.tokens) - 1, len(sequence.request.prompt)) // self._piece
            usable = pieces * self._piece // self.config.block
        self._name(sequence, usable)
        return sequence.names[:usable]

    def _name(self, sequence: _Sequence, count: int) -> None:
        size = self.config.block
        while len(sequence.names) < count:
            start = len(sequence.names) * size
            parent = sequence.names[-1] if start else sequence.request.sampling.adapter.encode()
            sequence.names.append(chain(parent, sequence.tokens[start : start + size]))

    def _publish(self, sequence: _Sequence) -> None:
        """Let others find the full blocks of a sequence."""
        if not self.config.prefix_cache:
            return
        known = min(sequence.computed, sequence.drafted) if self.draft else sequence.computed
        if self.config.invariant:
            known = min(known, len(sequence.request.prompt)) // self._piece * self._piece
        full = known // self.config.block
        self._name(sequence, full)
        for number in range(sequence.published, full):
            self.pool.publish(sequence.blocks[number], sequence.names[number])
        sequence.published = max(sequence.published, full)

    # Guesses

    def _guess(self, work: list[_Work]) -> None:
        """Fill the places reserved for guesses."""
        asking = [item for item in work if item.guesses]
        if self.config.speculate == "ngram":
            for item in asking:
                item.guesses = item.sequence.repeats.guess(item.sequence.tokens, len(item.guesses))
        elif self.draft is not None:
            self._draft(work, asking)
        self.stats.guessed += sum(len(item.guesses) for item in asking)

    def _draft(self, work: list[_Work], asking: list[_Work]) -> None:
        """Let the small model read what the large one is about to read, and go on from there, one token at a time for all."""
        reading = [(item.sequence, item.sequence.tokens[item.sequence.drafted : item.sequence.computed + item.count]) for item in work]
        room = {id(item): len(item.guesses) for item in asking}
        for item in asking:
            item.guesses = []
        self._read_drafts([(sequence, new) for sequence, new in reading if new], asking)
        for ahead in range(1, max(room.values(), default=0)):
            asking = [item for item in asking if len(item.guesses) < room[id(item)]]
            self._read_drafts([(item.sequence, item.guesses[-1:]) for item in asking], asking, ahead)

    def _read_drafts(self, reading: list[tuple[_Sequence, list[int]]], asking: list[_Work], ahead: int = 0) -> None:
        assert self.draft is not None
        if not reading:
            return
        reading.sort(key=lambda pair: len(pair[1]) > FEW)
        guesses = {id(item.sequence): item for item in asking}
        last = [
            sequence.tokens[: sequence.drafted][-1:] if not ahead else (sequence.tokens + guesses[id(sequence)].guesses)[:-1][-1:]
            for sequence, _ in reading
        ]
        batch = batch_of(
            self.caches[1], self.max_length, [(new, s.drafted, s.blocks, b) for (s, new), b in zip(reading, last, strict=True)]
        )
        ends = accumulate(len(new) for _, new in reading)
        wanted = {end - 1: sequence for end, (sequence, _) in zip(ends, reading, strict=True) if id(sequence) in guesses}
        logits_WV = self.draft.run_pass(batch, list(wanted))[1][:, : len(self.token_bytes)].float().cpu().numpy()
        for sequence, new in reading:
            sequence.drafted += len(new)
        for sequence, logits_V in zip(wanted.values(), logits_WV, strict=True):
            guesses[id(sequence)].guesses.append(sequence.sampler.guess(logits_V, ahead))

    # The forward pass

    def _advance(self, work: list[_Work]) -> list[tuple[Request, Delivery]]:
        """Run one forward pass, and choose the next tokens of the sequences that it completes. Returns what is to be told to whom."""
        sequences = [(item.new, item.sequence.computed, item.sequence.blocks, _before(item.sequence)) for item in work]
        batch = batch_of(self.caches[0], self.max_length, sequences)
        firsts = list(accumulate((len(item.new) for item in work), initial=0))
        wanted = [first + row for item, first in zip(work, firsts, strict=False) for row in item.wanted]
        with self.adapters.over([(item.sequence.request.sampling.adapter, len(item.new)) for item in work]):
            self._tell()
            x_ND, logits_WV = self.model.run_pass(batch, wanted)
        self.stats.steps += 1
        for item, first in zip(work, firsts, strict=False):
            if item.sequence.request.sampling.prompt_logprobs is not None:
                self._measure_prompt(item.sequence, x_ND[first : first + item.count])
            self.stats.prompt += item.count if not item.completes or item.count > 1 else 0
        choose = _Chooser(logits_WV, len(self.token_bytes))
        place, told = 0, []
        for item in work:
            sequence, completes = item.sequence, item.completes
            sequence.computed += item.count
            if not completes:
                self._publish(sequence)
                continue
            told += [(sequence.request, delivery) for delivery in self._choose(item, choose, place)]
            place += 1 + len(item.guesses)
        return told

    def _choose(self, item: _Work, choose: _Chooser, place: int) -> list[Delivery]:
        """Choose the next token, and further ones as long as the guesses are what would have been chosen. Returns what is to be told."""
        sequence = item.sequence
        sent: list[Delivery] = []
        if not sequence.request.sampling.max_tokens:
            sequence.done = True
            self._publish(sequence)
            return [Increment(None, "", None, "length")]
        drafted = sequence.drafted
        for number, guess in enumerate([*item.guesses, None]):
            try:
                increment = self._next(sequence, choose, place + number)
            except GrammarError as error:
                sequence.done = True
                return [*sent, error]
            sent.append(increment)
            right = increment.id == guess and not increment.finish_reason
            if not right:
                break
            self.stats.kept += 1
            sequence.computed += 1
        sequence.drafted = min(drafted, sequence.computed)
        self._publish(sequence)
        return sent

    def _next(self, sequence: _Sequence, choose: _Chooser, place: int) -> Increment:
        sampling, constraint = sequence.request.sampling, sequence.constraint
        token = choose(sequence.sampler, place, constraint.allowed() if constraint else None)
        if constraint:
            constraint.take(token)
        sequence.tokens.append(token)
        sequence.produced += 1
        self.stats.generated += 1
        ends = token in sampling.stop_ids or (token in self.ends and not sampling.ignore_ends)
        text = "" if ends else sequence.stream.push(token)
        reason: FinishReason | None = None
        if ends or sequence.stream.stopped or (constraint and constraint.complete):
            reason = "stop"
        elif sequence.produced == sampling.max_tokens or len(sequence.tokens) >= self.max_length:
            reason = "length"
        if reason:
            sequence.done = True
            text += sequence.stream.finish()
        logprob = None if sampling.logprobs is None else measure(choose.logits_NV[place : place + 1], [token], sampling.logprobs)[0]
        return Increment(token, text, logprob, reason)

    def _measure_prompt(self, sequence: _Sequence, x_TD: Tensor) -> None:
        """Note the log-probabilities of the prompt's tokens that follow those just read, a few rows of logits at a time."""
        request, start = sequence.request, sequence.computed
        known = len(request.prompt_logprobs) + 1
        stop = min(start + len(x_TD), len(request.prompt) - 1)
        if start + 1 < known or request.sampling.prompt_logprobs is None:
            return  # read again after a preemption
        rows = max(1, MAX_LOGITS // self.model.config.vocab_size)
        for begin in range(start, stop, rows):
            end = min(begin + rows, stop)
            logits_TV = self.model.logits(x_TD[begin - start : end - start])
            request.prompt_logprobs += measure(logits_TV, request.prompt[begin + 1 : end + 1], request.sampling.prompt_logprobs)


class _Chooser:
    """Chooses tokens from the rows of one pass, greedy ones all at once; only of the first `size`, for the embedding may be padded."""

    def __init__(self, logits_NV: Tensor, size: int) -> None:
        self.logits_NV, self.size = logits_NV, size
        self._best: list[int] | None = None

    def __call__(self, sampler: Sampler, place: int, allowed_V: np.ndarray | None) -> int:
        if sampler.sampling.temperature == 0 and not sampler.adjusts and allowed_V is None:
            if self._best is None:
                self._best = self._greedy()
            return self._best[place]
        return sampler.draw(self.logits_NV[place, : self.size].float().cpu().numpy(), allowed_V)

    def _greedy(self) -> list[int]:
        if self.logits_NV.device.type == "cpu" and self.logits_NV.dtype == torch.float32:  # numpy takes a seventh of the time for a row
            return self.logits_NV.numpy()[:, : self.size].argmax(axis=-1).tolist()
        return self.logits_NV[:, : self.size].argmax(dim=-1).tolist()


def _before(sequence: _Sequence) -> list[int]:
    return sequence.tokens[: sequence.computed][-1:]


def _cache_of(model: Transformer, blocks: int, block: int) -> PagedCache:
    weight = model.embedding.weight
    return PagedCache(model.config, blocks, block, weight.device, weight.dtype)


def _memory() -> int:
    """Return the bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
