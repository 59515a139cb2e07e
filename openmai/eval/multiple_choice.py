"""MMLU's original protocol: the letter with the highest next-token probability after five worked examples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from openmai.base.progress import Progress, say
from openmai.model.transformer import Transformer
from openmai.tasks.multiple_choice import LETTERS, Question, Subject, load_subjects
from openmai.tokenizer.tokenizer import Tokenizer

PROTOCOL = "mmlu-original-5shot-logprob"
CHANCE = 1 / len(LETTERS)
_ROWS = 16


@dataclass(frozen=True)
class Prompt:
    """A prompt as ids, and the question it asks; `cropped` if its beginning did not fit."""

    ids: list[int]
    question: Question
    cropped: bool = False


def answer_questions(model: Transformer, tokenizer: Tokenizer, folder: Path, shots: int, label: str) -> dict:
    """Return accuracy over all questions of `folder`, its standard error, chance, how many were cropped, and accuracy by subject."""
    prompts = [
        _prompt(subject, question, tokenizer, shots, model.config.context) for subject in load_subjects(folder) for question in subject.test
    ]
    cropped = sum(prompt.cropped for prompt in prompts)
    if cropped:
        say(f"{label}: {cropped} of {len(prompts)} questions exceed the context of {model.config.context} tokens and lose their beginning")
    letters = [tokenizer.single(f" {letter}") for letter in LETTERS]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number].ids))
    right = [0.0] * len(prompts)
    with Progress(label, len(prompts), "questions") as progress:
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            for row, choice in zip(rows, _choices(model, [prompts[row].ids for row in rows], letters), strict=True):
                right[row] = prompts[row].question.check(LETTERS[choice])
            progress.advance(len(rows))
    by_subject: dict[str, list[float]] = {}
    for prompt, score in zip(prompts, right, strict=True):
        by_subject.setdefault(prompt.question.subject, []).append(score)
    subjects = {name: summarize(scores) for name, scores in by_subject.items()}
    return {
        "protocol": PROTOCOL if shots == 5 else f"mmlu-original-{shots}shot-logprob",
        "chance": CHANCE,
        "cropped": cropped,
        **summarize(right),
        "subjects": subjects,
    }


def summarize(scores: list[float]) -> dict[str, float]:
    """Return mean, standard error of the mean (sample standard deviation / sqrt n) and number."""
    n, mean = len(scores), sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / max(1, n - 1)
    return {"accuracy": mean, "stderr": math.sqrt(variance / n), "n": n}


def _prompt(subject: Subject, question: Question, tokenizer: Tokenizer, shots: int, context: int) -> Prompt:
    """Encode the prompt with as many shots as fit, as the original does; a question that alone is too long loses its beginning."""
    for count in range(min(shots, len(subject.shots)), -1, -1):
        ids = tokenizer.encode(subject.prompt(question, count))
        if len(ids) <= context:
            return Prompt(ids, question)
    return Prompt(ids[-context:], question, cropped=True)


@torch.no_grad()
def _choices(model: Transformer, prompts: list[list[int]], letters: list[int]) -> list[int]:
    """Return for each prompt the number of the likeliest letter; prompts are padded on the right, which causal attention ignores."""
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids in prompts], device=model.embedding.weight.device)
    last_B = torch.tensor([len(ids) - 1 for ids in prompts], device=ids_BT.device)
    return model(ids_BT, last_B=last_B)[:, letters].argmax(dim=-1).tolist()
