"""The tokenizer: byte-level BPE through `tokenizers`, and the one place where a conversation becomes ids and a loss mask.

Conversations use the ChatML layout, which llama.cpp, vLLM and transformers all know:

    <|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\nHi.<|im_end|>\\n

Documents are separated by <|endoftext|>. Nothing is ever put in front of a text: there is no BOS token to double.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from openmai.base.errors import OpenmaiError
from openmai.base.files import hash_value

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}{% set text = message.content.lstrip() %}"
    "{% set indent = message.content[:message.content | length - text | length].split('\\n')[-1].split('\\r')[-1] %}"
    "{% generation %}{{ indent + text + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

Message = dict[str, Any]
_BLANK_LINES = re.compile(r"\A\s*[\r\n]")
_NOT_TEXT = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of bytes that are not UTF-8


def byte_letters() -> list[str]:
    """Return the letter that stands for each byte in byte-level BPE (GPT-2, `bytes_to_unicode` in its encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


class Tokenizer:
    """Text to ids and back, exact on any text."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend
        self.backend.encode_special_tokens = True  # "<|im_end|>" typed by a user is text, not a control token
        numbers = {token: backend.token_to_id(token) for token in SPECIAL_TOKENS}
        self.special = {token: number for token, number in numbers.items() if number is not None}
        missing = [token for token in SPECIAL_TOKENS if token not in self.special]
        if missing:
            raise OpenmaiError(
                f"tokenizer: special tokens {', '.join(missing)} are missing; use a tokenizer made by `openmai tokenizer train`"
            )
        self.end_of_text = self.special[END_OF_TEXT]
        self.start_of_turn = self.special[START_OF_TURN]
        self.end_of_turn = self.special[END_OF_TURN]

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json` from a tokenizer artifact, or from the `tokenizer/` folder of a checkpoint."""
        file = folder / "tokenizer.json"
        if not file.exists():
            raise OpenmaiError(f"{file}: no such file; expected a tokenizer artifact")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises bare Exception for a broken file
            raise OpenmaiError(f"{file}: not a tokenizer ({error})") from None

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides about ids."""
        return hash_value(self.backend.to_str())

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every token; special tokens appear by name."""
        numbers = {letter: byte for byte, letter in enumerate(byte_letters())}
        table = [b""] * self.vocab_size
        for token, number in self.backend.get_vocab().items():
            table[number] = bytes(numbers[letter] for letter in token)
        return table

    def encode_bytes(self, data: bytes) -> list[int]:
        """Return the ids of any bytes; those that are not UTF-8 become one token each, what lies between them is encoded as text."""
        ids: list[int] = []
        for text in re.split(f"({_NOT_TEXT.pattern})", data.decode("utf-8", "surrogateescape")):
            ids += [self.byte_ids[ord(text) - 0xDC00]] if _NOT_TEXT.fullmatch(text) else self.encode(text)
        return ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return exactly the bytes that gave `ids`."""
        return b"".join(self.token_bytes[number] for number in ids)

    @cached_property
    def byte_ids(self) -> list[int]:
        """The tokens of single bytes."""
        vocab = self.backend.get_vocab()
        return [vocab[letter] for letter in byte_letters()]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Encode many texts on all threads."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special tokens appear by name, an incomplete character at the end as U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def single(self, text: str) -> int:
        """Return the id of a text that must be one token (an answer letter, say)."""
        ids = self.encode(text)
        if len(ids) != 1:
            raise OpenmaiError(
                f"tokenizer: {text!r} takes {len(ids)} tokens, but must be one here; train it on more text or with a larger vocabulary"
            )
        return ids[0]

    def render(self, messages: Sequence[Message], reply: bool = False) -> tuple[list[int], list[bool]]:
        """Return ids of a conversation and a mask that is True exactly on the assistant's tokens and their end-of-turn token.

        `reply` appends the opening of an assistant turn. Raises OpenmaiError for an unknown role or content that is not text.
        """
        ids: list[int] = []
        mask: list[bool] = []
        for number, message in enumerate(messages):
            role, content = message.get("role"), message.get("content")
            if role not in ROLES or not isinstance(content, str):
                raise OpenmaiError(
                    f"message {number}: role={role!r} with {type(content).__name__} content; expected a role of {', '.join(ROLES)} and text"
                )
            learn = role == "assistant"
            if learn:  # a line end after the header's would be one token with it, but a reply is written after the header
                content = _BLANK_LINES.sub("", content)
            opening, newline = [self.start_of_turn, *self.encode(role + "\n")], self.encode("\n")
            body = self.encode(content) if learn else self.encode(f"{role}\n{content}")
            if not learn:
                opening = [self.start_of_turn]
            ids += [*opening, *body, self.end_of_turn, *newline]
            mask += [False] * len(opening) + [learn] * (len(body) + 1) + [False] * len(newline)
        if reply:
            opening = [self.start_of_turn, *self.encode("assistant\n")]
            ids += opening
            mask += [False] * len(opening)
        return ids, mask
