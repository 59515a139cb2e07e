"""OMP_NUM_THREADS=1 python -m pytest tests/test_eval.py

MMLU's original prompt to the letter, the baselines against plain counting, and bits per byte against one whole forward pass.
"""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from openmai.base.errors import OpenmaiError
from openmai.eval.multiple_choice import answer_questions, summarize
from openmai.eval.ngram import bigram_nats, unigram_nats
from openmai.model.config import ModelConfig
from openmai.model.loss import stream_nats
from openmai.model.transformer import Transformer
from openmai.tasks.multiple_choice import load_subjects
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.tokenizer.train import learn


def write_questions(folder: Path, answers: str = "BDAC") -> Path:
    for split, letters in (("dev", "AC"), ("test", answers)):
        (folder / split).mkdir(parents=True)
        rows = [f'"Which letter, {number}?",one,two,three,four,{letter}\n' for number, letter in enumerate(letters)]
        (folder / split / f"high_school_letters_{split}.csv").write_text("".join(rows))
    return folder


def test_the_prompt_is_mmlus(tmp_path):
    subject = load_subjects(write_questions(tmp_path / "q"))[0]
    assert subject.prompt(subject.test[0], shots=1) == (
        "The following are multiple choice questions (with answers) about  high school letters.\n\n"
        "Which letter, 0?\nA. one\nB. two\nC. three\nD. four\nAnswer: A\n\n"
        "Which letter, 0?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    )


class AlwaysB(torch.nn.Module):
    """Answers B: puts all weight on one token, and looks at the right place of a padded row."""

    def __init__(self, vocab_size: int, token: int, context: int) -> None:
        super().__init__()
        self.config = ModelConfig(vocab_size=vocab_size, num_layers=1, width=8, num_heads=1, ffn_width=8, context=context)
        self.embedding = torch.nn.Embedding(vocab_size, 8)
        self.token, self.lengths = token, []

    def forward(self, ids_BT, last_B):
        self.lengths += [(int(last) + 1, ids_BT.shape[1]) for last in last_B]
        logits = torch.zeros(len(ids_BT), self.config.vocab_size)
        logits[:, self.token] = 1
        return logits


def test_accuracy_error_and_fewer_shots_when_they_do_not_fit(tmp_path):
    tokenizer = Tokenizer(learn(iter([" A B C D\n Answer: A. B. C. D."] * 9), 300))
    folder = write_questions(tmp_path / "q", "BBBA")
    roomy = AlwaysB(tokenizer.vocab_size, tokenizer.single(" B"), 2000)
    result = answer_questions(roomy, tokenizer, folder, shots=5, label="test")
    assert (result["accuracy"], result["n"], result["chance"]) == (0.75, 4, 0.25)
    assert result["stderr"] == pytest.approx(math.sqrt((3 * 0.0625 + 0.5625) / 3 / 4))
    assert result["subjects"]["high_school_letters"]["n"] == 4
    bare = len(tokenizer.encode(load_subjects(folder)[0].prompt(load_subjects(folder)[0].test[0], 0)))
    tight = AlwaysB(tokenizer.vocab_size, tokenizer.single(" B"), bare)
    answer_questions(tight, tokenizer, folder, shots=5, label="test")
    assert max(length for length, _ in tight.lengths) == bare < min(length for length, _ in roomy.lengths)
    assert result["cropped"] == 0
    small = AlwaysB(tokenizer.vocab_size, 0, bare - 1)
    assert answer_questions(small, tokenizer, folder, shots=5, label="test")["cropped"] == 4
    assert {length for length, _ in small.lengths} == {bare - 1}


def test_standard_error_is_the_sample_one():
    assert summarize([1.0, 0.0, 1.0, 1.0]) == {"accuracy": 0.75, "stderr": pytest.approx(0.25), "n": 4}


def test_broken_questions_are_named(tmp_path):
    folder = write_questions(tmp_path / "q")
    (folder / "test" / "high_school_letters_test.csv").write_text("question,a,b,c,d,E\n")
    with pytest.raises(OpenmaiError, match=r"letters_test\.csv, row 1"):
        load_subjects(folder)
    with pytest.raises(OpenmaiError, match="MMLU's layout"):
        load_subjects(tmp_path)


def test_ngrams_are_plain_counting():
    random = np.random.default_rng(0)
    train, test = random.integers(0, 7, 300).astype(np.uint16), random.integers(0, 9, 50).astype(np.uint16)
    size, skip = 9, 3
    counts, pairs = Counter(train.tolist()), Counter(zip(train[:-1].tolist(), train[1:].tolist(), strict=True))
    unigram = {token: (counts[token] + 1) / (len(train) + size) for token in range(size)}
    first = Counter(train[:-1].tolist())
    followers = Counter(a for a, _ in pairs)

    def bigram(a: int, b: int) -> float:
        if not first[a]:
            return unigram[b]
        return max(pairs[a, b] - 0.75, 0) / first[a] + 0.75 * followers[a] / first[a] * unigram[b]

    assert all(sum(bigram(a, b) for b in range(size)) == pytest.approx(1) for a in range(size))
    steps = [(a, b) for a, b in zip(test[:-1].tolist(), test[1:].tolist(), strict=True) if b != skip]
    assert unigram_nats(train, test, size, skip) == pytest.approx(-sum(math.log(unigram[b]) for _, b in steps))
    assert bigram_nats(train, test, size, skip) == pytest.approx(-sum(math.log(bigram(a, b)) for a, b in steps))


def test_windows_predict_every_token_once():
    model = Transformer(ModelConfig(vocab_size=50, num_layers=1, width=16, num_heads=2, ffn_width=32))
    model.initialize(0)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    tokens = np.random.default_rng(0).integers(0, 50, 83).astype(np.uint16)
    expected = 0.0
    for start in range(0, 82, 8):
        window = torch.from_numpy(tokens[start : start + 9].astype(np.int64))
        log_probs = model(window[None, :-1])[0].log_softmax(-1)
        expected -= sum(log_probs[place, target].item() for place, target in enumerate(window[1:]) if target != 7)
    for rows in (1, 3, 100):
        assert stream_nats(model, tokens, 8, end_of_text=7, rows=rows) == pytest.approx(expected, rel=1e-5)
