"""`openmai data decontaminate`: documents without evaluation items, and a report of what was found.

Each Parquet file of the input becomes one of the output, in a thread of its own (the compiled loops let go of the interpreter's lock); a
file that is finished is not done again after a kill.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openmai.base.artifact import Artifact, Work, create
from openmai.base.files import atomic_file, read_json, write_json
from openmai.base.progress import Progress, say
from openmai.data.decontaminate.config import DecontaminateConfig
from openmai.data.decontaminate.index import Contamination, Hit
from openmai.data.decontaminate.items import read_items, split_name
from openmai.data.decontaminate.report import HITS, REPORT, Counts, write_report
from openmai.data.document import KIND, PARQUET, REJECTED_SCHEMA, SCHEMA, document_files

REPORT_KIND = "contamination"
_PARTS = "parts"
_BATCH = 64  # documents; a batch of books is tens of MB
_MARGIN, _STRETCH = 120, 1500  # bytes shown around a match, and of it


def decontaminate(config: DecontaminateConfig) -> Artifact:
    """Write the documents that hold no evaluation item (or all, marked), `rejected/`, `hits/`, `report.json` and `report.html`."""
    documents = [Artifact.load(path, KIND) for path in config.documents]
    evaluation = [split_name(given)[1] for given in config.against]
    kind = REPORT_KIND if config.mode == "report" else KIND
    with create(config.out, kind=kind, version=1, config=config, inputs=[*documents, *evaluation]) as work:
        if work.finished:
            return work.finished
        index = Contamination(read_items(config.against, config.tasks, config.fields), config.overlap)
        say(f"evaluation: {len(index.items):,} items, {len(index.unchecked):,} too short to look for")
        counts = _run(config, work, index, [file for artifact in documents for file in document_files(artifact)])
        report = write_report(work.path, config, index, counts)
        if config.mode != "report":
            write_json(work.path / "funnel.json", counts.funnel(drops=config.mode == "drop"))
        _show(report)
        metrics = {name: report["documents"][name] for name in ("read", "kept", "contaminated", "bytes")}
        metrics |= {"documents": metrics["kept"], "items": len(index.items), "items_found": report["items"]["found"]}
        return work.finish(metrics, scratch=[_PARTS])


def _run(config: DecontaminateConfig, work: Work, index: Contamination, files: list[Path]) -> Counts:
    for folder in (_PARTS, "hits", *(() if config.mode == "report" else ("documents", "rejected"))):
        (work.path / folder).mkdir(exist_ok=True)
    total = sum(file.stat().st_size for file in files)
    lock, counts = Lock(), Counts()
    with Progress("decontaminate", total / 1e6, "MB") as progress, ThreadPoolExecutor(config.workers) as pool:

        def one(number: int, file: Path) -> dict[str, Any]:
            done = work.path / _PARTS / f"{number:05d}.json"
            if not done.exists():
                write_json(done, _File(config, index, work.path, number).run(file))
            with lock:
                progress.advance(file.stat().st_size / 1e6)
                work.tick()
            return read_json(done)

        for part in pool.map(one, range(len(files)), files):
            counts.add(part)
    return counts


class _File:
    """The work on one Parquet file."""

    def __init__(self, config: DecontaminateConfig, index: Contamination, out: Path, number: int) -> None:
        self.config, self.index = config, index
        self.paths = {folder: out / folder / f"part-{number:05d}.parquet" for folder in ("documents", "rejected", "hits")}
        self.counts = Counts()

    def run(self, file: Path) -> dict[str, Any]:
        """Check every document, write what stays and what goes, and return the counts."""
        schemas = {"hits": HITS} if self.config.mode == "report" else {"documents": SCHEMA, "rejected": REJECTED_SCHEMA, "hits": HITS}
        with ExitStack() as stack:
            writers = {}
            for folder, schema in schemas.items():
                target = stack.enter_context(atomic_file(self.paths[folder]))
                writers[folder] = stack.enter_context(pq.ParquetWriter(target, schema, compression_level=3, **PARQUET))
            for batch in pq.ParquetFile(file).iter_batches(batch_size=_BATCH):
                for folder, rows in self._divide(batch).items():
                    if folder in writers and rows.num_rows:
                        writers[folder].write_batch(rows)
        return self.counts.plain()

    def _divide(self, batch: pa.RecordBatch) -> dict[str, pa.RecordBatch]:
        """Return the rows of the batch that stay and that go, and the hits."""
        found = {row: hits for row, text in enumerate(texts(batch)) if (hits := self.index.check(text))}
        sizes = pc.fill_null(pc.binary_length(batch.column("text")), 0).to_pylist()
        for row, source in enumerate(batch.column("source").to_pylist()):
            self.counts.take(source, sizes[row], [hit.task for hit in found.get(row, [])])
        hits = pa.RecordBatch.from_pylist([_hit_row(batch, row, hit) for row in found for hit in found[row]], schema=HITS)
        if self.config.mode == "mark":
            return {"documents": _mark(batch, found) if found else batch, "hits": hits}
        stays = np.ones(batch.num_rows, dtype=bool)
        stays[list(found)] = False
        gone = batch.filter(pa.array(~stays))
        best = [found[row][0] for row in sorted(found)]
        gone = pa.RecordBatch.from_arrays(
            [*gone.columns, pa.array([f"contaminated.{hit.task}" for hit in best], pa.string()), pa.array(map(_reason, best), pa.string())],
            schema=REJECTED_SCHEMA,
        )
        return {"documents": batch.filter(pa.array(stays)), "rejected": gone, "hits": hits}


def texts(batch: pa.RecordBatch) -> Iterator[np.ndarray]:
    """Yield the UTF-8 bytes of every text of a batch, without a copy."""
    column = batch.column("text")
    _, offsets_buffer, data_buffer = column.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer else np.empty(0, np.uint8)
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        yield data[start:end]


def _reason(hit: Hit) -> str:
    return f"holds {hit.score:.0%} of {hit.id}, {hit.words} words on end{', with the answer' if hit.answer else ''}"


def _mark(batch: pa.RecordBatch, found: dict[int, list[Hit]]) -> pa.RecordBatch:
    """Add the score contaminated.<task> to the rows that hold items of the task: the best item's."""
    scores = [dict(row or ()) for row in batch.column("scores").to_pylist()]
    for row, hits in found.items():
        for hit in reversed(hits):  # the best comes last and stays
            scores[row][f"contaminated.{hit.task}"] = round(hit.score, 4)
    place = batch.schema.get_field_index("scores")
    return batch.set_column(place, batch.schema.field(place), pa.array([list(row.items()) for row in scores], SCHEMA.field("scores").type))


def _hit_row(batch: pa.RecordBatch, row: int, hit: Hit) -> dict[str, Any]:
    text = batch.column("text")[row].as_buffer().to_pybytes()
    end = min(hit.end, hit.start + _STRETCH)
    columns = {name: batch.column(name)[row].as_py() for name in ("url", "source")}
    return columns | {
        "document": batch.column("id")[row].as_py(),
        "task": hit.task,
        "item": hit.id,
        "number": hit.item,
        "score": hit.score,
        "words": hit.words,
        "answer": hit.answer,
        "text": text[max(0, hit.start - _MARGIN) : end + _MARGIN].decode("utf-8", errors="ignore"),
    }


def _show(report: dict[str, Any]) -> None:
    say(f"{'task':<28}{'items':>9}{'found':>8}{'documents':>11}")
    for name, task in report["tasks"].items():
        if task["found"]:
            say(f"{name:<28}{task['items']:>9,}{task['found']:>8,}{task['documents']:>11,}")
    documents = report["documents"]
    say(f"contaminated: {documents['contaminated']:,} of {documents['read']:,} documents; see {REPORT}")
