"""Which annotated documents take part: thresholds on what the annotation measured. Cheap, so it is done anew in every build."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmai.data.config import BuildConfig
from openmai.data.engine.parts import read_rows
from openmai.data.filter.rules import judge
from openmai.data.read.sources import profile_of

Row = dict[str, Any]
COLUMNS = ["source", "language", "date", "scores", "meta", "rule", "reason"]


@dataclass(frozen=True)
class Selected:
    """What is to be known of each document of a part before it is compared with others; `rules` counts why the others are rejected."""

    takes_part: NDArray[np.bool_]
    quality: NDArray[np.float64]
    dates: list[str]
    rules: Counter[str]


class Selector:
    """Applies the thresholds of a build to documents."""

    def __init__(self, config: BuildConfig) -> None:
        self.config = config
        self.profiles = {source.name: profile_of(source) for source in config.sources}
        self.thresholds = {"web": config.web, "heavy": config.heavy, "docs": config.docs}

    def verdict(self, row: Row) -> tuple[str, str]:
        """Return (rule, reason) why a document is rejected, ("", "") if it takes part."""
        if row["rule"]:
            return row["rule"], row["reason"]
        profile, scores, config = self.profiles[row["source"]], dict(row["scores"]), self.config
        if config.respect_opt_out and "opt_out" in scores:
            return "opt_out.reserved", json.loads(row["meta"])["opt_out"]
        if profile == "trusted":
            return "", ""
        if config.languages and row["language"] not in config.languages:
            return "language.other", f"{row['language']}, kept: {', '.join(config.languages)}"
        if config.languages and scores["language"] < config.min_language_score:
            return "language.unsure", f"{row['language']} with probability {scores['language']:.2f}, at least {config.min_language_score}"
        return judge(scores, self.thresholds[profile])

    def select(self, part: Path) -> Selected:
        """Apply the thresholds to a part."""
        rows = list(read_rows(part, COLUMNS))
        rules = [self.verdict(row)[0] for row in rows]
        quality = [dict(row["scores"]).get("quality", np.nan) for row in rows]
        return Selected(
            np.array([not rule for rule in rules], np.bool_),
            np.array(quality, np.float64),
            [row["date"] for row in rows] if self.config.dedup.keep == "newest" else [],
            Counter(rule for rule in rules if rule),
        )
