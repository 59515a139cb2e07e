"""Where documents come from."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field, model_validator

from openmai.base.config import Config


class CommonCrawl(Config):
    """Pages of one Common Crawl that match a URL pattern."""

    crawl: str
    """crawl id, such as CC-MAIN-2024-10"""
    url: str
    """URL pattern of the index, such as docs.python.org/*"""
    limit: int = Field(default=1000, ge=1)
    """at most this many pages"""
    index: str = "https://index.commoncrawl.org"
    """base URL of the index server"""
    files: str = "https://data.commoncrawl.org"
    """base URL of the archive files"""


class HuggingFace(Config):
    """A data set of the Hugging Face Hub, read through its Parquet listing."""

    name: str
    """name on the hub, such as roneneldan/TinyStories"""
    config: str = "default"
    """configuration (subset)"""
    split: str = "train"
    """split"""
    limit: int | None = Field(default=None, ge=1)
    """at most this many rows"""
    endpoint: str = Field(default_factory=lambda: os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    """base URL of the hub; also taken from HF_ENDPOINT"""


class Source(Config):
    """Where documents come from: exactly one of `path`, `commoncrawl`, `huggingface`."""

    name: str
    """short name; it stands in every document and in the funnel"""
    path: str | None = None
    """file, folder or glob: .warc[.gz] .arc[.gz] .wet[.gz] .jsonl[.gz|.zst] .json .parquet .txt .md .html, or a snapshot artifact"""
    commoncrawl: CommonCrawl | None = None
    """pages of a Common Crawl"""
    huggingface: HuggingFace | None = None
    """a data set of the Hugging Face Hub"""
    license: str = ""
    """licence of the texts, kept with every document"""
    text_field: str = "text"
    """column or key that holds the text, in JSON and Parquet"""
    trusted: bool = False
    """text by people or teachers you trust: skip language and quality rules, not deduplication"""
    profile: Literal["auto", "web", "docs"] = "auto"
    """which thresholds judge it; auto: docs for a snapshot, else web"""
    on_error: Literal["fail", "skip"] = "fail"
    """a damaged file: stop with an error, or keep what is readable and say so"""

    @model_validator(mode="after")
    def _has_one_origin(self) -> Source:
        origins = [name for name in ("path", "commoncrawl", "huggingface") if getattr(self, name) is not None]
        if len(origins) != 1:
            raise ValueError(
                f"source '{self.name}': give exactly one of path, commoncrawl, huggingface; found {', '.join(origins) or 'none'}"
            )
        return self
