"""`align dpo`: direct preference optimization against the model it starts from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openmai.align.config import DPOConfig
from openmai.align.conversations import EpochBatches, Example, collate, encode, read_records, split
from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.progress import Progress, say
from openmai.model.checkpoint import KIND, load_model, save_model
from openmai.model.loss import IGNORE, on_device_of, token_nats
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.train.checkpoints import scratch
from openmai.train.loop import Step, prepare_cpu, train

Pair = tuple[Example, Example]


def dpo(config: DPOConfig) -> Artifact:
    """Make chosen answers likelier than rejected ones, held near the reference model."""
    base = Artifact.load(config.checkpoint, KIND)
    with create(config.out, kind=KIND, version=1, config=config, inputs=[base, *config.data]) as work:
        if work.finished:
            return work.finished
        prepare_cpu(config.loop.threads)
        tokenizer, model = Tokenizer.load(base.path / "tokenizer"), load_model(base, config.loop.device)
        training, validation = split(read_records(config.data, ["messages", "chosen", "rejected"]), config.validation)
        pairs, held_out = (encode_pairs(tokenizer, records, model.config.context) for records in (training, validation))
        if not pairs:
            raise OpenmaiError(f"{config.data[0]}: no preference pair fits the context of {model.config.context} tokens")
        maker = PairBatches(pairs, reference_log_probs(model, pairs, tokenizer.end_of_text), tokenizer.end_of_text)
        lengths = [max(len(chosen.ids), len(rejected.ids)) for chosen, rejected in pairs]
        batches = EpochBatches(lengths, config.batch_rows, config.micro_rows, config.loop.seed, maker)
        say(f"{len(pairs)} pairs, {config.loop.steps * config.batch_rows / len(pairs):.1f} epochs; {len(held_out)} held out")
        held_out_maker = PairBatches(held_out, reference_log_probs(model, held_out, tokenizer.end_of_text), tokenizer.end_of_text)
        validate = Validation(held_out_maker, config.loop.evaluate_every)
        objective = Preference(config.beta, config.loss, config.nll)
        train("dpo", model, batches, objective, work.path, config.loop, config.optimizer, config.schedule, [validate], work.tick)
        save_model(model, work.path, base.path / "tokenizer")
        accuracy, margin = validate.latest
        say(f"held-out pairs: the chosen answer gained on the rejected one in {accuracy:.0%}")
        return work.finish(
            {"pairs": len(pairs), "val_accuracy": accuracy, "val_margin": margin, "val_pairs": len(held_out)},
            scratch=scratch(work.path, config.loop.keep_every),
        )


def encode_pairs(tokenizer: Tokenizer, records: list[dict], context: int) -> list[Pair]:
    """Encode preference pairs; those that do not fit the context are left out."""
    both = [
        tuple(encode(tokenizer, [*record["messages"], *record[side]], context, only_last=True) for side in ("chosen", "rejected"))
        for record in records
    ]
    return [(chosen, rejected) for chosen, rejected in both if chosen is not None and rejected is not None]


def sequence_log_probs(model: Transformer, micro: dict[str, Tensor]) -> Tensor:
    """Return the log-probability of each row's supervised tokens, (B,)."""
    return -token_nats(model, micro["ids"], micro["targets"]).sum(dim=1)


def margin_of(log_probs: Tensor, micro: dict[str, Tensor]) -> Tensor:
    """Return by how many nats each chosen answer gained on the rejected one against the reference, (pairs,)."""
    gain_chosen, gain_rejected = (log_probs - micro["reference"]).chunk(2)
    return gain_chosen - gain_rejected


@torch.no_grad()
def reference_log_probs(model: Transformer, pairs: list[Pair], pad: int, rows: int = 16) -> Tensor:
    """Return the log-probabilities of the chosen and rejected answers under `model`, (pairs, 2)."""
    values = []
    with Progress("reference", len(pairs), "pairs") as progress:
        for start in range(0, len(pairs), rows):
            part = pairs[start : start + rows]
            micro = collate([chosen for chosen, _ in part] + [rejected for _, rejected in part], pad)
            values.append(sequence_log_probs(model, on_device_of(model, micro)).view(2, -1).T.cpu())
            progress.advance(len(part))
    return torch.cat(values) if values else torch.zeros(0, 2)


class PairBatches:
    """Turn numbers of pairs into a micro-batch: chosen answers in the first half of the rows, rejected ones in the second."""

    def __init__(self, pairs: list[Pair], reference_P2: Tensor, pad: int) -> None:
        self.pairs, self.reference_P2, self.pad = pairs, reference_P2, pad

    def __call__(self, rows: list[int]) -> dict[str, Tensor]:
        chosen, rejected = [self.pairs[row][0] for row in rows], [self.pairs[row][1] for row in rows]
        return {**collate(chosen + rejected, self.pad), "reference": self.reference_P2[rows].T.flatten()}


class Preference:
    """The DPO objective, averaged over pairs; also reports accuracy, margin (in nats) and the log-probabilities themselves."""

    def __init__(self, beta: float, loss: str = "sigmoid", nll: float = 0.0) -> None:
        self.beta, self.kind, self.nll = beta, loss, nll

    def units(self, micro: dict[str, Tensor]) -> int:
        return len(micro["ids"]) // 2

    def loss(self, model: Transformer, micro: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        log_probs = sequence_log_probs(model, micro)
        margin = margin_of(log_probs, micro)
        loss = -F.logsigmoid(self.beta * margin) if self.kind == "sigmoid" else (margin - 1 / (2 * self.beta)).square()
        chosen, rejected = log_probs.chunk(2)
        if self.nll:
            tokens = (micro["targets"] != IGNORE).sum(dim=1)[: len(chosen)]
            loss = loss - self.nll * chosen / tokens
        figures = {"accuracy": (margin > 0).float(), "margin": margin, "chosen": chosen, "rejected": rejected}
        return loss.sum(), {name: value.sum() for name, value in figures.items()}


class Validation:
    """A hook that measures, on held-out pairs, how often and how far the chosen answer gained on the rejected one.

    `latest` is what the last step left.
    """

    def __init__(self, maker: PairBatches, every: int) -> None:
        self.maker, self.every = maker, every
        self.latest = (float("nan"), float("nan"))

    @torch.no_grad()
    def measure(self, model: Transformer) -> tuple[float, float]:
        """Return accuracy and mean margin in nats; not-a-number without held-out pairs."""
        training, margins = model.training, []
        model.eval()
        for start in range(0, len(self.maker.pairs), 16):
            micro = on_device_of(model, self.maker(list(range(start, min(start + 16, len(self.maker.pairs))))))
            margins += margin_of(sequence_log_probs(model, micro), micro).tolist()
        model.train(training)
        if not margins:
            return float("nan"), float("nan")
        return sum(margin > 0 for margin in margins) / len(margins), sum(margins) / len(margins)

    def __call__(self, step: Step) -> dict[str, float] | None:
        if not self.maker.pairs or (step.number % self.every and not step.last):
            return None
        self.latest = accuracy, margin = self.measure(step.model)
        step.events.write("eval", step=step.number, val_accuracy=accuracy, val_margin=margin)
        return {"val_acc": accuracy}
