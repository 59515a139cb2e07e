"""`openmai data build`: sources in, clean documents out.

First each record is extracted, cleaned and measured by itself, in parallel, and kept as a part (engine/parts.py). Thresholds then say
which documents take part (engine/select.py); these are compared with each other by their keys (engine/compare.py, dedup/); what was
decided is applied to the parts, which become the files of the result (engine/shards.py). The order of documents is that of sources,
files (by name) and records, so the output is the same for any number of workers, on this machine and on a cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from openmai.base.artifact import Artifact, Work, create
from openmai.base.files import write_json
from openmai.base.progress import Progress
from openmai.data.config import BuildConfig
from openmai.data.engine.annotate import Unit, annotate_unit, annotate_units, units_of
from openmai.data.engine.compare import Found, compare
from openmai.data.engine.funnel import Funnel
from openmai.data.engine.parts import Part, Parts, build_code, parts_folder
from openmai.data.engine.pool import Pool
from openmai.data.engine.select import Selector
from openmai.data.engine.shards import Decided, group, write_shard
from openmai.data.engine.tasks import run_tasks
from openmai.data.read.sources import files_of, local_input

_WORK = "work"


def build(config: BuildConfig) -> Artifact:
    """Build a documents artifact.

    `documents/*.parquet`; `rejected/*.parquet` with rule and reason; `keys/*.parquet`, by which a later build finds these documents'
    duplicates; `funnel.json`.
    """
    earlier = [Artifact.load(path, kind="documents") for path in config.earlier]
    inputs = [*(item for source in config.sources for item in local_input(source)), *earlier, *config.urls.block, *config.urls.allow]
    inputs += [Artifact.load(config.quality, kind="quality")] if config.quality else []
    with create(config.out, kind="documents", version=build_code(), config=config, inputs=inputs) as work:
        if work.finished:
            return work.finished
        (work.path / _WORK).mkdir(exist_ok=True)
        found = _annotate(config, work.path / _WORK)
        work.tick()
        decided = compare(config, found, earlier, work.path / _WORK)
        return _write(config, work, found, decided)


def _annotate(config: BuildConfig, folder: Path) -> Found:
    """Return all parts of all sources in canonical order, with what the thresholds select of them."""
    parts, selector = Parts(parts_folder(config)), Selector(config)
    units = [unit for source in config.sources for unit in units_of(source, files_of(source, folder / "downloads"), config.part_records)]
    found: dict[int, Found] = {number: [] for number in range(len(units))}
    documents, rules, done, files = 0, Counter[str](), 0, sum(len(unit.files) for unit in units)
    with Progress("documents", None, "records") as progress:
        for number, part in _run(config, units, parts):
            selected = selector.select(parts.path(part.key))
            found[number].append((part, parts.path(part.key), selected))
            rules += selected.rules
            documents += part.records
            done += len(units[number].files) if part.is_last else 0
            kept = f"{1 - rules.total() / max(1, documents):.0%}"
            most = ", ".join(f"{rule} {count / documents:.0%}" for rule, count in rules.most_common(3))
            progress.advance(part.records, files=f"{done}/{files}", kept=kept, **({"rejected": most} if most else {}))
    return [item for items in found.values() for item in items]


def _run(config: BuildConfig, units: list[Unit], parts: Parts) -> Iterator[tuple[int, Part]]:
    """Yield (number of the unit, part) of all units, the parts of each in order."""
    if config.runner == "local":
        with Pool(config.workers, config) as pool:
            yield from annotate_units(config, units, parts, pool)
    else:
        tasks = [(config, Unit(unit.source, tuple(file.resolve() for file in unit.files)), parts.folder.resolve()) for unit in units]
        for number, its_parts in run_tasks(annotate_unit, tasks, config.runner, config.workers, config.address):
            yield from ((number, part) for part in its_parts)


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
