"""How good a quality score is on texts that it was not trained on: numbers for people and for results.json."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def ranks(values: Floats) -> Floats:
    """Return the ranks of `values` from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def auc(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """Return the probability that a True has a higher score than a False; ties count half (Mann-Whitney)."""
    good, bad = int(labels.sum()), int((~labels).sum())
    return float((ranks(scores)[labels].sum() - good * (good + 1) / 2) / max(1, good * bad))


def spearman(left: Floats, right: Floats) -> float:
    """Return the rank correlation; 0 if either is constant."""
    a, b = ranks(left) - (len(left) + 1) / 2, ranks(right) - (len(right) + 1) / 2
    return float((a * b).sum() / max(1e-12, np.sqrt((a**2).sum() * (b**2).sum())))


def at_threshold(scores: Floats, labels: NDArray[np.bool_], threshold: float) -> dict[str, float]:
    """Return accuracy, precision, recall and F1 of `scores >= threshold`."""
    said = scores >= threshold
    hit, said_sum, labels_sum = int((said & labels).sum()), int(said.sum()), int(labels.sum())
    return {
        "threshold": threshold,
        "accuracy": float((said == labels).mean()),
        "precision": hit / max(1, said_sum),
        "recall": hit / max(1, labels_sum),
        "f1": 2 * hit / max(1, said_sum + labels_sum),
    }


def for_classes(scores: Floats, labels: NDArray[np.bool_]) -> dict[str, Any]:
    """Return what a two-class score is worth; `scores` in 0..1."""
    said = scores >= 0.5
    return {
        "texts": len(scores),
        "accuracy": float((said == labels).mean()),
        "auc": auc(scores, labels),
        "confusion": [
            [int((~said & ~labels).sum()), int((said & ~labels).sum())],
            [int((~said & labels).sum()), int((said & labels).sum())],
        ],
        "thresholds": [at_threshold(scores, labels, threshold) for threshold in _THRESHOLDS],
        "calibration": _calibration(scores, labels),
    }


def _calibration(scores: Floats, labels: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Compare, in tenths of the score, the mean score with the share of good texts at equal shares of both classes."""
    weights = np.where(labels, 1 / max(1, labels.sum()), 1 / max(1, (~labels).sum()))
    rows = []
    for tenth in range(10):
        here = np.minimum(9, (scores * 10).astype(int)) == tenth
        if here.any():
            total = weights[here].sum()
            score = float((scores[here] * weights[here]).sum() / total)
            rows.append({"texts": int(here.sum()), "score": score, "good": float(weights[here & labels].sum() / total)})
    return rows


def for_grades(predicted: Floats, grades: Floats) -> dict[str, Any]:
    """Return what a predicted grade is worth; both in 0..5. A text counts as educational from grade 3 on, as in FineWeb-Edu."""
    rounded, given = np.round(predicted).astype(int), np.round(grades).astype(int)
    confusion = np.zeros((6, 6), dtype=int)
    np.add.at(confusion, (given, rounded), 1)
    return {
        "texts": len(grades),
        "spearman": spearman(predicted, grades),
        "mean_error": float(np.abs(predicted - grades).mean()),
        "mean_error_of_constant": float(np.abs(np.median(grades) - grades).mean()),
        "accuracy": float((rounded == given).mean()),
        "confusion": confusion.tolist(),
        "thresholds": [at_threshold(predicted, grades >= limit, limit) for limit in (1.0, 2.0, 3.0, 4.0)],
    }


def spread(scores: Floats) -> dict[str, float]:
    """Return how the scores of one source lie: quantiles, and the share of at least one half."""
    quantiles = dict(zip((f"{quantile:g}" for quantile in _QUANTILES), np.quantile(scores, _QUANTILES).tolist(), strict=True))
    return {"texts": len(scores), **quantiles, "at_least_half": float((scores >= 0.5).mean())}


def page(results: dict[str, Any]) -> str:
    """Return the results as a page of Markdown."""
    held, lines = results["held_out"], ["# Quality score", ""]
    trained = ", ".join(f"{name} {count:,}" for name, count in results["texts"].items())
    lines += [f"Texts: {trained}. Trained on {results['trained_on']:,}, duality gap {results['gap']:.1e} of the loss.", ""]
    if results["target"] == "classes":
        lines += [f"Held out: {held['texts']:,} texts, accuracy {held['accuracy']:.2%} at 0.5, AUC {held['auc']:.4f}.", ""]
        lines += ["| | scored bad | scored good |", "|---|---|---|"]
        lines += [f"| {name} | {row[0]} | {row[1]} |" for name, row in zip(("negatives", "positives"), held["confusion"], strict=True)]
    else:
        lines += [
            f"Held out: {held['texts']:,} texts, Spearman {held['spearman']:.3f}, mean error {held['mean_error']:.2f} "
            f"(always the median: {held['mean_error_of_constant']:.2f}). The score is the grade divided by 5.",
            "",
            "| grade given | " + " | ".join(f"scored {grade}" for grade in range(6)) + " |",
            "|---" * 7 + "|",
        ]
        lines += [f"| {grade} | {' | '.join(map(str, row))} |" for grade, row in enumerate(held["confusion"])]
    lines += ["", "| threshold | accuracy | precision | recall | F1 |", "|---|---|---|---|---|"]
    for row in held["thresholds"]:
        lines.append(f"| {row['threshold']:g} | {row['accuracy']:.3f} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} |")
    if results["target"] == "classes":
        lines += ["", "| texts | mean score | really good (at equal shares) |", "|---|---|---|"]
        lines += [f"| {row['texts']} | {row['score']:.2f} | {row['good']:.2f} |" for row in held["calibration"]]
    lines += ["", "Scores by source (held-out texts, and sources that were not trained on):", ""]
    lines += ["| source | texts | 5 % | 25 % | median | 75 % | 95 % | at least 0.5 |", "|---" * 8 + "|"]
    for name, row in results["sources"].items():
        numbers = " | ".join(f"{row[f'{quantile:g}']:.2f}" for quantile in _QUANTILES)
        lines.append(f"| {name} | {row['texts']} | {numbers} | {row['at_least_half']:.0%} |")
    for name, title in (("good", "for"), ("poor", "against")):
        lines += ["", f"What speaks most {title} a text: " + ", ".join(f"`{item['text']}`" for item in results["telling"][name])]
    lines += [
        "",
        "A model learns whatever tells its two sides apart, topic and site included: look at the sources' scores before trusting it.",
        "",
    ]
    return "\n".join(lines)
