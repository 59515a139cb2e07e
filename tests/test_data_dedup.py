"""pytest tests/test_data_dedup.py: paragraphs, MinHash against brute force, clusters."""

from __future__ import annotations

import random

import numpy as np
import pytest

from openmai.data.dedup.config import Dedup
from openmai.data.dedup.duplicates import MinHash, ParagraphFilter, candidates, clusters, jaccard, near_duplicates, text_hash

VOCABULARY = [f"word{number}" for number in range(500)]


def make_texts(count: int, noise: random.Random) -> list[str]:
    """Random texts, each followed by copies with more and more words replaced."""
    texts = []
    for _ in range(count):
        words = noise.choices(VOCABULARY, k=200)
        texts.append(" ".join(words))
        for replaced in (0, 1, 2, 5, 20):
            copy = list(words)
            for _ in range(replaced):
                copy[noise.randrange(len(copy))] = noise.choice(VOCABULARY)
            texts.append(" ".join(copy))
    return texts


def true_jaccard(a: str, b: str, n: int = 5) -> float:
    x, y = ({tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in (a.split(), b.split()))
    return len(x & y) / len(x | y)


def test_near_duplicates_against_brute_force() -> None:
    texts = make_texts(30, random.Random(3))
    hasher = MinHash(Dedup())
    for a, b in ((0, 1), (0, 3), (0, 5), (0, 6)):
        assert jaccard(hasher.shingles(texts[a]), hasher.shingles(texts[b])) == pytest.approx(true_jaccard(texts[a], texts[b]))
    signatures = np.stack([hasher.signature(hasher.shingles(text)) for text in texts])
    pairs = candidates(signatures, hasher.config.bands)
    lengths = [len(text) for text in texts]
    dropped = near_duplicates(pairs, dict(enumerate(texts)), lengths, hasher)
    alike = [(a, b) for a in range(len(texts)) for b in range(a) if true_jaccard(texts[a], texts[b]) >= 0.8]
    groups = clusters(len(texts), alike)
    expected = {row for row, group in enumerate(groups) if row != min(r for r in range(len(texts)) if groups[r] == group)}
    assert abs(len(dropped) - len(expected)) <= 0.05 * len(expected)
    for row, (best, _) in dropped.items():
        assert groups[row] == groups[best]
        assert (lengths[best], -best) >= (lengths[row], -row)


def test_signature_agreement_estimates_jaccard() -> None:
    texts, hasher = make_texts(1, random.Random(4)), MinHash(Dedup(bands=100, rows=10))
    base = hasher.signature(hasher.shingles(texts[0]))
    for text in texts:
        agreement = float(np.mean(hasher.signature(hasher.shingles(text)) == base))
        assert agreement == pytest.approx(true_jaccard(texts[0], text), abs=0.06)


def test_chains_below_the_threshold_are_not_joined() -> None:
    noise = random.Random(5)
    words = noise.choices(VOCABULARY, k=300)
    halves = [" ".join(words[:200]), " ".join(words[100:])]
    dropped = near_duplicates([(0, 1)], dict(enumerate(halves)), [len(half) for half in halves], MinHash(Dedup()))
    assert true_jaccard(*halves) < 0.5
    assert dropped == {}


def test_clusters() -> None:
    assert clusters(6, [(4, 3), (3, 1), (2, 5)]) == [0, 1, 2, 1, 1, 2]


def test_short_and_empty_texts_have_signatures() -> None:
    hasher = MinHash(Dedup())
    for text in ("", "one", "one two"):
        assert hasher.signature(hasher.shingles(text)).shape == (112,)
    assert len(hasher.shingles("one two")) == 1
    assert len(hasher.shingles("")) == 0


def test_text_hash_ignores_layout() -> None:
    assert text_hash("Hello,  World!") == text_hash("hello\nworld") != text_hash("hello worlds")


def test_paragraph_filter_keeps_the_first_copies() -> None:
    repeated, short = "x" * 50, "Returns:"
    paragraphs = ParagraphFilter(copies=2, min_chars=40)
    texts = [paragraphs.apply(f"{short}\n\n{repeated}\n\nunique {number}" + "y" * 50) for number in range(4)]
    assert [repeated in text for text in texts] == [True, True, False, False]
    assert all(short in text and "unique" in text for text in texts)
    assert paragraphs.dropped == 2
