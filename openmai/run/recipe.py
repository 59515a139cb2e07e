"""A recipe: the steps of a run, each a verb with its configuration, in one short YAML file.

    out: runs/laptop
    steps:
      pages:     {verb: data snapshot, max_pages: 600}
      documents: {verb: data build, sources: [{name: docs, path: $pages}]}

`$name` stands for the folder of another step, `$out` for the folder of the run; a step writes to `$out/<its name>`.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmai.base.config import Config, merge, parse_arguments, read_yaml, validate
from openmai.base.errors import OpenmaiError
from openmai.base.verb import Verb


class Recipe(Config):
    """The contents of a recipe file."""

    description: str = ""
    "what the recipe is for"
    out: Path
    "folder of the run"
    steps: dict[str, dict[str, Any]]
    "by name, in order: `verb` and the settings of that verb"
    next: list[str] = []
    "commands to try afterwards"


@dataclass(frozen=True)
class Step:
    """One step, checked and ready to run."""

    name: str
    command: str
    verb: Verb
    config: Config


def load_recipe(file: Path, arguments: list[str]) -> tuple[Recipe, list[Step]]:
    """Read a recipe with overrides (`--out=DIR`, `--<step>.<key>=value`), and check every step before anything runs."""
    own, by_step = _sort_arguments(arguments)
    recipe = validate(Recipe, merge(read_yaml(file), own), str(file))
    unknown = set(by_step) - set(recipe.steps)
    if unknown:
        raise OpenmaiError(f"--{min(unknown)}: {file} has no such step; its steps: {', '.join(recipe.steps)}")
    return recipe, [_step(recipe, name, by_step.get(name, []), file) for name in recipe.steps]


def _sort_arguments(arguments: list[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    own: dict[str, str] = {}
    by_step: dict[str, list[str]] = {}
    for argument in arguments:
        match = re.fullmatch(r"--([\w-]+)(?:\.([\w.-]+))?=(.*)", argument, re.DOTALL)
        if match is None:
            raise OpenmaiError(f"{argument}: not understood; override a recipe with --out=DIR or --<step>.<key>=<value>")
        name, key, value = match.groups()
        if key:
            by_step.setdefault(name, []).append(f"--{key}={value}")
        else:
            own[name] = value
    return own, by_step


def _step(recipe: Recipe, name: str, arguments: list[str], file: Path) -> Step:
    where = f"{file}: steps.{name}"
    values = dict(recipe.steps[name])
    command = values.pop("verb", None)
    if not isinstance(command, str):
        raise OpenmaiError(f"{where}: needs `verb: <stage> <verb>`")
    verb = _find_verb(command, where)
    folders = {"out": str(recipe.out), **{step: str(recipe.out / step) for step in recipe.steps}}
    values = _fill_in({"out": f"${name}", **values}, folders, where)
    kind = verb.load_config()
    return Step(name, command, verb, validate(kind, merge(values, parse_arguments(kind, arguments, name) if arguments else {}), where))


def _find_verb(command: str, where: str) -> Verb:
    stage, _, name = command.partition(" ")
    try:
        verbs: dict[str, Verb] = importlib.import_module(f"openmai.{stage}.verbs").VERBS
    except ModuleNotFoundError:
        raise OpenmaiError(f"{where}: unknown stage '{stage}' in verb '{command}'") from None
    if name not in verbs:
        raise OpenmaiError(f"{where}: unknown verb '{command}'; known: {', '.join(f'{stage} {verb}'.strip() for verb in verbs)}")
    return verbs[name]


def _fill_in(value: Any, folders: dict[str, str], where: str) -> Any:
    """Replace `$name` at the start of strings by the folder it stands for."""
    if isinstance(value, dict):
        return {key: _fill_in(item, folders, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_in(item, folders, where) for item in value]
    match = re.match(r"\$(\w+)", value) if isinstance(value, str) else None
    if match is None:
        return value
    if match[1] not in folders:
        raise OpenmaiError(f"{where}: ${match[1]} is not a step; steps: {', '.join(folders)}")
    return folders[match[1]] + value[match.end() :]
