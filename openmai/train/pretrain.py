"""`train pretrain`: a base model from token shards."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from openmai.base.artifact import Artifact
from openmai.base.errors import OpenmaiError
from openmai.base.progress import say
from openmai.model.checkpoint import KIND
from openmai.model.transformer import Transformer, num_parameters
from openmai.parallel.processes import Processes, create_together
from openmai.parallel.team import Team
from openmai.tokenizer.shards import Shard
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.train.checkpoints import scratch
from openmai.train.config import PretrainConfig
from openmai.train.dial import turn
from openmai.train.loader import Ahead, Mixture, PretrainBatches, batch_span
from openmai.train.loop import NextToken, Step, prepare_cpu, train
from openmai.train.mixture import MixtureFile


def pretrain(config: PretrainConfig) -> Artifact:
    """Train the configured architecture from scratch and write the checkpoint artifact."""
    shards = Artifact.load(config.shards, "shards")
    vocabulary = Artifact.load(config.tokenizer, "tokenizer")
    recipe = MixtureFile.read(config.mixture) if config.mixture else None
    inputs: list[Artifact | Path] = [shards, vocabulary, *([recipe.path] if recipe else [])]
    processes = Processes.start(config.loop.device)
    chosen, said = turn(config, shards.metrics["vocab_size"], processes.size)
    assert chosen.batch_rows
    assert chosen.micro_rows
    ramp = chosen.schedule.ramp_of(chosen.batch_rows, chosen.loop.steps)
    for rows in [rows for _, rows in ramp] + [chosen.batch_rows]:
        layout = config.layout.resolve(processes.size, rows, chosen.micro_rows)
    architecture = config.architecture(shards.metrics["vocab_size"])
    layout.check_model(architecture, config.context)
    with create_together(processes, config.out, kind=KIND, version=1, config=config, inputs=inputs) as work:
        if work.finished:
            return work.finished
        prepare_cpu(config.loop.threads if processes.size == 1 else max(1, config.loop.threads))
        tokenizer = Tokenizer.load(vocabulary.path)
        if tokenizer.fingerprint != shards.metrics["fingerprint"]:
            raise OpenmaiError(f"{config.shards}: encoded with another tokenizer than {config.tokenizer}; encode again")
        with torch.device("meta"):
            model = Transformer(architecture)
        parameters = num_parameters(model)
        team = Team(processes, layout, config.loop.device, architecture.tied_embeddings, config.precision)
        model = team.take(model)
        team.initialize(model, config.loop.seed, config.loop.device)
        samples = batch_span(ramp, chosen.batch_rows, chosen.loop.steps)[0]
        how = config.packing, config.document_masks
        if recipe:
            mixture = Mixture.open_phases(shards, config.context, recipe, samples, config.loop.seed, *how)
            recipe.show(mixture.names, mixture.epochs(samples))
        else:
            mixture = Mixture.open(shards, config.context, config.upsample, config.loop.seed, *how)
        say(said)
        tokens = samples * config.context
        epochs = tokens / sum(map(len, mixture.streams))
        say(f"model: {parameters:,} parameters; {tokens:,} tokens, {epochs:.2f} epochs of the data")
        validate = Validation(shards, config.context, tokenizer.end_of_text, config.loop.evaluate_every, team)
        initial = validate.bits_per_byte(model)
        train(
            "pretrain",
            model,
            Ahead(PretrainBatches(mixture, chosen.batch_rows, chosen.micro_rows, team.data_rank, layout.data, ramp)),
            NextToken(),
            work.path,
            chosen.loop,
            chosen.optimizer,
            chosen.schedule,
            [validate],
            work.tick,
            team,
        )
        team.save(model, work.path, vocabulary.path)
        say(f"validation: {validate.latest:.4f} bits per byte (untrained {initial:.4f})")
        metrics = {"parameters": parameters, "tokens": tokens, "val_bpb": validate.latest, "untrained_val_bpb": initial}
        sealed = work.finish(metrics, scratch=scratch(work.path, config.loop.keep_every))
        processes.wait()
        return sealed


class Validation:
    """A hook that measures bits per byte on the validation split, over all sources together; `latest` is what the last step left."""

    def __init__(self, shards: Artifact, context: int, end_of_text: int, every: int, team: Team) -> None:
        counts = shards.metrics["splits"]["val"]
        streams = [Shard(shards.path / f"val-{name}").tokens for name in counts if counts[name]["tokens"]]
        self.tokens = np.concatenate(streams) if streams else np.zeros(0, np.uint16)
        self.bytes = sum(count["bytes"] for count in counts.values())
        self.context, self.end_of_text, self.every, self.team = context, end_of_text, every, team
        self.latest = float("nan")
        if not self.bytes:
            raise OpenmaiError(f"{shards.path}: the validation split is empty; raise --validation of `openmai tokenizer encode`")

    def bits_per_byte(self, model: Transformer) -> float:
        """Return the bits that `model` needs per byte of validation text."""
        nats = self.team.stream_nats(model, self.tokens, self.context, self.end_of_text)
        return nats / math.log(2) / self.bytes

    def __call__(self, step: Step) -> dict[str, float] | None:
        if step.number % self.every and not step.last:
            return None
        self.latest = self.bits_per_byte(step.model)
        step.events.write("eval", step=step.number, val_bpb=self.latest)
        return {"bpb": self.latest}
