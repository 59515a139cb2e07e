"""Configuration: frozen pydantic models, YAML files, command-line overrides, and errors that name key, value and remedy."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from openmai.base.errors import OpenmaiError


class Config(BaseModel):
    """Base of every configuration: immutable, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    not_in_key: ClassVar[tuple[str, ...]] = ()
    "fields that change how the work is done but not what comes out; they may change without making it anew"
    takes_overrides: ClassVar[bool] = False
    "collect unknown `--key=value` arguments in a field of type CliUnknownArgs instead of refusing them"


C = TypeVar("C", bound=Config)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping from `path`."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise OpenmaiError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise OpenmaiError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise OpenmaiError(f"{path}: expected a mapping of keys to values, found {type(value).__name__}")
    return value


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `override`, mapping by mapping."""
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def validate(kind: type[C], values: Mapping[str, Any], where: str) -> C:
    """Build a `kind` from plain values; every problem becomes one OpenmaiError that starts with `where`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [_explain(kind, problem) for problem in error.errors()]
        raise OpenmaiError(f"{where}: " + "; ".join(problems)) from None


def parse_arguments(kind: type[Config], arguments: list[str], program: str, description: str = "") -> dict[str, Any]:
    """Turn `--a.b=value` arguments into nested plain values for `kind`; `--help` prints its docstring and every field, and exits.

    Raises OpenmaiError for an unknown option or one without its value.
    """
    from pydantic_settings import BaseSettings, CliSettingsSource
    from pydantic_settings.exceptions import SettingsError

    settings = type(kind.__name__, (BaseSettings, kind), {"__doc__": kind.__doc__ or description, "__module__": kind.__module__})
    try:
        source: Any = CliSettingsSource(
            settings,
            cli_parse_args=[_as_flag(kind, argument) for argument in arguments],
            cli_prog_name=program,
            cli_implicit_flags=True,
            cli_hide_none_type=True,
            cli_avoid_json=True,
            cli_parse_none_str="null",
            cli_use_class_docs_for_groups=False,
            cli_exit_on_error=False,
            cli_ignore_unknown_args=kind.takes_overrides,
            formatter_class=_HelpFormatter,
        )
        return source()
    except SettingsError as error:
        raise OpenmaiError(f"{program}: {_explain_arguments(kind, str(error), program)}") from None


def _as_flag(kind: type[Config], argument: str) -> str:
    """Write `--a.b=true` and `--a.b=false` of a yes-or-no field as the flags `--a.b` and `--no-a.b`, which the parser knows."""
    match = re.fullmatch(r"--([\w.]+)=(true|false)", argument, re.IGNORECASE)
    if match is None:
        return argument
    *path, name = match[1].split(".")
    models: list[type[BaseModel]] = [kind]
    for part in path:
        models = [inner for model in models if part in model.model_fields for inner in _models_in(model.model_fields[part].annotation)]
    if not any(name in model.model_fields and model.model_fields[name].annotation is bool for model in models):
        return argument
    return f"--{match[1]}" if match[2].lower() == "true" else f"--no-{match[1]}"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One line of usage instead of a list of all options, and no default where there is none to speak of."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)

    def add_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None) -> None:
        positional = [action for action in actions if not action.option_strings]
        names = [f"[{action.metavar}]" if action.nargs == "?" or not action.required else str(action.metavar) for action in positional]
        super().add_usage(" ".join([self._prog, *names, "[--key=value ...] [--config FILE.yaml]"]), [], [], prefix)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return re.sub(r" \(default(: null|: |: \(\)|: \[\]|: \{\}| factory: .*)\)", "", action.help or "")


def _explain_arguments(kind: type[Config], message: str, program: str) -> str:
    """Turn argparse's message into what was found and the remedy."""
    message = message.removeprefix("error parsing CLI: ")
    unknown = re.match(r"unrecognized arguments: (\S+)", message)
    if unknown is None:
        return f"{message}; `{program} --help` lists every setting"
    given = unknown[1].partition("=")[0]
    close = difflib.get_close_matches(given, [f"--{name}" for name in _option_names(kind)], n=1)
    hint = f"did you mean {close[0]}?" if close and given.startswith("-") else f"`{program} --help` lists every setting"
    return f"unknown option {given}; {hint}"


def _option_names(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Names of all settings of `kind`, dotted where they are nested."""
    names = []
    for field, info in kind.model_fields.items():
        name = f"{prefix}{info.alias or field}"
        inner = info.annotation if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel) else None
        names += [name] if inner is None else _option_names(inner, f"{name}.")
    return names


def _explain(kind: type[BaseModel], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "configuration"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(kind, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{key}: required, but not given"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if problem["type"] == "value_error" else f"{key}={problem['input']!r}: {message}"


def _fields_at(kind: Any, location: tuple[Any, ...]) -> list[str]:
    """Names of the fields at a validation location, walking through optionals, unions and lists."""
    models = _models_in(kind)
    for part in location:
        models = [m for model in models if part in model.model_fields for m in _models_in(model.model_fields[part].annotation)] or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, list, tuple, dict) or get_args(annotation):
        return [model for part in get_args(annotation) for model in _models_in(part)]
    return []
