"""pytest tests/test_plan_schedules.py: bubbles and micro-batches in flight as planned, against the orders that PyTorch's schedules run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch.distributed.pipelining import schedules
from torch.distributed.pipelining._utils import generate_stage_to_rank_mapping
from torch.distributed.pipelining.schedules import _ComputationType

from openmai.model.stages import divide_layers, holder, stage_spans, stages_of_process
from openmai.plan.activations import moments
from openmai.plan.layout import Grid, Layout
from openmai.plan.memory import in_flight
from openmai.plan.step import bubble_seconds

CLASSES: dict[str, Any] = {
    "interleaved": schedules.ScheduleInterleaved1F1B,
    "zero-bubble": schedules.ScheduleInterleavedZeroBubble,
    "zbv": schedules.ScheduleZBVZeroBubble,
}
WORK = {
    _ComputationType.FORWARD: "F",
    _ComputationType.BACKWARD_INPUT: "B",
    _ComputationType.BACKWARD_WEIGHT: "W",
    _ComputationType.FULL_BACKWARD: "BW",
}
Order = list[tuple[str, int, int]]
"what a process does, one after the other: work, chunk, micro-batch"


def orders(schedule: str, pp: int, virtual: int, count: int) -> list[Order]:
    """Return what each process of a pipeline does for `count` micro-batches."""
    if schedule == "1f1b":
        return [_one_forward_one_backward(pp - 1 - rank, rank, count) for rank in range(pp)]
    rounds = max(1, count // pp)
    pretended = SimpleNamespace(
        pp_group_size=pp, num_stages=pp * virtual, n_local_stages=virtual, _n_microbatches=count, microbatches_per_round=count // rounds
    )
    found = [CLASSES[schedule]._calculate_single_rank_operations(pretended, rank) for rank in range(pp)]
    return [[(WORK[one.computation_type], one.stage_index, one.microbatch_index) for one in order if one] for order in found]


def _one_forward_one_backward(ahead: int, stage: int, count: int) -> Order:
    first = min(ahead, count)
    order = [("F", stage, micro) for micro in range(first)]
    for micro in range(count - first):
        order += [("F", stage, micro + first), ("BW", stage, micro)]
    return order + [("BW", stage, micro) for micro in range(count - first, count)]


def idle_seconds(todo: list[Order], chunks: int, seconds: dict[str, float]) -> float:
    """Run the orders, each piece of work when what it needs is done; return by how much all of it takes longer than one process's work."""
    done: dict[tuple[str, int, int], float] = {}
    clocks, places = [0.0] * len(todo), [0] * len(todo)
    while any(place < len(order) for place, order in zip(places, todo, strict=True)):
        before = list(places)
        for rank, order in enumerate(todo):
            while places[rank] < len(order):
                work, chunk, micro = order[places[rank]]
                ready = done.get(_needed(work, chunk, micro, chunks), None if _needs(work, chunk) else 0.0)
                if ready is None:
                    break
                clocks[rank] = max(clocks[rank], ready) + sum(seconds[part] for part in work)
                done[work[0], chunk, micro] = clocks[rank]
                places[rank] += 1
        assert before != places, "each waits for another"
    return max(clocks) - sum(seconds[part] for work, _, _ in todo[0] for part in work)


def _needs(work: str, chunk: int) -> bool:
    return work != "F" or chunk > 0


def _needed(work: str, chunk: int, micro: int, chunks: int) -> tuple[str, int, int]:
    if work == "F":
        return "F", chunk - 1, micro
    if work == "W":
        return "B", chunk, micro
    return ("F", chunk, micro) if chunk == chunks - 1 else ("B", chunk + 1, micro)


CASES = [("1f1b", 1), ("interleaved", 2), ("interleaved", 3), ("zero-bubble", 1), ("zero-bubble", 2), ("zbv", 2)]


@pytest.mark.parametrize(("schedule", "virtual"), CASES)
@pytest.mark.parametrize("pp", [2, 4, 6])
@pytest.mark.parametrize("seconds", [(1.0, 1.0, 1.0), (1.0, 1.2, 0.8), (1.0, 1.5, 0.5), (1.0, 1.3, 1.1), (2.0, 3.5, 0.9)])
def test_bubbles_are_those_of_the_orders(schedule: str, virtual: int, pp: int, seconds: tuple[float, float, float]) -> None:
    chunk = dict(zip("FBW", (time / virtual for time in seconds), strict=True))
    idle = idle_seconds(orders(schedule, pp, virtual, 4 * pp), pp * virtual, chunk)
    assert float(bubble_seconds(schedule, pp, virtual, *map(np.array, seconds))) == pytest.approx(idle)


@pytest.mark.parametrize(("schedule", "virtual"), CASES)
@pytest.mark.parametrize("pp", [2, 4, 6])
def test_as_many_are_in_flight_as_planned(schedule: str, virtual: int, pp: int) -> None:
    """A chunk's micro-batch is held from its forward pass to its weights' gradients."""
    planned = in_flight(Grid.of([Layout.model_validate({"pp": pp, "virtual": virtual, "schedule": schedule})]), 4 * pp)
    for rank, order in enumerate(orders(schedule, pp, virtual, 4 * pp)):
        held = np.cumsum([("F" in work) - ("W" in work) for work, _, _ in order])
        assert float(np.broadcast_to(planned, (pp, 1))[rank, 0]) == held.max() / virtual


@pytest.mark.parametrize(("schedule", "virtual"), [("zero-bubble", 1), ("zero-bubble", 2), ("zbv", 2)])
@pytest.mark.parametrize("pp", [2, 4, 6])
def test_gradients_of_weights_wait_for_as_many_as_planned(schedule: str, virtual: int, pp: int) -> None:
    """Of all moments of a step those that no other surpasses: chunks in flight, and backward passes whose weights have no gradient yet."""
    layout = Layout.model_validate({"pp": pp, "virtual": virtual, "schedule": schedule})
    for rank, order in enumerate(orders(schedule, pp, virtual, 4 * pp)):
        held = np.cumsum([("F" in work) - ("W" in work) for work, _, _ in order])
        waiting = np.cumsum([("B" in work) - ("W" in work) for work, _, _ in order])
        seen = {(int(a), int(b)) for a, b in zip(held, waiting, strict=True) if b}
        planned = {(round(flight * virtual), late + 1) for flight, late in moments(layout, rank, 4 * pp)}
        assert _unsurpassed(seen) == _unsurpassed(planned)


def _unsurpassed(points: set[tuple[int, int]]) -> set[tuple[int, int]]:
    return {one for one in points if not any(one != other and one[0] <= other[0] and one[1] <= other[1] for other in points)}


@pytest.mark.parametrize(("schedule", "style"), [("interleaved", "loop"), ("zbv", "v")])
def test_stages_are_where_pytorch_has_them(schedule: str, style: str) -> None:
    assert {stage: holder(schedule, 4, stage) for stage in range(8)} == generate_stage_to_rank_mapping(4, 8, style=style)
    assert [stages_of_process("zbv", 4, 8, rank) for rank in range(4)] == [[0, 7], [1, 6], [2, 5], [3, 4]]


def test_layers_are_divided_as_the_big_runs_do() -> None:
    assert divide_layers(96, 24) == [4] * 24
    assert divide_layers(126, 64) == [1, *[2] * 62, 1]  # Llama 3.1 405B: a layer fewer first and last
    assert divide_layers(61, 16, num_predict=1) == [*[4] * 15, 1]  # DeepSeek-V3 with its predictor
    assert divide_layers(61, 16) == [3, *[4] * 14, 2]
    assert sum(divide_layers(47, 32)) == 47
    assert sum(divide_layers(3, 8)) == 3
    assert stage_spans(5, 2) == [range(3), range(3, 5)]
    assert all(min(divide_layers(layers, stages)) > 0 for layers in range(1, 30) for stages in range(1, layers + 1))
