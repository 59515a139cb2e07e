"""Plans as text."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from openmai.model.count import TRAINING_STATE_BYTES, WEIGHT_BYTES
from openmai.plan.cost import Range
from openmai.plan.make import Plan
from openmai.plan.memory import USABLE

Row = tuple[str, str, str]
_DECIMAL = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def show_presets(presets: list[dict[str, Any]]) -> str:
    """Format the presets as one table."""
    width = max(len(preset["name"]) for preset in presets)
    lines = [f"{'model':<{width}}  {'total':>8}  {'active':>8}  {'context':>8}"]
    lines += [f"{p['name']:<{width}}  {_count(p['total']):>8}  {_count(p['active']):>8}  {p['context']:>8,}" for p in presets]
    return "\n".join([*lines, "", "`openmai plan MODEL` says what one of them takes; `openmai plan --help` lists every setting."])


def show_plan(plan: Plan) -> str:
    """Format one plan as aligned sections: label, figure, remark."""
    sections = {"parameters": _parameters(plan), "compute per token": _compute(plan), "memory": _memory(plan)}
    if plan.cost:
        sections["training run, an estimate"] = _cost(plan)
    rows = [row for section in sections.values() for row in section]
    label, figure = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [plan.model, *_wrap(f"source: {plan.source}" if plan.source else "")]
    for title, section in sections.items():
        lines += ["", title]
        lines += [f"  {name:<{label}}  {value:>{figure}}  {remark}".rstrip() for name, value, remark in section]
    if plan.cost:
        lines += ["  assumptions, not measurements:", *(f"    - {text}" for text in plan.cost.assumptions)]
    return "\n".join(lines)


def _parameters(plan: Plan) -> list[Row]:
    counted = plan.parameters
    rows = [
        ("total", f"{counted.total:,}", _count(counted.total)),
        ("active", f"{counted.active:,}", f"{_count(counted.active)} per token"),
        ("active, no input embedding", f"{counted.active_without_input_embedding:,}", _count(counted.active_without_input_embedding)),
        ("embeddings", f"{counted.embedding:,}", f"{counted.embedding / counted.total:.1%} of the total"),
    ]
    if counted.predictors:
        rows.append(("predictors", f"{counted.predictors:,}", f"{_count(counted.predictors)} besides the total, for training only"))
    return rows


def _compute(plan: Plan) -> list[Row]:
    convention = f"6 x active matrices + causal attention, at {plan.sequence:,} tokens"
    return [
        ("forward and backward", f"{_unit(plan.flops_per_token)}FLOP", convention),
        ("with full attention", f"{_unit(plan.flops_per_token_full_attention)}FLOP", "for figures published under that convention"),
    ]


def _memory(plan: Plan) -> list[Row]:
    memory, gpu = plan.memory, plan.gpu
    bits = {name: f"{8 * size:g} bits" for name, size in WEIGHT_BYTES.items()}
    rows = [(f"weights {name}", f"{_unit(size)}B", bits[name]) for name, size in memory.weights.items()]
    state = f"{sum(TRAINING_STATE_BYTES.values())} bytes per parameter: bf16 weights, fp32 gradients, master, 2 moments"
    return [
        *rows,
        ("training state", f"{_unit(memory.training_state)}B", state),
        ("KV cache per token", f"{_unit(memory.cache_per_token)}B", "bf16, all layers"),
        ("KV cache, full context", f"{_unit(memory.cache_full_context)}B", f"one sequence of {memory.context:,} tokens"),
        ("fewest GPUs to train", f"{memory.min_gpus_training:,}", f"{gpu.name}, {USABLE:.0%} usable; activations come on top"),
        ("fewest GPUs to run", f"{memory.min_gpus_inference:,}", "bf16 weights and the cache of one full context"),
    ]


def _cost(plan: Plan) -> list[Row]:
    cost = plan.cost
    assert cost is not None
    rows = [
        ("tokens", _unit(cost.tokens).replace("G", "B"), f"{cost.tokens / plan.parameters.active:,.0f} per active parameter"),
        ("compute", f"{cost.flops:.2e} FLOP", ""),
        ("GPU-days", _rounded(cost.gpu_days[1]), f"{_range(cost.gpu_days)} on {plan.gpu.name}"),
    ]
    if cost.days:
        rows.append(("days", _rounded(cost.days[1]), f"{_range(cost.days)} on {plan.gpus:,} GPUs"))
    rows.append(("energy", f"{_rounded(cost.energy_mwh[1])} MWh", _range(cost.energy_mwh)))
    rows.append(("rent", _money(cost.dollars[1]), f"{_money(cost.dollars[0])} to {_money(cost.dollars[2])}"))
    return rows


def _range(values: Range) -> str:
    return f"{_rounded(values[0])} to {_rounded(values[2])}"


def _rounded(number: float) -> str:
    """Format an estimate with three digits: 174,000, 11.6, 0.0214."""
    if number >= 100:
        return f"{round(number, 2 - int(math.log10(number))):,.0f}"
    return f"{number:.3g}"


def _money(dollars: float) -> str:
    return f"${_rounded(dollars / 1e6)}M" if dollars >= 1e6 else f"${_rounded(dollars)}"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 110)


def _count(number: float) -> str:
    """Format a number of parameters: 124.4M, 495.8B, 1.03T."""
    if number >= 1e12:
        return f"{number / 1e12:.2f}T"
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _unit(number: float) -> str:
    """Format with three digits and a decimal prefix: 215 G, 8.92 T."""
    for size, letter in _DECIMAL:
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g} "
