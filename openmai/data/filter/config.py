"""Thresholds of the quality rules: `Thresholds()` for web pages, DOCS for reference documentation, HEAVY for the best of the web."""

from __future__ import annotations

from pydantic import Field

from openmai.base.config import Config


class LineRules(Config):
    """Which lines C4 drops from a page. They change the text, so a change of theirs annotates anew, unlike one of Thresholds."""

    terminal_punctuation: bool = False
    """only lines that end in . ? ! " ' stay; C4 did so, FineWeb did not (it costs 30 % of the text)"""
    min_words: int = Field(default=3, ge=0)
    """fewest words that white space separates; 0 keeps empty lines too, and with them the paragraphs"""
    max_word: int = Field(default=1000, ge=0)
    """longest word, characters; 0 for any length"""
    citations: bool = True
    """take [1], [edit] and [citation needed] out of the lines"""
    javascript: bool = True
    """drop lines that mention JavaScript"""
    policies: bool = True
    """drop lines that mention cookies, terms of use or privacy policies"""


class Thresholds(Config):
    """Limits of the quality rules; the papers stand beside the rules in rules.py. The defaults, for web prose, are those of datatrove's
    filters 0.10.1, which made FineWeb, except `min_alpha_words`."""

    min_words: int = 50
    """Gopher: fewest words, not counting punctuation"""
    max_words: int = 100_000
    """Gopher: most words, not counting punctuation"""
    min_mean_word: float = 3.0
    """Gopher: shortest mean word length, characters"""
    max_mean_word: float = 10.0
    """Gopher: longest mean word length, characters"""
    max_symbols: float = 0.1
    """Gopher: most `#` per word, and most ellipses per word"""
    max_bullet_lines: float = 0.9
    """Gopher: most lines that begin with a bullet, share"""
    max_ellipsis_lines: float = 0.3
    """Gopher: most lines that end with an ellipsis, share"""
    min_alpha_words: float = 0.7
    """Gopher: fewest words with a letter, share of words and punctuation marks; the paper and FineWeb have 0.8, the paper of words alone"""
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
    min_sentences: int = 5
    """C4: fewest sentences; the paper says 5, the code that made C4 has 3"""
    forbid_curly: bool = True
    """C4: reject pages with an opening curly bracket"""
    forbid_lorem: bool = True
    """C4: reject pages with "lorem ipsum" """
    min_line_punctuation: float = 0.12
    """FineWeb: fewest lines that end with punctuation, share"""
    max_short_lines: float = 0.67
    """FineWeb: most lines of at most 30 characters, share"""
    max_repeated_line_chars: float = 0.01
    """FineWeb: most characters in repeated lines, share; the paper says 0.1, the code that made FineWeb has 0.01"""
    max_newlines: float = 0.3
    """FineWeb: most line ends per word"""
    max_toxic: float = 0.02
    """most adult and abusive words, share of words; a swear word a page is 0.003"""
    min_quality: float = 0.0
    """least learned quality score, 0 to 1; documents without a score pass"""


# Reference documentation and code repeat signatures and short indented lines by nature: what judges prose by its lines is off or wide.
DOCS = Thresholds(
    min_words=20,
    max_words=500_000,
    max_mean_word=16.0,
    max_symbols=0.4,
    max_ellipsis_lines=0.5,
    min_alpha_words=0.3,
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
    max_toxic=1.0,
)

# For the second phase of Phi-3's recipe (arXiv:2404.14219, section 2): few pages, like textbooks. The limits lie where at most 5 % of the
# chapters of 20 textbooks are lost, or 5 % of ordinary pages; repeated n-grams stay at Gopher's, which textbooks touch.
HEAVY = Thresholds(
    min_words=100,
    min_mean_word=3.5,
    max_mean_word=8.0,
    max_symbols=0.02,
    max_bullet_lines=0.5,
    max_ellipsis_lines=0.1,
    min_stop_words=4,
    max_duplicate_lines=0.15,
    max_duplicate_line_chars=0.1,
    max_duplicate_paragraphs=0.15,
    max_duplicate_paragraph_chars=0.1,
    max_top_ngrams=(0.12, 0.11, 0.10),
    min_sentences=8,
    min_line_punctuation=0.2,
    max_short_lines=0.5,
    max_newlines=0.2,
    max_toxic=0.005,
    min_quality=0.6,  # grade 3 of 5, as FineWeb-Edu (arXiv:2406.17557, section 4)
)
