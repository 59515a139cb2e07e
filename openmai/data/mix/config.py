"""Configuration of the verb `data mix`: what goes into training, how often, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from openmai.base.config import Config


def _number_is_weight(value: Any) -> Any:
    return {"weight": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Amount(Config):
    """How much of a phase a source makes: exactly one of the three. A bare number is a weight."""

    weight: float | None = Field(default=None, ge=0)
    """relative to the other weights; they divide what shares and epochs leave"""
    share: float | None = Field(default=None, ge=0, le=1)
    """share of the phase's tokens"""
    epochs: float | None = Field(default=None, ge=0)
    """passes over the source in this phase; 0.5 takes half of its documents"""

    @model_validator(mode="after")
    def _is_one(self) -> Amount:
        given = [name for name in ("weight", "share", "epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of weight, share, epochs; found {', '.join(given) or 'none'}")
        return self


Amounts = dict[str, Annotated[Amount, BeforeValidator(_number_is_weight)]]


class Phase(Config):
    """A stretch of training with its own mixture, as Phi-3's two: first the web, then what is heavily filtered or synthetic."""

    name: str
    """short name"""
    share: float = Field(gt=0, le=1)
    """share of all tokens that the phase has"""
    sources: Amounts = Field(min_length=1)
    """by source: its weight, or {weight|share|epochs: …}"""


class Selection(Config):
    """A source that takes over the documents of another that pass: a stricter filter for a later phase."""

    source: str
    """the source whose documents are looked at"""
    min_scores: dict[str, float] = {}
    """by score: the least value"""
    max_scores: dict[str, float] = {}
    """by score: the largest value"""


class MixConfig(Config):
    """Mix documents artifacts into one, with the weights and phases that training follows."""

    documents: list[Path] = Field(min_length=1)
    """documents artifacts"""
    out: Path
    """folder of the mixture: a documents artifact with mixture.json and a card"""
    sources: Amounts = {}
    """by source: its weight, or {weight|share|epochs: …}, where there are no phases; none: every source once"""
    phases: list[Phase] = []
    """phases in order, each with its own sources"""
    select: dict[str, Selection] = {}
    """new sources made of the documents of others; the first that fits takes a document"""
    max_epochs: float = Field(default=4.0, gt=0)
    """passes over a source at most; up to four are nearly as good as new text (arXiv:2305.16264)"""
    max_epochs_of: dict[str, float] = {}
    """the same for single sources"""
    budget: float | None = Field(default=None, gt=0)
    """tokens of the whole training; none: as many as max_epochs allows"""
    bytes_per_token: float = Field(default=4.3, gt=0)
    """how long a token is taken to be, before there is a tokenizer"""
    max_bytes: dict[str, float] = {}
    """by source: bytes of text at most"""
    languages: dict[str, float] = {}
    """by language: largest share of all bytes; other languages are left out; none: as they come"""
    licenses: dict[str, float] = {}
    """by licence: largest share of all bytes; 0 leaves it out"""
    domain_share: float = Field(default=1.0, gt=0, le=1)
    """largest share of all bytes from one host"""
    seed: int = 0
    """decides which documents are taken where not all are"""
    title: str = ""
    """title of the card"""

    @model_validator(mode="after")
    def _fits_together(self) -> MixConfig:
        if self.phases and self.sources:
            raise ValueError("give either sources or phases; each phase names its own sources")
        total = sum(phase.share for phase in self.phases)
        if self.phases and abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of the phases add up to {total:g}, not 1")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"two phases have the same name: {', '.join(names)}")
        return self

    def plan(self, names: list[str]) -> list[Phase]:
        """Return the phases; without any, one of `sources`, or of all sources once."""
        sources = self.sources or {name: Amount(epochs=1) for name in names}
        return self.phases or [Phase(name="all", share=1.0, sources=sources)]

    def most_epochs(self, name: str) -> float:
        """Return how often a source may be seen."""
        return self.max_epochs_of.get(name, self.max_epochs)
