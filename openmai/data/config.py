"""Configuration of the verb `data build`; what its parts are set by stands in their own rooms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from openmai.base.config import Config
from openmai.data.dedup.config import Dedup
from openmai.data.filter.config import DOCS, HEAVY, LineRules, Thresholds
from openmai.data.filter.signals_config import Pii, UrlRules
from openmai.data.read.config import Source


class Limits(Config):
    """What one page may cost; beyond, it is rejected with the reason and the work goes on."""

    seconds: float = Field(default=20.0, gt=0)
    """CPU seconds per page"""
    megabytes: int = Field(default=4096, ge=512)
    """memory of a worker"""
    html_megabytes: float = Field(default=8.0, gt=0)
    """size of a page"""
    depth: int = Field(default=400, ge=10)
    """depth of nested elements"""


class Annotation(Config):
    """What is done to each document by itself; together with a record it decides about the document's text and scores."""

    format: Literal["text", "markdown"] = "text"
    """extracted text, or Markdown with fenced code"""
    urls: UrlRules = UrlRules()
    """which addresses are dropped before their page is looked at"""
    pii: Pii = Pii()
    """which private data is masked"""
    lines: LineRules | None = None
    """take C4's boilerplate lines out of the text, `{}` for all of its rules; this drops blank lines too"""
    quality: Path | None = None
    """quality model (openmai data quality) that gives every document its score"""
    limits: Limits = Limits()
    """what one page may cost"""
    dedup: Dedup = Dedup()
    """duplicates"""


class BuildConfig(Annotation):
    """Turn sources into clean, scored, deduplicated documents."""

    not_in_key: ClassVar[tuple[str, ...]] = ("workers", "parts", "runner", "address", "compare")

    out: Path
    """folder of the documents"""
    sources: list[Source] = Field(min_length=1)
    """where the texts come from, in order: of duplicates, a tie is won by the earlier"""
    languages: list[str] = Field(default=["en"])
    """languages to keep; empty keeps all"""
    min_language_score: float = Field(default=0.5, ge=0, le=1)
    """least probability of the language"""
    respect_opt_out: bool = True
    """leave out pages whose publisher asks that no model learn from them (robots meta, X-Robots-Tag, TDM reservation)"""
    web: Thresholds = Thresholds()
    """limits for web pages"""
    heavy: Thresholds = HEAVY
    """limits for the best of the web, the second phase of a training"""
    docs: Thresholds = DOCS
    """limits for reference documentation"""
    earlier: list[Path] = []
    """documents artifacts of earlier builds: what they hold already is not taken again"""
    part_records: int = Field(default=200, ge=1)
    """records per part, the unit of resume"""
    shard_megabytes: float = Field(default=128.0, gt=0)
    """text per file of the result, rejected documents counted"""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """worker processes, on a cluster per task; the output does not depend on it"""
    runner: Literal["local", "ray"] = "local"
    """processes of this machine, or tasks on a Ray cluster whose machines see the same folders; the output does not depend on it"""
    address: str = "auto"
    """the Ray cluster: auto, local, or host:port"""
    compare: Literal["driver", "daft"] = "driver"
    """where a cluster compares documents: by their keys on the machine that drives it, or as Daft queries on all; the same output"""
    parts: Path | None = None
    """folder of the annotated parts, kept so that a change of thresholds recomputes nothing; default: <out>.parts"""
