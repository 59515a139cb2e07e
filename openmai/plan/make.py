"""One model's plan: parameters, FLOPs, memory; with a cluster a layout and its speed; with tokens a whole run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from openmai.base.errors import OpenmaiError
from openmai.model.config import load_preset
from openmai.model.count import Parameters, count_parameters, flops_per_token
from openmai.plan.config import PlanConfig
from openmai.plan.hardware import GPU, load_gpu
from openmai.plan.inference import Device, Inference, OnDevice, load_device, plan_device, plan_inference
from openmai.plan.totals import Memory, plan_memory

if TYPE_CHECKING:  # NumPy would take longer to load than the rest takes to answer
    from openmai.plan.training import Training

LONGEST = 8192
"tokens of a training sequence unless `seq` says more: long contexts are trained last, on few tokens"


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
    training: Training | None
    inference: Inference | None
    device: Device | None
    on_device: list[OnDevice] | None


def make_plan(config: PlanConfig) -> Plan:
    """Work out the plan of `config.model`.

    Raises OpenmaiError for an unknown model or GPU, a sequence that the model has no positions for, and what does not fit, with the
    nearest that does.
    """
    model, gpu = load_preset(config.model), load_gpu(config.gpu)
    sequence = config.seq or min(model.context, LONGEST)
    if model.positions == "learned" and sequence > model.context:
        raise OpenmaiError(f"seq={sequence}: {config.model} has learned positions for {model.context} tokens only; choose a shorter one")
    flops = flops_per_token(model, sequence)
    memory = plan_memory(model, gpu)
    device = load_device(config.device) if config.device else None
    training = None
    if config.tokens or config.gpus or config.budget or config.layout.dp_shard:
        from openmai.plan.training import make_training

        training = make_training(config, model, gpu, sequence, flops, memory)
    return Plan(
        model=config.model,
        source=model.source,
        parameters=count_parameters(model),
        sequence=sequence,
        flops_per_token=flops,
        flops_per_token_full_attention=flops_per_token(model, sequence, causal=False),
        gpu=gpu,
        gpus=training.gpus if training else config.gpus,
        memory=memory,
        training=training,
        inference=plan_inference(model, gpu, min(model.context, LONGEST), config.serve_precision) if config.serve else None,
        device=device,
        on_device=plan_device(model, device) if device else None,
    )
