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
from openmai.report.plots import Level, Line, Plot, curves, heat_map

TITLES = {"pretrain": "Pretraining", "sft": "Supervised fine-tuning", "dpo": "Preference learning"}
_SETTLED = 0.25
"share of the steps, at the end, over which the load of experts is averaged"


@dataclass(frozen=True)
class Training:
    """Everything the page says about one checkpoint."""

    step: str
    title: str
    facts: list[tuple[str, str]]
    plots: list[Plot]


def describe(run: Run, checkpoint: Artifact) -> Training:
    """Draw the curves of a checkpoint."""
    events = list(read_events(checkpoint.path / "events.jsonl"))
    trained = [event for event in events if event["kind"] == "train"]
    measured = [event for event in events if event["kind"] == "eval"]
    kind, name = role(checkpoint), checkpoint.path.name
    own = {"pretrain": _pretrain_plots, "sft": _sft_plots, "dpo": _dpo_plots}[kind]
    drawn = [*own(run, checkpoint, trained, measured), *_common_plots(name, trained), *_expert_plots(name, trained)]
    return Training(name, TITLES[kind], _facts(checkpoint, trained), [plot for plot in drawn if plot])


def _facts(checkpoint: Artifact, trained: list[dict[str, Any]]) -> list[tuple[str, str]]:
    facts = [("steps", f"{len(trained):,}"), ("tokens seen", text.count(sum(event["tokens"] for event in trained)))]
    seconds = sum(event["seconds"] for event in trained)
    if seconds:
        facts.append(("speed", f"{text.count(sum(event['tokens'] for event in trained) / seconds)} tokens/s"))
    optimizer = checkpoint.config.get("optimizer", {}).get("name")
    facts += [("optimizer", optimizer)] if optimizer else []
    facts += [(text.words(name), _metric(name, value)) for name, value in checkpoint.metrics.items() if name not in ("parameters", "tokens")]
    return [("model", describe_model(checkpoint)), *facts, ("time", duration(checkpoint.seconds))]


def _metric(name: str, value: Any) -> str:
    if isinstance(value, float):
        return text.percent(value, 0) if name.endswith("accuracy") else text.figure(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def describe_model(checkpoint: Artifact) -> str:
    """Say in a few words what the network is."""
    if "model.json" not in checkpoint.files:
        return "–"
    model = read_json(checkpoint.path / "model.json")
    moe = model.get("moe")
    experts = f", {moe['num_experts']} experts, {moe['num_active']} active" if moe else ""
    return f"{model['num_layers']} layers, width {model['width']}, {model['num_heads']} heads{experts}"


def points(events: Iterable[dict[str, Any]], name: str, scale: float = 1.0) -> list[tuple[float, float]]:
    """Return (step, value) where `name` is recorded and finite."""
    return [(event["step"], event[name] * scale) for event in events if name in event and math.isfinite(event[name])]


def _pretrain_plots(run: Run, checkpoint: Artifact, trained: list[dict], measured: list[dict]) -> list[Plot | None]:
    name = checkpoint.path.name
    start = [(0.0, checkpoint.metrics["untrained_val_bpb"])] if "untrained_val_bpb" in checkpoint.metrics else []
    bpb = Line("validation", start + points(measured, "val_bpb"), "s2", measured=True)
    levels = [Level(label, value) for label, value in baselines(run, checkpoint).items()]
    note = "Bits that the model needs per byte of text it has not seen; dashed: models that count words and pairs of words." if levels else ""
    return [
        curves("Training loss (nats per token)", [Line("training", points(trained, "loss"), noisy=True)], key=f"{name} loss"),
        curves("Validation (bits per byte)", [bpb], levels, note=note, key=f"{name} bpb"),
    ]


def _sft_plots(run: Run, checkpoint: Artifact, trained: list[dict], measured: list[dict]) -> list[Plot | None]:
    before = checkpoint.metrics.get("val_loss_before")
    start = [(0.0, before)] if before is not None and math.isfinite(before) else []
    lines = [Line("training", points(trained, "loss"), noisy=True), Line("held out", start + points(measured, "val_loss"), "s2", measured=True)]
    return [curves("Loss on the assistant's words (nats per token)", lines, key=f"{checkpoint.path.name} loss")]


def _dpo_plots(run: Run, checkpoint: Artifact, trained: list[dict], measured: list[dict]) -> list[Plot | None]:
    name, beta = checkpoint.path.name, checkpoint.config.get("beta", 1.0)
    undecided = [Level("undecided", math.log(2))] if checkpoint.config.get("loss", "sigmoid") == "sigmoid" else []
    accuracy = [Line("training", points(trained, "accuracy"), noisy=True), Line("held out", points(measured, "val_accuracy"), "s2", measured=True)]
    margin = [Line("training", points(trained, "margin"), noisy=True), Line("held out", points(measured, "val_margin", beta), "s2", measured=True)]
    answers = [Line("chosen", points(trained, "chosen"), "s3", noisy=True), Line("rejected", points(trained, "rejected"), "bad", noisy=True)]
    return [
        curves("Preference loss", [Line("training", points(trained, "loss"), noisy=True)], undecided, key=f"{name} loss"),
        curves("Pairs in which the chosen answer gained", accuracy, [Level("chance", 0.5)], form="share", key=f"{name} accuracy"),
        curves("Reward margin", margin, note=f"Gain of the chosen over the rejected answer in nats, times β = {beta:g}.", key=f"{name} margin"),
        curves("Log-probability of the answers (nats)", answers, key=f"{name} answers"),
    ]


def _common_plots(name: str, trained: list[dict]) -> list[Plot | None]:
    speed = [(event["step"], event["tokens"] / event["seconds"]) for event in trained if event.get("seconds")]
    return [
        curves("Learning rate (share of its peak)", [Line("rate", points(trained, "lr"), "s3")], form="share", key=f"{name} lr"),
        curves("Gradient norm", [Line("norm", points(trained, "grad_norm"), "s4", noisy=True)], key=f"{name} norm"),
        curves("Tokens per second", [Line("tokens/s", speed, "s3", noisy=True)], form="count", key=f"{name} speed"),
    ]


def _expert_plots(name: str, trained: list[dict]) -> list[Plot | None]:
    loads = [(event["step"], event["expert_load"]) for event in trained if event.get("expert_load")]
    if not loads:
        return []
    settled = [load for _, load in loads[-max(1, round(_SETTLED * len(loads))) :]]
    layers, experts = len(settled[0]), len(settled[0][0])
    mean = [[experts * sum(load[layer][expert] for load in settled) / len(settled) for expert in range(experts)] for layer in range(layers)]
    fullest = [(step, max(experts * max(layer) for layer in load)) for step, load in loads]
    idlest = [(step, min(experts * min(layer) for layer in load)) for step, load in loads]
    note = f"Tokens an expert gets, over the last {len(settled)} steps; 1 is a fair share."
    extremes = [Line("fullest expert", fullest, "bad", noisy=True), Line("idlest expert", idlest, "s1", noisy=True)]
    return [
        heat_map("Expert load", mean, "layer", "expert", note, f"{name} load"),
        curves("Load of the fullest and the idlest expert", extremes, [Level("fair share", 1.0)], key=f"{name} extremes"),
    ]


def baselines(run: Run, checkpoint: Artifact) -> dict[str, float]:
    """Return bits per byte of the n-gram models on the same shards, from any eval artifact of the run."""
    shards = {parent.digest for parent in run.parents(checkpoint) if parent.kind == "shards"}
    for evaluation in run.of("eval"):
        if shards & {source["digest"] for source in evaluation.inputs}:
            found = read_json(evaluation.path / "results.json").get("baselines", {})
            return {name: row["all"] for name, row in found.items() if "all" in row}
    return {}
