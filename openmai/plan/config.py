"""Configuration of the plan stage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import CliPositionalArg

from openmai.base.config import Config
from openmai.model.stages import Schedule
from openmai.plan.hardware import Precision

_SUFFIXES = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def parse_count(value: Any) -> Any:
    """Turn "15T" into 15e12 and "5M$" into 5e6; anything else is left to pydantic."""
    if isinstance(value, str) and (found := re.fullmatch(r"\$?([\d.]+)([kMBT]?)\$?", value.replace(",", ""))):
        try:
            return float(found[1]) * _SUFFIXES.get(found[2], 1.0)
        except ValueError:
            return value
    return value


Count = Annotated[float, Field(gt=0), BeforeValidator(parse_count)]


class LayoutChoice(Config):
    """Parts of the layout that are fixed; the search chooses the rest."""

    pp: int | None = Field(None, gt=0)
    "pipeline stages"
    virtual: int | None = Field(None, gt=0)
    "chunks of layers per stage; above 1 the schedule is interleaved unless another is given"
    dp_replicate: int | None = Field(None, gt=0)
    "groups that each hold the whole state (HSDP)"
    dp_shard: int | None = Field(None, gt=0)
    "processes that divide the state; with pp, cp and tp it gives the number of GPUs"
    cp: int | None = Field(None, gt=0)
    "processes that divide each sequence"
    tp: int | None = Field(None, gt=0)
    "processes that divide each matrix"
    ep: int | None = Field(None, gt=0)
    "processes that divide the experts, folded over dp_shard x cp x tp"
    zero: int | None = Field(None, ge=0, le=3)
    "what dp_shard divides: 1 optimizer state, 2 and gradients, 3 and weights (FSDP); free: 1 or 3"
    schedule: Schedule | None = None
    "order of micro-batches in the pipeline"
    micro_rows: int | None = Field(None, gt=0)
    "sequences per forward pass"
    checkpointing: Literal["none", "selective", "full"] | None = None
    "what is computed again in the backward pass"


class PlanConfig(Config):
    """Say what a model takes, before anything is rented: memory, days, money, failures, a layout."""

    model: CliPositionalArg[str] = ""
    "a preset, a YAML file with an architecture, or a checkpoint folder; without it, all presets are listed"
    seq: int | None = Field(None, gt=0)
    "tokens per training sequence; default: the model's context, at most 8192"
    tokens: Count | None = None
    "training tokens, as 15e12 or 15T: adds days, energy and money"
    batch: Count | None = None
    "tokens per optimizer step; default: by published laws (plan/laws.py)"
    gpu: str = "h100"
    "GPU of the cluster: a name in plan/data/gpus.yaml, or a YAML file of your own"
    gpus: int | None = Field(None, gt=0)
    "number of GPUs; without it, the fewest that are done within `days`"
    days: float | None = Field(None, gt=0)
    "deadline; with `tokens`, the smallest cluster that keeps it is looked for (default 30)"
    budget: Count | None = None
    "dollars, as 5M$: with a model, the tokens that they buy; without one, which model to train"
    precision: Precision = "bf16"
    "of matrix products"
    software: str = "auto"
    "calibration by name, or auto: the nearest to the GPU, the precision and the kind of model"
    layout: LayoutChoice = LayoutChoice()
    mfu: float | None = Field(None, gt=0, lt=1)
    "in place of the time model: the share of the GPU's dense bf16 peak that training is to keep up"
    goodput: float | None = Field(None, gt=0, le=1)
    "in place of the failure model: the share of the wall time in useful steps"
    fleet: str = "llama-3"
    "how often machines fail: a name in plan/data/fleets.yaml, or a YAML file"
    storage_gb_s: float = Field(200.0, gt=0)
    "10^9 bytes per second that checkpoints are written at, all together"
    stall_seconds: float = Field(10.0, gt=0)
    "that training waits for a checkpoint: copying it aside, if it is written asynchronously"
    grid: str = "us"
    "emissions of electricity, a name in plan/data/grids.yaml"
    serve: bool = False
    "add what serving the result takes"
    serve_precision: Literal["bf16", "fp8", "int4"] = "bf16"
    "of the served weights"
    device: str = ""
    "run on one device instead: phone, laptop, ... or a YAML file"
    versus: str = ""
    "a second plan to compare with: settings that differ, as 'gpu=gb200 gpus=8192'"
    html: Path | None = None
    "write a page with plots there"
    emit: Literal["", "recipe"] = ""
    "recipe: write the recipe and launch files (torchrun, Slurm, Kubernetes) to `out`"
    out: Path = Path("plan")
    "folder of emitted files"
    as_json: bool = Field(False, alias="json")
    "print JSON for programs instead of a table"

    @model_validator(mode="after")
    def _possible(self) -> PlanConfig:
        if not self.model and (self.tokens or self.gpus or self.device or self.emit or self.html) and not self.budget:
            raise ValueError("name a model; `openmai plan` lists them")
        if self.emit and not (self.gpus and self.tokens):
            raise ValueError("emit needs gpus and tokens")
        return self
