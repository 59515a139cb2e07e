"""`openmai chat`: talk to a model in the terminal. Standard output carries only the answers, so it can be piped."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, field

import torch

from openmai.base.errors import OpenmaiError
from openmai.base.progress import say
from openmai.infer.config import ChatConfig, EngineConfig, Sampling
from openmai.infer.engine import Engine
from openmai.infer.load import load_assistant
from openmai.infer.pack import pack
from openmai.infer.request import ContextLengthError
from openmai.tokenizer.tokenizer import Message, Tokenizer

with contextlib.suppress(ImportError):  # gives the prompt line editing and history where it exists
    import readline  # noqa: F401

HELP = "/new starts a new conversation · /exit or Ctrl-D leaves · Ctrl-C stops an answer"


def chat(config: ChatConfig) -> None:
    """Answer `config.prompt`, or hold a conversation until the end of input."""
    if config.threads:
        torch.set_num_threads(config.threads)
    model, tokenizer, name = load_assistant(config.path)
    pack(model, config.weights)
    with Engine(model, tokenizer, EngineConfig(rows=1)) as engine:
        conversation = Conversation(engine, config)
        if config.prompt:
            conversation.answer(config.prompt)
            return
        say(f"{name}, context of {engine.max_length:,} tokens. {HELP}")
        while (line := _read_line()) is not None and line.strip() not in ("/exit", "/quit"):
            _obey(conversation, line)


def fit(tokenizer: Tokenizer, messages: list[Message], room: int) -> tuple[list[Message], list[int]]:
    """Drop the oldest turns, never the system prompt nor the last message, until the prompt takes at most `room` tokens.

    Returns the messages that are left and their ids, which may still be too many.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    while len(ids := tokenizer.render(system + turns, reply=True)[0]) > room and len(turns) > 2:
        turns = turns[2:]
    return system + turns, ids


@dataclass
class Conversation:
    """The messages so far, and the engine that answers them."""

    engine: Engine
    config: ChatConfig
    messages: list[Message] = field(default_factory=list)
    answers: int = 0

    def clear(self) -> None:
        self.messages = []

    def answer(self, question: str) -> None:
        """Stream the answer to standard output; Ctrl-C stops it and keeps what was said."""
        if not self.messages and self.config.system:
            self.messages = [{"role": "system", "content": self.config.system}]
        messages = [*self.messages, {"role": "user", "content": question}]
        reserve = min(self.config.max_tokens, self.engine.max_length // 4)
        kept, ids = fit(self.engine.tokenizer, messages, self.engine.max_length - reserve)
        if len(kept) < len(messages):
            say(_dim(f"the context is full: forgot the oldest {len(messages) - len(kept)} messages"))
        text = self._stream(ids)
        self.messages = [*kept, {"role": "assistant", "content": text}]

    def _stream(self, ids: list[int]) -> str:
        seed = None if self.config.seed is None else self.config.seed + self.answers
        self.answers += 1
        sampling = Sampling(max_tokens=self.config.max_tokens, temperature=self.config.temperature, top_p=self.config.top_p, seed=seed)
        request = self.engine.submit(ids, sampling)
        parts, tokens, began = [], 0, time.monotonic()
        try:
            for increment in request:
                tokens += 1
                parts.append(increment.text)
                print(increment.text, end="", flush=True)
        except KeyboardInterrupt:
            request.cancel()
        print(flush=True)
        say(_dim(f"{tokens} tokens, {tokens / (time.monotonic() - began):.0f} tokens/s"))
        return "".join(parts)


def _obey(conversation: Conversation, line: str) -> None:
    """Carry out a command, or answer a question; a question that is too long leaves the conversation as it was."""
    command = line.strip()
    if command == "/new":
        conversation.clear()
        say(_dim("new conversation"))
    elif command.startswith("/"):
        say(_dim(HELP))
    elif command:
        try:
            conversation.answer(command)
        except ContextLengthError as error:
            say(f"{error}; ask something shorter")


def _read_line() -> str | None:
    """Read one line from the user; None at the end of input."""
    while True:
        try:
            if sys.stdin.isatty() and sys.stdout.isatty():
                return input("\n› ")
            if sys.stdin.isatty():
                print("\n› ", end="", file=sys.stderr, flush=True)
            return input()
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise OpenmaiError(f"standard input: not UTF-8 text ({error})") from None
        except KeyboardInterrupt:
            say(f"\n{HELP}")


def _dim(text: str) -> str:
    return f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text
