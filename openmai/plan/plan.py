"""`openmai plan`: what a model takes on a cluster, which model a budget buys, or the list of all presets."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from openmai.base.config import parse_arguments, validate
from openmai.model.config import load_preset, preset_names
from openmai.model.count import count_parameters
from openmai.plan.budget import plan_budget, show_budget
from openmai.plan.config import PlanConfig
from openmai.plan.make import Plan, make_plan
from openmai.plan.show import show_plan, show_presets, show_versus


def plan(config: PlanConfig) -> None:
    """Print what `config` asks for, and write the files that it names."""
    if not config.model:
        print(_without_model(config))
        return
    made = make_plan(config)
    other = make_plan(_other(config)) if config.versus else None
    if config.html:
        from openmai.plan.page import write_page

        write_page(config.html, made, other)
    if config.emit:
        from openmai.plan.recipe import emit_recipe

        emit_recipe(config, made)
    if config.as_json:
        values = as_values(made) | ({"versus": as_values(other)} if other else {})
        print(json.dumps(values, indent=2))
        return
    print(show_plan(made))
    if other:
        print(show_versus(made, other, config.versus))
    if config.html:
        print(f"\npage: {config.html}")
    if config.emit:
        print(f"\nrecipe and launch files: {config.out}")


def _without_model(config: PlanConfig) -> str:
    if config.budget:
        found = plan_budget(config)
        return json.dumps(asdict(found), indent=2) if config.as_json else show_budget(found)
    models = [(name, load_preset(name)) for name in preset_names()]
    presets = [{"name": name, "context": model.context, **asdict(count_parameters(model))} for name, model in models]
    return json.dumps(presets, indent=2) if config.as_json else show_presets(presets)


def _other(config: PlanConfig) -> PlanConfig:
    """Return the configuration that `versus` makes of this one."""
    changes = [f"--{word.removeprefix('--')}" for word in config.versus.replace(",", " ").split()]
    base: dict[str, Any] = config.model_dump(by_alias=True, exclude={"versus", "html", "emit", "json"})
    return validate(PlanConfig, base | parse_arguments(PlanConfig, changes, "openmai plan --versus"), "versus")


def as_values(made: Plan) -> dict[str, Any]:
    """Return a plan as plain values."""
    return _plain(asdict(made))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
