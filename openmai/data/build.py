"""`openmai data build`: sources in, clean documents out.

First each record is extracted, cleaned and measured by itself, in parallel, and kept as a part (engine/parts.py). Thresholds then say
which documents take part (engine/select.py); these are compared with each other by their keys (dedup/); and what was decided is applied
to the parts, which become the files of the result (engine/shards.py). The order of documents is that of sources, files (by name) and
records, so the output is the same for any number of workers, on this machine and on a cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openmai.base.artifact import Artifact, Work, create
from openmai.base.files import write_json
from openmai.base.progress import Progress, say
from openmai.data.config import BuildConfig
from openmai.data.dedup.exact import Dropped, exact
from openmai.data.dedup.fingerprint import fixed_keys, list_keys
from openmai.data.dedup.near import near, preferences
from openmai.data.dedup.repeated import Repeated, repeated
from openmai.data.document import document_files
from openmai.data.engine.corpus import Corpus, Piece, site_keys
from openmai.data.engine.funnel import Funnel
from openmai.data.engine.parts import Part, Parts, annotate_file, annotate_whole_file, build_code, parts_folder
from openmai.data.engine.pool import Pool
from openmai.data.engine.select import Selected, Selector
from openmai.data.engine.shards import Decided, group, write_shard
from openmai.data.engine.tasks import run_tasks
from openmai.data.read.sources import files_of, local_input

_WORK = "work"
Found = list[tuple[Part, Path, Selected]]


def build(config: BuildConfig) -> Artifact:
    """Build a documents artifact.

    `documents/*.parquet`; `rejected/*.parquet` with rule and reason; `keys/*.parquet`, by which a later build finds these documents'
    duplicates; `funnel.json`.
    """
    earlier = [Artifact.load(path, kind="documents") for path in config.earlier]
    inputs = [*(item for source in config.sources for item in local_input(source)), *earlier]
    with create(config.out, kind="documents", version=build_code(), config=config, inputs=inputs) as work:
        if work.finished:
            return work.finished
        (work.path / _WORK).mkdir(exist_ok=True)
        found = _annotate(config, work.path / _WORK)
        work.tick()
        decided = _compare(config, found, earlier, work.path / _WORK)
        return _write(config, work, found, decided)


def _annotate(config: BuildConfig, folder: Path) -> Found:
    """Return all parts of all sources in canonical order, with what the thresholds select of them."""
    parts, selector = Parts(parts_folder(config)), Selector(config)
    files = [(source, file) for source in config.sources for file in files_of(source, folder / "downloads")]
    found: dict[int, Found] = {number: [] for number in range(len(files))}
    documents, rules, done = 0, Counter[str](), 0
    with Progress("documents", None, "records") as progress:
        for number, part in _run(config, files, parts):
            selected = selector.select(parts.path(part.key))
            found[number].append((part, parts.path(part.key), selected))
            rules += selected.rules
            documents += part.records
            done += part.is_last
            kept = f"{1 - rules.total() / max(1, documents):.0%}"
            most = ", ".join(f"{rule} {count / documents:.0%}" for rule, count in rules.most_common(3))
            progress.advance(part.records, files=f"{done}/{len(files)}", kept=kept, **({"rejected": most} if most else {}))
    return [item for items in found.values() for item in items]


def _run(config: BuildConfig, files: list, parts: Parts) -> Iterator[tuple[int, Part]]:
    """Yield (number of the file, part) of all files, the parts of each in order."""
    if config.runner == "local":
        with Pool(config.workers, config) as pool:
            for number, (source, file) in enumerate(files):
                for part in annotate_file(config, source, file, parts, pool):
                    yield number, part
    else:
        tasks = [(config, source, file.resolve(), parts.folder.resolve()) for source, file in files]
        for number, its_parts in run_tasks(annotate_whole_file, tasks, config.runner, config.workers, config.address):
            for part in its_parts:
                yield number, part


def _compare(config: BuildConfig, found: Found, earlier: list[Artifact], scratch: Path) -> list[Decided]:
    """Find exact and near duplicates and repeated passages among the selected documents; return what it means for each part."""
    pieces = [piece for artifact in earlier for piece in _pieces(artifact)]
    fixed = sum(piece.rows for piece in pieces)
    corpus = Corpus([*pieces, *(Piece(path, path, part.records) for part, path, _ in found)])
    takes_part = np.concatenate([np.ones(fixed, np.bool_), *(selected.takes_part for *_, selected in found)])
    say(f"compare      {int(takes_part.sum()) - fixed:,} documents with each other" + f" and with {fixed:,} earlier ones" * bool(fixed))
    decided, dedup = [Decided(path) for _, path, _ in found], config.dedup
    if dedup.exact:
        keys = (fixed_keys(column) for column in corpus.keys("exact"))
        _reject(exact(keys, takes_part, scratch, fixed), "exact.duplicate", corpus, takes_part, decided, len(pieces))
    if dedup.near:
        bands = (fixed_keys(column) for column in corpus.keys("bands"))
        preference = _preference(config, corpus, found, fixed)
        dropped = near(bands, takes_part, preference, lambda rows: corpus.values("text", rows), dedup, scratch, fixed)
        _reject(dropped, "near.duplicate", corpus, takes_part, decided, len(pieces))
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


def _write(config: BuildConfig, work: Work, found: Found, decided: list[Decided]) -> Artifact:
    """Write the files of the result, and the funnel."""
    funnel, start, tasks = Funnel(), 0, []
    parts = [part for part, *_ in found]
    for number, count in enumerate(group(parts, config.shard_megabytes)):
        done = (work.path / _WORK / f"funnel-{number:05d}.json").resolve()
        tasks.append((config, number, decided[start : start + count], work.path.resolve(), done))
        start += count
    with Progress("write", len(tasks), "files") as progress:
        for _, counts in run_tasks(write_shard, tasks, config.runner, config.workers, config.address):
            funnel.add(counts)
            progress.advance()
    funnel.damaged = [f"{part.file}: {damage}" for part in parts if part.is_last for damage in part.damages]
    write_json(work.path / "funnel.json", funnel.summary())
    funnel.show()
    metrics = {
        "documents": funnel.kept.total(),
        "bytes": funnel.kept_bytes.total(),
        "rejected": sum(counts.total() for counts in funnel.dropped.values()),
        "raw_bytes": funnel.raw_bytes.total(),
    }
    return work.finish(metrics, scratch=[_WORK])
