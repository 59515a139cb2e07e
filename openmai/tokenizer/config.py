"""Configuration of the tokenizer stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from openmai.base.config import Config

SplitName = Literal["qwen2", "llama-bpe", "gpt-4o", "deepseek-v3", "gpt-2", "smollm"]


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
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    "shares of the text to learn from, by source: {web: 0.7, code: 0.3}; a small source is repeated; empty: as much as there is of each"
    held_out: float = Field(0.0, ge=0, lt=1)
    "share of the documents not to learn from but to measure on; those that `encode` holds out first. 0: measure on what was learned from"
    split: SplitName = "qwen2"
    "how text is cut into words, digits and spaces, by its name in llama.cpp; docs/tokenizer.md describes each"
    compare: list[str] = []
    "tokenizers to compare with: folders, tokenizer.json, .tiktoken or GPT-2 files, or names in tiktoken (gpt2, cl100k_base, o200k_base)"


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
    fim: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    "share of a source's training documents to rearrange for filling in the middle, by source: {code: 0.5}"
    spm: float = Field(0.5, ge=0, le=1)
    "share of the rearranged documents in the order suffix-prefix-middle, the others are prefix-suffix-middle"
    workers: int = Field(0, ge=0)
    "threads that encode, each a row group of the documents; 0: as many as cores"


class CompareConfig(Config):
    """Compare how tightly tokenizers write documents, by source and language."""

    tokenizers: list[str]
    "tokenizer folders, tokenizer.json, .tiktoken or GPT-2 files (a folder with vocab.bpe), or names in tiktoken"
    documents: list[Path]
    "documents artifacts to write, best some that no tokenizer has learned from"
    max_megabytes: float = Field(4.0, gt=0)
    "compare on about this much text, taken evenly over all documents"
    as_json: bool = False
    "print the table as JSON"
