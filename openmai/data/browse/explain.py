"""Why a document was kept or rejected: its scores beside the limits that judged them, and what differs from the document it copies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

from pydantic import ValidationError

from openmai.base.artifact import Artifact
from openmai.base.errors import OpenmaiError
from openmai.data.config import BuildConfig
from openmai.data.filter.config import Thresholds
from openmai.data.read.sources import profile_of

# Metrics whose limit is not called min_<metric> or max_<metric>.
_MAXIMA = {"hashes": "max_symbols", "ellipses": "max_symbols", "toxic_words": "max_toxic"}
_FORBIDDEN = {"curly": "forbid_curly", "lorem": "forbid_lorem"}
_NGRAM = re.compile(r"(top|duplicate)_(\d+)gram")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_WORD = re.compile(r"\w+|\s+|[^\w\s]")
_MOST_PAIRS = 4_000_000  # comparisons of lines or words that a browser's user waits for
_MOST_CHARS = 200_000

Piece = tuple[str, str, str]  # ("same" or "other", text here, text there)


class Limits:
    """The thresholds that judged the documents of a build, by source."""

    def __init__(self, artifact: Artifact) -> None:
        self.config: BuildConfig | None = None
        try:
            self.config = BuildConfig.model_validate({**artifact.config, "out": artifact.path})
        except ValidationError:
            return  # made by another verb or version: its limits are not known
        self.profiles = {source.name: _profile(source) for source in self.config.sources}

    def of(self, source: str) -> tuple[str, Thresholds | None]:
        """Return the profile of a source, "" if it is not known, and its thresholds, None if nothing judged it."""
        profile = self.profiles.get(source, "") if self.config else ""
        return profile, getattr(self.config, profile) if profile in ("web", "heavy", "docs") else None

    def table(self, source: str, scores: dict[str, float]) -> list[dict[str, Any]]:
        """Return each score with the least and the most it may be (None: anything) and whether it is within."""
        _, thresholds = self.of(source)
        rows = []
        for name, value in scores.items():
            low, high = limits(name, thresholds) if thresholds else (None, None)
            if name == "language" and thresholds and self.config and self.config.languages:
                low = self.config.min_language_score
            within = (low is None or value >= low) and (high is None or value <= high)
            rows.append({"name": name, "value": value, "low": low, "high": high, "within": within})
        return rows


def limits(metric: str, thresholds: Thresholds) -> tuple[float | None, float | None]:
    """Return the least and the most that a metric may be, None where nothing limits it."""
    if match := _NGRAM.fullmatch(metric):
        first, values = (2, thresholds.max_top_ngrams) if match[1] == "top" else (5, thresholds.max_duplicate_ngrams)
        place = int(match[2]) - first
        return None, values[place] if 0 <= place < len(values) else None
    if metric in _FORBIDDEN:
        return None, 0.0 if getattr(thresholds, _FORBIDDEN[metric]) else None
    return getattr(thresholds, f"min_{metric}", None), getattr(thresholds, _MAXIMA.get(metric, f"max_{metric}"), None)


def _profile(source: Any) -> str:
    try:
        return profile_of(source)
    except OpenmaiError:
        return ""


def differences(here: str, there: str) -> list[Piece]:
    """Cut two texts, each up to 200,000 characters, into pieces that are the same or not: by lines, and inside of them by words."""
    pieces: list[Piece] = []
    for kind, mine, other in _compare(_LINE.findall(here[:_MOST_CHARS]), _LINE.findall(there[:_MOST_CHARS])):
        pieces += [(kind, mine, other)] if kind == "same" or not (mine and other) else _compare(_WORD.findall(mine), _WORD.findall(other))
    return pieces


def _compare(here: list[str], there: list[str]) -> Iterator[Piece]:
    if len(here) * len(there) > _MOST_PAIRS:
        yield "other", "".join(here), "".join(there)
        return
    for tag, start, end, other_start, other_end in SequenceMatcher(None, here, there, autojunk=False).get_opcodes():
        yield "same" if tag == "equal" else "other", "".join(here[start:end]), "".join(there[other_start:other_end])
