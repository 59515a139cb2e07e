"""mixture.json of `data mix`: the weights of the sources in every phase of training."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from openmai.base.errors import OpenmaiError
from openmai.base.files import read_json
from openmai.base.progress import say

# The mixture counted bytes, training counts tokens and leaves out the validation split; so far they may differ.
_SLACK = 1.15


@dataclass(frozen=True)
class MixtureFile:
    """A mixture.json as it was read."""

    path: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> MixtureFile:
        """Read the file, or the one in the folder `path`; raise OpenmaiError if it is no mixture."""
        file = path / "mixture.json" if path.is_dir() else path
        values = read_json(file)
        try:
            phases = [(phase["name"], float(phase["share"]), dict(phase["weights"])) for phase in values["phases"]]
            wrong = [name for name, share, weights in phases if share <= 0 or min(weights.values()) < 0 or sum(weights.values()) <= 0]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise OpenmaiError(f"{file}: not the mixture.json of `openmai data mix`; make it again") from None
        if not phases or wrong:
            raise OpenmaiError(f"{file}: phase '{(wrong or ['(none)'])[0]}' has no share or no weights; shares and weights are above 0")
        return cls(file, values)

    def phases(self) -> list[tuple[str, dict[str, float]]]:
        """Return the phases' names and weights."""
        return [(phase["name"], phase["weights"]) for phase in self.values["phases"]]

    def ends(self) -> list[float]:
        """Return where each phase ends, as a share of the training."""
        shares = [phase["share"] for phase in self.values["phases"]]
        return [*(end / sum(shares) for end in accumulate(shares[:-1])), 1.0]

    def sources_in(self, counts: dict[str, dict[str, int]], least: int, shards: Path) -> list[str]:
        """Return the sources with a weight, in the shards' order; raise OpenmaiError for one that is missing or has `least` tokens."""
        wanted = {name for _, weights in self.phases() for name, weight in weights.items() if weight > 0}
        for name in sorted(wanted - set(counts)):
            close = difflib.get_close_matches(name, counts, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"its sources: {', '.join(counts)}"
            raise OpenmaiError(f"{self.path}: source '{name}' is not in {shards}; {hint} Encode the documents of the mixture")
        for name in sorted(wanted):
            if counts[name]["tokens"] <= least:
                remedy = f"context is {least}; lower it" if least else "give it no weight"
                raise OpenmaiError(f"{shards}: source '{name}' has {counts[name]['tokens']} training tokens, {remedy}")
        unused = [name for name in counts if name not in wanted]
        if unused:
            say(f"mixture: not used: {', '.join(unused)}")
        return [name for name in counts if name in wanted]

    def check_epochs(self, epochs: dict[str, float]) -> None:
        """Raise OpenmaiError for a source that this training would repeat more often than the mixture allows."""
        for name, times in epochs.items():
            most = self.values.get("sources", {}).get(name, {}).get("max_epochs", float("inf"))
            if times > most * _SLACK:
                raise OpenmaiError(
                    f"{self.path}: source '{name}' would be seen {times:.2f} times, max_epochs is {most:g}; train fewer steps,"
                    " give it less weight, or raise max_epochs in `data mix`"
                )

    def show(self, names: list[str], epochs: list[float]) -> None:
        """Say what training draws from."""
        parts = [f"{name} {share:.0%}" for name, share in ((phase["name"], phase["share"]) for phase in self.values["phases"])]
        seen = ", ".join(f"{name} {times:.2f}" for name, times in zip(names, epochs, strict=True))
        say(f"mixture: phases {', '.join(parts)}; epochs: {seen}")
