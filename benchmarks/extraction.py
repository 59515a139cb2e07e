"""python benchmarks/extraction.py --data FOLDER [--peer-python PYTHON] [--only NAME ...]

Compares extractors of main text, each on the same pages in the same run: what they keep and drop, and pages per CPU second.

FOLDER holds trafilatura_pages.tar.gz and trafilatura_evaldata.json (the repository adbar/trafilatura, tests/), readability_pages.tar.gz
(mozilla/readability, test/test-pages/) and, if there, article_extraction_benchmark.tar.gz (scrapinghub/article-extraction-benchmark).
PYTHON has the peers: pip install trafilatura lxml_html_clean readability-lxml resiliparse. Each extractor gets the bytes of the page and
returns text; what is timed is that call, in CPU seconds of one process. The halves are those of `half`: openmai's model learned from the
first half of each set (benchmarks/train_extraction.py), so the second half is what it had not seen.

Counting: `segments` as trafilatura's own evaluation does it (a segment counts as kept if it stands in the text, white space normalised);
the other two as the article extraction benchmark does it (4-grams of words, precision and recall averaged over pages).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Gold = Any  # {"with": [...], "without": [...]} or the whole text
MAX_DEPTH = 3000


@dataclass(frozen=True)
class Page:
    name: str
    content: bytes
    gold: Gold


def half(name: str) -> int:
    """Return 0 for the pages to learn from, 1 for those to be judged by."""
    return hashlib.sha256(name.encode()).digest()[0] % 2


# --- the pages


def read_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def segments(folder: Path) -> list[Page]:
    files = {Path(name).name: content for name, content in read_tar(folder / "trafilatura_pages.tar.gz").items()}
    gold = json.loads((folder / "trafilatura_evaldata.json").read_text(encoding="utf-8"))
    return [Page(item["file"], files[item["file"]], {"with": item["with"], "without": item["without"]}) for item in gold.values()]


def readability(folder: Path) -> list[Page]:
    return expected(folder / "readability_pages.tar.gz")


def documentation(folder: Path) -> list[Page]:
    return expected(folder / "documentation_pages.tar.gz")


def expected(path: Path) -> list[Page]:
    """Read pages kept as NAME/source.html and NAME/expected.html, the part of the page that is its text."""
    from resiliparse.extract.html2text import extract_plain_text

    files = read_tar(path)
    names = sorted(name.split("/")[0] for name in files if name.endswith("/source.html"))
    return [
        Page(name, files[f"{name}/source.html"], extract_plain_text(files[f"{name}/expected.html"].decode(), alt_texts=False))
        for name in names
    ]


def articles(folder: Path) -> list[Page]:
    files = read_tar(folder / "article_extraction_benchmark.tar.gz")
    gold = json.loads(files["ground-truth.json"])
    return [Page(name, gzip.decompress(files[f"html/{name}.html.gz"]), item["articleBody"]) for name, item in gold.items()]


SETS: dict[str, tuple[str, Callable[[Path], list[Page]]]] = {
    "segments": ("trafilatura_pages.tar.gz", segments),
    "readability": ("readability_pages.tar.gz", readability),
    "articles": ("article_extraction_benchmark.tar.gz", articles),
    "documentation": ("documentation_pages.tar.gz", documentation),
}


# --- the extractors: bytes to text


def openmai() -> Callable[[bytes], str]:
    from openmai.data.extract.html import decode, extract

    return lambda content: extract(decode(content, ""), MAX_DEPTH).text


def trafilatura_fast() -> Callable[[bytes], str]:
    from trafilatura import extract

    return lambda content: extract(content, fast=True, include_comments=False, include_tables=True, include_formatting=False) or ""


def trafilatura() -> Callable[[bytes], str]:
    from trafilatura import extract

    return lambda content: extract(content, fast=False, include_comments=False, include_tables=True, include_formatting=False) or ""


def resiliparse() -> Callable[[bytes], str]:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    def extract(content: bytes) -> str:
        html = bytes_to_str(content, detect_encoding(content) or "utf-8")
        return extract_plain_text(html, main_content=True, alt_texts=False, links=False, form_fields=False, noscript=False, comments=False)

    return extract


def readability_lxml() -> Callable[[bytes], str]:
    import logging

    from readability import Document
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    logging.disable(logging.ERROR)

    def extract(content: bytes) -> str:
        html = bytes_to_str(content, detect_encoding(content) or "utf-8")
        return extract_plain_text(Document(html).summary(), alt_texts=False)

    return extract


EXTRACTORS = {"openmai": openmai, "trafilatura fast": trafilatura_fast, "trafilatura": trafilatura}
EXTRACTORS |= {"resiliparse": resiliparse, "readability-lxml": readability_lxml}


def work(extractor: str, folder: Path) -> None:
    """Write {set: {page: (text, CPU seconds)}} to stdout, pickled."""
    extract, results = EXTRACTORS[extractor](), {}
    for name, (file, load) in SETS.items():
        if not (folder / file).exists():
            continue
        pages = load(folder)
        for page in pages[:3]:  # what is loaded and compiled at the first call is not the page's time
            extract(page.content)
        results[name] = {page.name: timed(extract, page.content) for page in pages}
    sys.stdout.buffer.write(pickle.dumps(results))


def timed(extract: Callable[[bytes], str], content: bytes) -> tuple[str, float]:
    start = time.process_time()
    try:
        text = extract(content)
    except Exception as error:  # a crash is a miss, as in trafilatura's evaluation
        print(f"{type(error).__name__}: {error}"[:200], file=sys.stderr)
        text = ""
    return text, time.process_time() - start


# --- the scores


@dataclass(frozen=True)
class Score:
    precision: float
    recall: float
    f1: float


def score_segments(pages: list[Page], texts: dict[str, str]) -> Score:
    kept = missed = unwanted = 0
    for page in pages:
        text = normal(texts[page.name])
        found = sum(normal(segment) in text for segment in page.gold["with"])
        kept, missed = kept + found, missed + len(page.gold["with"]) - found
        unwanted += sum(normal(segment) in text for segment in page.gold["without"])
    return Score(kept / max(kept + unwanted, 1), kept / max(kept + missed, 1), 2 * kept / max(2 * kept + unwanted + missed, 1))


def score_text(pages: list[Page], texts: dict[str, str]) -> Score:
    precisions, recalls = [], []
    for page in pages:
        gold, text = shingles(page.gold), shingles(texts[page.name])
        common = (gold & text).total()
        if text:
            precisions.append(common / text.total())
        if gold:
            recalls.append(common / gold.total())
    precision, recall = sum(precisions) / max(len(precisions), 1), sum(recalls) / max(len(recalls), 1)
    return Score(precision, recall, 2 * precision * recall / max(precision + recall, 1e-9))


def normal(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def shingles(text: str) -> Counter[tuple[str, ...]]:
    words = re.findall(r"\w+", text)
    return Counter(tuple(words[i : i + 4]) for i in range(max(1, len(words) - 3)) if words)


def score(name: str, pages: list[Page], texts: dict[str, str]) -> Score:
    return (score_segments if name == "segments" else score_text)(pages, texts)


# --- the table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--only", nargs="*", choices=EXTRACTORS, default=list(EXTRACTORS))
    parser.add_argument("--save", type=Path, help="keep the texts here, one pickle per extractor")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.data)
    missing = [file for file, _ in SETS.values() if not (options.data / file).exists()]
    print(f"machine: {os.cpu_count()} cores, {cpu()}; one process per extractor, one after the other")
    print(f"not in {options.data}: {', '.join(missing)}" if missing else "all sets there")
    sets = {name: load(options.data) for name, (file, load) in SETS.items() if file not in missing}
    for name in options.only:
        results = run(name, options)
        for kind, pages in sets.items():
            report(name, kind, pages, results[kind])
    return None


def run(name: str, options: argparse.Namespace) -> dict[str, dict[str, tuple[str, float]]]:
    python = sys.executable if name == "openmai" else options.peer_python
    command = [python, __file__, f"--data={options.data}", f"--work={name}"]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}).stdout
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        (options.save / f"{name.replace(' ', '_')}.pickle").write_bytes(output)
    results: dict[str, dict[str, tuple[str, float]]] = pickle.loads(output)
    return results


def report(name: str, kind: str, pages: list[Page], results: dict[str, tuple[str, float]]) -> None:
    texts, seconds = {page: text for page, (text, _) in results.items()}, [second for _, second in results.values()]
    whole = score(kind, pages, texts)
    halves = [score(kind, [page for page in pages if half(page.name) == part], texts).f1 for part in (0, 1)]
    print(
        f"{kind:<12} {name:<17} F1 {whole.f1:.4f}  P {whole.precision:.4f}  R {whole.recall:.4f}   halves {halves[0]:.4f} {halves[1]:.4f}"
        f"   {len(pages)} pages, {len(pages) / sum(seconds):6.1f} per CPU s, slowest {max(seconds):.2f} s",
        flush=True,
    )


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


if __name__ == "__main__":
    main()
