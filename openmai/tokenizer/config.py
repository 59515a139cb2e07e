"""Configuration of the tokenizer stage."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from openmai.base.config import Config


class TrainConfig(Config):
    """Train a byte-level BPE tokenizer."""

    documents: list[Path]
    "documents artifacts to learn from"
    out: Path
    "folder of the tokenizer artifact"
    vocab_size: int = Field(8192, ge=320, le=1_000_000)
    "tokens, special tokens included"
    max_megabytes: float = Field(200.0, gt=0)
    "learn from about this much text, taken evenly over all documents"
    compare: list[str] = []
    "vocabularies to compare with, by their names in tiktoken (gpt2, cl100k_base, o200k_base); downloaded unless in TIKTOKEN_CACHE_DIR"


class EncodeConfig(Config):
    """Encode documents to token shards."""

    not_in_key: ClassVar[tuple[str, ...]] = ("workers",)

    documents: list[Path]
    "documents artifacts to encode"
    tokenizer: Path
    "tokenizer artifact"
    out: Path
    "folder of the shards artifact"
    validation: float = Field(0.03, ge=0, lt=1)
    "share of the documents held out as the split `val`; a document's id decides, so the split never changes as data is added"
    workers: int = Field(0, ge=0)
    "threads that encode; 0: as many as cores"
