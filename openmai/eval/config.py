"""Configuration of evaluation."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from openmai.base.config import Config


class EvalConfig(Config):
    """Measure a checkpoint."""

    checkpoint: Path
    "checkpoint artifact"
    out: Path
    "folder of the eval artifact"
    shards: Path | None = None
    "shards artifact: bits per byte on its validation split, beside unigram and bigram models of its training split"
    questions: dict[str, Path] = {}
    "by name: folders of four-choice questions in MMLU's CSV layout"
    shots: int = Field(5, ge=0, le=5)
    "worked examples before each question"
    untrained: bool = True
    "also measure the same architecture with its initial weights"
    completions: list[str] = []
    "texts to be continued, kept as samples"
    chats: list[str] = []
    "questions to be answered, kept as samples"
    max_tokens: int = Field(96, gt=0)
    "length of samples"
    seed: int = 0
    "seed of the untrained weights and of the samples"
    threads: int = Field(0, ge=0)
    "CPU threads; 0: as many as cores"
