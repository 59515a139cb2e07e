"""How well a tokenizer compresses, and how much text became tokens."""

from __future__ import annotations

from dataclasses import dataclass

from openmai.base.artifact import Artifact
from openmai.report import text
from openmai.report.artifacts import Run


@dataclass(frozen=True)
class Compression:
    """Bytes per token of one tokenizer; `share` is of the largest value shown."""

    name: str
    bytes_per_token: float
    share: float
    is_ours: bool


@dataclass(frozen=True)
class SplitRow:
    """What one source gave to one split."""

    split: str
    source: str
    documents: int
    tokens: str
    bytes: str
    bytes_per_token: float


@dataclass(frozen=True)
class CompressionRow:
    """Bytes per token of each tokenizer on the text of one source and language."""

    source: str
    language: str
    bytes: str
    bytes_per_token: list[float]


@dataclass(frozen=True)
class TokenizerFacts:
    """Everything the page says about one tokenizer and the shards made with it."""

    step: str
    vocab_size: int
    bytes_per_token: float
    learned_from: str
    compressions: list[Compression]
    measured_on: str
    compression_rows: list[CompressionRow]
    rows: list[SplitRow]


def describe(run: Run, artifact: Artifact) -> TokenizerFacts:
    """Describe a tokenizer, beside others if its metrics hold their compression.

    `others`: name -> bytes per token; `compression`: rows of source, language, bytes and bytes_per_token by name, first a row over all.
    """
    metrics = artifact.metrics
    named = [(artifact.path.name, metrics["bytes_per_token"]), *metrics.get("others", {}).items()]
    top = max(value for _, value in named)
    compressions = [Compression(name, value, value / top, place == 0) for place, (name, value) in enumerate(named)]
    shards = [shard for shard in run.of("shards") if artifact in run.parents(shard)]
    learned_from = text.size(metrics["learned_from_bytes"]) if "learned_from_bytes" in metrics else ""
    rows = [row for shard in shards for row in _rows(shard)]
    compared = metrics.get("compression", [])[1:]
    return TokenizerFacts(
        step=artifact.path.name,
        vocab_size=metrics["vocab_size"],
        bytes_per_token=metrics["bytes_per_token"],
        learned_from=learned_from,
        compressions=compressions,
        measured_on=metrics.get("measured_on", ""),
        compression_rows=[
            CompressionRow(row["source"], row["language"], text.size(row["bytes"]), list(row["bytes_per_token"].values()))
            for row in compared
        ],
        rows=rows,
    )


def _rows(shards: Artifact) -> list[SplitRow]:
    return [
        SplitRow(
            split=split,
            source=source,
            documents=part["documents"],
            tokens=text.count(part["tokens"]),
            bytes=text.size(part["bytes"]),
            bytes_per_token=part["bytes"] / max(1, part["tokens"]),
        )
        for split, sources in shards.metrics["splits"].items()
        for source, part in sources.items()
    ]


def train_tokens(shards: Artifact) -> int:
    """Return the number of training tokens in a shards artifact."""
    return sum(part["tokens"] for part in shards.metrics["splits"]["train"].values())
