"""What was measured: bits per byte, questions with error bars against chance and the untrained model, samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openmai.base.artifact import Artifact
from openmai.base.files import read_json
from openmai.report import text
from openmai.report.artifacts import Run
from openmai.report.plots import Interval, Plot, intervals

_NORMAL_95 = 1.96
_SAMPLE = 1500
_MOST_MODELS = 4
_COLORS = ("s1", "s2", "s3", "s4")


@dataclass(frozen=True)
class BpbRow:
    """A model's bits per byte, over everything and by source; `share` is of the largest value in the table."""

    model: str
    is_ours: bool
    all: float
    share: float
    by_source: list[str]


@dataclass(frozen=True)
class Score:
    """A model's answers to one set of questions."""

    model: str
    accuracy: float
    stderr: float
    n: int
    is_ours: bool

    @property
    def shown(self) -> str:
        return f"{100 * self.accuracy:.1f} ± {100 * self.stderr:.1f} %"

    def over_chance(self, chance: float) -> str:
        """Return the distance from chance in standard errors."""
        return f"{(self.accuracy - chance) / self.stderr:+.1f}".replace("-", "−") if self.stderr else "–"


@dataclass(frozen=True)
class Task:
    """One set of questions."""

    name: str
    protocol: str
    chance: float
    scores: list[Score]
    plot: Plot | None


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model made of it."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Samples:
    """The samples of one checkpoint."""

    model: str
    completions: list[Sample]
    chats: list[Sample]


@dataclass(frozen=True)
class Evaluation:
    """Everything that the run's eval artifacts say."""

    sources: list[str]
    bpb: list[BpbRow]
    tasks: list[Task]
    samples: list[Samples]


@dataclass(frozen=True)
class Measured:
    """A model and its row in results.json; ours are checkpoints of the run, the others what to compare them with."""

    name: str
    is_ours: bool
    row: dict[str, Any]


def describe(run: Run) -> Evaluation | None:
    """Join the results of all eval artifacts; None if there is none."""
    results = [(_label(run, artifact), read_json(artifact.path / "results.json")) for artifact in run.of("eval")]
    if not results:
        return None
    models = _models(results)
    sources = list(dict.fromkeys(name for model in models for name in model.row["bpb"] if name != "all"))
    samples = [Samples(label, _samples(found, "completions"), _samples(found, "chats")) for label, found in results if found.get("samples")]
    kept = [sample for sample in samples if sample.completions or sample.chats]
    return Evaluation(sources, _bpb_rows(models, sources), _tasks(models), kept)


def headline(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Return the measured model's score of each set of questions."""
    return read_json(artifact.path / "results.json")["models"]["trained"]["questions"]


def _label(run: Run, artifact: Artifact) -> str:
    checkpoint = run.checkpoint_of(artifact)
    return checkpoint.path.name if checkpoint else artifact.path.name


def _models(results: list[tuple[str, dict[str, Any]]]) -> list[Measured]:
    """List all measured models once: untrained ones and baselines first, ours in order of lineage."""
    simple: list[Measured] = []
    ours: list[Measured] = []
    for label, found in results:
        others = [Measured(name, False, row) for name, row in found["models"].items() if name != "trained"]
        others += [Measured(name, False, {"bpb": row, "questions": {}}) for name, row in found.get("baselines", {}).items()]
        simple += [model for model in others if model not in simple]
        ours.append(Measured(label, True, found["models"]["trained"]))
    return simple + ours


def _bpb_rows(models: list[Measured], sources: list[str]) -> list[BpbRow]:
    rows = [(model, model.row["bpb"]) for model in models if "all" in model.row["bpb"]]
    top = max((row["all"] for _, row in rows), default=1.0)
    return [
        BpbRow(model.name, model.is_ours, row["all"], row["all"] / top, [text.figure(row.get(source)) for source in sources])
        for model, row in rows
    ]


def _tasks(models: list[Measured]) -> list[Task]:
    names = list(dict.fromkeys(task for model in models for task in model.row["questions"]))
    return [_task(name, [(model, model.row["questions"][name]) for model in models if name in model.row["questions"]]) for name in names]


def _task(name: str, answers: list[tuple[Measured, dict[str, Any]]]) -> Task:
    first = answers[0][1]
    scores = [Score(model.name, row["accuracy"], row["stderr"], row["n"], model.is_ours) for model, row in answers]
    return Task(name, first["protocol"], first["chance"], scores, _subject_plot(name, answers, first["chance"]))


def _subject_plot(name: str, answers: list[tuple[Measured, dict[str, Any]]], chance: float) -> Plot:
    shown = answers[-_MOST_MODELS:]
    ours = [model for model, _ in reversed(shown) if model.is_ours]
    groups = [(_COLORS[ours.index(model)] if model.is_ours else "muted", model.name, _intervals(row)) for model, row in shown]
    return intervals("By subject", groups, chance, "Lines are 95 % confidence intervals (1.96 standard errors).", f"subjects {name}")


def _intervals(row: dict[str, Any]) -> list[Interval]:
    rows = [("all", row), *((text.words(subject), score) for subject, score in row["subjects"].items())]
    return [Interval(f"{label} ({score['n']})", score["accuracy"], _NORMAL_95 * score["stderr"]) for label, score in rows]


def _samples(found: dict[str, Any], kind: str) -> list[Sample]:
    return [Sample(text.excerpt(item["prompt"], _SAMPLE), text.excerpt(item["text"], _SAMPLE)) for item in found["samples"].get(kind, [])]
