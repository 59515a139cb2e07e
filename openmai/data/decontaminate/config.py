"""What counts as contaminated, and the verb `data decontaminate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from openmai.base.config import Config


class Overlap(Config):
    """When a document holds an evaluation item."""

    n: int = Field(default=13, ge=3, le=200)
    """length of an n-gram; 13 words are GPT-3's (arXiv:2005.14165, appendix C), 50 characters GPT-4's (arXiv:2303.08774)"""
    unit: Literal["word", "char"] = "word"
    """n-grams of words, or of letters and digits without spaces"""
    threshold: float = Field(default=0.3, gt=0, le=1)
    """share of an item's n-grams, each weighted by 1 / (items that have it), from which a document holds the item"""
    short: int = Field(default=13, ge=2, le=64)
    """questions of fewer words (or than one n-gram) are looked for whole, together with their answer"""
    min_words: int = Field(default=5, ge=1)
    """a short question and its answer have at least this many words together, else they are not looked for"""
    min_words_alone: int = Field(default=8, ge=1)
    """the same for a short question without an answer"""
    answer_window: int = Field(default=60, ge=1)
    """an answer stands within this many words of its question, not counting the choices"""


class Fields(Config):
    """Keys or columns that hold the parts of an item; empty: the usual names, and if none fits, all texts together."""

    question: list[str] = []
    """the question or prompt"""
    answer: list[str] = []
    """the answer, a letter, or the number of a choice"""
    choices: list[str] = []
    """the choices"""
    context: list[str] = []
    """the passage that a question is about"""


class DecontaminateConfig(Config):
    """Find evaluation items in documents, and drop or mark the documents that hold them."""

    not_in_key: ClassVar[tuple[str, ...]] = ("workers",)

    documents: list[Path] = Field(min_length=1)
    """documents artifacts"""
    against: list[str] = Field(min_length=1)
    """evaluation files or folders: .csv .tsv .jsonl .json .txt .parquet, also .gz .bz2 .zst .zip; NAME=PATH names the task"""
    out: Path
    """folder of the documents that stay, or of the report"""
    mode: Literal["drop", "mark", "report"] = "drop"
    """drop: to rejected/; mark: keep, with the score contaminated.<task>; report: write the report alone"""
    tasks: Literal["folder", "file"] = "folder"
    """what is one task: the first folder below a given folder, or each file"""
    fields: Fields = Fields()
    """where an item's parts stand in JSON, Parquet and CSV with a header"""
    overlap: Overlap = Overlap()
    """when a document holds an item"""
    examples: int = Field(default=100, ge=0)
    """matches shown side by side in the report"""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """threads, each with a file of its own; the output does not depend on it"""
