"""Configuration of the learned quality score: its training, and a teacher's grades for it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, model_validator

from openmai.base.config import Config
from openmai.data.read.config import Source


class QualityTrainConfig(Config):
    """Train a quality score from good and bad texts, or from a teacher's grades of 0 to 5."""

    out: Path
    """folder of the quality model"""
    positives: list[Source] = []
    """good texts: sources as in `data build`, or documents artifacts"""
    negatives: list[Source] = []
    """texts of the other kind, of the same topics as far as possible: the model learns whatever tells the two apart"""
    grades: list[Source] = []
    """graded texts, instead of positives and negatives: an artifact of `data grade`, or JSON lines with a text and a grade"""
    grade_field: str = "grade"
    """key of the grade, 0 to 5"""
    checks: list[Source] = []
    """sources that are not trained on; how their scores are spread is reported, which shows what the model takes for quality"""
    documents: int = Field(default=50_000, ge=100)
    """at most this many texts per source, spread evenly by a hash"""
    chars: int = Field(default=20_000, ge=200)
    """characters of a text that are looked at, from its beginning, in training and later"""
    bits: int = Field(default=19, ge=12, le=24)
    """binary logarithm of the number of buckets that n-grams are hashed into; a bucket takes two bytes"""
    penalty: float = Field(default=0.1, gt=0)
    """strength of the L2 penalty; more makes the score smoother"""
    epochs: int = Field(default=30, ge=1)
    """at most this many passes; training ends when the duality gap is below one thousandth of the loss"""
    seed: int = 0
    """seed of the order of the texts in training"""

    @model_validator(mode="after")
    def _has_one_kind(self) -> QualityTrainConfig:
        if bool(self.grades) == bool(self.positives or self.negatives) or bool(self.positives) != bool(self.negatives):
            raise ValueError("give either grades, or both positives and negatives")
        return self


class GradeConfig(Config):
    """Let a teacher grade the educational value of documents from 0 to 5, through any OpenAI-compatible endpoint."""

    not_in_key: ClassVar[tuple[str, ...]] = ("endpoint", "key_variable", "concurrency", "retries", "timeout", "ledger")

    out: Path
    """folder of the grades"""
    documents: Path
    """documents artifact"""
    endpoint: str
    """base URL, such as http://127.0.0.1:8000/v1"""
    model: str
    """name of the teacher at the endpoint"""
    count: int = Field(default=1000, ge=1)
    """how many documents, spread evenly by a hash of their ids"""
    chars: int = Field(default=3000, ge=200)
    """characters of a document that the teacher sees"""
    max_tokens: int = Field(default=200, ge=8)
    """tokens that the teacher may answer with"""
    temperature: float = Field(default=0.0, ge=0)
    """sampling temperature of the teacher"""
    seed: int = 0
    """seed that is sent to the teacher"""
    attempts: int = Field(default=2, ge=1)
    """how often a document is asked for when the answer holds no grade; each attempt has a seed of its own"""
    key_variable: str = "OPENAI_API_KEY"
    """environment variable that holds the endpoint's key; without it no key is sent"""
    concurrency: int = Field(default=8, ge=1)
    """requests at a time"""
    retries: int = Field(default=5, ge=0)
    """how often a request is repeated after a busy or failing server, with growing waits"""
    timeout: float = Field(default=120.0, gt=0)
    """seconds to wait for an answer"""
    ledger: Path | None = None
    """file of all answers, which later runs read and add to; default: beside `out`, ending in .requests.jsonl"""
