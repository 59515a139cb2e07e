"""Configurations of the verbs `data snapshot` and `data build`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from openmai.base.config import Config

# What a Python programmer looks up; what is not installed is left out. A name that stands twice takes two pages per turn.
# fmt: off
PACKAGES = [
    "topics", "topics", "stdlib", "stdlib", "stdlib", "stdlib", "torch", "torch", "numpy", "numpy", "tokenizers", "pydantic",
    "rich", "yaml", "jinja2", "safetensors", "httpx", "anyio", "fastapi", "starlette", "uvicorn", "click", "requests",
    "matplotlib", "pyarrow", "PIL", "markdown_it", "pygments", "hypothesis", "pytest", "huggingface_hub", "transformers.trainer",
    "networkx", "fsspec", "tqdm", "packaging", "dateutil", "regex", "zstandard", "gguf"
]
# fmt: on


class SnapshotConfig(Config):
    """Capture the pages of Python's own documentation server, over loopback, into a web archive."""

    out: Path
    """folder of the snapshot"""
    packages: list[str] = Field(default=PACKAGES, min_length=1)
    """what to capture: `stdlib`, `topics` (language reference), packages or dotted modules; a name given twice takes two pages per turn"""
    max_pages: int = Field(default=1000, ge=1)
    """stop after this many pages"""
    max_megabytes: float = Field(default=30.0, gt=0)
    """stop after this many megabytes of HTML"""
    max_page_megabytes: float = Field(default=3.0, gt=0)
    """leave out a page that is larger"""
    page_timeout: float = Field(default=60.0, gt=0)
    """seconds that one page may take before it is skipped and the server restarted"""
    delay: float = Field(default=0.0, ge=0)
    """seconds to wait between two requests to a server"""
    servers: int = Field(default=2, ge=1)
    """documentation servers, each asked one page at a time; part of the identity, as packages are dealt out to them"""


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


class Thresholds(Config):
    """Limits of the quality rules; the papers stand beside the rules in rules.py. The defaults are for web prose."""

    min_words: int = 50
    """Gopher: fewest words"""
    max_words: int = 100_000
    """Gopher: most words"""
    min_mean_word: float = 3.0
    """Gopher: shortest mean word length, characters"""
    max_mean_word: float = 10.0
    """Gopher: longest mean word length, characters"""
    max_symbols: float = 0.1
    """Gopher: most `#` and ellipses per word"""
    max_bullet_lines: float = 0.9
    """Gopher: most lines that begin with a bullet, share"""
    max_ellipsis_lines: float = 0.3
    """Gopher: most lines that end with an ellipsis, share"""
    min_alpha_words: float = 0.8
    """Gopher: fewest words with a letter, share"""
    min_stop_words: int = 2
    """Gopher: fewest different English stop words"""
    max_duplicate_lines: float = 0.3
    """Gopher: most duplicate lines, share of lines"""
    max_duplicate_line_chars: float = 0.2
    """Gopher: most duplicate lines, share of characters"""
    max_duplicate_paragraphs: float = 0.3
    """Gopher: most duplicate paragraphs, share of paragraphs"""
    max_duplicate_paragraph_chars: float = 0.2
    """Gopher: most duplicate paragraphs, share of characters"""
    max_top_ngrams: tuple[float, float, float] = (0.20, 0.18, 0.16)
    """Gopher: the most frequent 2-, 3-, 4-gram, share of characters"""
    max_duplicate_ngrams: tuple[float, float, float, float, float, float] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Gopher: duplicate 5- to 10-grams, share of characters"""
    min_sentences: int = 3
    """C4: fewest sentences"""
    forbid_curly: bool = True
    """C4: reject pages with a curly bracket"""
    forbid_lorem: bool = True
    """C4: reject pages with "lorem ipsum" """
    min_line_punctuation: float = 0.12
    """FineWeb: fewest lines that end with punctuation, share"""
    max_short_lines: float = 0.67
    """FineWeb: most lines of at most 30 characters, share"""
    max_repeated_line_chars: float = 0.1
    """FineWeb: most characters in repeated lines, share"""
    max_newlines: float = 0.3
    """FineWeb: most line ends per word"""


# Reference documentation and code repeat signatures and short indented lines by nature: what judges prose by its lines is off or wide.
DOCS = Thresholds(
    min_words=20,
    max_words=500_000,
    max_mean_word=16.0,
    max_symbols=0.4,
    max_ellipsis_lines=0.5,
    min_alpha_words=0.5,
    max_duplicate_lines=0.6,
    max_duplicate_line_chars=0.5,
    max_duplicate_paragraphs=0.5,
    max_duplicate_paragraph_chars=0.4,
    max_top_ngrams=(0.35, 0.3, 0.3),
    max_duplicate_ngrams=(0.7, 0.68, 0.66, 0.64, 0.62, 0.60),
    min_sentences=1,
    forbid_curly=False,
    min_line_punctuation=0.0,
    max_short_lines=0.95,
    max_repeated_line_chars=0.5,
    max_newlines=1.0,
)


class Dedup(Config):
    """Exact, paragraph and near duplicates; 0 switches a part off."""

    exact: bool = True
    """drop documents whose normalised text occurred before"""
    paragraph_copies: int = Field(default=3, ge=0)
    """keep this many occurrences of a paragraph over all documents"""
    paragraph_chars: int = Field(default=40, ge=1)
    """paragraphs shorter than this may repeat"""
    min_left: float = Field(default=0.1, ge=0, le=1)
    """drop a document when less than this share of it is left without repeated paragraphs"""
    near: bool = True
    """drop near-duplicates: MinHash candidates that reach `jaccard`"""
    ngram: int = Field(default=5, ge=1)
    """words per shingle"""
    bands: int = Field(default=14, ge=1)
    """bands of the MinHash signature"""
    rows: int = Field(default=8, ge=1)
    """rows per band"""
    jaccard: float = Field(default=0.8, gt=0, le=1)
    """true similarity from which two documents count as the same"""


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


class BuildConfig(Config):
    """Turn sources into clean, scored, deduplicated documents."""

    not_in_key: ClassVar[tuple[str, ...]] = ("workers",)

    out: Path
    """folder of the documents"""
    sources: list[Source] = Field(min_length=1)
    """where the texts come from, in order: of duplicates, a tie is won by the earlier"""
    languages: list[str] = Field(default=["en"])
    """languages to keep; empty keeps all"""
    min_language_score: float = Field(default=0.5, ge=0, le=1)
    """least probability of the language"""
    web: Thresholds = Thresholds()
    """limits for web pages"""
    docs: Thresholds = DOCS
    """limits for reference documentation"""
    dedup: Dedup = Dedup()
    """duplicates"""
    limits: Limits = Limits()
    """what one page may cost"""
    part_records: int = Field(default=200, ge=1)
    """records per part, the unit of resume"""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """worker processes; the output does not depend on it"""
