"""Which layers a stage of a pipeline holds, and which stages a process: the one rule by which training divides and the plan reckons."""

from __future__ import annotations

from typing import Literal

Schedule = Literal["1f1b", "interleaved", "zero-bubble", "zbv"]


def divide_layers(num_layers: int, stages: int, num_predict: int = 0) -> list[int]:
    """Return the layers of each stage: equal where they divide; else the last and then the first have fewer, for they hold the rest.

    So are Llama 3.1 405B's 126 layers on 16 stages (arXiv:2407.21783, section 3.3.2), or DeepSeek-V3's 61 in Megatron-Bridge, whose last
    stage holds one layer, its predictor and both output layers.
    """
    most = -(-num_layers // stages)
    sizes, missing = [most] * stages, most * stages - num_layers
    order = [*[stages - 1] * (1 + 2 * num_predict), 0, stages - 1, *range(stages - 2, 0, -1)] * (most + 1)
    for place in order:
        least = 0 if most == 1 or (num_predict and place == stages - 1) else 1
        if missing and sizes[place] > least:
            sizes[place] -= 1
            missing -= 1
    return sizes


def stage_spans(num_layers: int, stages: int) -> list[range]:
    """Return the layers of each stage by their numbers."""
    sizes = divide_layers(num_layers, stages)
    ends = [sum(sizes[: stage + 1]) for stage in range(stages)]
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def holder(schedule: str, pp: int, stage: int) -> int:
    """Return the process of a pipeline that holds `stage`: in turns, or for zbv down and back up like a V (arXiv:2401.10241, section 6)."""
    return min(stage, 2 * pp - 1 - stage) if schedule == "zbv" else stage % pp


def stages_of_process(schedule: str, pp: int, stages: int, rank: int) -> list[int]:
    """Return the stages that process `rank` of a pipeline holds, in the order of the layers."""
    return [stage for stage in range(stages) if holder(schedule, pp, stage) == rank]
