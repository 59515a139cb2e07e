"""`openmai data build`: sources in, clean documents out.

First half (parts.py): each record is extracted, cleaned and scored by itself, in parallel. Second half (here): one pass in canonical
order applies the thresholds and drops exact duplicates and repeated paragraphs, a second drops near-duplicates. The order of documents
is the order of sources, files (by name) and records, so the output is the same for any number of workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openmai.base.artifact import Artifact, Work, create
from openmai.base.files import write_json
from openmai.base.progress import Progress
from openmai.data.config import BuildConfig
from openmai.data.dedup.duplicates import MinHash, ParagraphFilter, candidates, near_duplicates, text_hash
from openmai.data.document import REJECTED_SCHEMA, SCHEMA
from openmai.data.engine.funnel import Funnel
from openmai.data.engine.parts import Part, Parts, annotate_file, parts_folder, read_rows
from openmai.data.engine.pool import Pool
from openmai.data.extract.clean import drop_empty_headings
from openmai.data.filter.rules import judge
from openmai.data.read.sources import files_of, local_input, profile_of

Row = dict[str, Any]
_FILE_BYTES = 128 << 20
_WORK = "work"


def build(config: BuildConfig) -> Artifact:
    """Build a documents artifact: `documents/*.parquet`, `rejected/*.parquet` with rule and reason, and `funnel.json`."""
    inputs = [item for source in config.sources for item in local_input(source)]
    with create(config.out, kind="documents", version=1, config=config, inputs=inputs) as work:
        if work.finished:
            return work.finished
        (work.path / _WORK).mkdir(exist_ok=True)
        parts = _annotate(config, work.path / _WORK)
        work.tick()
        return _reduce(config, work, parts)


def _annotate(config: BuildConfig, folder: Path) -> list[tuple[Part, Path]]:
    """Return all parts of all sources in canonical order."""
    parts, found = Parts(parts_folder(config)), []
    files = [(source, file) for source in config.sources for file in files_of(source, folder / "downloads")]
    with Pool(config.workers, config) as pool, Progress("documents", None, "records") as progress:
        for done, (source, file) in enumerate(files):
            for part in annotate_file(config, source, file, parts, pool):
                found.append((part, parts.path(part.key)))
                progress.advance(part.records, files=f"{done + part.is_last}/{len(files)}")
    return found


def _reduce(config: BuildConfig, work: Work, parts: list[tuple[Part, Path]]) -> Artifact:
    funnel = Funnel()
    funnel.damaged = [f"{part.file}: {damage}" for part, _ in parts if part.is_last for damage in part.damages]
    kept = work.path / _WORK / "kept.parquet"
    with Writer(work.path / "rejected", REJECTED_SCHEMA) as rejected:
        selection = _Selection(config, funnel, rejected)
        selection.run(parts, kept)
        dropped = _near(config, kept, selection)
        with Writer(work.path / "documents", SCHEMA) as documents:
            for number, row in enumerate(read_rows(kept)):
                if number in dropped:
                    best, similarity = dropped[number]
                    row |= {"rule": "near.duplicate", "reason": f"Jaccard {similarity:.2f} with {selection.ids[best]}"}
                    rejected.write(row)
                    funnel.drop(row)
                else:
                    documents.write(row)
                    funnel.keep(row)
    write_json(work.path / "funnel.json", funnel.summary())
    funnel.show()
    metrics = {
        "documents": funnel.kept.total(),
        "bytes": funnel.kept_bytes.total(),
        "rejected": sum(counts.total() for counts in funnel.dropped.values()),
        "raw_bytes": funnel.raw_bytes.total(),
    }
    return work.finish(metrics, scratch=[_WORK])


class _Selection:
    """The first pass: thresholds, exact duplicates, repeated paragraphs; keeps ids, lengths and signatures of what stays."""

    def __init__(self, config: BuildConfig, funnel: Funnel, rejected: Writer) -> None:
        self.config, self.funnel, self.rejected = config, funnel, rejected
        self.profiles = {source.name: profile_of(source) for source in config.sources}
        self.texts: dict[bytes, str] = {}
        self.paragraphs = ParagraphFilter(config.dedup.paragraph_copies, config.dedup.paragraph_chars)
        self.hasher = MinHash(config.dedup)
        self.ids: list[str] = []
        self.lengths: list[int] = []
        self.signatures: list[np.ndarray] = []

    def run(self, parts: list[tuple[Part, Path]], kept: Path) -> None:
        """Write the documents that stay to `kept`, the others to the rejected ones."""
        with (
            Progress("selection", sum(part.records for part, _ in parts), "documents") as progress,
            pq.ParquetWriter(kept, REJECTED_SCHEMA, compression="zstd") as writer,
        ):
            for _, path in parts:
                rows = [row for row in read_rows(path) if self._select(row)]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=REJECTED_SCHEMA))
                progress.advance(pq.read_metadata(path).num_rows)

    def _select(self, row: Row) -> bool:
        self.funnel.take(row)
        if not row["rule"]:
            row["rule"], row["reason"] = self._judge(row) or self._exact(row) or self._shorten(row) or ("", "")
        if row["rule"]:
            self.rejected.write(row)
            self.funnel.drop(row)
            return False
        self.ids.append(row["id"])
        self.lengths.append(len(row["text"]))
        if self.config.dedup.near:
            self.signatures.append(self.hasher.signature(self.hasher.shingles(row["text"])))
        return True

    def _judge(self, row: Row) -> tuple[str, str] | None:
        profile, scores, config = self.profiles[row["source"]], dict(row["scores"]), self.config
        if profile == "trusted":
            return None
        if config.languages and row["language"] not in config.languages:
            return "language.other", f"{row['language']}, kept: {', '.join(config.languages)}"
        if config.languages and scores["language"] < config.min_language_score:
            return "language.unsure", f"{row['language']} with probability {scores['language']:.2f}, at least {config.min_language_score}"
        rule, reason = judge(scores, config.docs if profile == "docs" else config.web)
        return (rule, reason) if rule else None

    def _exact(self, row: Row) -> tuple[str, str] | None:
        if not self.config.dedup.exact:
            return None
        key = text_hash(row["text"])
        if key in self.texts:
            return "exact.duplicate", f"same text as {self.texts[key]}"
        self.texts[key] = row["id"]
        return None

    def _shorten(self, row: Row) -> tuple[str, str] | None:
        """Take repeated paragraphs out of the text; the scores stay those of the whole text."""
        if not self.config.dedup.paragraph_copies:
            return None
        text = self.paragraphs.apply(row["text"])
        if text == row["text"]:
            return None
        text = drop_empty_headings(text)
        share = len(text) / len(row["text"])
        if share < self.config.dedup.min_left:
            return "paragraphs.repeated", f"{share:.0%} left without paragraphs of earlier documents"
        self.funnel.shorten(len(row["text"].encode()) - len(text.encode()))
        row["text"] = text
        return None


def _near(config: BuildConfig, kept: Path, selection: _Selection) -> dict[int, tuple[int, float]]:
    """Return the near-duplicates among the kept documents: row -> (row that stays, similarity)."""
    if not selection.signatures:
        return {}
    pairs = candidates(np.stack(selection.signatures), config.dedup.bands)
    wanted = {row for pair in pairs for row in pair}
    texts = {number: row["text"] for number, row in enumerate(read_rows(kept)) if number in wanted} if wanted else {}
    return near_duplicates(pairs, texts, selection.lengths, selection.hasher)


class Writer:
    """Writes rows to `part-00000.parquet` and so on in a folder, a new file every 128 MB of text. Use as a context."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema
        self.rows: list[Row] = []
        self.file: pq.ParquetWriter | None = None
        self.files, self.size = 0, 0

    def __enter__(self) -> Writer:
        self.folder.mkdir(exist_ok=True)
        for old in self.folder.iterdir():  # of an attempt that was killed here
            old.unlink()
        self._open()
        return self

    def write(self, row: Row) -> None:
        """Add one document."""
        self.rows.append({name: row[name] for name in self.schema.names})
        self.size += len(row["text"])
        if len(self.rows) >= 500:
            self._flush()
        if self.size >= _FILE_BYTES:
            self._close()
            self._open()

    def __exit__(self, *error: object) -> None:
        self._close()

    def _open(self) -> None:
        self.file = pq.ParquetWriter(self.folder / f"part-{self.files:05d}.parquet", self.schema, compression="zstd", compression_level=3)
        self.files, self.size = self.files + 1, 0

    def _flush(self) -> None:
        assert self.file is not None
        self.file.write_batch(pa.RecordBatch.from_pylist(self.rows, schema=self.schema))
        self.rows = []

    def _close(self) -> None:
        if self.file is not None:
            if self.rows:
                self._flush()
            self.file.close()
            self.file = None
