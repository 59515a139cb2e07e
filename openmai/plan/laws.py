"""What loss to expect, and which model a budget is best spent on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from openmai.base.config import Config, read_yaml, validate
from openmai.model.count import Parameters
from openmai.plan.hardware import DATA


class Law(Config):
    """L(N, D) = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str

    def loss(self, parameters: float, tokens: float) -> float:
        """Return nats per token on the data of the law's authors."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """Return the parameters and tokens of least loss for 6 N D = `flops` (arXiv:2203.15556, eq. 4)."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = ratio * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, flops / 6 / parameters


def load_laws() -> dict[str, Law]:
    """Read laws.yaml."""
    return {name: validate(Law, values, f"laws.yaml: {name}") for name, values in read_yaml(DATA / "laws.yaml").items()}


@dataclass(frozen=True)
class Expected:
    """What the laws say about one run; a mixture lies between its active parameters and the geometric mean with its total ones."""

    losses: dict[str, tuple[float, float]]
    "by law: with the geometric mean of total and active parameters, with the active ones alone"
    tokens_per_active: float
    optimal_parameters: float
    "dense, of least loss for the same FLOPs, by the refit"
    optimal_tokens: float


def expect(counted: Parameters, tokens: float, flops: float) -> Expected:
    """Apply all laws. Their data is not ours: differences between plans mean more than the values."""
    equivalent = math.sqrt(counted.total * counted.active)
    laws = load_laws()
    losses = {name: (law.loss(equivalent, tokens), law.loss(counted.active, tokens)) for name, law in laws.items()}
    parameters, optimal = laws["chinchilla-refit"].optimum(flops)
    return Expected(losses, tokens / counted.active, parameters, optimal)


def batch_tokens(tokens: float, flops: float, moe: bool) -> float:
    """Return a batch in tokens: Step Law's 0.58 D^0.571 (arXiv:2503.04715) for a dense model, DeepSeek LLM's 0.292 C^0.3271 for a mixture.

    Published runs lie on both sides: Llama 3.1 405B took 16M (Step Law 20M), DeepSeek-V3 63M and Kimi K2 67M (0.292 C^0.3271: 31M).
    """
    return 0.2920 * flops**0.3271 if moe else 0.58 * tokens**0.571
