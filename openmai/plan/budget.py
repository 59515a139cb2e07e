"""Which model a sum of money is best spent on."""

from __future__ import annotations

from dataclasses import dataclass

from openmai.base.errors import OpenmaiError
from openmai.model.config import load_preset, preset_names
from openmai.model.count import count_parameters, flops_per_token
from openmai.plan.calibration import choose_calibration
from openmai.plan.config import PlanConfig
from openmai.plan.hardware import load_gpu
from openmai.plan.laws import load_laws

UTILISATION = {False: 0.40, True: 0.25}
"of the bf16 peak on large clusters, dense and mixtures: Llama 3.1 405B 0.38 to 0.43; MAI-Base-1 0.18 to 0.20, DeepSeek-V3 0.39"
GOODPUT = 0.9
OVERTRAINED = (1, 4, 16, 64)
"times the compute-optimal tokens per parameter; Llama 3 8B has about a hundred times as many"
SEQUENCE = 4096
FEWEST_TOKENS = 20
"per active parameter that a preset is listed with at least, the compute-optimal figure of arXiv:2203.15556"


@dataclass(frozen=True)
class Sized:
    """A dense model of one size for the whole sum."""

    parameters: float
    tokens: float
    tokens_per_parameter: float
    losses: dict[str, float]


@dataclass(frozen=True)
class Affordable:
    """A preset with the tokens that the sum buys."""

    model: str
    total: int
    active: int
    tokens: float
    tokens_per_active: float


@dataclass(frozen=True)
class Budget:
    """What a sum buys."""

    dollars: float
    gpu: str
    gpu_hours: float
    flops: float
    sizes: list[Sized]
    presets: list[Affordable]
    gpus_for_thirty_days: int


def plan_budget(config: PlanConfig) -> Budget:
    """Work out sizes by the refitted law, and the presets that the sum trains on at least 20 tokens per active parameter.

    Raises OpenmaiError if it is not worth a day of one machine, naming the price of that.
    """
    assert config.budget is not None
    gpu = load_gpu(config.gpu)
    choose_calibration(config.software, "h100", config.precision, moe=False)
    price = sum(gpu.dollars_per_hour) / 2
    hours = config.budget / price
    day = 24 * gpu.per_node
    if hours < day:
        raise OpenmaiError(
            f"budget=${config.budget:,.0f}: less than a day of one machine of {gpu.per_node} {gpu.name}, which is ${day * price:,.0f}; "
            "give that, choose a cheaper GPU, or train on your own (recipes/laptop.yaml)"
        )
    second = hours * 3600 * gpu.peak["bf16"] * 1e12 * GOODPUT
    flops = second * UTILISATION[False]
    laws = load_laws()
    best, _ = laws["chinchilla-refit"].optimum(flops)
    sizes = []
    for factor in OVERTRAINED:
        parameters = best / factor**0.5
        tokens = flops / 6 / parameters
        sizes.append(Sized(parameters, tokens, tokens / parameters, {name: law.loss(parameters, tokens) for name, law in laws.items()}))
    presets = []
    for name in preset_names():
        model = load_preset(name)
        counted = count_parameters(model)
        tokens = second * UTILISATION[model.moe is not None] / flops_per_token(model, min(model.context, SEQUENCE))
        if tokens >= FEWEST_TOKENS * counted.active:
            presets.append(Affordable(name, counted.total, counted.active, tokens, tokens / counted.active))
    presets.sort(key=lambda one: -one.total)
    return Budget(config.budget, gpu.name, hours, flops, sizes, presets, max(1, round(hours / 720)))


def show_budget(found: Budget) -> str:
    """Format a budget."""
    lines = [
        f"${found.dollars:,.0f} is {found.gpu_hours:,.0f} hours of one {found.gpu}, "
        f"or {found.gpus_for_thirty_days:,} of them for thirty days:",
        f"{found.flops:.2e} FLOP at {UTILISATION[False]:.0%} utilisation (mixtures {UTILISATION[True]:.0%}) and {GOODPUT:.0%} useful time",
        "",
        f"a dense model{'parameters':>14}{'tokens':>10}{'per parameter':>15}" + "".join(f"{name:>18}" for name in found.sizes[0].losses),
    ]
    labels = ["compute-optimal", "over-trained", "", ""]
    for label, one in zip(labels, found.sizes, strict=True):
        losses = "".join(f"{loss:>18.3f}" for loss in one.losses.values())
        lines.append(f"{label:<16}{one.parameters / 1e9:>10.1f}B{one.tokens / 1e9:>9,.0f}B{one.tokens_per_parameter:>15,.0f}{losses}")
    lines += ["  losses in nats per token, of the laws' own data; smaller models cost less to serve", ""]
    lines += [f"{'preset':<22}{'total':>9}{'active':>9}{'tokens':>10}{'per active':>12}"]
    for preset in found.presets[:14]:
        lines.append(
            f"{preset.model:<22}{preset.total / 1e9:>8.1f}B{preset.active / 1e9:>8.1f}B"
            f"{preset.tokens / 1e9:>9,.0f}B{preset.tokens_per_active:>12,.0f}"
        )
    lines += ["", "`openmai plan MODEL --budget ...` plans one of them on a cluster."]
    return "\n".join(lines)
