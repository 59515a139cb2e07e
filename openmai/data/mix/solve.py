"""From weights, shares and epochs to bytes: how much of each source each phase sees, and how often that repeats it.

Everything is linear in the budget T: a phase has T times its share; `share` takes that part of it, `epochs` a fixed number of bytes, and
weights divide the rest. Without a budget, T is the largest that keeps every source within its epochs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from openmai.base.errors import OpenmaiError
from openmai.data.mix.config import MixConfig, Phase


@dataclass(frozen=True)
class Solution:
    """Bytes by phase and source as training sees them, repeats included; `budget` is their sum."""

    budget: float
    seen: list[dict[str, float]]

    def epochs(self, sizes: dict[str, int]) -> dict[str, float]:
        """Return how often each source is seen in all."""
        return {name: sum(phase.get(name, 0.0) for phase in self.seen) / size for name, size in sizes.items() if size}


def solve(config: MixConfig, sizes: dict[str, int]) -> Solution:
    """Work out the mixture of sources of these `sizes` in bytes.

    Raises OpenmaiError for a source that does not exist or is empty, shares that do not add up, and more epochs than allowed.
    """
    phases = config.plan([name for name, size in sizes.items() if size])
    for phase in phases:
        check_names(phase.sources, sizes, f"phase '{phase.name}'" if config.phases else "sources")
    for name in (name for phase in phases for name, amount in phase.sources.items() if not sizes[name]):
        raise OpenmaiError(f"source '{name}': no document is left after the caps and selections; loosen them or leave the source out")
    wanted = config.budget * config.bytes_per_token if config.budget else None
    budget = wanted if wanted is not None else _largest(config, phases, sizes)
    seen = [_demand(phase, budget, sizes) for phase in phases]
    solution = Solution(sum(sum(phase.values()) for phase in seen), seen)
    _check_epochs(config, phases, sizes, solution)
    return solution


def check_names(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise OpenmaiError for a name that is not known, with the one that was probably meant."""
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, list(known), n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(known)}"
            raise OpenmaiError(f"{where}: no source '{name}' in the documents; {hint}")


def _demand(phase: Phase, budget: float, sizes: dict[str, int]) -> dict[str, float]:
    """Return the bytes of each source in a phase of a training of `budget` bytes."""
    total = phase.share * budget
    fixed = {name: amount.share * total for name, amount in phase.sources.items() if amount.share is not None}
    fixed |= {name: amount.epochs * sizes[name] for name, amount in phase.sources.items() if amount.epochs is not None}
    weights = {name: amount.weight for name, amount in phase.sources.items() if amount.weight is not None}
    taken = sum(fixed.values())
    rest = total - taken
    if rest < -1e-6 * total:
        raise OpenmaiError(
            f"phase '{phase.name}': its shares and epochs take {_size(taken)} of {_size(total)}; lower them or raise the budget"
        )
    if weights and not sum(weights.values()):
        raise OpenmaiError(f"phase '{phase.name}': all weights are 0; give one source a weight")
    if not weights and rest > 1e-6 * total:
        raise OpenmaiError(
            f"phase '{phase.name}': its shares and epochs fill {_size(taken)} of {_size(total)}; raise them, give a source a weight that"
            " takes the rest, or leave the budget out"
        )
    return fixed | {name: max(0.0, rest) * weight / sum(weights.values()) for name, weight in weights.items()}


def _largest(config: MixConfig, phases: list[Phase], sizes: dict[str, int]) -> float:
    """Return the largest budget in bytes under which no source is seen more often than allowed."""
    only_epochs = [all(amount.epochs is not None for amount in phase.sources.values()) for phase in phases]
    if all(only_epochs):
        if len(phases) > 1:
            raise OpenmaiError(
                "phases: all sources are given in epochs, which says nothing about the phases' shares; give a source a weight"
            )
        return sum((amount.epochs or 0.0) * sizes[name] for name, amount in phases[0].sources.items())
    if any(amount.epochs is not None for phase in phases for amount in phase.sources.values()):
        raise OpenmaiError("sources: epochs beside weights or shares need a budget (in tokens); set --budget, or give weights alone")
    unit = [_demand(phase, 1.0, sizes) for phase in phases]  # without epochs the demand is proportional to the budget
    shares = {name: sum(phase.get(name, 0.0) for phase in unit) for name in sizes}
    return min(config.most_epochs(name) * sizes[name] / share for name, share in shares.items() if share > 0)


def _check_epochs(config: MixConfig, phases: list[Phase], sizes: dict[str, int], solution: Solution) -> None:
    for name, epochs in solution.epochs(sizes).items():
        most = config.most_epochs(name)
        if epochs > most * (1 + 1e-9):
            share = epochs * sizes[name] / solution.budget
            raise OpenmaiError(
                f"source '{name}': the mixture asks for {epochs:.3g} epochs ({_size(epochs * sizes[name])} of {_size(sizes[name])}), but"
                f" max_epochs allows {most:g}; lower its part of the tokens from {share:.2%} to {share * most / epochs:.2%}, lower the"
                f" budget, or raise max_epochs_of.{name}"
            )


def _size(number: float) -> str:
    for unit, letter in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g} {letter}"
    return f"{number:.0f} B"
