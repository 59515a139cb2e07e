"""OpenAI's response objects, built from parts: events from one part, a whole answer from all of them."""

from __future__ import annotations

import json
import time
import uuid
from collections import defaultdict
from typing import Any

from openmai.infer.engine import Engine
from openmai.infer.sampling import Logprob
from openmai.serve.answers import Part
from openmai.serve.tools import Call

Json = dict[str, Any]


class Shape:
    """What all answers have in common: an id, and the names of tokens."""

    prefix = ""
    last = "data: [DONE]\n\n"
    "what ends a stream"

    def __init__(self, engine: Engine, model: str, logprobs: bool) -> None:
        self.engine, self.model, self.logprobs = engine, model, logprobs
        self.id, self.created = f"{self.prefix}{uuid.uuid4().hex}", int(time.time())

    def whole(self, parts: dict[int, list[Part]], usage: Json) -> Json:
        """Return the complete response; `parts` by choice."""
        raise NotImplementedError

    def opening(self, choices: int) -> list[Json]:
        """Return the events that begin a stream."""
        return []

    def chunk(self, index: int, part: Part) -> list[Json]:
        """Return the events of one part."""
        raise NotImplementedError

    def closing(self, usage: Json, wanted: bool) -> list[Json]:
        """Return the events that end a stream; `wanted` says whether the caller asked for the usage."""
        raise NotImplementedError

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


def encode_event(value: Json) -> str:
    """Write a server-sent event; events of responses have a name."""
    name = f"event: {value['type']}\n" if isinstance(value.get("type"), str) else ""
    return f"{name}data: {json.dumps(value, ensure_ascii=False)}\n\n"


class ChoiceShape(Shape):
    """Chat and plain completions: a list of choices in an envelope."""

    whole_object, chunk_object = "", ""

    def whole(self, parts: dict[int, list[Part]], usage: Json) -> Json:
        choices = [self.choice(index, parts[index], chunk=False) for index in sorted(parts)]
        return self._envelope(self.whole_object, choices) | {"usage": usage}

    def chunk(self, index: int, part: Part) -> list[Json]:
        if not (part.text or part.calls or part.finish_reason or self.logprobs):
            return []
        return [self._envelope(self.chunk_object, [self.choice(index, [part], chunk=True)])]

    def closing(self, usage: Json, wanted: bool) -> list[Json]:
        return [self._envelope(self.chunk_object, []) | {"usage": usage}] if wanted else []

    def choice(self, index: int, parts: list[Part], chunk: bool) -> Json:
        raise NotImplementedError

    def _envelope(self, kind: str, choices: list[Json]) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


class ChatShape(ChoiceShape):
    """chat.completion and chat.completion.chunk."""

    prefix, whole_object, chunk_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self, engine: Engine, model: str, logprobs: bool) -> None:
        super().__init__(engine, model, logprobs)
        self.calls: defaultdict[int, int] = defaultdict(int)

    def opening(self, choices: int) -> list[Json]:
        delta = {"role": "assistant", "content": ""}
        return [
            self._envelope(self.chunk_object, [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
            for index in range(choices)
        ]

    def choice(self, index: int, parts: list[Part], chunk: bool) -> Json:
        text = "".join(part.text for part in parts)
        calls = [self._call(call, index if chunk else None) for part in parts for call in part.calls]
        message: Json = {"content": text} if text else {}
        if not chunk:
            message = {"role": "assistant", "refusal": None, "content": text if text or not calls else None}
        if calls:
            message["tool_calls"] = calls
        tokens = [logprob for part in parts for number, logprob in part.tokens if logprob and number not in self.engine.ends]
        content = [self._entry(token.id, token.value) | {"top_logprobs": [self._entry(*top) for top in token.top]} for token in tokens]
        return {
            "index": index,
            "delta" if chunk else "message": message,
            "logprobs": {"content": content, "refusal": None} if self.logprobs else None,
            "finish_reason": parts[-1].finish_reason,
        }

    def _call(self, call: Call, index: int | None) -> Json:
        made: Json = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        if index is not None:
            made["index"] = self.calls[index]
            self.calls[index] += 1
        return made

    def _entry(self, number: int, value: float) -> Json:
        return {"token": self.token_name(number), "logprob": value, "bytes": list(self.token_bytes(number))}


class CompletionShape(ChoiceShape):
    """text_completion, whole and streamed."""

    prefix, whole_object, chunk_object = "cmpl-", "text_completion", "text_completion"

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


class ResponseShape(Shape):
    """The response object of /v1/responses and its stream of named events. `settings` are what of the request it repeats."""

    prefix, last = "resp_", ""

    def __init__(self, engine: Engine, model: str, settings: Json) -> None:
        super().__init__(engine, model, False)
        self.settings = settings
        self.items: list[Json] = []
        self.open: Json | None = None
        "the message that is being written"
        self.reason = "stop"
        self.number = 0

    def whole(self, parts: dict[int, list[Part]], usage: Json) -> Json:
        for part in parts[0]:
            self.chunk(0, part)
        self._close_message()
        return self._response(self._status(), usage)

    def opening(self, choices: int) -> list[Json]:
        return [self._event("response." + state, response=self._response("in_progress", None)) for state in ("created", "in_progress")]

    def chunk(self, index: int, part: Part) -> list[Json]:
        events = []
        if part.text:
            if self.open is None:
                events += self._open_message()
            assert self.open is not None
            self.open["content"][0]["text"] += part.text
            events.append(self._content_event("output_text.delta", delta=part.text, logprobs=[]))
        for call in part.calls:
            events += [*self._close_message(), *self._function_call(call)]
        self.reason = part.finish_reason or self.reason
        return events

    def closing(self, usage: Json, wanted: bool) -> list[Json]:
        events = self._close_message()
        status = self._status()
        return [*events, self._event(f"response.{status}", response=self._response(status, usage))]

    def _status(self) -> str:
        return "incomplete" if self.reason == "length" else "completed"

    def _response(self, status: str, usage: Json | None) -> Json:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.model,
            "output": [dict(item) for item in self.items] if status != "in_progress" else [],
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "truncation": "disabled",
            "usage": usage and self._usage(usage),
            **self.settings,
        }

    def _usage(self, usage: Json) -> Json:
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }

    def _event(self, kind: str, **fields: Any) -> Json:
        self.number += 1
        return {"type": kind, "sequence_number": self.number - 1, **fields}

    def _content_event(self, kind: str, **fields: Any) -> Json:
        assert self.open is not None
        return self._event(f"response.{kind}", item_id=self.open["id"], output_index=len(self.items) - 1, content_index=0, **fields)

    def _open_message(self) -> list[Json]:
        content: Json = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self.open = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "status": "in_progress", "role": "assistant", "content": [content]}
        self.items.append(self.open)
        added = self._event("response.output_item.added", output_index=len(self.items) - 1, item=self.open | {"content": []})
        return [added, self._content_event("content_part.added", part=dict(content))]

    def _close_message(self) -> list[Json]:
        if self.open is None:
            return []
        content = self.open["content"][0]
        self.open["status"] = self._status()
        events = [
            self._content_event("output_text.done", text=content["text"], logprobs=[]),
            self._content_event("content_part.done", part=dict(content)),
            self._event("response.output_item.done", output_index=len(self.items) - 1, item=dict(self.open)),
        ]
        self.open = None
        return events

    def _function_call(self, call: Call) -> list[Json]:
        item = {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }
        self.items.append(item)
        place = {"output_index": len(self.items) - 1}
        about = place | {"item_id": item["id"]}
        kind = "response.function_call_arguments"
        return [
            self._event("response.output_item.added", item=item | {"status": "in_progress", "arguments": ""}, **place),
            self._event(f"{kind}.delta", delta=call.arguments, **about),
            self._event(f"{kind}.done", arguments=call.arguments, name=call.name, **about),
            self._event("response.output_item.done", item=item, **place),
        ]
