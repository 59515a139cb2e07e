"""Conversations and preference pairs: reading, splitting, and batches of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openmai.base.errors import OpenmaiError
from openmai.base.files import hash_value
from openmai.base.progress import say
from openmai.model.loss import IGNORE
from openmai.tokenizer.sample import is_validation
from openmai.tokenizer.tokenizer import Message, Tokenizer
from openmai.train.loader import Batch, shuffle

_STRETCH = 8


@dataclass(frozen=True)
class Example:
    """A conversation as ids, with a mask that is True on what is to be learned."""

    ids: list[int]
    mask: list[bool]


def read_records(paths: Sequence[Path], fields: Sequence[str]) -> list[dict]:
    """Read JSONL files, or all of a folder's, in order of name; every record must have `fields`.

    Raises OpenmaiError naming file and line of what is missing or broken.
    """
    records = []
    for path in paths:
        files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise OpenmaiError(f"{path}: holds no .jsonl file")
        for file in files:
            records += list(_read(file, fields))
    return records


def _read(file: Path, fields: Sequence[str]) -> Iterator[dict]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise OpenmaiError(f"{file}: no such file") from None
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise OpenmaiError(f"{file}, line {number}: not valid JSON ({error})") from None
        missing = [field for field in fields if not isinstance(record.get(field), list)]
        if missing:
            raise OpenmaiError(f"{file}, line {number}: '{missing[0]}' must be a list of messages")
        yield record


def split(records: list[dict], share: float) -> tuple[list[dict], list[dict]]:
    """Separate training from validation records by the hash of their content."""
    held_out = [is_validation(hash_value(record), share) for record in records]
    return [r for r, out in zip(records, held_out, strict=True) if not out], [r for r, out in zip(records, held_out, strict=True) if out]


def encode(tokenizer: Tokenizer, messages: list[Message], context: int, only_last: bool = False) -> Example | None:
    """Render a conversation, cut to `context` tokens; None if nothing to learn is left.

    `only_last` learns the last turn alone, as preference pairs do.
    """
    ids, mask = tokenizer.render(messages)
    if only_last:
        start = len(tokenizer.render(messages[:-1], reply=True)[0])
        mask = [learn and place >= start for place, learn in enumerate(mask)]
    ids, mask = ids[: context + 1], mask[: context + 1]
    return Example(ids, mask) if any(mask[1:]) else None


def collate(examples: Sequence[Example], pad: int) -> dict[str, Tensor]:
    """Pad examples on the right; return ids and targets, each (B, T)."""
    longest = max(len(example.ids) for example in examples) - 1
    ids = torch.full((len(examples), longest), pad)
    targets = torch.full((len(examples), longest), IGNORE)
    for row, example in enumerate(examples):
        size = len(example.ids) - 1
        ids[row, :size] = torch.tensor(example.ids[:-1])
        learned = torch.tensor(example.ids[1:])
        targets[row, :size] = learned.masked_fill(~torch.tensor(example.mask[1:]), IGNORE)
    return {"ids": ids, "targets": targets}


@dataclass(frozen=True)
class EpochBatches:
    """Rows in a new random order each epoch; `make` turns chosen row numbers into a micro-batch.

    Batches hold rows of similar length, as padding costs like text: of each stretch of `_STRETCH` batches the rows are sorted by `lengths`
    and dealt out, and the batches shuffled.
    """

    lengths: list[int]
    rows: int
    micro_rows: int
    seed: int
    make: Callable[[list[int]], dict[str, Tensor]]

    def __call__(self, step: int) -> Batch:
        """Return the micro-batches of optimizer step `step`, a pure function of it."""
        stretch, number = divmod(step, _STRETCH)
        size, count = len(self.lengths), self.rows * _STRETCH
        places = np.arange(stretch * count, (stretch + 1) * count)
        epochs = places // size
        drawn = [shuffle(places[epochs == epoch] % size, size, self.seed * 1_000_003 + int(epoch)) for epoch in np.unique(epochs)]
        by_length = sorted(np.concatenate(drawn).tolist(), key=lambda row: self.lengths[row])
        batch = int(shuffle(np.array([number]), _STRETCH, self.seed * 1_000_003 + stretch)[0])
        chosen = by_length[batch * self.rows : (batch + 1) * self.rows]
        return [self.make(chosen[start : start + self.micro_rows]) for start in range(0, self.rows, self.micro_rows)]


def encode_all(tokenizer: Tokenizer, conversations: list[list[Message]], context: int, where: str) -> list[Example]:
    """Encode conversations, leaving out (and counting aloud) those with nothing left to learn."""
    examples = [encode(tokenizer, messages, context) for messages in conversations]
    kept = [example for example in examples if example is not None]
    if len(kept) < len(examples):
        left_out = len(examples) - len(kept)
        say(f"{where}: {left_out} of {len(examples)} conversations do not fit the context of {context} tokens and are left out")
    if not kept:
        raise OpenmaiError(f"{where}: no conversation with an assistant's turn within {context} tokens")
    return kept
