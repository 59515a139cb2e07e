"""Configuration of inference: how a request samples, and the terminal chat."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from openmai.base.config import Config


class Grammar(Config):
    """What an answer has to look like."""

    kind: Literal["json_schema", "json_object", "regex", "lark"]
    "a JSON schema, any JSON object, a regular expression, or a grammar in llguidance's dialect of Lark"
    text: str = ""
    "the schema as JSON, the expression or the grammar"


class Sampling(Config):
    """How one request chooses its tokens: penalties and bias, then the filters temperature, top_k, top_p, min_p, in that order."""

    max_tokens: int = Field(256, ge=0)
    "stop after this many tokens; 0 only looks at the prompt"
    temperature: float = Field(1.0, ge=0)
    "0 always takes the most probable token"
    top_k: int = Field(0, ge=0)
    "choose among the k most probable tokens; 0: all"
    top_p: float = Field(1.0, gt=0, le=1)
    "choose among the fewest tokens that together have this probability (arXiv:1904.09751)"
    min_p: float = Field(0.0, ge=0, le=1)
    "drop tokens less probable than this share of the most probable one (arXiv:2407.01082)"
    repetition_penalty: float = Field(1.0, gt=0)
    "logits of tokens of the prompt and the answer are divided by this, negative ones multiplied (arXiv:1909.05858)"
    presence_penalty: float = 0.0
    "subtracted from the logits of tokens that the answer has"
    frequency_penalty: float = 0.0
    "subtracted from the logits of tokens for each time that the answer has them"
    logit_bias: tuple[tuple[int, float], ...] = ()
    "token and what is added to its logit"
    seed: int | None = None
    "the same seed gives the same answer, whatever else is being answered; none: a different answer each time"
    stop: tuple[str, ...] = ()
    "texts that end the answer; they are not part of it"
    stop_ids: tuple[int, ...] = ()
    "tokens that end the answer, beside end of turn and end of text"
    ignore_ends: bool = False
    "go on after end of turn and end of text, up to max_tokens"
    logprobs: int | None = Field(None, ge=0)
    "report the log-probability of each chosen token and of this many most probable ones"
    prompt_logprobs: int | None = Field(None, ge=0)
    "report the same of the prompt"
    grammar: Grammar | None = None
    "constrain the answer"
    adapter: str = ""
    "the adapter that answers, of those that the engine has; none: the model itself"


class EngineConfig(Config):
    """How requests share the machine."""

    rows: int = Field(16, gt=0)
    "requests answered at the same time; further ones wait"
    max_length: int | None = Field(None, gt=1)
    "longest prompt and answer together, in tokens; default: the model's context"
    block: int = Field(16, gt=0)
    "tokens per block of the key-value cache"
    cache_tokens: int = Field(0, ge=0)
    "tokens that the cache holds for all requests together; 0: as many as all rows can need, at most a quarter of the memory"
    step_tokens: int = Field(512, gt=0)
    "tokens in one forward pass: longer prompts are read in pieces, between which running answers go on"
    prefix_cache: bool = True
    "keep the blocks of finished requests, and do not compute a beginning again that they hold"
    invariant: bool = False
    "an answer never depends on other requests, not even in the last bit: each request has its forward passes to itself; slower"
    speculate: Literal["", "ngram", "draft"] = ""
    "guess tokens and check several at once, which changes no answer: ngram repeats what followed before, draft asks a small model"
    speculate_tokens: int = Field(4, gt=0, lt=8)
    "tokens guessed at a time"
    weights: Literal["", "fp16", "int8", "int4"] = ""
    "on a CPU, hold matrices in fewer bits: fp16; int8 per output channel with activations in 8 bits; int4 in groups of 32"


class ChatConfig(Config):
    """Talk to a model in the terminal."""

    path: CliPositionalArg[Path] = Path("runs/laptop")
    "checkpoint, or folder of a run, whose newest model is taken"
    system: str = ""
    "system prompt"
    prompt: str = ""
    "ask this one question, print the answer and leave"
    temperature: float = Field(0.7, ge=0)
    "0 always takes the most probable token"
    top_p: float = Field(0.95, gt=0, le=1)
    "choose among the fewest tokens that together have this probability"
    max_tokens: int = Field(512, gt=0)
    "longest answer"
    seed: int | None = None
    "repeat the same answers"
    weights: Literal["", "fp16", "int8", "int4"] = ""
    "on a CPU, hold matrices in fewer bits"
    threads: int = Field(0, ge=0)
    "CPU threads; 0: as many as PyTorch chooses"
