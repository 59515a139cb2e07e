"""pytest tests/test_data_quality.py: the learned quality score and a teacher's grades for it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openmai.base.artifact import create
from openmai.base.config import Config
from openmai.base.errors import OpenmaiError
from openmai.base.files import hash_file, read_json
from openmai.data.document import SCHEMA
from openmai.data.filter.grade import grade, parse_grade
from openmai.data.filter.quality import QualityFacts, QualityModel, count_values, features, slow_features
from openmai.data.filter.quality_config import GradeConfig, QualityTrainConfig
from openmai.data.filter.quality_report import auc, for_classes, for_grades, spearman
from openmai.data.filter.quality_solver import platt, rows_of, solve
from openmai.data.filter.quality_train import train
from openmai.data.read.config import Source


def words(text: str) -> list[str]:
    return text.split()


GOOD = words("the cell divides because its membrane grows ; therefore we observe energy theory example proof reason")
POOR = words("click here buy now sale login cookie share subscribe offer cheap deal newsletter cart checkout terms")
BOTH = words("a of and in on with for this that page text word about")


def text_of(kind: list[str], seed: int, share: float = 0.3) -> str:
    random_ = random.Random(f"{kind[0]} {seed}")
    return " ".join(random_.choice(kind if random_.random() < share else BOTH) for _ in range(60)) + f" {seed}.\n"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source(name=path.stem, path=str(path))


def two_classes(folder: Path, count: int = 150) -> dict[str, list[Source]]:
    return {
        "positives": [write_lines(folder / "good.jsonl", [{"text": text_of(GOOD, seed)} for seed in range(count)])],
        "negatives": [write_lines(folder / "poor.jsonl", [{"text": text_of(POOR, seed)} for seed in range(count)])],
    }


HARD_TEXTS = [
    "", "\n", " \t ", "a", "A b\n\nC 1984, x!!! y…", "“quoted” — dash…", "a\u00a0b\u3000c、d",
    "Ünïcödé ИКС 漢字 🙂 x", "\x00\x7f", "…", "\u2028x",
    "1.5e-7 == --- ### 12:30", "\r\n\r\n- item\r\n", "word" * 50,
]  # fmt: skip


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_compiled_features_equal_their_slow_twin(text: str) -> None:
    for bits, chars in ((12, 20_000), (20, 7)):
        assert features(text, bits, chars).tolist() == sorted(bucket for _, bucket in slow_features(text, bits, chars))


def test_compiled_features_equal_their_slow_twin_on_random_text() -> None:
    random_ = random.Random(1)
    for _ in range(200):
        text = "".join(random_.choice("ab C1.\n…—\u00a0é漢 !") for _ in range(80))
        assert features(text, 18, 200).tolist() == sorted(bucket for _, bucket in slow_features(text, 18, 200))


def test_tokens_are_as_described() -> None:
    names = [name for name, _ in slow_features("The cat, 1984!!\n\n Ok", 20, 100)]
    assert names == ["the", "cat", "the cat", ",", "cat ,", "0000", ", 0000", "!", "0000 !", "⏎", "! ⏎", "ok", "⏎ ok"]


def dense(texts: list[str], bits: int) -> np.ndarray:
    rows = rows_of(texts, bits, 1000, count_values())
    matrix = np.zeros((len(texts), 1 << bits))
    for row in range(len(texts)):
        matrix[row, rows.buckets[rows.starts[row] : rows.starts[row + 1]]] = rows.values[rows.starts[row] : rows.starts[row + 1]]
    return np.hstack([matrix, np.ones((len(texts), 1))])


def test_ridge_equals_its_closed_form() -> None:
    texts = [text_of(GOOD, seed, share=seed / 40) for seed in range(40)]
    targets = np.arange(40) / 8.0
    matrix = dense(texts, 12)
    solution, gap = solve(rows_of(texts, 12, 1000, count_values()), targets, np.ones(40), False, 1 << 12, 0.5, 400, 0)
    exact = matrix.T @ np.linalg.solve(matrix @ matrix.T + 0.5 * np.eye(40), targets)
    assert gap < 1e-3
    assert np.abs(matrix @ solution - matrix @ exact).max() < 0.05


def test_logistic_regression_is_at_its_minimum() -> None:
    texts = [text_of(GOOD if seed % 2 else POOR, seed, share=0.1) for seed in range(60)]
    targets = np.where(np.arange(60) % 2, 1.0, -1.0)
    weights = np.where(targets > 0, 2.0, 0.5)
    matrix = dense(texts, 12)
    solution, gap = solve(rows_of(texts, 12, 1000, count_values()), targets, weights, True, 1 << 12, 0.5, 400, 0)

    def loss(point: np.ndarray) -> float:
        return float((weights * np.log1p(np.exp(-targets * (matrix @ point)))).sum() + 0.25 * (point**2).sum())

    assert gap < 1e-3
    random_ = np.random.default_rng(0)
    for size in (0.01, 0.1, 1.0):
        step = matrix.T @ random_.normal(size=60)
        assert loss(solution + size * step / np.linalg.norm(step)) > loss(solution) * (1 - 2e-3)
    assert loss(solution) < loss(np.zeros_like(solution)) * 0.8


def test_measures() -> None:
    scores, labels = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert auc(scores, labels) == 0.75
    assert auc(np.ones(4), labels) == 0.5
    assert spearman(np.array([1.0, 2, 3]), np.array([10.0, 20, 15])) == pytest.approx(0.5)
    assert for_classes(scores, labels)["confusion"] == [[2, 0], [1, 1]]
    found = for_grades(np.array([0.2, 2.9, 4.4]), np.array([0.0, 3, 5]))
    assert found["confusion"][5][4] == 1
    assert found["accuracy"] == pytest.approx(2 / 3)
    slope, shift = platt(np.array([0.0, 1, 2, 3, 1.5, 1.6]), np.array([False, False, True, True, True, False]))
    assert slope > 0 > shift


def test_two_classes_are_learned(tmp_path: Path) -> None:
    config = QualityTrainConfig(out=tmp_path / "model", **two_classes(tmp_path), bits=14, checks=[])
    artifact = train(config)
    results = read_json(artifact.path / "results.json")
    assert results["held_out"]["accuracy"] > 0.95
    assert results["held_out"]["auc"] > 0.99
    assert results["gap"] < 1e-3
    telling = {side: {item["text"] for item in items} for side, items in results["telling"].items()}
    assert {"membrane", "energy"} <= telling["good"]
    assert {"cookie", "checkout"} <= telling["poor"]
    model = QualityModel.load(artifact.path)
    good, poor = model.score([text_of(GOOD, 9999), text_of(POOR, 9999)])
    assert 0.9 < good <= 1
    assert 0 <= poor < 0.1
    assert "| negatives |" in (artifact.path / "quality.md").read_text()
    assert train(config).created == artifact.created


def test_training_twice_gives_the_same_bits(tmp_path: Path) -> None:
    sources = two_classes(tmp_path)
    first = train(QualityTrainConfig(out=tmp_path / "one", **sources, bits=14))
    second = train(QualityTrainConfig(out=tmp_path / "two", **sources, bits=14))
    assert first.digest == second.digest
    other = train(QualityTrainConfig(out=tmp_path / "three", **sources, bits=14, seed=1, epochs=1))
    assert other.digest != first.digest


_SCORE = """
import json, sys
from pathlib import Path
from openmai.data.filter.quality import QualityModel
print(json.dumps([score.hex() for score in QualityModel.load(Path(sys.argv[1])).score(json.load(sys.stdin))]))
assert "torch" not in sys.modules
"""


def test_scores_are_the_same_in_another_process(tmp_path: Path) -> None:
    random_ = np.random.default_rng(0)
    weights = random_.integers(-32767, 32767, 1 << 14).astype(np.int16)
    facts = QualityFacts("classes", 14, 500, bias=0.1, scale=3e-4, slope=0.7, shift=-0.2)
    model = QualityModel(facts, weights, count_values(), np.arange(513) / 512)
    model.save(tmp_path)
    texts = [text_of(GOOD, seed) for seed in range(20)] + HARD_TEXTS
    done = subprocess.run([sys.executable, "-c", _SCORE, tmp_path], input=json.dumps(texts), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [score.hex() for score in model.score(texts)]
    assert model.score(["The cell divides because its membrane grows."])[0].hex() == "0x1.32a72e8c4ac46p-1"  # on every machine


def test_grades_are_learned(tmp_path: Path) -> None:
    rows = [{"text": text_of(GOOD, seed, share=seed % 6 / 6), "points": seed % 6} for seed in range(300)]
    source = write_lines(tmp_path / "graded.jsonl", rows)
    artifact = train(QualityTrainConfig(out=tmp_path / "model", grades=[source], grade_field="points", bits=14))
    held = read_json(artifact.path / "results.json")["held_out"]
    assert held["spearman"] > 0.8
    assert held["mean_error"] < 0.7 < held["mean_error_of_constant"]
    model = QualityModel.load(artifact.path)
    assert model.facts.target == "grades"
    scores = model.score([text_of(GOOD, 7777, share=share) for share in (0.0, 0.4, 0.9)])
    assert scores == sorted(scores)
    assert 0 <= scores[0] < scores[-1] <= 1
    with pytest.raises(OpenmaiError, match="without a number in 'grade'"):
        train(QualityTrainConfig(out=tmp_path / "other", grades=[source], bits=14))


def test_sources_that_are_not_trained_on_are_reported(tmp_path: Path) -> None:
    check = write_lines(tmp_path / "mixed.jsonl", [{"text": text_of(GOOD, seed, share=0.05)} for seed in range(30)])
    artifact = train(QualityTrainConfig(out=tmp_path / "model", **two_classes(tmp_path), checks=[check], bits=14))
    results = read_json(artifact.path / "results.json")
    assert results["sources"]["mixed (not trained on)"]["texts"] == 30
    assert "mixed" not in results["texts"]


def test_bad_configurations_are_refused(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "few.jsonl", [{"text": text_of(GOOD, seed)} for seed in range(5)])
    with pytest.raises(ValueError, match="either grades, or both"):
        QualityTrainConfig(out=tmp_path, positives=[source])
    with pytest.raises(ValueError, match="either grades, or both"):
        QualityTrainConfig(out=tmp_path, positives=[source], negatives=[source], grades=[source])
    with pytest.raises(OpenmaiError, match="too few"):
        train(QualityTrainConfig(out=tmp_path / "x", positives=[source], negatives=[source]))


# --- the teacher ---------------------------------------------------------------------------------------------------------------------


class MadeConfig(Config):
    """Says what the documents are made of."""

    count: int = 12


def make_documents(folder: Path, count: int = 12) -> Path:
    with create(folder, kind="documents", version=1, config=MadeConfig(count=count)) as work:
        (folder / "documents").mkdir()
        rows = [
            dict.fromkeys(SCHEMA.names, "") | {"id": f"{seed:032x}", "text": text_of(GOOD, seed), "scores": [], "meta": "{}"}
            for seed in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "documents" / "part-00000.parquet")
        work.finish(metrics={})
    return folder


class FakeTeacher:
    """An OpenAI-style endpoint on loopback; `reply(body, number)` returns a status and a text, or None to hang up."""

    def __init__(self, reply: Callable[[dict[str, Any], int], tuple[int, str] | None]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0
        lock, teacher = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    teacher.bodies.append(body)
                    teacher.headers.append(dict(self.headers))
                    teacher.now += 1
                    teacher.most, number = max(teacher.most, teacher.now), len(teacher.bodies)
                answer = reply(body, number)
                with lock:
                    teacher.now -= 1
                if answer is None:
                    return
                status, text = answer
                data = json.dumps({"choices": [{"message": {"content": text}}]} if status == 200 else {"error": text}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def teach(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeTeacher]]:
    monkeypatch.setattr("openmai.data.filter.teacher._FIRST_WAIT", 0.001)
    teachers: list[FakeTeacher] = []

    def start(reply: Callable[[dict[str, Any], int], tuple[int, str] | None]) -> FakeTeacher:
        teachers.append(FakeTeacher(reply))
        return teachers[-1]

    yield start
    for teacher in teachers:
        teacher.server.shutdown()
        teacher.server.server_close()


def judge(body: dict[str, Any], number: int) -> tuple[int, str]:
    return 200, f"It names some words.\nGrade: {len(body['messages'][1]['content']) % 6}"


def test_a_teacher_grades_and_the_grades_train_a_score(
    tmp_path: Path, teach: Callable[..., FakeTeacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "secret")
    teacher = teach(judge)
    config = GradeConfig(
        out=tmp_path / "grades",
        documents=make_documents(tmp_path / "documents", 60),
        endpoint=teacher.endpoint,
        model="wise",
        key_variable="TEACHER_KEY",
        concurrency=3,
        chars=200,
    )
    artifact = grade(config)
    assert artifact.metrics["graded"] == 60
    assert teacher.most <= 3
    assert len(teacher.bodies) == 60
    assert {body["model"] for body in teacher.bodies} == {"wise"}
    assert {headers["Authorization"] for headers in teacher.headers} == {"Bearer secret"}
    assert "secret" not in (tmp_path / "grades.requests.jsonl").read_text() + (tmp_path / "grades/manifest.json").read_text()
    rows = [json.loads(line) for line in (artifact.path / "grades.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert rows[3]["text"] == text_of(GOOD, 3)
    assert grade(config).digest == artifact.digest
    assert len(teacher.bodies) == 60
    model = train(QualityTrainConfig(out=tmp_path / "model", grades=[Source(name="grades", path=str(artifact.path))], bits=12))
    assert model.metrics["texts"] > 0


def test_a_killed_run_repeats_no_answer(tmp_path: Path, teach: Callable[..., FakeTeacher]) -> None:
    whole = teach(judge)
    documents = make_documents(tmp_path / "documents")
    facts = {"documents": documents, "model": "m", "concurrency": 1, "retries": 0}
    expected = grade(GradeConfig(out=tmp_path / "whole", endpoint=whole.endpoint, **facts))
    broken = teach(lambda body, number: judge(body, number) if number <= 5 else None)
    with pytest.raises(OpenmaiError, match="run the same command again"):
        grade(GradeConfig(out=tmp_path / "cut", endpoint=broken.endpoint, **facts))
    ledger = tmp_path / "cut.requests.jsonl"
    assert len(ledger.read_text().splitlines()) == 5
    ledger.write_text(ledger.read_text()[:-20])  # the last line half-written
    mended = teach(judge)
    artifact = grade(GradeConfig(out=tmp_path / "cut", endpoint=mended.endpoint, **facts))
    assert len(mended.bodies) == 12 - 4
    assert hash_file(artifact.path / "grades.jsonl") == hash_file(expected.path / "grades.jsonl")
    larger = teach(judge)
    grade(GradeConfig(out=tmp_path / "cut", endpoint=larger.endpoint, **facts | {"count": 3}))
    assert larger.bodies == []


def test_a_busy_teacher_is_asked_again_and_a_refusal_is_told(tmp_path: Path, teach: Callable[..., FakeTeacher]) -> None:
    documents = make_documents(tmp_path / "documents", 4)
    busy = teach(lambda body, number: (429 if number % 2 else 503, "busy") if number < 5 else judge(body, number))
    artifact = grade(GradeConfig(out=tmp_path / "busy", documents=documents, endpoint=busy.endpoint, model="m", concurrency=1))
    assert artifact.metrics["graded"] == 4
    assert len(busy.bodies) == 8
    refusing = teach(lambda body, number: (404, "no such model: m"))
    with pytest.raises(OpenmaiError, match=r"404.*no such model: m"):
        grade(GradeConfig(out=tmp_path / "none", documents=documents, endpoint=refusing.endpoint, model="m"))
    assert len(refusing.bodies) <= 8


def test_answers_without_a_grade_are_asked_again_and_counted(tmp_path: Path, teach: Callable[..., FakeTeacher]) -> None:
    documents = make_documents(tmp_path / "documents", 10)

    def reply(body: dict[str, Any], number: int) -> tuple[int, str]:
        silent = "membrane" in body["messages"][1]["content"][-400:] or body["seed"] == 0
        return (200, "Hard to say.") if silent else judge(body, number)

    teacher = teach(reply)
    config = GradeConfig(out=tmp_path / "grades", documents=documents, endpoint=teacher.endpoint, model="m", chars=200)
    unread = sum("membrane" in text_of(GOOD, seed)[:200] for seed in range(10))
    assert 0 < unread < 10
    assert grade(config).metrics["unread"] == unread
    assert len(teacher.bodies) == 20
    mute = teach(lambda body, number: (200, ""))
    with pytest.raises(OpenmaiError, match="none of its 10 answers holds a grade"):
        grade(config.model_copy(update={"out": tmp_path / "mute", "endpoint": mute.endpoint}))


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Good.\nGrade: 3", 3),
        ("**Grade:** 4/5", 4),
        ("grade 0", 0),
        ("Grade: 2.0", 2),
        ("Grade: 3 at first, but then\nGrade: 5", 5),
        (" 4 ", 4),
        ("Grade: 3.5", None),
        ("Grade: 7", None),
        ("Grade: <number from 0 to 5>", None),
        ("I would say four", None),
        ("", None),
    ],
)
def test_grades_are_read(answer: str, value: int | None) -> None:
    assert parse_grade(answer) == value
