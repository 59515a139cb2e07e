"""OpenAI's response objects, built from parts: a chunk from one part, a whole answer from all of them."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from openmai.infer.engine import Engine
from openmai.infer.sampling import Logprob
from openmai.serve.answers import Part

Json = dict[str, Any]


class Shape:
    """What chat and plain completions have in common: the envelope, and the names of tokens."""

    prefix, whole_object, chunk_object = "", "", ""

    def __init__(self, engine: Engine, model: str, logprobs: bool) -> None:
        self.engine, self.model, self.logprobs = engine, model, logprobs
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())

    def whole(self, parts: dict[int, list[Part]], usage: Json) -> Json:
        """Return the complete response; `parts` by choice."""
        choices = [self.choice(index, parts[index], chunk=False) for index in sorted(parts)]
        return self._envelope(self.whole_object, choices) | {"usage": usage}

    def chunk(self, index: int, part: Part) -> Json:
        """Return one event of a stream."""
        return self._envelope(self.chunk_object, [self.choice(index, [part], chunk=True)])

    def opening(self, index: int) -> list[Json]:
        """Return the events that begin a choice."""
        return []

    def closing(self, usage: Json) -> Json:
        """Return the event that carries the usage."""
        return self._envelope(self.chunk_object, []) | {"usage": usage}

    def choice(self, index: int, parts: list[Part], chunk: bool) -> Json:
        raise NotImplementedError

    def _envelope(self, kind: str, choices: Sequence[Json]) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def token_bytes(self, number: int) -> bytes:
        """Return a token's bytes (none for the unused rows at the end of an embedding)."""
        table = self.engine.token_bytes
        return table[number] if number < len(table) else b""

    def token_name(self, number: int) -> str:
        """Return a token's text; one that is not whole characters is spelled as OpenAI does: `bytes:\\xe6\\xbc`."""
        raw = self.token_bytes(number)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class ChatShape(Shape):
    """chat.completion and chat.completion.chunk."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> list[Json]:
        delta = {"role": "assistant", "content": ""}
        return [self._envelope(self.chunk_object, [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])]

    def choice(self, index: int, parts: list[Part], chunk: bool) -> Json:
        text = "".join(part.text for part in parts)
        tokens = [logprob for part in parts for number, logprob in part.tokens if logprob and number not in self.engine.ends]
        content = [self._entry(token.id, token.value) | {"top_logprobs": [self._entry(*top) for top in token.top]} for token in tokens]
        message: Json = {"content": text} if text or not chunk else {}
        return {
            "index": index,
            **({"delta": message} if chunk else {"message": {"role": "assistant", "refusal": None} | message}),
            "logprobs": {"content": content, "refusal": None} if self.logprobs else None,
            "finish_reason": parts[-1].finish_reason,
        }

    def _entry(self, number: int, value: float) -> Json:
        return {"token": self.token_name(number), "logprob": value, "bytes": list(self.token_bytes(number))}


class CompletionShape(Shape):
    """text_completion, whole and streamed."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, engine: Engine, model: str, logprobs: bool) -> None:
        super().__init__(engine, model, logprobs)
        self.offsets: defaultdict[int, int] = defaultdict(int)

    def choice(self, index: int, parts: list[Part], chunk: bool) -> Json:
        return {
            "index": index,
            "text": "".join(part.text for part in parts),
            "logprobs": self._logprobs(index, [token for part in parts for token in part.tokens]) if self.logprobs else None,
            "finish_reason": parts[-1].finish_reason,
        }

    def _logprobs(self, index: int, tokens: list[tuple[int, Logprob | None]]) -> Json:
        names = [self.token_name(number) for number, _ in tokens]
        offsets = []
        for number, _ in tokens:
            offsets.append(self.offsets[index])
            self.offsets[index] += len(self.token_bytes(number).decode(errors="ignore"))
        return {
            "tokens": names,
            "token_logprobs": [logprob and logprob.value for _, logprob in tokens],
            "top_logprobs": [logprob and self._top(logprob) for _, logprob in tokens],
            "text_offset": offsets,
        }

    def _top(self, logprob: Logprob) -> dict[str, float]:
        """Return the most probable tokens by name; of several with one name (invalid bytes aside, there are none) the first."""
        return {self.token_name(number): value for number, value in reversed(logprob.top)}
