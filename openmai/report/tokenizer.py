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
class TokenizerFacts:
    """Everything the page says about one tokenizer and the shards made with it."""

    step: str
    vocab_size: int
    bytes_per_token: float
    learned_from: str
    compressions: list[Compression]
    rows: list[SplitRow]


def describe(run: Run, artifact: Artifact) -> TokenizerFacts:
    """Describe a tokenizer, beside others if its metrics hold their compression (`others`: name -> bytes per token)."""
    metrics = artifact.metrics
    named = [(artifact.path.name, metrics["bytes_per_token"]), *metrics.get("others", {}).items()]
    top = max(value for _, value in named)
    compressions = [Compression(name, value, value / top, place == 0) for place, (name, value) in enumerate(named)]
    shards = [shard for shard in run.of("shards") if artifact in run.parents(shard)]
    learned_from = text.size(metrics["learned_from_bytes"]) if "learned_from_bytes" in metrics else ""
    rows = [row for shard in shards for row in _rows(shard)]
    return TokenizerFacts(artifact.path.name, metrics["vocab_size"], metrics["bytes_per_token"], learned_from, compressions, rows)


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
