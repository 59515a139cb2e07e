"""Configuration of `openmai report`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from openmai.base.config import Config


class ReportConfig(Config):
    """Describe everything that a run has finished so far on one page."""

    run: CliPositionalArg[Path] = Path("runs/laptop")
    "folder of the run: its sub-folders are the artifacts of its steps"
    out: Path | None = None
    "folder of the report artifact; by default `report` in the run's folder"
    price_per_hour: float | None = Field(None, ge=0)
    "what the machine costs per hour, in dollars; adds a cost to every step"
    examples: int = Field(3, ge=0)
    "rejected pages shown per rule"
