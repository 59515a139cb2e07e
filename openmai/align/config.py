"""Configuration of alignment: supervised fine-tuning and direct preference optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from openmai.base.config import Config
from openmai.train.config import LoopConfig, OptimizerConfig, ScheduleConfig


class AlignConfig(Config):
    """What all alignment methods share."""

    checkpoint: Path
    "checkpoint artifact to start from"
    data: list[Path]
    "JSONL files or folders of them"
    out: Path
    "folder of the checkpoint artifact"
    validation: float = Field(0.05, ge=0, lt=1)
    "share held out, decided by each record's content"
    batch_rows: int = Field(16, gt=0)
    "conversations or pairs per optimizer step"
    micro_rows: int = Field(16, gt=0)
    "conversations or pairs per forward pass"
    loop: LoopConfig
    schedule: ScheduleConfig = ScheduleConfig(warmup=5, decay=0.8, final=0.0)

    @model_validator(mode="after")
    def _possible(self) -> AlignConfig:
        if not self.loop.steps:
            raise ValueError("loop.steps: required, but not given")
        if self.schedule.batch_ramp:
            raise ValueError("schedule.batch_ramp is for pretraining; give batch_rows")
        return self


class SFTConfig(AlignConfig):
    """Supervised fine-tuning on conversations: only the assistant's words and its end of turn are learned."""

    optimizer: OptimizerConfig = OptimizerConfig(name="adamw", lr=1e-3, embedding_lr=1e-3, head_lr=1e-3, other_lr=1e-3, betas=(0.9, 0.95))


class DPOConfig(AlignConfig):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290)."""

    beta: float = Field(0.1, gt=0)
    "strength of the pull towards the reference model"
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    "the paper's loss, or IPO's squared one (arXiv:2310.12036)"
    nll: float = Field(0.0, ge=0)
    "weight of the chosen answers' negative log-likelihood per token, which keeps their probability from falling"
    optimizer: OptimizerConfig = OptimizerConfig(name="adamw", lr=1e-4, embedding_lr=1e-4, head_lr=1e-4, other_lr=1e-4, betas=(0.9, 0.95))
