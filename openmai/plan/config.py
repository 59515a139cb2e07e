"""Configuration of the plan stage."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import CliPositionalArg

from openmai.base.config import Config

_SUFFIXES = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def parse_count(value: Any) -> Any:
    """Turn "15T" into 15e12; anything else is left to pydantic."""
    if isinstance(value, str) and value[-1:] in _SUFFIXES:
        try:
            return float(value[:-1]) * _SUFFIXES[value[-1]]
        except ValueError:
            return value
    return value


class PlanConfig(Config):
    """Say what a model costs to train and to run, before anything is rented."""

    model: CliPositionalArg[str] = ""
    "a preset, a YAML file with an architecture, or a checkpoint folder; without it, all presets are listed"
    seq: int | None = Field(None, gt=0)
    "tokens per training sequence; default: the model's context"
    tokens: Annotated[float, Field(gt=0), BeforeValidator(parse_count)] | None = None
    "training tokens, as 15e12 or 15T: adds time, energy and money"
    gpu: str = "h100"
    "GPU of the cluster, a name in plan/hardware.yaml"
    gpus: int | None = Field(None, gt=0)
    "number of GPUs: turns GPU-days into days"
    mfu: float = Field(0.35, gt=0, lt=1)
    "model FLOPs utilisation, an assumption: the share of the GPU's dense bf16 peak that training keeps up"
    goodput: float = Field(0.9, gt=0, le=1)
    "share of the wall time that is not lost to failures and restarts, an assumption"
    as_json: bool = Field(False, alias="json")
    "print JSON for programs instead of a table"
