"""`openmai plan`: parameters, FLOPs, memory and cost of one model, or the list of all presets."""

from __future__ import annotations

import json
from dataclasses import asdict

from openmai.model.config import load_preset, preset_names
from openmai.model.count import count_parameters
from openmai.plan.config import PlanConfig
from openmai.plan.make import make_plan
from openmai.plan.show import show_plan, show_presets


def plan(config: PlanConfig) -> None:
    """Print what `config.model` costs, or all presets when it is empty."""
    if not config.model:
        models = [(name, load_preset(name)) for name in preset_names()]
        presets = [{"name": name, "context": model.context, **asdict(count_parameters(model))} for name, model in models]
        print(json.dumps(presets, indent=2) if config.as_json else show_presets(presets))
        return
    made = make_plan(config)
    print(json.dumps({**asdict(made), "gpu": made.gpu.model_dump()}, indent=2) if config.as_json else show_plan(made))
