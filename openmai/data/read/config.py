"""Where documents come from."""

from __future__ import annotations

import os
import re
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from openmai.base.config import Config


class CommonCrawl(Config):
    """Pages of one Common Crawl: those that match a URL pattern (`url`), or whole files of the crawl (`paths`)."""

    not_in_key: ClassVar[tuple[str, ...]] = ("concurrency",)

    crawl: str
    """crawl id, such as CC-MAIN-2024-10"""
    url: str = ""
    """URL pattern for the index: docs.python.org/3/*, *.example.org, *.example.org/news/*, or one address"""
    limit: int = Field(default=1000, ge=1)
    """at most this many pages of a URL pattern"""
    mimes: list[str] = ["text/html", "application/xhtml+xml", "text/plain"]
    """kinds of pages to take, as the crawl detected them; empty takes all"""
    languages: list[str] = []
    """main language of a page as the crawl detected it, in three letters, such as eng; empty takes all"""
    paths: Literal["", "warc", "wet"] = ""
    """instead of a URL pattern: whole files of the crawl, web pages (warc, 1 GB each) or their text (wet, 100 MB each)"""
    segments: int = Field(default=1, ge=1)
    """how many of these files"""
    first_segment: int = Field(default=0, ge=0)
    """where to begin in the crawl's list of files"""
    concurrency: int = Field(default=2, ge=1, le=8)
    """downloads at a time; Common Crawl slows down those who ask for much"""
    index: str = "https://index.commoncrawl.org"
    """base URL of the index server"""
    files: str = "https://data.commoncrawl.org"
    """base URL of the archive files"""

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> CommonCrawl:
        if bool(self.url) == bool(self.paths):
            raise ValueError("give either url (pages of the index) or paths (whole files), not both and not none")
        return self


class HuggingFace(Config):
    """A data set of the Hugging Face Hub: its Parquet conversion, or files of its repository; HF_TOKEN is used where it is set."""

    name: str
    """name on the hub, such as roneneldan/TinyStories"""
    config: str = "default"
    """configuration (subset)"""
    split: str = "train"
    """split"""
    files: list[str] = []
    """instead of configuration and split: patterns of the repository's own files, such as data/*.jsonl.gz"""
    revision: str = "main"
    """branch, tag or commit of these files"""
    limit: int | None = Field(default=None, ge=1)
    """at most this many rows; no more than needed is downloaded"""
    endpoint: str = Field(default_factory=lambda: os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    """base URL of the hub; also taken from HF_ENDPOINT"""


class Source(Config):
    """Where documents come from: exactly one of `path`, `commoncrawl`, `huggingface`."""

    name: str
    """short name; it stands in every document and in the funnel"""
    path: str | None = None
    """file, folder or glob, here or at an address (s3://, gs://, hf://, https://, …), or a snapshot artifact"""
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
    profile: Literal["auto", "web", "heavy", "docs"] = "auto"
    """which thresholds judge it; auto: docs for a snapshot, else web"""
    on_error: Literal["fail", "skip"] = "fail"
    """a damaged file: stop with an error, or keep what is readable and say so"""

    @property
    def is_remote(self) -> bool:
        """True for a path that is an address, such as s3://bucket/pages/*.warc.gz."""
        return self.path is not None and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", self.path) is not None

    @model_validator(mode="after")
    def _has_one_origin(self) -> Source:
        origins = [name for name in ("path", "commoncrawl", "huggingface") if getattr(self, name) is not None]
        if len(origins) != 1:
            raise ValueError(
                f"source '{self.name}': give exactly one of path, commoncrawl, huggingface; found {', '.join(origins) or 'none'}"
            )
        return self
