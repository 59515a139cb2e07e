"""Configuration of `openmai run`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic_settings import CliPositionalArg, CliUnknownArgs

from openmai.base.config import Config


class RunConfig(Config):
    """Run a recipe; `--<step>.<key>=<value>` overrides a setting of one of its steps, `--out=DIR` its folder."""

    takes_overrides: ClassVar[bool] = True

    recipe: CliPositionalArg[Path]
    "recipe file (YAML)"
    overrides: CliUnknownArgs = []
