"""C4's rules for single lines: they change the text, so they belong to what is recomputed when they change, not to the thresholds.

Raffel et al. 2020, JMLR 21(140), section 2.2; the long words, the policies and the citations are in the code that made C4
(https://github.com/tensorflow/datasets, c4_utils.py). FineWeb left out the rule on terminal punctuation (arXiv:2406.17557, section 3.3).
"""

from __future__ import annotations

import re
from collections import Counter

from openmai.data.filter.config import LineRules

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_TERMINAL = (".", "?", "!", '"', "'")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def clean_lines(text: str, rules: LineRules) -> tuple[str, dict[str, float]]:
    """Return the text without the lines that C4 drops, and counts for the metrics: dropped lines by cause as `lines_*`, and `curly` and
    `lorem`, the lines that reject a page as a whole (of those that get so far, dropped or not)."""
    counts: Counter[str] = Counter(curly=0, lorem=0)
    lower = text.lower()
    is_suspect = any(mark in lower for mark in ("{", "lorem ipsum", "javascript", *_POLICIES))  # else no line needs a closer look
    kept = []
    for original in text.splitlines():
        line = original.strip()
        is_long = 0 < rules.max_word < len(line) and max(map(len, line.split())) > rules.max_word
        too_few = len(line.split(None, rules.min_words)) < rules.min_words  # with their citations
        if rules.citations and "[" in line:
            line = _CITATION.sub("", line)
        cause = "long_word" if is_long else _shape(line, too_few, rules)
        if is_suspect and not cause:
            cause = _content(line.lower(), rules, counts)
        if cause:
            counts[f"lines_{cause}"] += 1
        else:
            kept.append(line)
    return "\n".join(kept).strip(), {name: float(count) for name, count in counts.items()}


def _shape(line: str, too_few: bool, rules: LineRules) -> str:
    """Return why a line is dropped for its form, "" if it is not."""
    if rules.terminal_punctuation and (not line.endswith(_TERMINAL) or line.endswith("...")):
        return "no_punctuation"
    return "few_words" if too_few else ""


def _content(line: str, rules: LineRules, counts: Counter[str]) -> str:
    """Return why a line in lower case is dropped for what it says, "" if it is not."""
    counts["lorem"] += "lorem ipsum" in line
    if rules.javascript and "javascript" in line:
        return "javascript"
    counts["curly"] += "{" in line
    return "policy" if rules.policies and any(policy in line for policy in _POLICIES) else ""
