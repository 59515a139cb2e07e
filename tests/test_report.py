"""pytest tests/test_report.py: the page about a run, made of small artifacts that look like real ones."""

from __future__ import annotations

import json
import platform
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openmai.base.artifact import Artifact, create
from openmai.base.config import Config
from openmai.base.errors import OpenmaiError
from openmai.base.files import write_json
from openmai.cli import main
from openmai.report import plots, text
from openmai.report.artifacts import Run
from openmai.report.config import ReportConfig
from openmai.report.machine import Machine, this_machine
from openmai.report.report import report

EVIL = "<script>alert('x')</script> & <b>bold</b>"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


class Free(Config):
    """A configuration that takes anything, as each stage has its own."""

    values: dict[str, Any] = {}


def make(
    run: Path, name: str, kind: str, inputs: list[Artifact], metrics: dict[str, Any], files: dict[str, Any], **config: Any
) -> Artifact:
    """Write an artifact: JSON files from values, events from lists."""
    with create(run / name, kind=kind, version=1, config=Free(values={"name": name, **config}), inputs=inputs) as work:
        work.config = config
        for file, value in {**files, "name.txt": name}.items():
            if file.endswith(".jsonl"):
                (run / name / file).write_text("".join(json.dumps(record) + "\n" for record in value))
            else:
                write_json(run / name / file, value)
        return work.finish(metrics)


def make_documents(run: Path, inputs: list[Artifact]) -> Artifact:
    config = Free(values={"sources": [{"name": "docs"}, {"name": "lessons"}]})
    with create(run / "a_documents", kind="documents", version=1, config=config, inputs=inputs) as work:
        work.config = {"sources": [{"name": "docs", "license": ""}, {"name": "lessons", "license": "CC0-1.0"}]}
        (work.path / "rejected").mkdir(exist_ok=True)
        rows = [("https://example.org/evil", "docs", EVIL, "gopher.words", "3 words, allowed 50 to 100000")] * 5
        rows.append(("https://example.org/same", "docs", "twice", "exact.duplicate", "same text as 0a"))
        columns = dict(zip(("url", "source", "text", "rule", "reason"), map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(pa.table({"id": [str(row) for row in range(len(rows))], **columns}), work.path / "rejected" / "part-00000.parquet")
        write_json(work.path / "funnel.json", FUNNEL)
        return work.finish({"documents": 94, "bytes": 1_500_000, "rejected": 6, "raw_bytes": 9_000_000})


def _step(title: str, before: int, after: int, size: int, dropped: dict[str, int]) -> dict[str, Any]:
    return {"step": title, "title": title, "in": before, "out": after, "bytes_in": 2_000_000, "bytes_out": size, "dropped": dropped}


FUNNEL = {
    "raw_bytes": 9_000_000,
    "steps": [
        _step("extraction", 100, 100, 2_000_000, {}),
        _step("Gopher quality", 100, 95, 1_900_000, {"gopher.words": 5}),
        _step("exact duplicates", 95, 94, 1_500_000, {"exact.duplicate": 1}),
    ],
    "sources": {
        "docs": {"in": 60, "out": 54, "raw_bytes": 8_000_000, "bytes_in": 1_500_000, "bytes_out": 1_000_000, "dropped": {}},
        "lessons": {"in": 40, "out": 40, "raw_bytes": 1_000_000, "bytes_in": 500_000, "bytes_out": 500_000, "dropped": {}},
    },
    "damaged": ["crawl.warc.gz: cut off"],
}
MODEL = {"num_layers": 2, "width": 64, "num_heads": 2, "moe": {"num_experts": 4, "num_active": 2}}
SPLITS = {
    "train": {"docs": {"documents": 50, "tokens": 4000, "bytes": 12_000}},
    "val": {"docs": {"documents": 4, "tokens": 100, "bytes": 300}},
}


def events(kind: str, **measured: float) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(1, 61):
        record = {
            "kind": "train",
            "step": step,
            "lr": step / 60,
            "seconds": 0.5,
            "loss": 5 / step,
            "penalty": 0.0,
            "grad_norm": 1.0,
            "tokens": 64,
        }
        if kind == "dpo":
            record |= {"accuracy": 0.75, "margin": 0.1, "chosen": -20.0, "rejected": -30.0}
        if kind == "pretrain":
            record["expert_load"] = [[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]]
        records.append(record)
    return [*records, {"kind": "eval", "step": 60, **measured}]


def score(right: float) -> dict[str, Any]:
    row = {"accuracy": right, "stderr": 0.03, "n": 200}
    return {"protocol": "mmlu-original-5shot-logprob", "chance": 0.25, **row, "subjects": {EVIL: row, "world_geography": row}}


def results(right: float) -> dict[str, Any]:
    return {
        "models": {
            "trained": {"bpb": {"docs": 1.25, "all": 1.25}, "questions": {"mine": score(right)}},
            "untrained": {"bpb": {"docs": 4.0, "all": 4.0}, "questions": {"mine": score(0.24)}},
        },
        "baselines": {"unigram": {"docs": 3.1, "all": 3.1}, "bigram": {"docs": 2.2, "all": 2.2}},
        "samples": {"completions": [{"prompt": "Once", "text": EVIL}], "chats": [{"prompt": EVIL, "text": "I am \u202fa model\x00"}]},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with its report; the names of its steps are in another order than its lineage."""
    folder = tmp_path_factory.mktemp("runs") / "my run"
    pages = make(folder, "z_pages", "snapshot", [], {"pages": 60, "packages": {"stdlib": 40, "numpy": 20}}, {})
    documents = make_documents(folder, [pages])
    others = {"GPT-2": 3.5, "o200k": 4.25}
    compared = [
        {"source": source, "language": language, "bytes": 9000, "bytes_per_token": {"ours": 2.71, "GPT-2": 3.5, "o200k": 4.25}}
        for source, language in (("", ""), ("books", "en"), ("web", "de"))
    ]
    tokenizer = make(
        folder,
        "tokenizer",
        "tokenizer",
        [documents],
        {"vocab_size": 512, "bytes_per_token": 3.0, "learned_from_bytes": 5000, "others": others, "compression": compared},
        {},
    )
    shards = make(folder, "shards", "shards", [documents, tokenizer], {"vocab_size": 512, "splits": SPLITS}, {})
    base = make(
        folder,
        "pretrain",
        "checkpoint",
        [shards, tokenizer],
        {"parameters": 1_234_567, "tokens": 8000, "val_bpb": 1.234, "untrained_val_bpb": 4.0},
        {"model.json": MODEL, "events.jsonl": events("pretrain", val_bpb=1.234)},
        optimizer={"name": "muon"},
    )
    sft_files = {"model.json": MODEL, "events.jsonl": events("sft", val_loss=2.0)}
    sft = make(folder, "m_sft", "checkpoint", [base], {"conversations": 10, "val_loss": 2.0, "val_loss_before": float("nan")}, sft_files)
    dpo_files = {"model.json": MODEL, "events.jsonl": events("dpo", val_accuracy=0.7, val_margin=2.0)}
    dpo = make(folder, "b_dpo", "checkpoint", [sft], {"pairs": 9, "val_accuracy": 0.7, "val_margin": 2.0}, dpo_files, beta=0.1)
    make(folder, "eval_base", "eval", [base, shards], {}, {"results.json": results(0.3)})
    make(folder, "eval", "eval", [dpo, shards], {}, {"results.json": results(0.45)})
    report(ReportConfig(run=folder))
    return folder


@pytest.fixture(scope="module")
def html(whole: Path) -> str:
    """The page of the whole run."""
    return (whole / "report" / "report.html").read_text(encoding="utf-8")


def copy(whole: Path, to: Path, *names: str) -> Path:
    """Copy some steps of the run; no more, as pictures take their time."""
    for name in names:
        shutil.copytree(whole / name, to / name)
    return to


def page(run: Path, **settings: Any) -> str:
    return (report(ReportConfig(run=run, **settings)).path / "report.html").read_text(encoding="utf-8")


def sections(html: str) -> list[str]:
    return re.findall(r'<section id="([^"]*)"', html)


def test_whole_run(html: str) -> None:
    assert sections(html) == ["documents", "tokenizer", "train-1", "train-2", "train-3", "evaluation", "samples", "lineage", "time"]
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html.replace(text.NBSP, " ")))
    for fact in (
        "1.23 M",  # parameters
        "untrained 4.00 · unigram 3.10 · bigram 2.20",
        "45.0 %",  # of the last eval, not of the first
        "± 3.0 · chance 25 % · 200 questions",
        "100 documents (9.00 MB as found) went in",
        "2.00 epochs of 4,000",
        "gopher.words",
        "crawl.warc.gz: cut off",
        "CC0-1.0",
        "GPT-2 3.50 bytes per token",
        "web de 9.00 kB 2.71 3.50 4.25",
        "2 layers, width 64, 2 heads, 4 experts, 2 active",
        "Expert load",
        "Margin nats",
    ):
        assert fact in plain, fact


def test_every_picture_is_drawn(html: str) -> None:
    pictures = re.findall(r'aria-label="([^"]*)" viewBox', html)
    assert pictures[:7] == [
        *("Training loss", "Held-out text", "Expert load", "Fullest and idlest expert"),
        *("Learning rate", "Gradient norm", "Speed"),
    ]
    assert pictures[7:] == [
        *("Loss on answers", "Learning rate", "Gradient norm", "Speed"),
        *("Preference loss", "Chosen answer gained", "Margin", "Log-probability of answers"),
        *("Learning rate", "Gradient norm", "Speed", "By subject"),
    ]
    assert "#0a0b" not in html
    assert html.count(">unigram</text>") == 1


def test_lineage_orders_steps_and_evals(whole: Path, html: str) -> None:
    order = [artifact.path.name for artifact in Run.load(whole).artifacts]
    assert order[:5] == ["z_pages", "a_documents", "tokenizer", "shards", "pretrain"]
    assert set(order[5:7]) == {"m_sft", "eval_base"}
    assert order[7:] == ["b_dpo", "eval"]
    models = re.findall(r"<th>(untrained|unigram|bigram|pretrain|b_dpo)</th><td class=\"num\">[\d.]+</td><td class=\"fill\">", html)
    assert models == ["untrained", "unigram", "bigram", "pretrain", "b_dpo"]


class Tags(HTMLParser):
    """Collects tags and the values of attributes that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links |= {value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action", "data")}


def test_data_stays_text_and_nothing_is_loaded(html: str) -> None:
    tags = Tags()
    tags.feed(html)
    assert "script" not in tags.tags
    assert html.count("&lt;script&gt;") >= 6  # three rejected pages, two samples, a subject
    assert all(link.startswith("#") or link == "data:," for link in tags.links)
    assert "url(http" not in html
    assert "@import" not in html
    assert "I am \u202fa model\ufffd" in html


def test_no_place_of_this_machine(whole: Path, html: str) -> None:
    assert str(whole.parent) not in html
    assert platform.node() not in html or len(platform.node()) < 4
    assert "<h1>my run</h1>" in html


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (["a_documents"], ["documents", "lineage", "time"]),
        (["z_pages"], ["lineage", "time"]),
        (["tokenizer", "shards"], ["tokenizer", "lineage", "time"]),
        (["pretrain"], ["train-1", "lineage", "time"]),
        (["m_sft", "b_dpo"], ["train-1", "train-2", "lineage", "time"]),
        (["eval"], ["evaluation", "samples", "lineage", "time"]),
    ],
    ids=str,
)
def test_partial_run_leaves_out_what_is_missing(whole: Path, tmp_path: Path, kept: list[str], expected: list[str]) -> None:
    run = copy(whole, tmp_path, *kept)
    (run / "unfinished").mkdir()
    (run / "unfinished" / "events.jsonl").write_text("{")
    assert sections(page(run)) == expected


def test_documents_without_funnel(tmp_path: Path) -> None:
    make(tmp_path, "documents", "documents", [], {}, {})
    assert sections(page(tmp_path)) == ["lineage", "time"]


def test_same_bytes_twice(whole: Path, tmp_path: Path) -> None:
    run = copy(whole, tmp_path / "run", "a_documents", "pretrain", "eval")
    first, second = (report(ReportConfig(run=run, out=tmp_path / name)) for name in ("one", "two"))
    assert first.digest == second.digest


def test_finished_report_is_kept_until_the_run_changes(whole: Path, tmp_path: Path) -> None:
    run = copy(whole, tmp_path, "z_pages")
    first = report(ReportConfig(run=run))
    assert first.path == run / "report"
    changed = first.path / "report.html"
    stamp = changed.stat().st_mtime_ns
    assert report(ReportConfig(run=run)).key == first.key
    assert changed.stat().st_mtime_ns == stamp
    make(run, "more", "hf", [], {}, {})
    assert report(ReportConfig(run=run)).key != first.key


def test_cost_only_with_a_price(whole: Path, tmp_path: Path) -> None:
    run = copy(whole, tmp_path / "run", "z_pages", "tokenizer")
    assert "cost" not in page(run).lower().split("<body>")[1]
    total = sum(artifact.seconds for artifact in Run.load(run).artifacts)
    shown = float(re.findall(r"\$ ([\d.]+)</td>", page(run, price_per_hour=3600.0))[-1])
    assert shown == pytest.approx(total, abs=0.006)


def test_empty_and_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(OpenmaiError, match="no finished step"):
        report(ReportConfig(run=tmp_path))
    with pytest.raises(OpenmaiError, match="nowhere: no such folder"):
        report(ReportConfig(run=tmp_path / "nowhere"))


def test_command_line(whole: Path, tmp_path: Path) -> None:
    run = copy(whole, tmp_path, "a_documents")
    assert main(["report", str(run), "--examples=0"]) == 0
    html = (run / "report" / "report.html").read_text()
    assert "https://example.org/evil" not in html
    assert "gopher.words" in html


def test_thinning_and_smoothing_keep_the_curve() -> None:
    points = [(float(x), 2.0 * x) for x in range(10_007)]
    thinned = plots.thin(points)
    assert len(thinned) == 400
    assert all(y == pytest.approx(2 * x) for x, y in thinned)
    assert sum(x for x, _ in thinned) / 400 == pytest.approx(5003, rel=1e-3)
    assert [y for _, y in plots.smooth([(float(x), 3.0) for x in range(50)])] == pytest.approx([3.0] * 50)


@pytest.mark.parametrize("number", [1, 2, 4, 6])
def test_rows_of_pictures_are_full(number: int) -> None:
    line = plots.Line("a", [(0.0, 1.0), (1.0, 2.0)])
    drawn = plots.draw_all([plots.Curves(f"figure {place}", [line]) for place in range(number)], "test")
    assert number == 1 or sum(3 if plot.wide else 2 for plot in drawn) % 6 == 0
    wide = [plot.wide for plot in drawn]
    assert wide == sorted(wide, reverse=True)


def test_large_heat_map_is_sampled() -> None:
    plot = plots.HeatMap("load", [[1.0] * 256 for _ in range(61)], "layer", "expert").draw("test", True)
    assert plot.svg.count("var(--s1)") == 64 * 24
    assert ">256</text>" in plot.svg
    assert ">61</text>" in plot.svg


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.count(9_999), "9,999"),
        (text.count(12_345), "12.3 k"),
        (text.count(2.9e6), "2.90 M"),
        (text.size(999), "999 B"),
        (text.size(5_600_000), "5.60 MB"),
        (text.percent(0.273), "27.3 %"),
        (text.percent(float("nan")), "–"),
        (text.figure(None), "–"),
        (text.excerpt("a\x1b[31mb", 99), "a\ufffd[31mb"),
        (text.excerpt("one two three four", 12), "one two …"),
    ],
)
def test_numbers_and_excerpts(shown: str, expected: str) -> None:
    assert shown.replace(text.NBSP, " ") == expected


def test_machine_in_words() -> None:
    assert Machine("Fast", 1, 2**34, ["H200", "H200"]).describe() == "Fast, 1 core, 16 GiB memory, 2 × H200"
    assert this_machine().cores >= 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_fits_a_phone_and_a_screen(whole: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    file = whole / "report" / "report.html"
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM, args=options)
        for width in (390, 1280):
            view = browser.new_page(viewport={"width": width, "height": 900})
            requests, messages = [], []
            view.on("request", lambda request, seen=requests: seen.append(request.url))
            view.on("console", lambda message, seen=messages: seen.append(message.text))
            view.goto(file.as_uri())
            assert view.evaluate("document.documentElement.scrollWidth") == width
            assert requests == [file.as_uri()]
            assert messages == []
            assert view.locator("pre").first.is_hidden()
            view.locator("summary").first.click()
            assert "<script>" in view.locator("pre").first.inner_text()
        browser.close()
