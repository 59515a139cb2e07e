"""Quality rules: each looks at a document's metrics and returns nothing, or the reason to reject it.

A rule is a function in RULES; its name is `family.what`. To add one: measure in metrics.py, a threshold in config.Thresholds, a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from openmai.data.filter.config import Thresholds

Metrics = Mapping[str, float]
Rule = Callable[[Metrics, Thresholds], str | None]


def words(m: Metrics, t: Thresholds) -> str | None:
    """Gopher: between 50 and 100,000 words."""
    return None if t.min_words <= m["words"] <= t.max_words else f"{m['words']:.0f} words, allowed {t.min_words} to {t.max_words}"


def mean_word(m: Metrics, t: Thresholds) -> str | None:
    """Gopher: mean word length between 3 and 10 characters."""
    if t.min_mean_word <= m["mean_word"] <= t.max_mean_word:
        return None
    return f"mean word of {m['mean_word']:.1f} characters, allowed {t.min_mean_word} to {t.max_mean_word}"


def curly(m: Metrics, t: Thresholds) -> str | None:
    """C4: no curly bracket, which prose has no use for."""
    return f"{m['curly']:.0f} curly brackets" if t.forbid_curly and m["curly"] else None


def lorem(m: Metrics, t: Thresholds) -> str | None:
    """C4: no "lorem ipsum"."""
    return "placeholder text (lorem ipsum)" if t.forbid_lorem and m["lorem"] else None


def at_most(metric: str, threshold: str, index: int | None = None) -> Rule:
    """Return the rule that `metric` is at most `threshold` (element `index` of a tuple); without the metric it says nothing."""

    def rule(m: Metrics, t: Thresholds) -> str | None:
        limit = getattr(t, threshold) if index is None else getattr(t, threshold)[index]
        return f"{metric} {m[metric]:.3f}, at most {limit}" if metric in m and m[metric] > limit else None

    return rule


def at_least(metric: str, threshold: str) -> Rule:
    """Return the rule that `metric` is at least `threshold`; without the metric it says nothing."""

    def rule(m: Metrics, t: Thresholds) -> str | None:
        limit = getattr(t, threshold)
        return f"{metric} {m[metric]:.3f}, at least {limit}" if metric in m and m[metric] < limit else None

    return rule


# In datatrove's order, which is FineWeb's: of several rules that reject, the first is named.
RULES: dict[str, Rule] = {
    # Gopher repetition: arXiv:2112.11446, table A1
    "repetition.duplicate_paragraphs": at_most("duplicate_paragraphs", "max_duplicate_paragraphs"),
    "repetition.duplicate_paragraph_chars": at_most("duplicate_paragraph_chars", "max_duplicate_paragraph_chars"),
    "repetition.duplicate_lines": at_most("duplicate_lines", "max_duplicate_lines"),
    "repetition.duplicate_line_chars": at_most("duplicate_line_chars", "max_duplicate_line_chars"),
    **{f"repetition.top_{n}gram": at_most(f"top_{n}gram", "max_top_ngrams", n - 2) for n in range(2, 5)},
    **{f"repetition.duplicate_{n}gram": at_most(f"duplicate_{n}gram", "max_duplicate_ngrams", n - 5) for n in range(5, 11)},
    # C4: JMLR 21(140), section 2.2
    "c4.lorem": lorem,
    "c4.curly": curly,
    "c4.sentences": at_least("sentences", "min_sentences"),
    # Gopher quality: arXiv:2112.11446, appendix A.1.1
    "gopher.words": words,
    "gopher.mean_word": mean_word,
    "gopher.hashes": at_most("hashes", "max_symbols"),
    "gopher.ellipses": at_most("ellipses", "max_symbols"),
    "gopher.bullet_lines": at_most("bullet_lines", "max_bullet_lines"),
    "gopher.ellipsis_lines": at_most("ellipsis_lines", "max_ellipsis_lines"),
    "gopher.alpha_words": at_least("alpha_words", "min_alpha_words"),
    "gopher.stop_words": at_least("stop_words", "min_stop_words"),
    # FineWeb: arXiv:2406.17557, section 3.6
    "fineweb.line_punctuation": at_least("line_punctuation", "min_line_punctuation"),
    "fineweb.short_lines": at_most("short_lines", "max_short_lines"),
    "fineweb.repeated_line_chars": at_most("repeated_line_chars", "max_repeated_line_chars"),
    "fineweb.newlines": at_most("newlines", "max_newlines"),
    # what the page says: openmai.data.filter.lexicon, and the learned score
    "words.toxic": at_most("toxic_words", "max_toxic"),
    "quality.low": at_least("quality", "min_quality"),
}


def judge(metrics: Metrics, thresholds: Thresholds) -> tuple[str, str]:
    """Return (rule, reason) of the first rule that rejects, ("", "") if none does."""
    for name, rule in RULES.items():
        reason = rule(metrics, thresholds)
        if reason:
            return name, reason
    return "", ""
