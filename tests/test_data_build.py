"""pytest tests/test_data_build.py: the verbs `data build` and `data snapshot` as a whole: equal output, kills, hostile pages."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_data_read import write_warc
from test_data_text import PROSE

from openmai.base.config import validate
from openmai.base.errors import OpenmaiError
from openmai.data.build import build
from openmai.data.capture.config import SnapshotConfig
from openmai.data.capture.snapshot import snapshot
from openmai.data.config import Annotation, BuildConfig, Limits
from openmai.data.document import REJECTED_SCHEMA, SCHEMA, Raw, raw_batch
from openmai.data.engine.pool import Pool

TOWNS = ("Ashford", "Brimley", "Corwen", "Dunmore", "Elstow", "Fenwick", "Garth", "Hale")


def write_sources(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    pages = {
        f"http://x/{n}": f"<h1>{town}</h1><p>{' '.join(f'{w}{n}' if i % 7 == 3 else w for i, w in enumerate(PROSE.split()))}</p>".encode()
        for n, town in enumerate(TOWNS)
    }
    pages |= {
        "http://x/same": pages["http://x/0"],
        "http://x/near": pages["http://x/1"].replace(b"museum", b"shop"),
        "http://x/thin": b"<p>There is very little to be read here. Somebody once wanted to write about old bridges, mills and weather, "
        b"then stopped. Come back another day.</p>",
    }
    pages["http://x/deep"] = b"<div>" * 5000
    write_warc(folder / "web.warc.gz", pages)
    lines = [{"text": f"Lesson {n}. The {town} lesson has few words."} for n, town in enumerate(TOWNS)]
    (folder / "lessons.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        {"name": "web", "path": str(folder / "web.warc.gz"), "license": "CC0"},
        {"name": "teacher", "path": str(folder / "lessons.jsonl"), "trusted": True},
    ]


def make(out: Path, sources: list[dict[str, Any]], **facts: Any) -> BuildConfig:
    return validate(BuildConfig, {"out": out, "sources": sources, "part_records": 5, "workers": 1, **facts}, "test")


def contents(out: Path) -> dict[str, bytes]:
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and file.name not in ("manifest.json", ".lock")]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("build")
    sources = write_sources(folder / "in")
    build(make(folder / "out", sources))
    return sources, folder / "out"


def test_documents_and_rejected(built: tuple[list[dict[str, Any]], Path]) -> None:
    documents, rejected = (pq.read_table(built[1] / name) for name in ("documents", "rejected"))
    assert documents.schema == SCHEMA
    assert rejected.schema == REJECTED_SCHEMA
    rows = documents.to_pylist()
    assert [row["source"] for row in rows] == ["web"] * 8 + ["teacher"] * 8
    assert len({row["id"] for row in rows}) == 16
    assert rows[0]["text"].startswith("# Ashford\n\nThe river")
    assert rows[0]["license"] == "CC0"
    assert rows[0]["date"] == "2024-03-01"
    why = {row["url"].split("/")[-1]: row["rule"] for row in rejected.to_pylist()}
    assert why == {"deep": "extract.depth", "thin": "c4.sentences", "same": "exact.duplicate", "near": "near.duplicate"}
    assert all(row["reason"] for row in rejected.to_pylist())


def test_funnel_adds_up(built: tuple[list[dict[str, Any]], Path]) -> None:
    funnel = json.loads((built[1] / "funnel.json").read_text())
    steps = funnel["steps"]
    assert steps[0]["in"] == 20
    assert steps[-1]["out"] == 16
    assert all(a["out"] == b["in"] and a["bytes_out"] == b["bytes_in"] for a, b in itertools.pairwise(steps))
    size = sum(len(text.encode()) for text in pq.read_table(built[1] / "documents")["text"].to_pylist())
    assert steps[-1]["bytes_out"] == size == sum(source["bytes_out"] for source in funnel["sources"].values())


def test_same_bytes_for_any_number_of_workers_and_again_at_once(built: tuple[list[dict[str, Any]], Path], tmp_path: Path) -> None:
    sources, out = built
    build(make(tmp_path / "three", sources, workers=3))
    assert contents(tmp_path / "three") == contents(out)
    before = (out / "manifest.json").stat().st_mtime_ns
    build(make(out, sources, workers=2))
    assert (out / "manifest.json").stat().st_mtime_ns == before


def test_killed_build_goes_on(built: tuple[list[dict[str, Any]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, whole = built
    code = (
        "import os, sys, json; from pathlib import Path; from openmai.data.engine import parts; from openmai.data.build import build\n"
        "from openmai.data.config import BuildConfig\n"
        "add, done = parts.Parts.add, []\n"
        "def add_then_die(self, part, batches, schema):\n"
        "    add(self, part, batches, schema)\n"
        "    done.append(part)\n"
        "    if len(done) == 2: os.kill(os.getpid(), 9)\n"
        "parts.Parts.add = add_then_die\n"
        "if __name__ == '__main__': build(BuildConfig.model_validate(json.loads(sys.argv[1])))\n"
    )
    script = tmp_path / "die.py"
    script.write_text(code)
    config = make(tmp_path / "out", sources)
    died = subprocess.run([sys.executable, str(script), config.model_dump_json()], capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    done = []
    from openmai.data.engine import parts

    add = parts.Parts.add
    monkeypatch.setattr(parts.Parts, "add", lambda self, part, *rest: (done.append(part), add(self, part, *rest))[1])
    build(config)
    assert len(done) == 3, "five parts in all, two of them finished before the kill"
    assert contents(tmp_path / "out") == contents(whole)
    assert not (tmp_path / "out" / "work").exists()


def test_a_build_killed_while_it_writes_leaves_nothing_behind(built: tuple[list[dict[str, Any]], Path], tmp_path: Path) -> None:
    sources, whole = built
    script = tmp_path / "die.py"
    script.write_text(
        "import os, sys, json; from openmai.data.engine import shards; from openmai.data.build import build\n"
        "from openmai.data.config import BuildConfig\n"
        "shards._Writer.write = lambda self, rows: os.kill(os.getpid(), 9)\n"
        "if __name__ == '__main__': build(BuildConfig.model_validate(json.loads(sys.argv[1])))\n"
    )
    config = make(tmp_path / "out", sources)
    died = subprocess.run([sys.executable, str(script), config.model_dump_json()], capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert list((tmp_path / "out" / "documents").iterdir()), "the kill came before the files were begun"
    build(config)
    assert contents(tmp_path / "out") == contents(whole)


def test_truncated_archive_fails_with_remedy_or_keeps_the_good_part(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)[:1]
    path = Path(sources[0]["path"])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(OpenmaiError, match=r"web.warc.gz: .*break.* off.*12 good records.*on_error: skip"):
        build(make(tmp_path / "out", sources))
    build(make(tmp_path / "out", [sources[0] | {"on_error": "skip"}]))
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert funnel["sources"]["web"]["in"] == 12
    assert "12 good records" in funnel["damaged"][0]


def annotate_or_misbehave(batch: Any, config: Annotation) -> Any:
    """Stand in for `annotate` in a worker: some contents are deadly."""
    for content in batch["content"].to_pylist():
        if content == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        while content == b"spin":
            pass
        if content == b"eat":
            raise MemoryError
    from openmai.data.engine.steps import rejected_batch

    return rejected_batch(batch, "", "", config)


def batch(pages: list[Raw]) -> Any:
    return raw_batch([("file", number, page) for number, page in enumerate(pages)], "s", "")


def test_deadly_pages_cost_only_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmai.data.engine.pool.annotate", annotate_or_misbehave)
    monkeypatch.setattr("openmai.data.engine.pool._CONTEXT", "fork")  # so that the workers see the stand-in
    pages = [Raw(content=content, url=content.decode()) for content in (b"a", b"die", b"b", b"spin", b"eat", b"c")]
    with Pool(2, Annotation(limits=Limits(seconds=0.3))) as pool:
        batches = list(pool.run([batch(pages), batch(pages[:1])]))
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert [row["url"] for row in rows] == ["a", "die", "b", "spin", "eat", "c", "a"]
    assert [row["rule"] for row in rows] == ["", "extract.crash", "", "extract.deadline", "extract.memory", "", ""]


def test_snapshot_takes_pages_in_turn_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    config = SnapshotConfig(out=tmp_path / "snap", packages=["json", "wsgiref", "no_such_package"], max_pages=5, servers=1)
    command = [sys.executable, "-m", "openmai", "data", "snapshot", f"--out={config.out}", "--servers=1", "--max_pages=5"]
    process = subprocess.Popen([*command, '--packages=["json","wsgiref","no_such_package"]', "--quiet"])
    archive = config.out / "pages.warc.gz"
    for _ in range(600):
        if process.poll() is not None or (archive.exists() and archive.stat().st_size > 2000):
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    begun = archive.read_bytes()
    if not (config.out / "manifest.json").exists():
        archive.write_bytes(begun + begun[:100])  # as if the kill had cut the last record
    artifact = snapshot(config)
    assert archive.read_bytes().startswith(begun)
    assert artifact.metrics["pages"] == 5
    assert artifact.metrics["packages"] == {"json": 3, "wsgiref": 2}
    documents = build(make(tmp_path / "out", [{"name": "docs", "path": str(config.out)}]))
    rows = pq.read_table(documents.path / "documents").to_pylist()
    assert [row["url"].removeprefix("http://127.0.0.1/") for row in rows][:1] == ["json.html"]
    assert "dumps(obj, *, skipkeys=False" in rows[0]["text"]
    assert "Module Index" not in rows[0]["text"]
    assert snapshot(config).digest == artifact.digest
