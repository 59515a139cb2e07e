"""What counts as a duplicate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from openmai.base.config import Config


class Dedup(Config):
    """Exact, paragraph and near duplicates; 0 switches a part off."""

    exact: bool = True
    """drop documents whose normalised text occurred before"""
    paragraph_copies: int = Field(default=3, ge=0)
    """keep this many occurrences of a paragraph over all documents"""
    paragraph_chars: int = Field(default=40, ge=1)
    """paragraphs shorter than this may repeat"""
    line_copies: int = Field(default=0, ge=0)
    """keep a line on this many documents of a host, beyond them it is part of the site's frame; 0: lines may repeat"""
    line_chars: int = Field(default=20, ge=1)
    """lines shorter than this may repeat, as may code and tables"""
    min_left: float = Field(default=0.1, ge=0, le=1)
    """drop a document when less than this share of it is left without repeated paragraphs and lines"""
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
    keep: Literal["longest", "first", "newest", "quality"] = "longest"
    """which one of similar documents stays; of equals, the earlier"""
