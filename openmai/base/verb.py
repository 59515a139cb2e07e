"""A verb of the command line: its configuration and its function, named but not imported until they are needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openmai.base.config import Config


@dataclass(frozen=True)
class Verb:
    """`run` and `config` are "module:name"; `help` is one line."""

    config: str
    run: str
    help: str

    def load_config(self) -> type[Config]:
        return _find(self.config)

    def load_run(self) -> Callable[[Any], Any]:
        return _find(self.run)


def _find(reference: str) -> Any:
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)
