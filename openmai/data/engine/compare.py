"""Duplicates among the documents that take part: by their keys, on this machine with bounded memory or as queries on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openmai.base.artifact import Artifact
from openmai.base.files import atomic_file
from openmai.base.progress import say
from openmai.data.config import BuildConfig
from openmai.data.dedup import cluster
from openmai.data.dedup.config import Dedup
from openmai.data.dedup.exact import Dropped, exact
from openmai.data.dedup.fingerprint import fixed_keys, list_keys
from openmai.data.dedup.near import near, preferences
from openmai.data.dedup.repeated import Repeated, repeated
from openmai.data.document import PARQUET, document_files
from openmai.data.engine.corpus import Corpus, Piece, site_keys
from openmai.data.engine.parts import Part
from openmai.data.engine.select import Selected
from openmai.data.engine.shards import Decided
from openmai.data.engine.tasks import cluster_cpus, run_on_whole_cluster, run_tasks

Found = list[tuple[Part, Path, Selected]]
_ROWS = 1000


def compare(config: BuildConfig, found: Found, earlier: list[Artifact], scratch: Path) -> list[Decided]:
    """Find exact and near duplicates and repeated passages among the selected documents; return what it means for each part."""
    pieces = [piece for artifact in earlier for piece in _pieces(artifact)]
    fixed = sum(piece.rows for piece in pieces)
    corpus = Corpus([*pieces, *(Piece(path, path, part.records) for part, path, _ in found)])
    takes_part = np.concatenate([np.ones(fixed, np.bool_), *(selected.takes_part for *_, selected in found)])
    say(f"compare      {int(takes_part.sum()) - fixed:,} documents with each other" + f" and with {fixed:,} earlier ones" * bool(fixed))
    decided, dedup = [Decided(path) for _, path, _ in found], config.dedup
    preference = _preference(config, corpus, found, fixed)
    for rule, dropped in _duplicates(config, corpus, takes_part, preference, scratch, fixed):
        _reject(dropped, rule, corpus, takes_part, decided, len(pieces))
    with ExitStack() as stack:
        if dedup.paragraph_copies:
            keys_of = map(list_keys, corpus.keys("paragraphs"))
            result = repeated(keys_of, takes_part, dedup.paragraph_copies, _sub(scratch, "paragraphs"), fixed)
            _remove(stack.enter_context(result), "paragraphs", corpus, decided, len(pieces))
        if dedup.line_copies:
            keys_of = map(list_keys, corpus.keys("lines"))
            result = repeated(keys_of, takes_part, dedup.line_copies, _sub(scratch, "lines"), fixed, site_keys(corpus))
            _remove(stack.enter_context(result), "lines", corpus, decided, len(pieces))
    return decided


def _duplicates(
    config: BuildConfig, corpus: Corpus, takes_part: NDArray[np.bool_], preference: NDArray[np.floating], scratch: Path, fixed: int
) -> Iterator[tuple[str, Dropped]]:
    """Yield (rule, the documents that go by it); those of the first are no longer among `takes_part` when the second is asked for."""
    dedup = config.dedup
    if config.runner == "ray" and config.compare == "daft":
        files = _cluster_files(config, corpus, takes_part, preference, scratch)
        yield from run_on_whole_cluster(_query, files, dedup, fixed, address=config.address)
        return
    if dedup.exact:
        yield "exact.duplicate", exact((fixed_keys(column) for column in corpus.keys("exact")), takes_part, scratch, fixed)
    if dedup.near:
        bands = (fixed_keys(column) for column in corpus.keys("bands"))
        yield "near.duplicate", near(bands, takes_part, preference, lambda rows: corpus.values("text", rows), dedup, scratch, fixed)


def _cluster_files(
    config: BuildConfig, corpus: Corpus, takes_part: NDArray[np.bool_], preference: NDArray[np.floating], scratch: Path
) -> list[str]:
    """Write what the queries of a cluster read, one file for each piece."""
    folder, tasks = _sub(scratch, "compare").resolve(), []
    for number, piece in enumerate(corpus.pieces):
        rows = slice(corpus.starts[number], corpus.starts[number + 1])
        tasks.append((piece, corpus.starts[number], takes_part[rows], preference[rows], folder / f"part-{number:05d}.parquet"))
    return [str(file) for _, file in run_tasks(_write_file, tasks, config.runner, config.workers, config.address)]


def _query(files: list[str], dedup: Dedup, fixed: int) -> list[tuple[str, Dropped]]:
    daft = cluster.load_daft()
    daft.set_runner_ray(noop_if_initialized=True)
    daft.set_execution_config(shuffle_aggregation_default_partitions=2 * cluster_cpus())  # its default of 200 stalls a small cluster
    gone = cluster.exact(files, fixed) if dedup.exact else None
    near_gone = cluster.near(files, dedup, fixed, gone.rows if gone else None) if dedup.near else None
    return [(rule, dropped) for rule, dropped in (("exact.duplicate", gone), ("near.duplicate", near_gone)) if dropped]


def _write_file(piece: Piece, start: int, takes_part: NDArray[np.bool_], preference: NDArray[np.floating], file: Path) -> Path:
    keys = pq.read_table(piece.keys, columns=["exact", "bands"])
    table = keys.append_column("text", pq.read_table(piece.texts, columns=["text"])["text"])
    table = table.append_column("row", pa.array(np.arange(start, start + piece.rows))).append_column("preference", pa.array(preference))
    with atomic_file(file) as stream:
        pq.write_table(table.filter(pa.array(takes_part)), stream, compression_level=1, **PARQUET)
    return file


def _pieces(artifact: Artifact) -> Iterator[Piece]:
    for texts in document_files(artifact):
        keys = artifact.path / "keys" / texts.name
        yield Piece(keys, texts, pq.read_metadata(texts).num_rows)


def _sub(folder: Path, name: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name


def _preference(config: BuildConfig, corpus: Corpus, found: Found, fixed: int) -> NDArray[np.floating]:
    """Return which of similar documents stay rather than others."""
    words = np.concatenate([np.zeros(0, np.int64), *(column.to_numpy() for column in corpus.keys("words"))])
    quality = np.concatenate([np.full(fixed, np.inf), *(selected.quality for *_, selected in found)])
    dates = [""] * fixed + [date for *_, selected in found for date in selected.dates]
    return preferences(config.dedup.keep, words, quality, dates if config.dedup.keep == "newest" else None)


def _reject(dropped: Dropped, rule: str, corpus: Corpus, takes_part: NDArray[np.bool_], decided: list[Decided], first: int) -> None:
    """Note for each part which of its documents go and why; `first` is the number of its piece of the first part."""
    names = sorted(set(dropped.kept.tolist()))
    ids = dict(zip(names, corpus.values("id", np.array(names, np.int64)), strict=True))
    for number, part in enumerate(decided, first):
        start, end = corpus.starts[number], corpus.starts[number + 1]
        for place in range(*np.searchsorted(dropped.rows, [start, end])):
            kept, similarity = ids[int(dropped.kept[place])], dropped.similarity[place]
            reason = f"same text as {kept}" if rule == "exact.duplicate" else f"Jaccard {similarity:.2f} with {kept}"
            part.rejected[int(dropped.rows[place]) - start] = (rule, reason)
    takes_part[dropped.rows] = False


def _remove(passages: Repeated, kind: str, corpus: Corpus, decided: list[Decided], first: int) -> None:
    """Note for each part which paragraphs or lines its documents lose."""
    for number, part in enumerate(decided, first):
        found = passages.take(corpus.starts[number + 1])
        setattr(part, kind, {row - corpus.starts[number]: numbers for row, numbers in found.items()})
