"""One model's plan: parameters, FLOPs, memory, and a training run when tokens are given."""

from __future__ import annotations

from dataclasses import dataclass

from openmai.base.errors import OpenmaiError
from openmai.model.config import load_preset
from openmai.model.count import Parameters, count_parameters, flops_per_token
from openmai.plan.config import PlanConfig
from openmai.plan.cost import Cost, plan_cost
from openmai.plan.hardware import GPU, load_gpu
from openmai.plan.memory import Memory, plan_memory


@dataclass(frozen=True)
class Plan:
    """Everything `openmai plan` says about one model."""

    model: str
    source: str
    parameters: Parameters
    sequence: int
    flops_per_token: float
    flops_per_token_full_attention: float
    gpu: GPU
    gpus: int | None
    memory: Memory
    cost: Cost | None


def make_plan(config: PlanConfig) -> Plan:
    """Work out the plan of `config.model`.

    Raises OpenmaiError for an unknown model or GPU, a sequence that the model has no positions for, and too few GPUs.
    """
    model, gpu = load_preset(config.model), load_gpu(config.gpu)
    sequence = config.seq or model.context
    if model.positions == "learned" and sequence > model.context:
        raise OpenmaiError(f"seq={sequence}: {config.model} has learned positions for {model.context} tokens only; choose a shorter one")
    memory, flops = plan_memory(model, gpu), flops_per_token(model, sequence)
    if config.tokens and config.gpus and config.gpus < memory.min_gpus_training:
        raise OpenmaiError(
            f"gpus={config.gpus}: the training state of {config.model} needs at least {memory.min_gpus_training} {gpu.name}; give more"
        )
    return Plan(
        model=config.model,
        source=model.source,
        parameters=count_parameters(model),
        sequence=sequence,
        flops_per_token=flops,
        flops_per_token_full_attention=flops_per_token(model, sequence, causal=False),
        gpu=gpu,
        gpus=config.gpus,
        memory=memory,
        cost=plan_cost(flops, config.tokens, gpu, config.gpus, config.mfu, config.goodput) if config.tokens else None,
    )
