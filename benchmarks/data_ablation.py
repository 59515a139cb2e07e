"""python benchmarks/data_ablation.py --data DIR --out runs/ablation [--steps 600] [--seeds 3]

What each step of the data engine does to a model: the same small model is trained on the same pages as raw, extracted, filtered,
deduplicated and quality-scored text, at equal tokens and with several seeds; bits per byte on held-out textbooks and on the main text of
held-out web pages. The pages are some 1,000 of the web in many languages, judged by the rules for the web, and 3,000 of law, judged by
those for reference pages. The quality score is learned from textbooks against the deduplicated pages, and the best quarter of these stays.
DIR holds `web_html`, `web_dclaw` and `openstax`. Finished steps are kept in --out, so it goes on after a kill. Writes
benchmarks/results/data_ablation.{json,png}.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import statistics
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from fastwarc.warc import ArchiveIterator, WarcRecordType
from resiliparse.extract.html2text import extract_plain_text

from openmai.base.artifact import Artifact
from openmai.base.config import validate
from openmai.base.files import read_json
from openmai.data.build import build
from openmai.data.config import BuildConfig
from openmai.data.extract.html import decode
from openmai.data.filter.config import DOCS
from openmai.data.filter.quality_config import QualityTrainConfig
from openmai.data.filter.quality_train import train as train_quality

RESULTS = Path(__file__).parent / "results"
LEGAL_PAGES = 3000
HELD_OUT_BOOKS = ("osbooks-astronomy", "osbooks-introduction-sociology", "osbooks-physics")
GOOD_BOOKS = (
    "osbooks-psychology",
    "osbooks-chemistry-bundle",
    "osbooks-us-history",
    "osbooks-microbiology",
    "osbooks-introduction-philosophy",
)
NOTHING = {"exact": False, "near": False, "paragraph_copies": 0}
VARIANTS = ("raw", "extracted", "filtered", "deduplicated", "quality-scored")
STAYING = 0.25  # share of the documents that the quality score leaves


def main() -> None:
    parser = argparse.ArgumentParser(description="What each step of the data engine does to a model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    out = arguments.out
    texts = prepare(arguments.data, out / "texts")
    sets = {name: documents(name, texts, out) for name in VARIANTS}
    held_out = make(
        out / "held-out", [{"name": name, "path": str(texts / f"{name}.jsonl"), "trusted": True} for name in ("textbook", "web")]
    )
    run(
        "tokenizer", "train", out=out / "tokenizer", documents=[sets["raw"].path, sets["deduplicated"].path, held_out.path], vocab_size=4096
    )
    for artifact, name, share in [*((sets[name], name, 0.02) for name in VARIANTS), (held_out, "held-out", 0.9)]:
        run("tokenizer", "encode", out=out / "shards" / name, documents=[artifact.path], tokenizer=out / "tokenizer", validation=share)
    jobs = [(out, name, seed, arguments.steps) for seed in range(1, arguments.seeds + 1) for name in VARIANTS]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        figures = list(pool.map(measure, jobs))
    report(figures, sets, out, arguments)


def prepare(data: Path, folder: Path) -> Path:
    """Write the pages as HTML and as raw text, and what is held out."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "done").exists():
        with open(folder / "raw.jsonl", "w") as raw:
            for name, content in training_pages(data):
                target = folder / name[:3] / f"{name}.html"
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(content)
                text = extract_plain_text(
                    decode(content, ""), main_content=False, alt_texts=True, links=False, form_fields=True, noscript=True
                )
                raw.write(json.dumps({"text": text, "url": name}) + "\n")
        write(folder / "web.jsonl", (extract_plain_text(content.decode("utf-8", "replace")) for content in gold(data)))
        write(folder / "textbook.jsonl", (text[:8000] for book in HELD_OUT_BOOKS for text in book_texts(data, book, 40)))
        write(folder / "good.jsonl", (text for book in GOOD_BOOKS for text in book_texts(data, book, None)))
        (folder / "done").touch()
    return folder


def training_pages(data: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(data / "web_html" / "trafilatura_pages.tar.gz") as archive:
        for number, member in enumerate(archive):
            file = archive.extractfile(member)
            if file:
                yield f"web-{number:05d}", file.read()
    records = ArchiveIterator(open(data / "web_dclaw" / "dc-law.warc.gz", "rb"), record_types=WarcRecordType.response)  # noqa: SIM115
    for number, record in enumerate(islice(records, LEGAL_PAGES)):
        yield f"law-{number:05d}", record.reader.read()


def gold(data: Path) -> Iterator[bytes]:
    """Yield the main content of readability's test pages, which are not trained on."""
    with tarfile.open(data / "web_html" / "readability_pages.tar.gz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file and member.name.endswith("expected.html"):
                yield file.read()


def book_texts(data: Path, book: str, count: int | None) -> Iterator[str]:
    with gzip.open(data / "openstax" / f"{book}.jsonl.gz", "rt") as lines:
        texts = (json.loads(line)["text"] for line in lines)
        yield from islice((text for text in texts if len(text) > 1000), count)


def write(path: Path, texts: Iterator[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def documents(variant: str, texts: Path, out: Path) -> Artifact:
    """Build the documents of a variant; each has all steps of those before it."""
    if variant == "raw":
        return make(out / variant, [{"name": "pages", "path": str(texts / "raw.jsonl"), "trusted": True}])
    sources = [{"name": name, "path": str(texts / name), "profile": profile} for name, profile in (("web", "web"), ("law", "docs"))]
    if variant == "extracted":
        return make(out / variant, [source | {"profile": "auto", "trusted": True} for source in sources])
    if variant == "filtered":
        return make(out / variant, sources, languages=["en"])
    if variant == "deduplicated":
        return make(out / variant, sources, languages=["en"], dedup={})
    with open(texts / "graded.jsonl", "w") as graded:  # as grades, since books and pages are told apart so well that all pages would have 0
        for grade, some in ((4, json_texts(texts / "good.jsonl")), (2, artifact_texts(out / "deduplicated"))):
            graded.writelines(json.dumps({"text": text, "grade": grade}) + "\n" for text in some)
    grades = [{"name": "graded", "path": str(texts / "graded.jsonl")}]
    train_quality(validate(QualityTrainConfig, {"out": out / "quality", "grades": grades}, "quality"))
    scored = make(out / "scored", sources, languages=["en"], dedup={}, quality=out / "quality")
    rows = pq.read_table(scored.path / "documents", columns=["scores"])["scores"].to_pylist()
    least = {"min_quality": statistics.quantiles([dict(row)["quality"] for row in rows], n=100)[round(100 * (1 - STAYING)) - 1]}
    limits = {"web": least, "docs": DOCS.model_dump() | least}
    return make(out / variant, sources, languages=["en"], dedup={}, quality=out / "quality", **limits)


def json_texts(file: Path) -> Iterator[str]:
    with open(file) as lines:
        yield from (json.loads(line)["text"] for line in lines)


def artifact_texts(folder: Path) -> list[str]:
    texts: list[str] = pq.read_table(folder / "documents", columns=["text"])["text"].to_pylist()
    return texts


def make(out: Path, sources: list[dict[str, Any]], **settings: Any) -> Artifact:
    defaults: dict[str, Any] = {"languages": [], "dedup": NOTHING, "pii": {"kinds": []}, "urls": {"adult_words": False}}
    return build(validate(BuildConfig, {"out": out, "sources": sources, "parts": out.parent / "parts", **defaults, **settings}, "ablation"))


def run(stage: str, verb: str, **settings: Any) -> None:
    from openmai.cli import main as openmai

    words = [
        f"--{name}={json.dumps([str(item) for item in value]) if isinstance(value, list) else value}" for name, value in settings.items()
    ]
    if openmai([stage, verb, *words]):
        raise SystemExit(1)


def measure(job: tuple[Path, str, int, int]) -> dict[str, Any]:
    """Train one model and measure it on what is held out."""
    out, name, seed, steps = job
    run_folder = out / "runs" / f"{name}-{seed}"
    loop = {"steps": steps, "seed": seed, "threads": 1, "evaluate_every": steps, "checkpoint_every": 100}
    from openmai.eval.config import EvalConfig
    from openmai.eval.evaluate import evaluate
    from openmai.train.config import PretrainConfig
    from openmai.train.pretrain import pretrain

    os.environ["OPENMAI_QUIET"] = "1"
    settings = {
        "shards": out / "shards" / name,
        "tokenizer": out / "tokenizer",
        "depth": 2,
        "context": 256,
        "batch_rows": 8,
        "micro_rows": 8,
    }
    pretrain(validate(PretrainConfig, settings | {"out": run_folder, "loop": loop}, "pretrain"))
    check = {"checkpoint": run_folder, "shards": out / "shards" / "held-out", "untrained": False, "threads": 1}
    found = evaluate(validate(EvalConfig, check | {"out": out / "runs" / f"{name}-{seed}-eval"}, "eval"))
    return {"variant": name, "seed": seed, "bpb": read_json(found.path / "results.json")["models"]["trained"]["bpb"]}


def report(figures: list[dict[str, Any]], sets: dict[str, Artifact], out: Path, arguments: argparse.Namespace) -> None:
    """Print, write and draw the results."""
    rows = []
    tokens = arguments.steps * 8 * 256
    for name in VARIANTS:
        counts = Artifact.load(out / "shards" / name).metrics["splits"]["train"]
        size = sum(count["tokens"] for count in counts.values())
        row: dict[str, Any] = {
            "variant": name,
            "documents": sets[name].metrics["documents"],
            "megabytes": sets[name].metrics["bytes"] / 1e6,
        }
        row["epochs"] = tokens / size
        for kind in ("textbook", "web"):
            values = [figure["bpb"][kind] for figure in figures if figure["variant"] == name]
            row[kind] = {
                "mean": statistics.mean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
            }
        rows.append(row)
    print(f"\n{tokens:,} tokens each, {arguments.seeds} seeds; bits per byte on what is held out, mean ± standard deviation")
    print(f"{'variant':<16}{'documents':>10}{'MB':>8}{'epochs':>8}{'textbook':>18}{'web':>18}")
    for row in rows:
        cells = [f"{row[kind]['mean']:.4f} ± {row[kind]['deviation']:.4f}" for kind in ("textbook", "web")]
        print(f"{row['variant']:<16}{row['documents']:>10}{row['megabytes']:>8.2f}{row['epochs']:>8.2f}{cells[0]:>18}{cells[1]:>18}")
    RESULTS.mkdir(exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS).stdout.strip()
    facts = {"commit": commit, "steps": arguments.steps, "tokens": tokens, "seeds": arguments.seeds, "rows": rows, "runs": figures}
    (RESULTS / "data_ablation.json").write_text(json.dumps(facts, indent=1) + "\n")
    draw(rows, figures, tokens, arguments.seeds)


def draw(rows: list[dict[str, Any]], runs: list[dict[str, Any]], tokens: int, seeds: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    labels = [f"{row['variant'].replace('-', '-' + chr(10))}\n{row['megabytes']:.1f} MB" for row in rows]
    for axis, kind, title in zip(axes, ("textbook", "web"), ("held-out textbooks", "main text of held-out web pages"), strict=True):
        axis.plot([row[kind]["mean"] for row in rows], "-", color="#2563eb", linewidth=1.5, label="mean")
        for place, row in enumerate(rows):
            values = [run["bpb"][kind] for run in runs if run["variant"] == row["variant"]]
            axis.plot([place] * len(values), values, "o", color="#2563eb", alpha=0.55, markersize=5, label=None if place else "a seed")
        axis.set_xticks(range(len(rows)), labels, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("bits per byte (less is better)")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"Each step adds to those before it; {tokens / 1e6:.2f}M tokens for each of {seeds} seeds", fontsize=10)
    figure.savefig(RESULTS / "data_ablation.png", dpi=150)


if __name__ == "__main__":
    main()
