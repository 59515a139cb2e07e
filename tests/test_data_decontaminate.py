"""OMP_NUM_THREADS=1 python -m pytest tests/test_data_decontaminate.py

Words and n-grams against their slow twins, readers of benchmark files, planted items, the verb and its report.
"""

from __future__ import annotations

import bz2
import gzip
import json
import re
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openmai.base.artifact import Artifact, create
from openmai.base.config import Config, validate
from openmai.base.errors import OpenmaiError
from openmai.base.files import read_json
from openmai.data.decontaminate.config import DecontaminateConfig, Fields, Overlap
from openmai.data.decontaminate.decontaminate import decontaminate
from openmai.data.decontaminate.index import Contamination
from openmai.data.decontaminate.items import Item, read_items, split_name
from openmai.data.decontaminate.words import Keys, Phrases, grams, split
from openmai.data.document import SCHEMA, document_files, iter_rows

QUESTION = "A train leaves the old station at nine and travels sixty miles an hour; how far has it come when the clock strikes noon?"
FILLER = " ".join(f"word{number} stands here for nothing" for number in range(60))
ITEMS = [
    Item("arith", "0", QUESTION, "180 miles"),
    Item("arith", "1", "What is 2+2?", "4"),
    Item(
        "quiz",
        "0",
        "Which of these is true?",
        "Water boils at a hundred degrees",
        ("Water boils at a hundred degrees", "Ice sinks in water"),
    ),
    Item("quiz", "1", "Which of these is true?", "Iron is a metal", ("Iron is a metal", "Gold is a gas")),
    Item("quiz", "2", "Why?", "Because"),
    Item("history", "0", "Who wrote this?", "Ada", context=" ".join(f"line {number} of the famous old speech" for number in range(12))),
]


def slow_words(text: str) -> list[str]:
    """What `split` does, one character at a time."""
    out = []
    for char in text:
        if char in "'’‘ʼ＇`´\u00ad\u200b\u200c\u200d\u2060\ufeff":
            continue
        plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
        for c in plain if ord(char) < 0x20000 else char:
            if unicodedata.combining(c) or c in "'’‘ʼ＇`´":
                continue
            alone = re.match(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0010ffff]", c)
            is_word = c.isalnum() or unicodedata.category(c)[0] == "M" or ord(char) >= 0x20000
            out.append((f" {c} " if alone else c) if is_word else " ")
    return "".join(out).split()


@settings(max_examples=50, deadline=None)
@given(st.text())
@example("Hello, don’t STRAẞE ﬁne e\u0301té 東京 ½ Ⅻ ﷺ ไทย 한국어 a\u200bb x² \U0001d54f \U00020000")
def test_words_equal_those_of_the_slow_twin(text: str) -> None:
    words, data = split(text), text.encode("utf-8", errors="replace")
    expected = slow_words(data.decode())
    assert len(words) == len(expected)
    assert [len(grams(words.hashes[i : i + 1], 1)) for i in range(len(words))] == [1] * len(words)
    for i, word in enumerate(expected):
        same = [other == word for other in expected]
        assert (words.hashes == words.hashes[i]).tolist() == same
        assert data[words.starts[i] : words.ends[i]]


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_can_be_split(data: bytes) -> None:
    for by_char in (False, True):
        words = split(data, by_char)
        assert (words.starts < words.ends).all()
        assert (words.ends <= len(data)).all()


def test_what_makes_no_difference() -> None:
    same = split("The naïve café’s “Straße”, ﬁnally!").hashes
    assert np.array_equal(same, split("the\nNAIVE   cafe's - STRASSE … finally").hashes)
    assert not np.array_equal(same, split("the naive cafes strasse final").hashes)
    assert len(split("漢字仮名")) == 4
    assert len(split("two words", by_char=True)) == 8
    assert len(split("x" * 100_000 + " y")) == 2
    assert len(split("ﷺ " * 1000)) == 4000  # a character that folds to four words


def test_ngrams_are_found_where_they_are() -> None:
    random = np.random.default_rng(0)
    words = random.integers(0, 50, 6_000).astype(np.uint64)
    wanted = grams(words[100:110], 3)
    keys = Keys.of(np.unique(wanted))
    found, places = keys.find(words, 3)
    expected = [i for i in range(len(words) - 2) if any(np.array_equal(words[i : i + 3], words[j : j + 3]) for j in range(100, 108))]
    assert places.tolist() == expected
    assert np.array_equal(keys.hashes[found], grams(words, 3)[places])
    everything, _ = Keys.of(np.unique(grams(words, 2))).find(words, 2)
    assert len(everything) == len(words) - 1  # more than one buffer full


def test_phrases_are_found_whole() -> None:
    text = split("one two three four five six one two three nine").hashes
    phrases = Phrases([split("one two").hashes, split("one two three four five").hashes, split("one two three ten").hashes])
    found, places = phrases.find(text)
    short, long = phrases.index(split("one two").hashes), phrases.index(split("one two three four five").hashes)
    assert sorted(zip(found.tolist(), places.tolist(), strict=True)) == sorted([(short, 0), (short, 6), (long, 0)])


def names(index: Contamination, text: str) -> list[tuple[str, str]]:
    return [(hit.task, hit.id) for hit in index.check(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FILLER, []),
        (f"{FILLER} {QUESTION} {FILLER}", [("arith", "0")]),
        (QUESTION.upper().replace(" ", "\n\n").replace(";", " --"), [("arith", "0")]),
        (" ".join(QUESTION.split()[:19]), [("arith", "0")]),  # 7 of 12 n-grams
        (" ".join(QUESTION.split()[:15]), []),  # 3 of 12
        (QUESTION.replace("noon", "one") + FILLER, [("arith", "0")]),
        ("Q: what is 2 + 2 ? A: 4", [("arith", "1")]),
        ("What is 2+2? Nobody knows.", []),
        ("What is 2+2+3? It is 7, not 4.", [("arith", "1")]),
        ("What is 2-3? It is 4.", []),
        ("Which of these is true? Iron is a metal.", []),  # several items ask so: all choices are wanted
        ("Which of these is true? A. Gold is a gas. B. Iron is a metal.", [("quiz", "1")]),
        ("Why? Because.", []),  # too short to look for
        (ITEMS[5].context, []),  # a passage alone is not the question
        (f"{ITEMS[5].context} Who wrote this? Ada.", [("history", "0")]),
    ],
)
def test_planted_items(text: str, expected: list[tuple[str, str]]) -> None:
    assert names(Contamination(ITEMS), text) == expected


def test_a_hit_says_how_much_and_where() -> None:
    index = Contamination(ITEMS)
    assert [ITEMS[number].question for number in index.unchecked] == ["Why?"]
    text = f"Größe: {FILLER} {QUESTION} The answer: 180 miles. {FILLER}"
    (hit,) = index.check(text)
    assert text.encode()[hit.start : hit.end].decode() == QUESTION.rstrip("?")
    assert (hit.score, hit.words, hit.answer) == (pytest.approx(1.0), len(QUESTION.split()), True)
    part = index.check(text.replace("sixty miles an hour", "sixty kilometres an hour"))
    assert part == []
    (loose,) = Contamination(ITEMS, Overlap(threshold=0.01)).check(text.replace("nine and", "ten and"))
    assert 0 < loose.score < 0.5


def test_boilerplate_counts_little() -> None:
    shared = "in the following report of the committee you will find two scenarios that describe what one person did to another"
    items = [Item("t", str(n), f"{shared} number{n} " + " ".join(f"own{n}x{k}" for k in range(14)), "") for n in range(50)]
    assert Contamination(items, Overlap(threshold=0.1)).check(shared) == []
    assert [hit.id for hit in Contamination(items).check(items[7].question)] == ["7"]


def test_ngrams_of_letters() -> None:
    index = Contamination(ITEMS, Overlap(unit="char", n=50))
    glued = QUESTION.replace(" ", "").replace(";", "")
    assert names(index, f"{FILLER} {glued} {FILLER}") == [("arith", "0")]
    assert names(index, "so: what is 2+2? 4") == [("arith", "1")]
    assert names(index, FILLER) == []


def test_readers_take_every_layout(tmp_path: Path) -> None:
    mmlu = tmp_path / "mmlu"
    for split_ in ("dev", "test"):
        (mmlu / split_).mkdir(parents=True)
        (mmlu / split_ / f"algebra_{split_}.csv").write_text(
            '"What, is x?",1,2,3,4,C\n' + f'"{"long passage " * 30}\nWho is it?",a,b,c,d,A\n'
        )
    (mmlu / "README.md").write_text("not an item")
    (mmlu / "LICENSE.txt").write_text("nor this")
    items = list(read_items([str(mmlu)]))
    assert [(item.task, item.question, item.answer) for item in items[:2]] == [
        ("mmlu/dev", "What, is x?", "3"),
        ("mmlu/dev", "Who is it?", "a"),
    ]
    assert items[1].context.startswith("long passage")
    assert {item.task for item in read_items([f"M={mmlu}"], "file")} == {"M/dev/algebra_dev", "M/test/algebra_test"}

    rows = [
        {"question": "How many?", "answer": "First 1.\n#### 42"},
        {"ctx": "A man sits. he", "endings": ["falls", "stands"], "label": "1"},
        {"task_id": "H/0", "prompt": "def f():", "canonical_solution": "    return 1"},
        {"question": {"stem": "Which?", "choices": [{"text": "up", "label": "A"}, {"text": "down", "label": "B"}]}, "answerKey": "B"},
        {"question": "Choose", "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "A"},
        {"goal": "open a jar", "sol1": "twist", "sol2": "burn", "label": 0},
        {"turns": ["Write a poem.", "Shorten it."]},
        {"x": "some text", "y": {"z": "more"}},
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.jsonl.bz2").write_bytes(bz2.compress(lines.encode()))
    (tmp_path / "d.json").write_text(json.dumps({"version": 1, "data": rows}))
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.writestr("e.jsonl", lines)
    pq.write_table(pa.Table.from_pylist([{"question": "How many?", "answer": "42"}]), tmp_path / "f.parquet")
    expected = [
        ("How many?", "42"),
        ("A man sits. he", "stands"),
        ("def f():", "return 1"),
        ("Which?", "down"),
        ("Choose", "red"),
        ("open a jar", "twist"),
        ("Write a poem.\nShorten it.", ""),
        ("some text more", ""),
    ]
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.bz2", "d.json", "e.zip"):
        found = list(read_items([str(tmp_path / name)]))
        assert [(item.question, item.answer) for item in found] == expected, name
        assert {item.task for item in found} == {name[0]}
    assert [item.answer for item in read_items([str(tmp_path / "f.parquet")])] == ["42"]
    assert [i.question for i in read_items([str(tmp_path / "a.jsonl")], fields=Fields(question=["task_id"]))][2] == "H/0"

    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    (tmp_path / "blocks.txt").write_text("one\nstill one\n\ntwo\n")
    (tmp_path / "swag.txt").write_text("ctx\n2\na\nb\nc\nd\nctx2\n0\ne\nf\ng\nh\n")
    assert [len(list(read_items([str(tmp_path / name)]))) for name in ("lines.txt", "blocks.txt", "swag.txt")] == [2, 2, 2]
    assert [item.answer for item in read_items([str(tmp_path / "swag.txt")])] == ["c", "e"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "no such file or folder"),
        ("bad.jsonl", b"{", "not what its name says"),
        ("bad.jsonl.gz", b"no gzip", "cannot be read"),
        ("bad.parquet", b"PAR", "not what its name says"),
        ("bad.zip", b"PK", "cannot be read"),
    ],
)
def test_bad_evaluation_files_are_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(OpenmaiError, match=f"{name}.*{message}"):
        list(read_items([str(tmp_path / name)]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(OpenmaiError, match="no evaluation file below"):
        list(read_items([str(tmp_path / "empty")]))


def test_names_of_paths() -> None:
    assert split_name("mmlu=/a/b") == ("mmlu", Path("/a/b"))
    assert split_name("/a/gsm8k.test.jsonl.gz") == ("gsm8k.test", Path("/a/gsm8k.test.jsonl.gz"))
    assert split_name("/a=b/c.csv") == ("c", Path("/a=b/c.csv"))


class MadeConfig(Config):
    seed: int = 0


def make_documents(folder: Path, texts: list[str], files: int = 2) -> Path:
    """A documents artifact of several files."""
    rows = [
        {"id": f"{n:032x}", "text": text, "url": f"http://h{n % 3}.org/{n}", "source": ("web", "books")[n % 2], "license": "CC0-1.0"}
        | {"language": "en", "date": "", "scores": [("words", 1.0)], "meta": "{}"}
        for n, text in enumerate(texts)
    ]
    with create(folder, kind="documents", version=1, config=MadeConfig()) as work:
        (folder / "documents").mkdir()
        for number in range(files):
            table = pa.Table.from_pylist(rows[number::files], schema=SCHEMA)
            pq.write_table(table, folder / "documents" / f"part-{number:05d}.parquet")
        work.finish({})
    return folder


@pytest.fixture
def planted(tmp_path: Path) -> DecontaminateConfig:
    (tmp_path / "math.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "180 miles"}) + "\n")
    texts = [f"{number} {FILLER}" for number in range(10)]
    texts[3] += f" {QUESTION}" + " <b>180 miles</b> & so on"
    texts[6] += f" {QUESTION.upper()}"
    documents = make_documents(tmp_path / "documents", texts)
    return DecontaminateConfig(documents=[documents], against=[str(tmp_path / "math.jsonl")], out=tmp_path / "clean", workers=1)


def test_the_verb_drops_and_reports(planted: DecontaminateConfig) -> None:
    artifact = decontaminate(planted)
    assert [row["text"][0] for row in iter_rows(artifact, ["text"])] == list("024813579".replace("3", ""))
    assert [file.name for file in document_files(artifact)] == ["part-00000.parquet", "part-00001.parquet"]
    rejected = [row for file in sorted((planted.out / "rejected").iterdir()) for row in pq.read_table(file).to_pylist()]
    assert [(row["id"][-1], row["rule"]) for row in rejected] == [("6", "contaminated.math"), ("3", "contaminated.math")]
    assert "with the answer" in rejected[1]["reason"]
    report = read_json(planted.out / "report.json")
    assert report["tasks"]["math"] == {"items": 1, "unchecked": 0, "found": 1, "documents": 2, "best": 1.0}
    assert report["documents"] | {"bytes": 0, "contaminated_bytes": 0} == {
        "read": 10,
        "kept": 8,
        "contaminated": 2,
        "bytes": 0,
        "contaminated_bytes": 0,
    }
    page = (planted.out / "report.html").read_text()
    assert "&lt;b&gt;180 miles" in page or "&lt;b&gt;<mark>180 miles" in page
    assert "<b>180" not in page
    funnel = read_json(planted.out / "funnel.json")
    assert (funnel["steps"][0]["in"], funnel["steps"][0]["out"]) == (10, 8)
    assert sum(source["out"] for source in funnel["sources"].values()) == 8
    assert decontaminate(planted).digest == artifact.digest


def test_the_verb_marks_or_only_reports(planted: DecontaminateConfig) -> None:
    marked = decontaminate(planted.model_copy(update={"mode": "mark", "out": planted.out.with_name("marked")}))
    scores = {row["id"][-1]: dict(row["scores"]) for row in iter_rows(marked, ["id", "scores"])}
    assert len(scores) == 10
    assert [name for name, values in sorted(scores.items()) if values.get("contaminated.math", 0) > 0.9] == ["3", "6"]
    assert all(values["words"] == 1.0 for values in scores.values())
    report = decontaminate(planted.model_copy(update={"mode": "report", "out": planted.out.with_name("report")}))
    assert report.kind == "contamination"
    assert not (report.path / "documents").exists()


def test_output_does_not_depend_on_workers_or_a_kill(planted: DecontaminateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decontaminate(planted)
    threads = decontaminate(planted.model_copy(update={"workers": 4, "out": planted.out.with_name("threads")}))
    assert threads.digest == whole.digest

    class Killed(Exception):
        pass

    calls = 0
    check = Contamination.check

    def dies(self, text):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 8:
            raise Killed
        return check(self, text)

    cut = planted.model_copy(update={"out": planted.out.with_name("cut")})
    monkeypatch.setattr(Contamination, "check", dies)
    with pytest.raises(Killed):
        decontaminate(cut)
    calls = 100
    assert decontaminate(cut).digest == whole.digest
    assert calls == 105  # the finished first file was not read again


def test_bad_configuration_is_explained(planted: DecontaminateConfig) -> None:
    with pytest.raises(OpenmaiError, match=r"overlap\.n=2"):
        validate(DecontaminateConfig, planted.model_dump() | {"overlap": {"n": 2}}, "x")
    with pytest.raises(OpenmaiError, match="no such file"):
        decontaminate(planted.model_copy(update={"against": ["/nowhere/at/all"]}))
    with pytest.raises(OpenmaiError, match="no such folder"):
        Artifact.load(planted.out, "documents")
