"""Checks of the teaching material in examples/: form, size, and that its Python runs."""

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)

# Runs in a subprocess: every fence gets a fresh __main__ module and every lesson a fresh folder.
RUN_LESSONS = r"""
import contextlib, io, json, logging, os, sys, traceback, types
failures = []
start = os.getcwd()
for number, (name, fences) in enumerate(json.load(open("lessons.json", encoding="utf-8"))):
    folder = os.path.join(start, str(number))
    os.mkdir(folder)
    os.chdir(folder)
    for code in fences:
        logging.root.handlers.clear()
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(code, name, "exec"), module.__dict__)
        except BaseException:
            failures.append(name + "\n" + code + traceback.format_exc(limit=-1))
os.chdir(start)
with open("failures.json", "w", encoding="utf-8") as f:
    json.dump(failures, f)
"""


def read_jsonl(folder):
    records = []
    for path in sorted((EXAMPLES / folder).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            records.append(json.loads(line))
    return records


def read_questions(split):
    tables = {}
    for path in sorted((EXAMPLES / "questions" / split).glob(f"*_{split}.csv")):
        with open(path, newline="", encoding="utf-8") as f:
            tables[path.name.removesuffix(f"_{split}.csv")] = list(csv.reader(f))
    return tables


def lesson_paths():
    return sorted((EXAMPLES / "lessons").rglob("*.md"))


def check_turns(messages, last):
    roles = [m["role"] for m in messages]
    if roles[0] == "system":
        roles = roles[1:]
    assert roles == [("user", "assistant")[i % 2] for i in range(len(roles))]
    assert roles[-1] == last
    assert all(m["content"].strip() for m in messages)


def first_prompt(record):
    return next(m["content"] for m in record["messages"] if m["role"] == "user").strip().lower()


def plain(text):
    return " ".join(text.lower().split())


def test_dialogues_have_the_right_form():
    """At least 400 dialogues with unique ids and first prompts and alternating roles."""
    dialogues = read_jsonl("dialogues")
    assert len(dialogues) >= 400
    for d in dialogues:
        assert set(d) == {"id", "topic", "messages"}, d.get("id")
        check_turns(d["messages"], "assistant")
    for values in ([d["id"] for d in dialogues], [first_prompt(d) for d in dialogues]):
        assert [v for v, n in Counter(values).items() if n > 1] == []


def test_python_in_dialogues_compiles():
    """Every python fence that an assistant writes in a dialogue is valid Python."""
    for d in read_jsonl("dialogues"):
        for m in d["messages"]:
            if m["role"] == "assistant":
                for code in FENCE.findall(m["content"] + "\n"):
                    compile(code, d["id"], "exec")


def test_preferences_have_the_right_form():
    """At least 200 pairs with unique ids and prompts whose two answers differ."""
    pairs = read_jsonl("preferences")
    assert len(pairs) >= 200
    for p in pairs:
        assert set(p) == {"id", "topic", "messages", "chosen", "rejected"}, p.get("id")
        check_turns(p["messages"], "user")
        for side in ("chosen", "rejected"):
            assert [m["role"] for m in p[side]] == ["assistant"], p["id"]
            assert p[side][0]["content"].strip(), p["id"]
        assert p["chosen"][0]["content"] != p["rejected"][0]["content"], p["id"]
        for code in FENCE.findall(p["chosen"][0]["content"] + "\n"):
            compile(code, p["id"], "exec")
    assert len({p["id"] for p in pairs}) == len(pairs)
    assert len({first_prompt(p) for p in pairs}) == len(pairs)


def test_preferences_do_not_reward_length():
    """The chosen answer is the longer one in 40 to 60 percent of the pairs."""
    pairs = read_jsonl("preferences")
    longer = sum(len(p["chosen"][0]["content"]) > len(p["rejected"][0]["content"]) for p in pairs)
    assert 0.4 <= longer / len(pairs) <= 0.6


def test_questions_have_the_right_form():
    """Six columns, four different choices, a valid letter, 5 dev rows and 200 test rows or more."""
    dev, test = read_questions("dev"), read_questions("test")
    assert set(dev) == set(test)
    assert len(test) >= 4
    assert all(len(rows) == 5 for rows in dev.values())
    assert sum(len(rows) for rows in test.values()) >= 200
    rows = [row for table in (dev, test) for rows in table.values() for row in rows]
    for row in rows:
        assert len(row) == 6, row
        assert all(cell.strip() for cell in row), row
        assert len(set(row[1:5])) == 4, row
        assert row[5] in ("A", "B", "C", "D"), row
    counts = Counter(plain(row[0]) for row in rows)
    assert [q for q, n in counts.items() if n > 1] == []


def test_answer_letters_are_balanced():
    """In each test file every letter is right for 20 to 30 percent of the questions."""
    for subject, rows in read_questions("test").items():
        letters = Counter(row[5] for row in rows)
        for letter in "ABCD":
            assert 0.2 <= letters[letter] / len(rows) <= 0.3, (subject, letters)


def test_no_test_question_is_in_the_teaching_text():
    """No test question occurs verbatim in a lesson, a dialogue or a preference pair."""
    texts = [path.read_text(encoding="utf-8") for path in lesson_paths()]
    for record in read_jsonl("dialogues") + read_jsonl("preferences"):
        for key in ("messages", "chosen", "rejected"):
            texts += [m["content"] for m in record.get(key, [])]
    everything = "\n".join(plain(text) for text in texts)
    for subject, rows in read_questions("test").items():
        assert [row[0] for row in rows if plain(row[0]) in everything] == [], subject


def test_lessons_start_with_a_title_and_their_python_runs(tmp_path):
    """Every lesson starts with a title, and all its python fences run without an error."""
    lessons = []
    for path in lesson_paths():
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# "), path
        lessons.append([str(path.relative_to(EXAMPLES)), FENCE.findall(text + "\n")])
    assert lessons
    (tmp_path / "lessons.json").write_text(json.dumps(lessons), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-c", RUN_LESSONS], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=True
    )
    failures = json.loads((tmp_path / "failures.json").read_text(encoding="utf-8"))
    assert failures == [], "\n\n".join(failures)


def test_examples_stay_small():
    """All of examples/ together takes at most 2 MB."""
    assert sum(p.stat().st_size for p in EXAMPLES.rglob("*") if p.is_file()) <= 2_000_000
