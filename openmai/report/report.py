"""`report`: one self-contained HTML page on a run, without scripts and without anything from outside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from openmai.base.artifact import Artifact, create
from openmai.base.files import atomic_file
from openmai.base.progress import duration, say
from openmai.report import documents, evaluation, lineage, text, tokenizer, training
from openmai.report.artifacts import KIND, Run, lead_of
from openmai.report.config import ReportConfig
from openmai.report.machine import this_machine

PAGE = "report.html"


@dataclass(frozen=True)
class Card:
    """A headline figure."""

    label: str
    value: str
    note: str


def report(config: ReportConfig) -> Artifact:
    """Write `report.html` about everything that is finished in `config.run`."""
    run = Run.load(config.run)
    out = config.out or config.run / "report"
    with create(out, kind=KIND, version=1, config=config, inputs=run.artifacts) as work:
        if work.finished:
            return work.finished
        html = render(run, config)
        with atomic_file(work.path / PAGE, "w") as file:
            file.write(html)
        say(f"report: {work.path / PAGE}, {text.size(len(html.encode()))}")
        return work.finish({"steps": len(run.artifacts), "bytes": len(html.encode())})


def render(run: Run, config: ReportConfig) -> str:
    """Return the page."""
    machine = this_machine()
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": text.percent, "figure": text.figure, "count": text.count}
    described = [documents.describe(artifact, run.parents(artifact), config.examples) for artifact in run.of("documents")]
    return environment.get_template("page.html").render(
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        run=run,
        date=max(artifact.created for artifact in run.artifacts)[:10],
        machine=machine,
        cards=_cards(run),
        documents=[found for found in described if found],
        tokenizers=[tokenizer.describe(run, artifact) for artifact in run.of("tokenizer")],
        trainings=[training.describe(run, checkpoint) for checkpoint in run.of("checkpoint") if "events.jsonl" in checkpoint.files],
        evaluation=evaluation.describe(run),
        lineage=lineage.describe(run),
        costs=lineage.costs(run, machine, config.price_per_hour),
        price_per_hour=config.price_per_hour,
        code=sorted({artifact.code for artifact in run.artifacts}),
    )


def _cards(run: Run) -> list[Card]:
    pretrained, measured = lead_of(run)
    cards = _document_cards(run)
    if pretrained:
        cards += _model_cards(run, pretrained)
    if measured:
        cards += [_question_card(name, score) for name, score in evaluation.headline(measured).items()]
    total = sum(artifact.seconds for artifact in run.artifacts)
    longest = max(run.artifacts, key=lambda artifact: artifact.seconds)
    return [*cards, Card("time", duration(total), f"{longest.path.name} took {text.percent(longest.seconds / total if total else 0.0, 0)}")]


def _question_card(name: str, score: dict[str, Any]) -> Card:
    note = f"± {100 * score['stderr']:.1f} · chance {text.percent(score['chance'], 0)} · {score['n']:,} questions"
    return Card(f"{name} questions", text.percent(score["accuracy"]), note)


def _document_cards(run: Run) -> list[Card]:
    found = [artifact.metrics for artifact in run.of("documents") if "rejected" in artifact.metrics]
    if not found:
        return []
    kept, rejected = (sum(metrics[name] for metrics in found) for name in ("documents", "rejected"))
    size = text.size(sum(metrics["bytes"] for metrics in found))
    return [Card("documents kept", text.count(kept), f"of {kept + rejected:,} read, {size} of text")]


def _model_cards(run: Run, checkpoint: Artifact) -> list[Card]:
    metrics = checkpoint.metrics
    stored = sum(tokenizer.train_tokens(shards) for shards in run.parents(checkpoint) if shards.kind == "shards")
    epochs = f"{metrics['tokens'] / stored:.2f} epochs of {text.count(stored)}" if stored else ""
    others = {"untrained": metrics.get("untrained_val_bpb"), **training.baselines(run, checkpoint)}
    compared = " · ".join(f"{name} {value:.2f}" for name, value in others.items() if value is not None)
    return [
        Card("parameters", text.count(metrics["parameters"]), training.describe_model(checkpoint)),
        Card("training tokens", text.count(metrics["tokens"]), epochs),
        Card("bits per byte", text.figure(metrics["val_bpb"]), compared),
    ]
