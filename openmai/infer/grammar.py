"""Constraints: answers that fit a JSON schema, a regular expression or a grammar, token by token, through llguidance."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from functools import cached_property
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from openmai.base.errors import OpenmaiError
from openmai.infer.config import Grammar
from openmai.tokenizer.tokenizer import Tokenizer

KEPT = 64  # compiled grammars that are kept for the next request with the same one
SPACING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # else a model may write blanks for ever


class GrammarError(OpenmaiError):
    """A schema, expression or grammar that cannot be followed."""


class Constraint:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self.matcher, self.size = matcher, size

    def allowed(self) -> np.ndarray:
        """Return which tokens may come next, (V,)."""
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little", count=self.size).astype(bool)

    def take(self, token: int) -> None:
        """Go on by a token that was allowed. Raises GrammarError where the library gives up on a grammar too large to follow."""
        if not self.matcher.consume_token(token) or self.matcher.is_error():
            raise GrammarError(f"grammar: given up: {_first_line(self.matcher.get_error())}")

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return self.matcher.is_stopped()


class Grammars:
    """Compiles grammars for one tokenizer, each once; thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self, grammar: Grammar) -> Constraint:
        """Return a fresh constraint. Raises GrammarError that names what cannot be followed."""
        with self._lock:
            known = self._compiled.get(grammar)
            if known is not None:
                self._compiled.move_to_end(grammar)
        if known is None:
            known = LLMatcher(self._library, _source(grammar), log_level=0)
            if known.is_error():
                raise GrammarError(f"{grammar.kind}: {_first_line(known.get_error())}")
            with self._lock:
                self._compiled[grammar] = known
                while len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
        return Constraint(known.deep_copy(), self.tokenizer.vocab_size)

    @cached_property
    def _library(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(_Wrapped(self.tokenizer)), eos_token=[self.tokenizer.end_of_turn, self.tokenizer.end_of_text])


class _Wrapped:
    """The tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokenizer.token_bytes
        self.eos_token_id, self.bos_token_id = tokenizer.end_of_turn, None
        self.special_token_ids = list(tokenizer.special.values())

    def __call__(self, text: bytes) -> list[int]:
        return self.tokenizer.encode(text.decode("utf-8", errors="replace"))


def _source(grammar: Grammar) -> str:
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.text)
    text = '{"type": "object"}' if grammar.kind == "json_object" else grammar.text
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"{grammar.kind}: not valid JSON ({error})") from None
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=SPACING)


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0] if message.strip() else "not understood"
