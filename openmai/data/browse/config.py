"""Configuration of the verb `data browse`."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from openmai.base.config import Config


class BrowseConfig(Config):
    """Look at what a build kept and rejected, beside the original pages, and judge it."""

    documents: Path
    """documents artifact"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 lets other machines in, who may then read and judge everything"""
    port: int = Field(default=8010, ge=0, le=65535)
    """port to listen on; 0: any free one"""
    judgements: Path | None = None
    """JSON lines to which judgements are appended; default: <documents>.judgements.jsonl, beside the artifact"""
    texts: bool = False
    """write the text into each judgement too, so that the file alone can train a quality score"""
    seed: int = 0
    """seed of the samples"""
    page: Path | None = None
    """write one HTML file with the funnel and samples instead of serving"""
    samples: int = Field(default=5, ge=0)
    """documents per rule, and of those kept, in that file"""

    @property
    def judgements_file(self) -> Path:
        """Where the judgements are."""
        return self.judgements or Path(f"{os.path.normpath(self.documents)}.judgements.jsonl")
