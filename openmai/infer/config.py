"""Configuration of inference: how a request samples, and the terminal chat."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from openmai.base.config import Config


class Sampling(Config):
    """How one request chooses its tokens. Filters apply in the order temperature, top_k, top_p, min_p."""

    max_tokens: int = Field(256, gt=0)
    "stop after this many tokens"
    temperature: float = Field(1.0, ge=0)
    "0 always takes the most probable token"
    top_k: int = Field(0, ge=0)
    "choose among the k most probable tokens; 0: all"
    top_p: float = Field(1.0, gt=0, le=1)
    "choose among the fewest tokens that together have this probability (arXiv:1904.09751)"
    min_p: float = Field(0.0, ge=0, le=1)
    "drop tokens less probable than this share of the most probable one (arXiv:2407.01082)"
    seed: int | None = None
    "the same seed gives the same answer, whatever else is being answered; none: a different answer each time"
    stop: tuple[str, ...] = ()
    "texts that end the answer; they are not part of it"
    logprobs: int | None = Field(None, ge=0)
    "report the log-probability of each chosen token and of this many most probable ones"


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
    threads: int = Field(0, ge=0)
    "CPU threads; 0: as many as PyTorch chooses"
