"""Configurations of the verbs that capture web pages into web archives."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

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
