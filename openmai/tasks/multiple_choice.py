"""Four-choice questions in MMLU's CSV layout and its original prompt (Hendrycks et al. 2020, arXiv:2009.03300).

A folder holds dev/<subject>_dev.csv (the shots) and test/<subject>_test.csv; each row is question, A, B, C, D, letter, without a header.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from openmai.base.errors import OpenmaiError

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Question:
    """One question; `answer` is an index into `choices`."""

    subject: str
    text: str
    choices: tuple[str, ...]
    answer: int

    def body(self) -> str:
        """Return the question with its choices, up to `Answer:`."""
        return self.text + "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=True)) + "\nAnswer:"

    def check(self, letter: str) -> float:
        """Return 1.0 for the right letter, else 0.0."""
        return float(letter.strip() == LETTERS[self.answer])


@dataclass(frozen=True)
class Subject:
    """A subject's worked examples and its test questions."""

    name: str
    shots: list[Question]
    test: list[Question]

    def prompt(self, question: Question, shots: int) -> str:
        """Return the original prompt; its header has two spaces before the subject, as the authors' code does."""
        header = f"The following are multiple choice questions (with answers) about  {self.name.replace('_', ' ')}.\n\n"
        worked = "".join(f"{shot.body()} {LETTERS[shot.answer]}\n\n" for shot in self.shots[:shots])
        return header + worked + question.body()


def load_subjects(folder: Path) -> list[Subject]:
    """Read every subject of an MMLU-style folder.

    Raises OpenmaiError for a missing folder or file, or a row that is not question, four choices, letter.
    """
    files = sorted((folder / "test").glob("*_test.csv"))
    if not files:
        raise OpenmaiError(f"{folder}: no test/*_test.csv; expected MMLU's layout (dev/<subject>_dev.csv, test/<subject>_test.csv)")
    subjects = []
    for file in files:
        name = file.name.removesuffix("_test.csv")
        subjects.append(Subject(name, _read(folder / "dev" / f"{name}_dev.csv", name), _read(file, name)))
    return subjects


def _read(file: Path, subject: str) -> list[Question]:
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            rows = list(csv.reader(lines))
    except FileNotFoundError:
        raise OpenmaiError(f"{file}: no such file; every subject needs its dev file for the worked examples") from None
    questions = []
    for number, row in enumerate(rows, start=1):
        if len(row) != 6 or row[5].strip() not in LETTERS:
            raise OpenmaiError(f"{file}, row {number}: expected question, four choices and a letter A-D, found {len(row)} columns")
        questions.append(Question(subject, row[0], tuple(row[1:5]), LETTERS.index(row[5].strip())))
    return questions
