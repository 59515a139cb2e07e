"""`train pretrain`: a base model from token shards."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from openmai.base.artifact import Artifact
from openmai.base.errors import OpenmaiError
from openmai.base.progress import say
from openmai.model.checkpoint import KIND, save_model, stored_tensors
from openmai.model.loss import stream_nats
from openmai.model.transformer import Transformer, num_parameters
from openmai.parallel.apply import let_go, make_mesh, shard
from openmai.parallel.processes import Processes, create_together, whole
from openmai.tokenizer.shards import Shard
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.train.config import PretrainConfig
from openmai.train.loader import Mixture, PretrainBatches
from openmai.train.loop import NextToken, Step, prepare_cpu, train
from openmai.train.mixture import MixtureFile


def pretrain(config: PretrainConfig) -> Artifact:
    """Train the configured architecture from scratch and write the checkpoint artifact."""
    shards = Artifact.load(config.shards, "shards")
    vocabulary = Artifact.load(config.tokenizer, "tokenizer")
    recipe = MixtureFile.read(config.mixture) if config.mixture else None
    inputs: list[Artifact | Path] = [shards, vocabulary, *([recipe.path] if recipe else [])]
    processes = Processes.start(config.loop.device)
    layout = config.layout.resolve(processes.size, config.batch_rows, config.micro_rows)
    with create_together(processes, config.out, kind=KIND, version=1, config=config, inputs=inputs) as work:
        if work.finished:
            return work.finished
        prepare_cpu(config.loop.threads if processes.size == 1 else max(1, config.loop.threads))
        tokenizer = Tokenizer.load(vocabulary.path)
        if tokenizer.fingerprint != shards.metrics["fingerprint"]:
            raise OpenmaiError(f"{config.shards}: encoded with another tokenizer than {config.tokenizer}; encode again")
        model = Transformer(config.architecture(tokenizer.vocab_size))
        model.initialize(config.loop.seed)
        model.to(config.loop.device)
        if processes.size > 1:
            shard(model, make_mesh(layout, config.loop.device), bf16=False)
        samples = config.loop.steps * config.batch_rows
        if recipe:
            mixture = Mixture.open_phases(shards, config.context, recipe, samples, config.loop.seed)
            recipe.show(mixture.names, mixture.epochs(samples))
        else:
            mixture = Mixture.open(shards, config.context, config.upsample, config.loop.seed)
        tokens = samples * config.context
        epochs = tokens / sum(map(len, mixture.streams))
        say(f"model: {num_parameters(model):,} parameters; {tokens:,} tokens, {epochs:.2f} epochs of the data")
        validate = Validation(shards, config.context, tokenizer.end_of_text, config.loop.evaluate_every)
        initial = validate.bits_per_byte(model)
        train(
            "pretrain",
            model,
            PretrainBatches(mixture, config.batch_rows, config.micro_rows, processes.rank, processes.size),
            NextToken(),
            work.path,
            config.loop,
            config.optimizer,
            config.schedule,
            [validate],
            work.tick,
            processes,
        )
        if processes.rank == 0:
            save_model(model, work.path, vocabulary.path, whole)
        else:
            state = model.state_dict()
            for name in stored_tensors(model):  # the first process puts these together
                whole(state[name])
        say(f"validation: {validate.latest:.4f} bits per byte (untrained {initial:.4f})")
        metrics = {"parameters": num_parameters(model), "tokens": tokens, "val_bpb": validate.latest, "untrained_val_bpb": initial}
        sealed = work.finish(metrics, scratch=["checkpoints"])
        processes.wait()
        return sealed


class Validation:
    """A hook that measures bits per byte on the validation split, over all sources together; `latest` is what the last step left."""

    def __init__(self, shards: Artifact, context: int, end_of_text: int, every: int) -> None:
        counts = shards.metrics["splits"]["val"]
        streams = [Shard(shards.path / f"val-{name}").tokens for name in counts if counts[name]["tokens"]]
        self.tokens = np.concatenate(streams) if streams else np.zeros(0, np.uint16)
        self.bytes = sum(count["bytes"] for count in counts.values())
        self.context, self.end_of_text, self.every = context, end_of_text, every
        self.latest = float("nan")
        if not self.bytes:
            raise OpenmaiError(f"{shards.path}: the validation split is empty; raise --validation of `openmai tokenizer encode`")

    def bits_per_byte(self, model: Transformer) -> float:
        """Return the bits that `model` needs per byte of validation text."""
        nats = stream_nats(model, self.tokens, self.context, self.end_of_text)
        let_go(model)
        return nats / math.log(2) / self.bytes

    def __call__(self, step: Step) -> dict[str, float] | None:
        if step.number % self.every and not step.last:
            return None
        self.latest = self.bits_per_byte(step.model)
        step.events.write("eval", step=step.number, val_bpb=self.latest)
        return {"bpb": self.latest}
