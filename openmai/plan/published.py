"""Published speeds and memory: the rows of data/throughput.csv as plans that can be compared with what was measured."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache

from openmai.base.config import read_yaml, validate
from openmai.model.config import ModelConfig, load_preset, preset_names
from openmai.model.count import count_parameters, flops_per_token
from openmai.plan.hardware import DATA
from openmai.plan.layout import Layout

MODELS = DATA / "published_models.yaml"


@dataclass(frozen=True)
class Row:
    """One published measurement, as far as the plan can take it."""

    name: str
    table: str
    model_name: str
    model: ModelConfig
    sequence: int
    gpu: str
    gpus: int
    software: str
    precision: str
    layout: Layout
    batch_rows: int
    options: tuple[str, ...]
    tokens_per_s_per_gpu: float
    "measured, or derived from the measured step time or TFLOP/s under the row's convention"
    memory_gib: float | None
    note: str
    source: str

    @property
    def is_moe(self) -> bool:
        return self.model.moe is not None

    @property
    def step_s(self) -> float:
        return self.batch_rows * self.sequence / self.gpus / self.tokens_per_s_per_gpu


@cache
def published_model(name: str, layers: int | None = None) -> ModelConfig:
    """Return a preset or a model of published_models.yaml; `layers` cuts it short, with its first layer dense if its first ones are."""
    model = load_preset(name) if name in preset_names() else validate(ModelConfig, read_yaml(MODELS)[name], f"{MODELS}: {name}")
    if layers is None:
        return model
    changed = model.model_dump() | {"num_layers": layers}
    if changed["moe"] and changed["moe"]["first_dense"]:
        changed["moe"]["first_dense"] = 1
    return ModelConfig.model_validate(changed)


@cache
def read_rows() -> tuple[list[Row], list[tuple[str, str]]]:
    """Read the rows, and beside them those that no plan can be made of, with the reason."""
    rows, left = [], []
    with open(DATA / "throughput.csv", newline="", encoding="utf-8") as file:
        for raw in csv.DictReader(file):
            reason = _unfit(raw)
            if reason:
                left.append((raw["row"], reason))
            else:
                rows.append(_row(raw))
    return rows, left


def _unfit(raw: dict[str, str]) -> str:
    if not raw["model"]:
        return "state-space or gated-delta layers, which ModelConfig does not describe"
    if "lora" in raw["table"]:
        return "LoRA: frozen weights have no gradients"
    if raw["precision"] == "fp8-rowwise":
        return "row-wise scaling, one software's experiment"
    return ""


def _row(raw: dict[str, str]) -> Row:
    model = published_model(raw["model"], int(raw["layers"]) if raw["layers"] else None)
    if "predict" in raw["options"].split():
        model = model.model_copy(update={"num_predict": 1})
    sequence, gpus, batch = int(raw["sequence"]), int(raw["gpus"]), int(raw["batch_rows"])
    parts = {name: int(raw[name]) for name in ("tp", "pp", "cp", "ep", "virtual", "micro_rows")}
    layout = Layout.model_validate(
        {
            **parts,
            "dp_shard": gpus // (parts["tp"] * parts["pp"] * parts["cp"]),
            "zero": int(raw["zero"]),
            "schedule": "interleaved" if parts["virtual"] > 1 else "zero-bubble" if "zero-bubble" in raw["options"] else "1f1b",
            "checkpointing": raw["checkpointing"],
        }
    )
    return Row(
        raw["row"],
        raw["table"],
        raw["model"],
        model,
        sequence,
        raw["gpu"],
        gpus,
        raw["software"],
        raw["precision"],
        layout,
        batch,
        tuple(raw["options"].split()),
        _tokens_per_s(raw, model, sequence, gpus, batch),
        float(raw["memory_gib"]) if raw["memory_gib"] else None,
        raw["note"],
        raw["source"],
    )


def _tokens_per_s(raw: dict[str, str], model: ModelConfig, sequence: int, gpus: int, batch: int) -> float:
    """Return tokens per second and GPU from what the row prints, the most direct figure first."""
    if raw["step_s"]:
        return batch * sequence / gpus / float(raw["step_s"])
    if raw["tokens_per_s_per_gpu"]:
        return float(raw["tokens_per_s_per_gpu"])
    return float(raw["tflops_per_gpu"]) * 1e12 / _flops_per_token(raw["convention"], model, sequence)


def _flops_per_token(convention: str, model: ModelConfig, sequence: int) -> float:
    if convention == "hardware-recompute":  # arXiv:2104.04473, section 5.1: forward twice and backward, the logits once
        body = 2 * (count_parameters(model).active_matmul - model.vocab_size * model.width)
        return 4 * (body + 4 * model.num_layers * model.width * sequence) + 6 * model.vocab_size * model.width
    return flops_per_token(model, sequence, causal=convention != "full")
