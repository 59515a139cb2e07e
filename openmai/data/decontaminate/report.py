"""The report of a decontamination: `report.json` for programs, `report.html` for people."""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openmai.base.files import atomic_file, write_json
from openmai.data.decontaminate.config import DecontaminateConfig
from openmai.data.decontaminate.index import Contamination
from openmai.data.decontaminate.items import Item
from openmai.data.decontaminate.words import grams, split

REPORT = "report.html"
HITS = pa.schema(
    [
        ("document", pa.string()),
        ("url", pa.string()),
        ("source", pa.string()),
        ("task", pa.string()),
        ("item", pa.string()),
        ("number", pa.int32()),
        ("score", pa.float64()),
        ("words", pa.int32()),
        ("answer", pa.bool_()),
        ("text", pa.string()),
    ]
)
_BLANK_LINES = re.compile(r"\s*\n[ \t]*\n\s*")
_COMMON = 10  # GPT-3 takes an n-gram that more documents have for a phrase of the language, not for a leak
_MOST = 200  # items listed by the number of documents that hold them


class Counts:
    """Documents and bytes by source, in all and contaminated, and contaminated documents by task."""

    _NAMES = ("documents", "bytes", "hit", "hit_bytes", "tasks", "rules")

    def __init__(self) -> None:
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.hit: Counter[str] = Counter()
        self.hit_bytes: Counter[str] = Counter()
        self.tasks: Counter[str] = Counter()
        self.rules: Counter[str] = Counter()  # "source\0task" of the best hit

    def take(self, source: str, size: int, tasks: list[str]) -> None:
        """Count a document and the tasks that it holds items of, the best first."""
        self.documents[source] += 1
        self.bytes[source] += size
        if tasks:
            self.hit[source] += 1
            self.hit_bytes[source] += size
            self.tasks.update(set(tasks))
            self.rules[f"{source}\0{tasks[0]}"] += 1

    def plain(self) -> dict[str, Any]:
        return {name: dict(getattr(self, name)) for name in self._NAMES}

    def add(self, part: dict[str, Any]) -> None:
        for name in self._NAMES:
            getattr(self, name).update(part[name])

    def funnel(self, drops: bool) -> dict[str, Any]:
        """Return the counts as the funnel of `data build` has them."""
        rules: dict[str, Counter[str]] = defaultdict(Counter)
        for key, count in sorted(self.rules.items()) if drops else ():
            source, _, task = key.partition("\0")
            rules[source][f"contaminated.{task}"] += count
        all_rules = sum(rules.values(), Counter())
        kept, size = self.documents.total() - all_rules.total(), self.bytes.total()
        lost = self.hit_bytes.total() if drops else 0
        step = {"step": "contaminated", "title": "evaluation items", "in": self.documents.total(), "out": kept}
        step |= {"bytes_in": size, "bytes_out": size - lost, "dropped": dict(sorted(all_rules.items()))}
        sources = {
            name: {
                "in": count,
                "out": count - rules[name].total(),
                "raw_bytes": self.bytes[name],
                "bytes_in": self.bytes[name],
                "bytes_out": self.bytes[name] - (self.hit_bytes[name] if drops else 0),
                "dropped": dict(sorted(rules[name].items())),
            }
            for name, count in sorted(self.documents.items())
        }
        return {"raw_bytes": size, "steps": [step], "sources": sources, "damaged": []}


def write_report(out: Path, config: DecontaminateConfig, index: Contamination, counts: Counts) -> dict[str, Any]:
    """Write `report.json` and `report.html` from the hits in `out` and return the report."""
    found, best, examples = _read_hits(out / "hits", config.examples)
    report = {
        "mode": config.mode,
        "overlap": config.overlap.model_dump(),
        "documents": {
            "read": counts.documents.total(),
            "kept": counts.documents.total() - (counts.hit.total() if config.mode == "drop" else 0),
            "contaminated": counts.hit.total(),
            "bytes": counts.bytes.total(),
            "contaminated_bytes": counts.hit_bytes.total(),
        },
        "items": {"read": len(index.items), "unchecked": len(index.unchecked), "found": len(found)},
        "tasks": _tasks(index, counts, found, best),
        "sources": {
            name: {"documents": count, "contaminated": counts.hit[name], "bytes": counts.bytes[name]}
            for name, count in sorted(counts.documents.items())
        },
        "items_found": [
            {"task": index.items[number].task, "item": index.items[number].id, "documents": count, "score": round(best[number], 4)}
            | {"common": count > _COMMON, "question": index.items[number].question[:300]}
            for number, count in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:_MOST]
        ],
        "examples": [{name: value for name, value in row.items() if name != "number"} for row in examples],
    }
    write_json(out / "report.json", report)
    _write_page(out / REPORT, report, [_side_by_side(row, index.items[row["number"]]) for row in examples])
    return report


def _read_hits(folder: Path, wanted: int) -> tuple[Counter[int], dict[int, float], list[dict[str, Any]]]:
    """Return documents per item, the best score per item, and the `wanted` longest matches, one per item and document."""
    found: Counter[int] = Counter()
    best: dict[int, float] = defaultdict(float)
    longest: list[tuple[int, float, str, int]] = []
    files = sorted(folder.glob("*.parquet"))
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(columns=["number", "score", "words", "document"]):
            for row in batch.to_pylist():
                found[row["number"]] += 1
                best[row["number"]] = max(best[row["number"]], row["score"])
                entry = (row["words"], row["score"], row["document"], row["number"])
                heapq.heappush(longest, entry) if len(longest) < wanted else heapq.heappushpop(longest, entry)
    keys = {(document, number): (words, score) for words, score, document, number in longest}
    rows = [row for file in files for row in _rows_of(file, keys)] if keys else []
    return found, best, sorted(rows, key=lambda row: (-row["words"], -row["score"], row["document"], row["number"]))


def _rows_of(file: Path, keys: dict[tuple[str, int], Any]) -> list[dict[str, Any]]:
    rows = []
    for batch in pq.ParquetFile(file).iter_batches():
        pairs = zip(batch.column("document").to_pylist(), batch.column("number").to_pylist(), strict=True)
        rows += batch.filter(pa.array([pair in keys for pair in pairs], pa.bool_())).to_pylist()
    return rows


def _tasks(index: Contamination, counts: Counts, found: Counter[int], best: dict[int, float]) -> dict[str, Any]:
    tasks: dict[str, dict[str, Any]] = {}
    for item in index.items:
        tasks.setdefault(item.task, {"items": 0, "unchecked": 0, "found": 0, "documents": counts.tasks[item.task], "best": 0.0})[
            "items"
        ] += 1
    for number in index.unchecked:
        tasks[index.items[number].task]["unchecked"] += 1
    for number in found:
        task = tasks[index.items[number].task]
        task["found"] += 1
        task["best"] = round(max(task["best"], best[number]), 4)
    return tasks


def _side_by_side(row: dict[str, Any], item: Item) -> dict[str, Any]:
    whole = "\n".join(
        part for part in (item.context, item.question, *item.choices, f"Answer: {item.answer}" if item.answer else "") if part
    )
    return {"row": row, "item": _highlight(whole, row["text"]), "document": _highlight(row["text"], whole)}


def _highlight(text: str, other: str, n: int = 4) -> list[tuple[str, bool]]:
    """Cut `text`, without blank lines, into pieces and say of each whether its words stand in `other` too, at least `n` in a row."""
    text = _BLANK_LINES.sub("\n", text)
    data, words = text.encode("utf-8", errors="replace"), split(text)
    common = np.flatnonzero(np.isin(grams(words.hashes, n), grams(split(other).hashes, n)))
    covered = np.zeros(len(words) + 1, dtype=bool)
    for step in range(n):
        covered[common + step] = True
    pieces, at = [], 0
    edges = np.flatnonzero(np.diff(np.concatenate(([False], covered)).astype(np.int8)))
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        start, end = int(words.starts[first]), int(words.ends[last - 1])
        pieces += [(data[at:start].decode(errors="replace"), False), (data[start:end].decode(errors="replace"), True)]
        at = end
    return [*pieces, (data[at:].decode(errors="replace"), False)]


def _write_page(path: Path, report: dict[str, Any], examples: list[dict[str, Any]]) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(report=report, examples=examples, common=_COMMON)
    with atomic_file(path, "w") as file:
        file.write(page)
