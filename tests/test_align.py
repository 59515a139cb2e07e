"""OMP_NUM_THREADS=1 python -m pytest tests/test_align.py

Fine-tuning and preference learning: what is learned, the loss itself, and that both verbs do their work and resume.
"""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from openmai.align.config import DPOConfig, SFTConfig
from openmai.align.conversations import EpochBatches, collate, encode, read_records, split
from openmai.align.dpo import PairBatches, Preference, dpo, encode_pairs, reference_log_probs
from openmai.align.sft import sft
from openmai.base.artifact import Artifact, create
from openmai.base.config import Config
from openmai.base.errors import OpenmaiError
from openmai.model.checkpoint import KIND, load_model, save_model
from openmai.model.config import ModelConfig
from openmai.model.loss import IGNORE
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.tokenizer.train import learn, save
from openmai.train.config import LoopConfig

ANIMALS = ["cat", "dog", "cow", "hen", "pig", "owl", "bee", "ant", "fox", "elk"]
DIALOGUES = [
    {
        "messages": [
            {"role": "user", "content": f"What does the {animal} say? {n}"},
            {"role": "assistant", "content": f"The {animal} says hello."},
        ]
    }
    for animal in ANIMALS
    for n in range(4)
]
PAIRS = [
    {
        "messages": [{"role": "user", "content": f"Greet the {animal} {n}"}],
        "chosen": [{"role": "assistant", "content": f"Hello, dear {animal}!"}],
        "rejected": [{"role": "assistant", "content": f"Go away, {animal}."}],
    }
    for animal in ANIMALS
    for n in range(4)
]


class Nothing(Config):
    pass


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Artifact:
    """A checkpoint with random weights and a tokenizer that knows the dialogues."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    (folder / "tokenizer").mkdir()
    save(learn((json.dumps(record) for record in DIALOGUES + PAIRS), 320), folder / "tokenizer")
    model = Transformer(ModelConfig(vocab_size=320, num_layers=2, width=32, num_heads=2, ffn_width=64, qk_norm=True, context=96))
    model.initialize(0)
    with create(folder / "checkpoint", kind=KIND, version=1, config=Nothing()) as work:
        save_model(model, work.path, folder / "tokenizer")
        return work.finish({})


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_sft_learns_to_answer_and_to_stop(base, tmp_path):
    config = SFTConfig(
        checkpoint=base.path,
        data=[write(tmp_path / "dialogues.jsonl", DIALOGUES)],
        out=tmp_path / "sft",
        validation=0.1,
        loop=LoopConfig(steps=150, evaluate_every=50),
        optimizer={"name": "muon"},
    )
    made = sft(config)
    assert made.metrics["val_loss"] < 0.3 < 3 < made.metrics["val_loss_before"]
    assert not (made.path / "checkpoints").exists()
    model, tokenizer = load_model(made), Tokenizer.load(made.path / "tokenizer")
    ids, _ = tokenizer.render([{"role": "user", "content": "What does the fox say? 3"}], reply=True)
    start = len(ids)
    while len(ids) < 90 and ids[-1] != tokenizer.end_of_turn:
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert tokenizer.decode(ids[start:]) == "The fox says hello.<|im_end|>"


def test_dpo_raises_the_chosen_answers(base, tmp_path):
    data = write(tmp_path / "pairs.jsonl", PAIRS)
    made = dpo(
        DPOConfig(
            checkpoint=base.path,
            data=[data],
            out=tmp_path / "dpo",
            validation=0.2,
            loop=LoopConfig(steps=12),
            optimizer={"name": "adamw", "lr": 3e-3, "embedding_lr": 3e-3, "head_lr": 3e-3, "other_lr": 3e-3},
        )
    )
    assert made.metrics["val_accuracy"] == 1.0
    assert made.metrics["val_margin"] > 1


def test_dpo_loss_is_the_papers(base):
    """At the reference model the loss is ln 2; away from it, -log sigmoid(beta * difference of log-ratios), written out by hand."""
    model, tokenizer = load_model(base), Tokenizer.load(base.path / "tokenizer")
    pairs = encode_pairs(tokenizer, PAIRS[:4], context=96)
    reference = reference_log_probs(model, pairs, tokenizer.end_of_text)
    micro = PairBatches(pairs, reference, tokenizer.end_of_text)([0, 1, 2, 3])
    loss, _ = Preference(beta=0.1).loss(model, micro)
    assert loss.item() / 4 == pytest.approx(math.log(2), rel=1e-5)

    with torch.no_grad():
        model.head.weight.add_(0.1 * torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(0)))
        expected = []
        for number, (chosen, rejected) in enumerate(pairs):
            ratios = []
            for side, example in enumerate((chosen, rejected)):
                log_probs = model(torch.tensor([example.ids]))[0].log_softmax(-1)
                total = sum(log_probs[place - 1, example.ids[place]] for place in range(1, len(example.ids)) if example.mask[place])
                ratios.append(total - reference[number, side])
            expected.append(-F.logsigmoid(0.3 * (ratios[0] - ratios[1])))
        loss, figures = Preference(beta=0.3).loss(model, micro)
    assert loss.item() == pytest.approx(sum(expected).item(), rel=1e-4)
    assert figures["chosen"].item() != pytest.approx(reference[:, 0].sum().item(), rel=1e-4)


def test_only_the_last_turn_of_a_pair_is_learned(base):
    tokenizer = Tokenizer.load(base.path / "tokenizer")
    messages = [*DIALOGUES[0]["messages"], {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Bye."}]
    example = encode(tokenizer, messages, 96, only_last=True)
    assert tokenizer.decode([number for number, learned in zip(example.ids, example.mask, strict=True) if learned]) == "Bye.<|im_end|>"


def test_padding_is_not_learned(base):
    tokenizer = Tokenizer.load(base.path / "tokenizer")
    short, long = (encode(tokenizer, DIALOGUES[number]["messages"] * times, 96) for number, times in ((0, 1), (1, 2)))
    batch = collate([short, long], pad=0)
    assert batch["ids"].shape == batch["targets"].shape == (2, len(long.ids) - 1)
    assert (batch["targets"] != IGNORE).sum().item() == sum(short.mask) + sum(long.mask)
    assert (batch["targets"][0, len(short.ids) - 1 :] == IGNORE).all()


def test_epochs_show_every_row_once_and_batches_are_of_similar_length():
    lengths = [(row * 7919) % 400 for row in range(80)]
    batches = EpochBatches(lengths, rows=5, micro_rows=5, seed=0, make=lambda rows: {"rows": torch.tensor(rows)})
    seen = [micro["rows"].tolist() for step in range(64) for micro in batches(step)]
    epochs = [[row for rows in seen[start : start + 16] for row in rows] for start in range(0, 64, 16)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(80))] * 4
    assert epochs[0] != epochs[1]
    padded = sum(5 * max(lengths[row] for row in rows) for rows in seen)
    assert padded < 1.3 * 4 * sum(lengths)
    assert [lengths[rows[0]] for rows in seen] != sorted(lengths[rows[0]] for rows in seen)


def test_the_split_is_stable_and_disjoint():
    training, held_out = split(DIALOGUES, 0.25)
    assert len(training) + len(held_out) == len(DIALOGUES)
    assert 0 < len(held_out) < 20
    again_training, _ = split(DIALOGUES[:20], 0.25)
    assert [record for record in training if record in DIALOGUES[:20]] == again_training


def test_broken_records_are_named(tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"messages": []}\n{"messages": "hello"}\n')
    with pytest.raises(OpenmaiError, match=r"bad\.jsonl, line 2: 'messages' must be a list"):
        read_records([file], ["messages"])
    file.write_text("{oops\n")
    with pytest.raises(OpenmaiError, match="line 1: not valid JSON"):
        read_records([file], ["messages"])
    with pytest.raises(OpenmaiError, match="no such file"):
        read_records([tmp_path / "missing.jsonl"], ["messages"])
