"""`align sft`: supervised fine-tuning on conversations."""

from __future__ import annotations

import torch
from torch import Tensor

from openmai.align.config import SFTConfig
from openmai.align.conversations import EpochBatches, Example, collate, encode_all, read_records, split
from openmai.base.artifact import Artifact, create
from openmai.base.progress import say
from openmai.model.checkpoint import KIND, load_model, save_model
from openmai.model.loss import IGNORE, on_device_of, token_nats
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.train.checkpoints import scratch
from openmai.train.loop import NextToken, Step, prepare_cpu, train


def sft(config: SFTConfig) -> Artifact:
    """Fine-tune a checkpoint on the assistant's turns of conversations."""
    base = Artifact.load(config.checkpoint, KIND)
    with create(config.out, kind=KIND, version=1, config=config, inputs=[base, *config.data]) as work:
        if work.finished:
            return work.finished
        prepare_cpu(config.loop.threads)
        tokenizer, model = Tokenizer.load(base.path / "tokenizer"), load_model(base, config.loop.device)
        training, validation = split(read_records(config.data, ["messages"]), config.validation)
        examples = encode_all(tokenizer, [record["messages"] for record in training], model.config.context, "training data")
        held_out = (
            encode_all(tokenizer, [record["messages"] for record in validation], model.config.context, "validation data")
            if validation
            else []
        )
        pad = tokenizer.end_of_text
        lengths = [len(example.ids) for example in examples]

        def make(rows: list[int]) -> dict[str, Tensor]:
            return collate([examples[row] for row in rows], pad)

        batches = EpochBatches(lengths, config.batch_rows, config.micro_rows, config.loop.seed, make)
        say(f"{len(examples)} conversations, {config.loop.steps * config.batch_rows / len(examples):.1f} epochs; {len(held_out)} held out")
        validate = Validation(held_out, pad, config.loop.evaluate_every)
        before = validate.loss(model)
        train("sft", model, batches, NextToken(), work.path, config.loop, config.optimizer, config.schedule, [validate], work.tick)
        save_model(model, work.path, base.path / "tokenizer")
        metrics = {"conversations": len(examples), "val_loss": validate.latest, "val_loss_before": before}
        say(f"validation loss {metrics['val_loss']:.3f} (before {before:.3f})")
        return work.finish(metrics, scratch=scratch(work.path, config.loop.keep_every))


class Validation:
    """A hook that measures the loss per supervised token on held-out conversations; `latest` is what the last step left."""

    def __init__(self, examples: list[Example], pad: int, every: int) -> None:
        self.examples, self.pad, self.every = sorted(examples, key=lambda example: len(example.ids)), pad, every
        self.latest = float("nan")

    @torch.no_grad()
    def loss(self, model: Transformer) -> float:
        """Return nats per supervised token; not-a-number without held-out conversations."""
        training, nats, tokens = model.training, 0.0, 0
        model.eval()
        for start in range(0, len(self.examples), 16):
            micro = on_device_of(model, collate(self.examples[start : start + 16], self.pad))
            nats += token_nats(model, micro["ids"], micro["targets"]).sum().item()
            tokens += int((micro["targets"] != IGNORE).sum())
        model.train(training)
        return nats / tokens if tokens else float("nan")

    def __call__(self, step: Step) -> dict[str, float] | None:
        if not self.examples or (step.number % self.every and not step.last):
            return None
        self.latest = self.loss(step.model)
        step.events.write("eval", step=step.number, val_loss=self.latest)
        return {"val": self.latest}
