"""`openmai data mix`: several documents artifacts into one, and `mixture.json`, which says how training draws from it.

Two passes. The first reads ids, sizes and labels of all documents into arrays (about 40 bytes each) and decides which stay; the second
copies those. No document is written twice: epochs are the business of training, which repeats no text before the source has ended.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.files import atomic_file, write_json
from openmai.base.progress import Progress, say
from openmai.data.document import KIND, PARQUET, SCHEMA, document_files
from openmai.data.mix.card import write_card
from openmai.data.mix.choose import Mask, Names, Pool, cut, keep_shares, order_of
from openmai.data.mix.config import MixConfig, Selection
from openmai.data.mix.solve import Solution, check_names, solve

MIXTURE = "mixture.json"
_BATCH = 256
_COLUMNS = ["id", "text", "url", "source", "license", "language", "date", "scores"]
_SAMPLED = 10_000  # documents whose scores the card shows, the first in the order of choice


def mix(config: MixConfig) -> Artifact:
    """Write the documents of the mixture with their sources' names, `mixture.json`, and the card (`card.json`, `.md`, `.html`)."""
    inputs = [Artifact.load(path, KIND) for path in config.documents]
    with create(config.out, kind=KIND, version=1, config=config, inputs=inputs) as work:
        if work.finished:
            return work.finished
        files = [file for artifact in inputs for file in document_files(artifact)]
        survey = _survey(config, files)
        work.tick()
        taken, losses = choose(config, survey.pool)
        sizes = survey.pool.bytes_of("source", taken)
        solution = solve(config, sizes)
        _take_parts(config, survey.pool, taken, solution.epochs(sizes))
        losses["not needed in the mixture"] = _lost(survey.pool, taken, losses)
        _copy(work.path / "documents", files, survey, taken)
        mixture = describe(config, survey.pool, taken, solution)
        write_json(work.path / MIXTURE, mixture)
        write_card(work.path, config, inputs, survey.pool, taken, losses, survey.scores(taken), mixture)
        _show(mixture)
        metrics = {"documents": int(taken.sum()), "bytes": int(survey.pool.sizes[taken].sum()), "read": len(taken)}
        return work.finish(metrics | {"budget_bytes": mixture["budget_bytes"], "phases": len(mixture["phases"])})


@dataclass
class Survey:
    """What the first pass saw: the pool, the number of documents by file, and the scores of a sample of documents."""

    pool: Pool
    counts: list[int]
    sample: list[tuple[int, int, dict[str, float]]]

    def scores(self, taken: Mask) -> dict[str, np.ndarray]:
        """Return the sampled values of every score among the taken documents, the same number at most for every size of pool."""
        columns: dict[str, list[float]] = defaultdict(list)
        for _, row, scores in sorted(self.sample, key=lambda entry: entry[:2])[:_SAMPLED]:
            if taken[row]:
                for name, value in scores.items():
                    columns[name].append(value)
        return {name: np.array(columns[name]) for name in sorted(columns)}


def _survey(config: MixConfig, files: list[Path]) -> Survey:
    """Read ids, sizes and labels."""
    order, sizes = array("Q"), array("q")
    groups = {name: array("i") for name in ("source", "license", "language", "host", "year")}
    names = {name: Names() for name in groups}
    counts: list[int] = []
    sample: list[tuple[int, int, dict[str, float]]] = []
    limit = 1 << 64
    with Progress("survey", sum(file.stat().st_size for file in files) / 1e6, "MB") as progress:
        for file in files:
            counts.append(0)
            for batch in pq.ParquetFile(file).iter_batches(batch_size=_BATCH, columns=_COLUMNS):
                for number, row in enumerate(_labels(batch, config.select)):
                    place = order_of(row["id"], config.seed)
                    if place < limit:
                        sample.append((place, len(order), dict(batch.column("scores")[number].as_py() or ())))
                    order.append(place)
                    sizes.append(row["size"])
                    for name in groups:
                        groups[name].append(names[name].number(row[name]))
                counts[-1] += batch.num_rows
                if len(sample) > 2 * _SAMPLED:
                    sample = sorted(sample, key=lambda entry: entry[:2])[:_SAMPLED]
                    limit = sample[-1][0]
            progress.advance(file.stat().st_size / 1e6)
    arrays = {name: np.array(values, dtype=np.int32) for name, values in groups.items()}
    pool = Pool(np.array(order, dtype=np.uint64), np.array(sizes, dtype=np.int64), arrays, names)
    known = pool.names["source"].names()
    for name, selection in config.select.items():
        check_names([selection.source], [*known, *(s.source for s in config.select.values() if s.source in known)], f"select.{name}")
    return Survey(pool, counts, sample)


def _labels(batch: pa.RecordBatch, select: dict[str, Selection]) -> list[dict[str, Any]]:
    """Return id, size, scores and labels of every row."""
    sizes = pc.fill_null(pc.binary_length(batch.column("text")), 0).to_pylist()
    unread = ["text"] if select else ["text", "scores"]  # scores are slow to read
    rows = batch.drop_columns(unread).to_pylist()
    for row, size in zip(rows, sizes, strict=True):
        row |= {"size": size, "source": source_of(row, select), "host": host_of(row["url"]), "year": (row["date"] or "")[:4]}
        row |= {"license": row["license"] or "", "language": row["language"] or ""}
    return rows


def source_of(row: dict[str, Any], select: dict[str, Selection]) -> str:
    """Return the name of the selection that takes the row, or of its own source. A score that is missing passes no limit."""
    scores, never = dict(row["scores"] or ()) if select else {}, float("nan")
    for name, selection in select.items():
        if (
            row["source"] == selection.source
            and all(scores.get(score, never) >= least for score, least in selection.min_scores.items())
            and all(scores.get(score, never) <= most for score, most in selection.max_scores.items())
        ):
            return name
    return row["source"]


def host_of(url: str) -> str:
    """Return the host of a URL in lower case without www., or nothing."""
    try:
        return (urlsplit(url).hostname or "").removeprefix("www.")
    except ValueError:
        return ""


def choose(config: MixConfig, pool: Pool) -> tuple[Mask, dict[str, dict[str, int]]]:
    """Return which documents may stay, by selection of sources and caps, and what each rule left out."""
    taken = np.ones(len(pool.sizes), dtype=bool)
    losses: dict[str, dict[str, int]] = {}
    _, first = np.unique(pool.order, return_index=True)
    again = np.ones(len(taken), dtype=bool)
    again[first] = False
    taken[again] = False
    losses["in another input already"] = _lost(pool, taken, losses)
    codes = pool.names["source"].numbers
    wanted = {name for phase in config.plan(list(codes)) for name in phase.sources}
    check_names(sorted(wanted | set(config.max_epochs_of) | set(config.max_bytes)), codes, "sources")
    taken &= np.isin(pool.groups["source"], [codes[name] for name in wanted])
    losses["source not in the mixture"] = _lost(pool, taken, losses)
    caps = {group: shares for group, shares in (("language", config.languages), ("license", config.licenses)) if shares}
    others = {"language": 0.0, "license": 1.0, "host": config.domain_share}
    for group, shares in caps.items():
        check_names(shares, pool.names[group].numbers, f"{group}s")
    if config.domain_share < 1:
        caps = {"host": {"": 1.0}} | caps  # texts without a host are not one host
    keep_shares(pool, taken, caps, others)
    losses["caps of language, licence and host"] = _lost(pool, taken, losses)
    cut(pool, taken, "source", {codes[name]: size for name, size in config.max_bytes.items()})
    losses["max_bytes"] = _lost(pool, taken, losses)
    return taken, losses


def _lost(pool: Pool, taken: Mask, before: dict[str, dict[str, int]]) -> dict[str, int]:
    """Return documents and bytes that are not taken and that no rule before counted."""
    documents, size = int((~taken).sum()), int(pool.sizes[~taken].sum())
    return {
        "documents": documents - sum(loss["documents"] for loss in before.values()),
        "bytes": size - sum(loss["bytes"] for loss in before.values()),
    }


def _take_parts(config: MixConfig, pool: Pool, taken: Mask, epochs: dict[str, float]) -> None:
    """Of a source that is seen less than once, keep that share of its documents."""
    if not taken.any():
        raise OpenmaiError(f"{config.documents[0]}: no document is left for the mixture; loosen its caps and selections")
    sizes = pool.bytes_of("source", taken)
    limits = {pool.names["source"].numbers[name]: times * sizes[name] * (1 - 1e-9) for name, times in epochs.items() if times < 1}
    cut(pool, taken, "source", limits, reach=True)


def _copy(folder: Path, files: list[Path], survey: Survey, taken: Mask) -> None:
    """Copy the taken rows of every file into a file of the same number, with the sources' names of the mixture."""
    folder.mkdir(exist_ok=True)
    names = np.array([*survey.pool.names["source"].names(), ""], dtype=object)
    begin = 0
    with Progress("mix", sum(file.stat().st_size for file in files) / 1e6, "MB") as progress:
        for number, (file, count) in enumerate(zip(files, survey.counts, strict=True)):
            rows = slice(begin, begin + count)
            begin += count
            target = folder / f"part-{number:05d}.parquet"
            if taken[rows].any() and not target.exists():
                _copy_file(file, target, taken[rows], names[survey.pool.groups["source"][rows]])
            progress.advance(file.stat().st_size / 1e6)


def _copy_file(file: Path, target: Path, taken: Mask, sources: np.ndarray) -> None:
    begin, place = 0, SCHEMA.get_field_index("source")
    with atomic_file(target) as out, pq.ParquetWriter(out, SCHEMA, compression_level=3, **PARQUET) as writer:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_BATCH, columns=SCHEMA.names):
            rows = slice(begin, begin + batch.num_rows)
            begin += batch.num_rows
            if taken[rows].any():
                batch = batch.set_column(place, "source", pa.array(sources[rows], pa.string()))
                writer.write_batch(batch.filter(pa.array(taken[rows])))


def describe(config: MixConfig, pool: Pool, taken: Mask, solution: Solution) -> dict[str, Any]:
    """Return the contents of mixture.json: weights as shares of the phase's tokens, and epochs, by phase and source."""
    sizes = {name: size for name, size in pool.bytes_of("source", taken).items() if size}
    counts = np.bincount(pool.groups["source"][taken], minlength=len(pool.names["source"].numbers))
    epochs = solution.epochs(sizes)
    phases = [
        {
            "name": phase.name,
            "share": sum(seen.values()) / solution.budget,
            "weights": {name: size / sum(seen.values()) for name, size in seen.items()},
            "epochs": {name: size / sizes[name] for name, size in seen.items() if name in sizes},
        }
        for phase, seen in zip(config.plan(list(sizes)), solution.seen, strict=True)
    ]
    sources = {
        name: {
            "documents": int(counts[pool.names["source"].numbers[name]]),
            "bytes": size,
            "epochs": epochs[name],
            "max_epochs": config.most_epochs(name),
        }
        for name, size in sizes.items()
    }
    budget = {"budget_bytes": round(solution.budget), "budget_tokens": round(solution.budget / config.bytes_per_token)}
    return {"version": 1, "seed": config.seed} | budget | {"phases": phases, "sources": sources}


def _show(mixture: dict[str, Any]) -> None:
    names = [phase["name"][:10] for phase in mixture["phases"]]
    say(f"{'source':<20}{'documents':>10}{'MB':>9}{'epochs':>8}" + "".join(f"{name:>11}" for name in names))
    for name, source in mixture["sources"].items():
        weights = "".join(f"{phase['weights'].get(name, 0):>11.1%}" for phase in mixture["phases"])
        say(f"{name:<20}{source['documents']:>10,}{source['bytes'] / 1e6:>9.1f}{source['epochs']:>8.2f}{weights}")
    say(f"as training sees it: {mixture['budget_bytes'] / 1e6:,.1f} MB, about {mixture['budget_tokens']:,} tokens")
