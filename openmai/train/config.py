"""Configuration of training: optimizers, schedule, the loop, and `train pretrain`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from openmai.base.config import Config
from openmai.model.config import ModelConfig, load_preset
from openmai.parallel.layout import Layout, Precision

GROUPS = ("embedding", "value_embedding", "head", "router", "stream_scale", "embedding_scale", "scalar", "other")
"groups of parameters that AdamW steps; scalar: smear, backout and sinks; other: norms, biases and gates"


class GroupConfig(Config):
    """What one group of parameters has for itself; null: as the fields around it say."""

    lr: float | None = Field(None, gt=0)
    betas: tuple[float, float] | None = None
    weight_decay: float | None = Field(None, ge=0)


class OptimizerConfig(Config):
    """Muon for the matrices inside the blocks and AdamW for the rest, or AdamW for all."""

    name: Literal["muon", "muon-rms", "adamw"] = "muon"
    "muon: Muon on block matrices (each expert alone), AdamW elsewhere; muon-rms: the same with updates of AdamW's size, for one rate"
    lr: float = Field(0.02, gt=0)
    "peak learning rate of Muon, or of AdamW on matrices if it is alone"
    momentum: float = Field(0.95, ge=0, lt=1)
    "Muon's Nesterov momentum"
    orthogonalize: Literal["newton-schulz", "polar-express"] = "newton-schulz"
    "Muon's iteration: one polynomial again and again, or the best one for each step (arXiv:2505.16932)"
    orthogonalize_steps: int = Field(5, gt=0, le=12)
    "iterations"
    per_head: bool = False
    "orthogonalise the rows of each attention head alone"
    normuon: float | None = Field(None, ge=0, lt=1)
    "Muon: beta of a running mean by which rows are evened out (NorMuon, arXiv:2510.05491); null: off"
    cautious: bool = False
    "Muon: decay only weights that the update makes smaller (arXiv:2510.12402)"
    embedding_lr: float = Field(0.05, gt=0)
    "AdamW on embeddings"
    head_lr: float = Field(0.004, gt=0)
    "AdamW on the output matrix"
    other_lr: float = Field(0.01, gt=0)
    "AdamW on norms, biases, routers and single factors"
    betas: tuple[float, float] = (0.8, 0.95)
    "AdamW's moments"
    eps: float = Field(1e-10, gt=0)
    "AdamW's smallest divisor"
    weight_decay: float = Field(0.0, ge=0)
    "decoupled decay of matrices"
    groups: dict[str, GroupConfig] = {}
    "lr, betas and weight_decay of single groups: embedding, value_embedding, head, router, stream_scale, embedding_scale, scalar, other"
    clip: float | None = Field(1.0, gt=0)
    "largest gradient norm"

    @model_validator(mode="after")
    def _known(self) -> OptimizerConfig:
        for name in self.groups:
            if name not in GROUPS:
                close = difflib.get_close_matches(name, GROUPS, n=1)
                raise ValueError(
                    f"groups.{name}: no such group; {f'did you mean {close[0]}?' if close else 'there are ' + ', '.join(GROUPS)}"
                )
        idle = [name for name in ("per_head", "cautious") if getattr(self, name)] + (["normuon"] if self.normuon is not None else [])
        if self.name == "adamw" and idle:
            raise ValueError(f"{', '.join(idle)} would have no effect: name=adamw has no Muon")
        return self

    def group(self, name: str) -> GroupConfig:
        """Return a group with every field known."""
        rates = {"embedding": self.embedding_lr, "value_embedding": self.embedding_lr, "head": self.head_lr}
        own = self.groups.get(name, GroupConfig())
        return GroupConfig(lr=own.lr or rates.get(name, self.other_lr), betas=own.betas or self.betas, weight_decay=own.weight_decay or 0.0)


class ScheduleConfig(Config):
    """Warm-up, constant, decay: the trapezoid (WSD, arXiv:2404.06395), or a cosine over all steps with decay=1."""

    warmup: int = Field(20, ge=0)
    "steps of linear warm-up"
    decay: float = Field(0.5, ge=0, le=1)
    "share of all steps that decays, at the end"
    shape: Literal["linear", "cosine", "sqrt"] = "linear"
    "of the decay; sqrt is 1 - sqrt (arXiv:2405.18392)"
    final: float = Field(0.05, ge=0, le=1)
    "last learning rate as a share of the peak"
    momentum_first: float | None = Field(None, ge=0, lt=1)
    "Muon's momentum at the first step; null: as later"
    momentum_warmup: int = Field(400, ge=0)
    "steps over which it rises to optimizer.momentum"
    momentum_last: float | None = Field(None, ge=0, lt=1)
    "what it falls to while the learning rate decays; null: it stays"
    decay_fades: bool = False
    "Muon: weight decay fades to nothing along a cosine"
    batch_ramp: tuple[float, ...] = ()
    "pretraining: shares of batch_rows with which it begins, one after the other; rates fall with their square root"
    ramp: float = Field(0.3, gt=0, lt=1)
    "share of all steps that batch_ramp divides among its parts"

    @model_validator(mode="after")
    def _rises(self) -> ScheduleConfig:
        if not all(0 < share < 1 for share in self.batch_ramp) or list(self.batch_ramp) != sorted(self.batch_ramp):
            raise ValueError(f"batch_ramp={list(self.batch_ramp)}: give rising shares between 0 and 1, such as [0.25, 0.5]")
        return self

    def ramp_of(self, rows: int, steps: int) -> tuple[tuple[int, int], ...]:
        """Return (steps, rows) of each part of the ramp to `rows` per step."""
        each = round(self.ramp * steps) // max(1, len(self.batch_ramp))
        return tuple((each, max(1, round(share * rows))) for share in self.batch_ramp)


class GuardConfig(Config):
    """What a long run does about spikes, numbers that are not finite, hangs and slow processes."""

    not_in_key: ClassVar[tuple[str, ...]] = ("hang_seconds", "slow_every", "slow_factor")

    window: int = Field(128, ge=4)
    "steps whose losses and gradient norms say what is usual; judged once half of them are there"
    sigmas: float | None = Field(6.0, gt=0)
    "a step whose loss or gradient norm is this many standard deviations above their mean is left out; null: none is"
    patience: int = Field(3, gt=0)
    "after so many such steps in a row the run goes back to a checkpoint from before them, and their data are left out"
    before: int = Field(0, ge=0)
    "further batches, just before those, that are left out as well"
    rollbacks: int = Field(2, ge=0)
    "times that it goes back within `window` steps; then high figures are taken as usual, and not-a-numbers end the run"
    hang_seconds: float = Field(1800.0, gt=0)
    "with several processes: when nothing has moved for so long, stacks and collectives are dumped and the processes end with status 75"
    slow_every: int = Field(100, gt=0)
    "steps between comparisons of the processes' speed"
    slow_factor: float = Field(1.5, gt=1)
    "a process that takes this many times the median is reported"


class LoopConfig(Config):
    """How long, how much at a time, and what is kept."""

    not_in_key: ClassVar[tuple[str, ...]] = (
        "checkpoint_every",
        "keep",
        "keep_every",
        "background",
        "speed_every",
        "peak_flops",
        "norms_every",
        "profile",
        "tensorboard",
    )

    steps: int = Field(0, ge=0)
    "optimizer steps; pretraining: 0 for as many as the law says"
    seed: int = 0
    "seed of initialisation and data order"
    checkpoint_every: int = Field(50, gt=0)
    "steps between checkpoints for resuming"
    keep: int = Field(2, gt=0)
    "newest checkpoints kept"
    keep_every: int = Field(0, ge=0)
    "checkpoints of each multiple of so many steps are kept for good; 0: none"
    background: bool = True
    "write checkpoints while training goes on, from a copy of the state in the memory of the CPU"
    evaluate_every: int = Field(50, gt=0)
    "steps between validations"
    threads: int = Field(0, ge=0)
    "CPU threads; results are bit-identical for the same number; 0: as many as cores"
    device: str = "cpu"
    "cpu or cuda"
    compile: bool = False
    "compile the blocks with torch.compile: faster steps after a first one that takes a minute or two; on a CPU it needs a C++ compiler"
    guards: GuardConfig = GuardConfig()
    speed_every: int = Field(10, gt=0)
    "steps between records of speed, share of the peak, and memory"
    peak_flops: float | None = Field(None, gt=0)
    "FLOP/s of one process's device that utilisation is measured against; null: those of a large matrix product"
    norms_every: int = Field(0, ge=0)
    "steps between records of each block's gradient norm and activations; 0: none"
    profile: tuple[int, int] | None = None
    "first and last step to profile: a Chrome trace per process under logs/"
    tensorboard: bool = False
    "write all figures for TensorBoard as well, under logs/tensorboard/"

    @model_validator(mode="after")
    def _stretch(self) -> LoopConfig:
        if self.profile and not 1 <= self.profile[0] <= self.profile[1]:
            raise ValueError(f"profile={list(self.profile)}: give the first and the last step, counted from 1")
        return self


class PretrainConfig(Config):
    """Train a base model on token shards."""

    not_in_key: ClassVar[tuple[str, ...]] = ("layout",)

    shards: Path
    "shards artifact"
    tokenizer: Path
    "tokenizer artifact the shards were made with"
    out: Path
    "folder of the checkpoint artifact"
    depth: int | None = Field(None, gt=0)
    "the one dial: number of layers, from which width, heads, feed-forward, batch, rates, decay and horizon follow"
    family: Literal["qwen3", "speed"] = "qwen3"
    "with depth: Qwen3's features, which every engine runs, or those that learn most in a given time"
    preset: str | None = None
    "instead of depth: a shipped architecture (`openmai plan` lists them)"
    model: dict[str, Any] = {}
    "fields of the architecture that override what depth or preset gives"
    context: int = Field(512, gt=1)
    "tokens per training sequence"
    batch_rows: int | None = Field(None, gt=0)
    "sequences per optimizer step; null: as the law says"
    micro_rows: int | None = Field(None, gt=0)
    "sequences per forward pass; null: some 8,192 tokens"
    law: Literal["nanochat", "olmo", "none"] = "nanochat"
    "where what is not given comes from: nanochat's scaling of Muon, OLMo's of AdamW; none: rates and schedule are the defaults"
    tokens_per_parameter: float | None = Field(None, gt=0)
    "horizon of a run without loop.steps, per parameter that a token is multiplied with; null: the law's, 12 (nanochat) or 20 (OLMo)"
    packing: Literal["none", "best-fit"] = "best-fit"
    "none: windows of all documents joined; best-fit: rows in which few documents are cut, and none is thrown away"
    document_masks: bool = True
    "no token sees another document of its row, and positions begin anew"
    upsample: dict[str, float] = {}
    "by source: how many times more often than its size alone would have it be seen"
    mixture: Path | None = None
    "instead of upsample: the mixture.json of `data mix`, or its folder; its weights and phases order the training"
    loop: LoopConfig = LoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: Precision = "fp32"
    "of the computation; with bf16 and float8 weights, sums of gradients and optimizer state stay in fp32"
    layout: Layout = Layout()

    @model_validator(mode="after")
    def _possible(self) -> PretrainConfig:
        if self.mixture and self.upsample:
            raise ValueError("give either mixture or upsample: the weights of a mixture are shares of the tokens")
        if (self.depth is None) == (self.preset is None):
            raise ValueError("give either depth or preset")
        if self.family != "qwen3" and self.depth is None:
            raise ValueError("family needs depth: a preset has features of its own")
        if self.batch_rows and self.micro_rows and self.batch_rows % self.micro_rows:
            raise ValueError(f"batch_rows={self.batch_rows} is not a multiple of micro_rows={self.micro_rows}")
        self.architecture(vocab_size=64)
        return self

    def architecture(self, vocab_size: int) -> ModelConfig:
        """Work out the model: depth or preset, then the overrides, then vocabulary and context."""
        base = load_preset(self.preset).model_dump() if self.preset else from_depth(self.depth or 1, self.family)
        return ModelConfig.model_validate(
            base | {"context": max(self.context, base.get("context", 0))} | self.model | {"vocab_size": vocab_size}
        )


class ConsolidateConfig(Config):
    """Make a model of a checkpoint for resuming."""

    run: Path
    "checkpoint folder (checkpoints/step-… of a run), or a run's folder: its newest good checkpoint"
    tokenizer: Path
    "tokenizer artifact the run was made with"
    out: Path
    "folder of the checkpoint artifact"


def from_depth(depth: int, family: str = "qwen3") -> dict[str, Any]:
    """Give the shape of a dense model of `depth` layers.

    Width 64 per layer and heads of width 64 are nanochat's dial. The feed-forward of qwen3 is the 8/3 of SwiGLU (arXiv:2002.05202), rounded
    to 64; with QK norm, RoPE and RMSNorm every engine can run the result. The features of speed are nanochat's (gpt.py)
    but for its soft cap, which takes a tenth of a small step on a CPU.
    """
    width = 64 * depth
    shape = {"num_layers": depth, "width": width, "num_heads": depth, "qk_norm": True, "rope_theta": 100_000.0}
    if family == "qwen3":
        return shape | {"ffn_width": max(64, round(width * 8 / 3 / 64) * 64)}
    return shape | {
        "ffn_width": 4 * width,
        "gated": False,
        "activation": "relu2",
        "norm_weight": "none",
        "qk_norm_place": "after",
        "attention_scale": 1.2 * 1.2 / 8,
        "embedding_norm": True,
        "value_embeddings": True,
        "residual_scalars": True,
        "smear": True,
        "backout": True,
    }


class DryRunConfig(PretrainConfig):
    """Run one optimizer step of one process of any cluster without memory, and count its bytes and collectives."""

    shards: Path = Path()
    "not read"
    tokenizer: Path = Path()
    "not read"
    out: Path | None = None  # type: ignore[assignment]
    "JSON file for the figures"
    processes: int = Field(1, gt=0)
    "processes of the run"
    rank: int = Field(0, ge=0)
    "which of them to be; the first of a pipeline holds the most activations"
    vocab_size: int = Field(0, ge=0)
    "tokens of the vocabulary; 0: that of the preset"
    precision: Precision = "bf16"
    "of the computation"
    loop: LoopConfig = LoopConfig(steps=1)

    def architecture(self, vocab_size: int) -> ModelConfig:
        """Work out the model as training does; without a vocabulary it has the preset's."""
        if not vocab_size:
            vocab_size = load_preset(self.preset).vocab_size if self.preset else 32_768
        return super().architecture(vocab_size)


class LaunchConfig(Config):
    """Make the file that starts a training on many machines."""

    recipe: Path
    "configuration of `train pretrain` (YAML)"
    to: Literal["torchrun", "slurm", "kubernetes"] = "torchrun"
    "what starts the machines: torchrun by hand, Slurm or Kubernetes"
    nodes: int = Field(1, gt=0)
    "machines"
    gpus: int = Field(8, gt=0)
    "of each, and so processes"
    arguments: list[str] = []
    "further arguments of `train pretrain`, such as --shards=DIR"
    name: str = Field("openmai", pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    "of the job"
    restarts: int = Field(100, ge=0)
    "times that torchrun starts all processes again after one has died"
    hours: int = Field(48, gt=0)
    "time limit of a Slurm job"
    image: str = "REGISTRY/openmai:latest"
    "container image for Kubernetes"
    out: Path | None = None
    "file to write"
    print: bool = False
    "print it, also without out"
