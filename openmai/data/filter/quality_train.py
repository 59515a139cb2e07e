"""`openmai data quality`: train the score of quality.py on good and bad texts or on a teacher's grades; measure it on held-out texts."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.files import write_json
from openmai.base.progress import say
from openmai.data.filter.examples import inputs_of, take
from openmai.data.filter.quality import QualityFacts, QualityModel, count_values, logistic_curve, slow_features
from openmai.data.filter.quality_config import QualityTrainConfig
from openmai.data.filter.quality_report import for_classes, for_grades, page, spread
from openmai.data.filter.quality_solver import platt, rows_of, solve
from openmai.data.read.config import Source

KIND = "quality"
_DOWNLOADS = "downloads"
_TELLING, _TELLING_TEXTS = 40, 400


@dataclass(frozen=True)
class Example:
    """A text, its source, and its target: 1 good, 0 bad, or a grade."""

    text: str
    source: str
    target: float

    @property
    def fold(self) -> int:
        """A number 0 to 9 that equal texts share: 0 is held out for the results, 1 for calibration, the others are trained on."""
        return hashlib.blake2b(self.text.encode("utf-8", errors="replace"), digest_size=8).digest()[0] % 10


def train(config: QualityTrainConfig) -> Artifact:
    """Train a quality score; the artifact holds the model, `results.json` and the page `quality.md`."""
    sources = [*config.positives, *config.negatives, *config.grades, *config.checks]
    with create(config.out, kind=KIND, version=1, config=config, inputs=[item for source in sources for item in inputs_of(source)]) as work:
        if work.finished:
            return work.finished
        downloads = work.path / _DOWNLOADS
        examples = _examples(config, downloads)
        model, gap = _fit(config, examples)
        held_out = [example for example in examples if example.fold == 0]
        results = _results(config, model, examples, held_out, downloads) | {"gap": gap}
        model.save(work.path)
        write_json(work.path / "results.json", results)
        (work.path / "quality.md").write_text(page(results), encoding="utf-8")
        say(page(results))
        facts = {name: value for name, value in results["held_out"].items() if isinstance(value, (int, float))}
        return work.finish(facts, scratch=[_DOWNLOADS])


def _examples(config: QualityTrainConfig, downloads: Path) -> list[Example]:
    found = []
    for target, sources in ((1.0, config.positives), (0.0, config.negatives)):
        for source in sources:
            found += [Example(text, source.name, target) for text, _ in take(source, config.documents, downloads)]
    for source in config.grades:
        found += [
            Example(text, source.name, _grade(meta, config.grade_field, source)) for text, meta in take(source, config.documents, downloads)
        ]
    folds = Counter((example.fold, example.target > 0 if not config.grades else True) for example in found)
    if min(folds[fold, target] for fold in (0, 1, 2) for target in {key[1] for key in folds} | {True}) == 0:
        raise OpenmaiError(f"data quality: {len(found)} texts are too few to train on and hold some out; give some hundreds of each kind")
    return found


def _grade(meta: dict[str, Any], field: str, source: Source) -> float:
    try:
        grade = float(meta[field])
    except (KeyError, TypeError, ValueError):
        raise OpenmaiError(f"source '{source.name}': a text without a number in '{field}'; set grade_field") from None
    if not 0 <= grade <= 5:
        raise OpenmaiError(f"source '{source.name}': grade {grade:g} is not between 0 and 5; rescale it")
    return grade


def _fit(config: QualityTrainConfig, examples: list[Example]) -> tuple[QualityModel, float]:
    """Return the model, its weights rounded to integers and its probabilities calibrated, and the duality gap."""
    trained = [example for example in examples if example.fold > 1]
    is_classes, counts = not config.grades, count_values()
    targets = np.array([example.target for example in trained])
    middle = 0.0 if is_classes else float(targets.mean())
    weights = np.ones(len(trained))
    if is_classes:  # either class counts for half
        weights = np.where(targets > 0, 0.5 / (targets > 0).mean(), 0.5 / (targets == 0).mean())
        targets = np.where(targets > 0, 1.0, -1.0)
    rows = rows_of([example.text for example in trained], config.bits, config.chars, counts)
    say(f"data quality: {len(trained)} texts, {len(rows.buckets):,} different n-grams in them")
    solution, gap = solve(rows, targets - middle, weights, is_classes, 1 << config.bits, config.penalty, config.epochs, config.seed)
    scale = float(np.abs(solution[:-1]).max()) / 32767 or 1.0
    bias = float(solution[-1]) + middle
    facts = QualityFacts("classes" if is_classes else "grades", config.bits, config.chars, bias, scale)
    model = QualityModel(facts, np.round(solution[:-1] / scale).astype(np.int16), counts, logistic_curve())
    return (_calibrated(model, examples) if is_classes else model), gap


def _calibrated(model: QualityModel, examples: list[Example]) -> QualityModel:
    held = [example for example in examples if example.fold == 1]
    raw = np.array([model.raw(example.text) for example in held])
    slope, shift = platt(raw, np.array([example.target > 0 for example in held]))
    return QualityModel(replace(model.facts, slope=slope, shift=shift), model.weights, model.counts, model.curve)


def _results(
    config: QualityTrainConfig, model: QualityModel, examples: list[Example], held_out: list[Example], downloads: Path
) -> dict[str, Any]:
    scores = np.array(model.score([example.text for example in held_out]))
    targets = np.array([example.target for example in held_out])
    by_source: dict[str, list[float]] = defaultdict(list)
    for example, score in zip(held_out, scores.tolist(), strict=True):
        by_source[example.source].append(score)
    for source in config.checks:
        texts = [text for text, _ in take(source, config.documents, downloads)]
        by_source[f"{source.name} (not trained on)"] = model.score(texts)
    return {
        "target": model.facts.target,
        "texts": dict(Counter(example.source for example in examples)),
        "trained_on": sum(example.fold > 1 for example in examples),
        "held_out": for_grades(5 * scores, targets) if config.grades else for_classes(scores, targets > 0),
        "sources": {name: spread(np.array(values)) for name, values in by_source.items()},
        "telling": _telling(model, examples),
    }


def _telling(model: QualityModel, examples: list[Example]) -> dict[str, list[dict[str, Any]]]:
    """Return the n-grams that move scores most: weight times in how many of some texts they occur, named by the slow twin."""
    sample = sorted(
        (example for example in examples if example.fold > 1), key=lambda example: hashlib.blake2b(example.text.encode()).digest()
    )
    names: dict[int, Counter[str]] = defaultdict(Counter)
    found = np.zeros(1 << model.facts.bits)
    for example in sample[:_TELLING_TEXTS]:
        for name, bucket in set(slow_features(example.text[:4000], model.facts.bits, model.facts.chars)):
            names[bucket][name] += 1
            found[bucket] += 1
    effect = model.weights.astype(np.float64) * np.where(found > 2, np.sqrt(found), 0.0)
    order = np.argsort(effect, kind="stable")
    picks = {
        "good": [row for row in order[::-1][:_TELLING] if effect[row] > 0],
        "poor": [row for row in order[:_TELLING] if effect[row] < 0],
    }
    return {
        side: [{"text": names[int(row)].most_common(1)[0][0], "weight": float(model.weights[row]) * model.facts.scale} for row in rows]
        for side, rows in picks.items()
    }
