"""The curves of a checkpoint: pretraining, fine-tuning and preference learning from one stream of events."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from openmai.base.artifact import Artifact
from openmai.base.events import read_events
from openmai.base.files import read_json
from openmai.base.progress import duration
from openmai.report import text
from openmai.report.artifacts import Run, role
from openmai.report.plots import Curves, HeatMap, Level, Line, Plot, draw_all

TITLES = {"pretrain": "Pretraining", "sft": "Supervised fine-tuning", "dpo": "Preference learning"}
_METRICS = {
    "val_bpb": "held-out bpb",
    "untrained_val_bpb": "untrained bpb",
    "val_loss": "held-out loss",
    "val_loss_before": "before",
    "val_accuracy": "held-out accuracy",
    "val_margin": "held-out margin",
    "val_pairs": "held-out pairs",
}
_SETTLED = 0.25
"share of the steps, at the end, over which the load of experts is averaged"


@dataclass(frozen=True)
class Training:
    """Everything the page says about one checkpoint."""

    step: str
    title: str
    model: str
    facts: list[tuple[str, str]]
    plots: list[Plot]


def describe(run: Run, checkpoint: Artifact) -> Training:
    """Draw the curves of a checkpoint."""
    events = list(read_events(checkpoint.path / "events.jsonl"))
    trained = [event for event in events if event["kind"] == "train"]
    measured = [event for event in events if event["kind"] == "eval"]
    kind = role(checkpoint)
    own = {"pretrain": _pretrain_figures, "sft": _sft_figures, "dpo": _dpo_figures}[kind]
    figures = [*own(run, checkpoint, trained, measured), *_expert_figures(trained), *_common_figures(trained)]
    name, model = checkpoint.path.name, describe_model(checkpoint)
    return Training(name, TITLES[kind], model, _facts(checkpoint, trained), draw_all(figures, name))


def _facts(checkpoint: Artifact, trained: list[dict[str, Any]]) -> list[tuple[str, str]]:
    tokens, seconds = (sum(event[name] for event in trained) for name in ("tokens", "seconds"))
    metrics = [
        (_METRICS.get(name, text.words(name)), _metric(name, value))
        for name, value in checkpoint.metrics.items()
        if name not in ("parameters", "tokens")
    ]
    return [
        ("optimizer", checkpoint.config.get("optimizer", {}).get("name", "–")),
        ("steps", f"{len(trained):,}"),
        ("tokens seen", text.count(tokens)),
        ("speed", f"{text.count(tokens / seconds)} tokens/s" if seconds else "–"),
        ("time", duration(checkpoint.seconds)),
        *metrics,
    ]


def _metric(name: str, value: Any) -> str:
    if isinstance(value, float):
        return text.percent(value, 0) if name.endswith("accuracy") else text.figure(value) + " nats" * name.endswith("margin")
    return f"{value:,}" if isinstance(value, int) else str(value)


def describe_model(checkpoint: Artifact) -> str:
    """Say in a few words what the network is."""
    if "model.json" not in checkpoint.files:
        return "–"
    model = read_json(checkpoint.path / "model.json")
    moe = model.get("moe")
    experts = f", {moe['num_experts']} experts, {moe['num_active']} active" if moe else ""
    return f"{model['num_layers']} layers, width {model['width']}, {model['num_heads']} heads{experts}"


def points(events: Iterable[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return (step, value) where `name` is recorded and finite."""
    return [(event["step"], event[name]) for event in events if name in event and math.isfinite(event[name])]


def _training(trained: list[dict], name: str) -> Line:
    return Line("training", points(trained, name), noisy=True)


def _pretrain_figures(run: Run, checkpoint: Artifact, trained: list[dict], measured: list[dict]) -> list[Curves | HeatMap]:
    start = [(0.0, checkpoint.metrics["untrained_val_bpb"])] if "untrained_val_bpb" in checkpoint.metrics else []
    bpb = Line("validation", start + points(measured, "val_bpb"), "s2", measured=True)
    levels = [Level(label, value) for label, value in baselines(run, checkpoint).items()]
    note = "Dashed: models that only know how often tokens and pairs of tokens occur." if levels else ""
    return [
        Curves("Training loss", [_training(trained, "loss")], unit="nats per token"),
        Curves("Held-out text", [bpb], levels, unit="bits per byte", note=note),
    ]


def _sft_figures(run: Run, checkpoint: Artifact, trained: list[dict], measured: list[dict]) -> list[Curves | HeatMap]:
    before = checkpoint.metrics.get("val_loss_before")
    start = [(0.0, before)] if before is not None and math.isfinite(before) else []
    lines = [_training(trained, "loss"), Line("held out", start + points(measured, "val_loss"), "s2", measured=True)]
    return [Curves("Loss on answers", lines, unit="nats per token")]


def _dpo_figures(run: Run, checkpoint: Artifact, trained: list[dict], measured: list[dict]) -> list[Curves | HeatMap]:
    undecided = [Level("undecided", math.log(2))] if checkpoint.config.get("loss", "sigmoid") == "sigmoid" else []
    accuracy = [_training(trained, "accuracy"), Line("held out", points(measured, "val_accuracy"), "s2", measured=True)]
    margin = [_training(trained, "margin"), Line("held out", points(measured, "val_margin"), "s2", measured=True)]
    answers = [Line(name, points(trained, name), color, noisy=True) for name, color in (("chosen", "s3"), ("rejected", "bad"))]
    return [
        Curves("Preference loss", [_training(trained, "loss")], undecided, unit="nats per pair"),
        Curves("Chosen answer gained", accuracy, [Level("chance", 0.5)], unit="of pairs", form="share"),
        Curves("Margin", margin, unit="nats"),
        Curves("Log-probability of answers", answers, unit="nats"),
    ]


def _common_figures(trained: list[dict]) -> list[Curves | HeatMap]:
    speed = [(event["step"], event["tokens"] / event["seconds"]) for event in trained if event.get("seconds")]
    return [
        Curves("Learning rate", [Line("rate", points(trained, "lr"), "s3")], unit="of its peak", form="share", floor=0.0),
        Curves("Gradient norm", [Line("norm", points(trained, "grad_norm"), "s4", noisy=True)]),
        Curves("Speed", [Line("speed", speed, "s3", noisy=True)], unit="tokens per second", form="count", floor=0.0),
    ]


def _expert_figures(trained: list[dict]) -> list[Curves | HeatMap]:
    loads = [(event["step"], event["expert_load"]) for event in trained if event.get("expert_load")]
    if not loads:
        return []
    settled = [load for _, load in loads[-max(1, round(_SETTLED * len(loads))) :]]
    layers, experts = len(settled[0]), len(settled[0][0])
    mean = [[experts * sum(load[layer][expert] for load in settled) / len(settled) for expert in range(experts)] for layer in range(layers)]
    fullest = [(step, max(experts * max(layer) for layer in load)) for step, load in loads]
    idlest = [(step, min(experts * min(layer) for layer in load)) for step, load in loads]
    extremes = [Line("fullest", fullest, "bad", noisy=True), Line("idlest", idlest, "s1", noisy=True)]
    return [
        HeatMap("Expert load", mean, "layer", "expert", f"Tokens per expert over the last {len(settled)} steps; 1 is a fair share."),
        Curves("Fullest and idlest expert", extremes, [Level("fair", 1.0)], note="Of all layers, in fair shares."),
    ]


def baselines(run: Run, checkpoint: Artifact) -> dict[str, float]:
    """Return bits per byte of the n-gram models on the same shards, from any eval artifact of the run."""
    shards = {parent.digest for parent in run.parents(checkpoint) if parent.kind == "shards"}
    for evaluation in run.of("eval"):
        if shards & {source["digest"] for source in evaluation.inputs}:
            found = read_json(evaluation.path / "results.json").get("baselines", {})
            return {name: row["all"] for name, row in found.items() if "all" in row}
    return {}
