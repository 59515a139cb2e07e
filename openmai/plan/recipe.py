"""A plan as files that train takes: the recipe, the configuration of `train pretrain`, and launch files."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from openmai.base.errors import OpenmaiError
from openmai.base.files import atomic_file
from openmai.base.launch import Launch, kubernetes_manifest, slurm_script, torchrun_script
from openmai.model.config import preset_names
from openmai.plan.config import PlanConfig
from openmai.plan.layout import Layout
from openmai.plan.make import Plan

LAYOUT = ("pp", "dp_replicate", "dp_shard", "cp", "tp", "ep", "schedule", "checkpointing")


def emit_recipe(config: PlanConfig, plan: Plan) -> list[Path]:
    """Write recipe.yaml, pretrain.yaml, torchrun.sh, slurm.sbatch and kubernetes.yaml to `config.out`.

    Raises OpenmaiError for a precision or a layout that training does not have, and for GPUs that do not fill machines.
    """
    assert plan.training is not None
    assert plan.training.run is not None
    layout, per_node = plan.training.layout, plan.gpu.per_node
    if config.precision != "bf16":
        raise OpenmaiError(f"emit: training computes in bf16, the plan in {config.precision}; plan with precision=bf16")
    if layout.etp > 1 or layout.zero not in (2, 3):
        raise OpenmaiError(f"emit: training divides the whole state (zero=3) and no expert (etp=1); {layout.describe()} does not")
    if layout.processes > per_node and layout.processes % per_node:
        raise OpenmaiError(
            f"emit: {layout.processes} processes do not fill machines of {per_node} {plan.gpu.name}; "
            f"take gpus={math.ceil(layout.processes / per_node) * per_node} or fix --layout.dp_shard"
        )
    settings = pretrain_settings(config, plan)
    name = re.sub(r"[^a-z0-9]+", "-", Path(plan.model).stem.lower()).strip("-")
    nodes = max(1, layout.processes // per_node)
    command = ("-m", "openmai", "train", "pretrain", "--config", "pretrain.yaml")
    launch = Launch(name, nodes, min(per_node, layout.processes), command)
    recipe = {
        "description": f"{plan.model} on {plan.training.run.tokens:.3g} tokens with {layout.processes} {plan.gpu.name}, as planned",
        "out": f"runs/{name}",
        "steps": {"pretrain": {"verb": "train pretrain", **{key: value for key, value in settings.items() if key != "out"}}},
    }
    texts = {
        "recipe.yaml": yaml.safe_dump(recipe, sort_keys=False, width=120),
        "pretrain.yaml": yaml.safe_dump(settings, sort_keys=False, width=120),
        "torchrun.sh": torchrun_script(launch),
        "slurm.sbatch": slurm_script(launch),
        "kubernetes.yaml": kubernetes_manifest(launch),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    written = []
    for file, text in texts.items():
        with atomic_file(config.out / file, "w") as stream:
            stream.write(text)
        written.append(config.out / file)
    (config.out / "torchrun.sh").chmod(0o755)
    return written


def pretrain_settings(config: PlanConfig, plan: Plan) -> dict[str, Any]:
    """Return the settings of `train pretrain`; shards and tokenizer are where the recipes of this project put them."""
    training = plan.training
    assert training is not None
    assert training.run is not None
    minutes = training.run.resilience.interval_minutes
    settings: dict[str, Any] = {
        "shards": "runs/data/shards",
        "tokenizer": "runs/data/tokenizer",
        "out": f"runs/{Path(plan.model).stem}/pretrain",
    }
    settings |= {"preset": config.model} if config.model in preset_names() else {"preset": str(Path(config.model).resolve())}
    settings |= {
        "context": plan.sequence,
        "batch_rows": training.batch_rows,
        "micro_rows": training.layout.micro_rows,
        "precision": "bf16",
        "loop": {
            "steps": training.run.steps,
            "device": "cuda",
            "compile": True,
            "checkpoint_every": max(1, round(minutes * 60 / training.step_seconds)),
            "evaluate_every": max(1, training.run.steps // 200),
        },
        "schedule": {"warmup": min(2000, max(1, training.run.steps // 100)), "decay": 0.2},
        "layout": layout_settings(training.layout),
    }
    return settings


def layout_settings(layout: Layout) -> dict[str, Any]:
    """Return what differs from training's defaults, by its names."""
    values = layout.model_dump()
    plain = {**Layout().model_dump(), "dp_shard": 0}
    found = {name: values[name] for name in LAYOUT if values[name] != plain[name]}
    return found | ({"stages_each": layout.virtual} if layout.schedule != "1f1b" else {})
