"""PEER_PYTHON benchmarks/peers/near_duplicates.py datatrove|rensa FOLDER WORKERS

Finds the near-duplicates of FOLDER/*.parquet (rensa) or FOLDER/*.jsonl (datatrove, as many files as WORKERS), column "text", and prints one
line of JSON: for each document the first one of its cluster, the seconds and the CPU seconds. Run by benchmarks/dedup.py in an environment
with `datatrove[io,processing]==0.10.1`, `spacy` and `rensa`. Both take 5-grams, 14 bands of 8 rows.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import resource
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

BANDS, ROWS, NGRAM = 14, 8, 5


def main() -> None:
    name, folder, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    print(json.dumps({"datatrove": run_datatrove, "rensa": run_rensa}[name](folder, workers)))


def cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in usage)


def firsts(size: int, groups: Iterable[list[int]]) -> list[int]:
    """Return for each row the smallest one it is connected with."""
    root = list(range(size))

    def find(row: int) -> int:
        while root[row] != row:
            root[row] = root[root[row]]
            row = root[row]
        return row

    for group in groups:
        for row in group[1:]:
            low, high = sorted((find(group[0]), find(row)))
            root[high] = low
    return [find(row) for row in range(size)]


def run_datatrove(folder: Path, workers: int) -> dict:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config = MinhashConfig(n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=ROWS)
    work = folder / "datatrove"
    reader = JsonlReader(str(folder), glob_pattern="*.jsonl")
    stages: list[tuple[int, list]] = [
        (workers, [reader, MinhashDedupSignature(str(work / "signatures"), config=config)]),
        (BANDS, [MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config)]),
        (1, [MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config, save_cluster_id=True)]),
        (workers, [reader, MinhashDedupFilter(str(work / "remove")), JsonlWriter(str(work / "kept"), compression=None)]),
    ]
    files = sorted(folder.glob("*.jsonl"))
    sizes = [sum(1 for _ in path.open()) for path in files]
    began = time.perf_counter()
    for number, (tasks, pipeline) in enumerate(stages):
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=min(tasks, workers), logging_dir=str(work / f"log{number}"), start_method="fork"
        ).run()
    seconds = time.perf_counter() - began
    groups: dict[int, list[int]] = {}
    for rank in range(len(files)):
        path = work / "remove" / f"{rank:06d}.clusters"
        for row, cluster in struct.iter_unpack("<II", path.read_bytes() if path.exists() else b""):
            groups.setdefault(cluster, []).append(sum(sizes[:rank]) + row)
    return {"first": firsts(sum(sizes), groups.values()), "seconds": seconds, "cpu": cpu_seconds()}


def rensa_part(path: Path) -> np.ndarray:
    import pyarrow.parquet as pq
    from rensa import RMinHash

    sets = []
    for text in pq.read_table(path, columns=["text"])["text"].to_pylist():
        words = re.findall(r"\w+", text.casefold())
        sets.append([" ".join(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))])
    return np.array(RMinHash.digest_matrix_from_token_sets(sets, num_perm=BANDS * ROWS, seed=1).to_rows(), np.uint32)


def run_rensa(folder: Path, workers: int) -> dict:
    files = sorted(folder.glob("*.parquet"))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(rensa_part, files[:1] * workers, chunksize=1)
        before, began = cpu_seconds(), time.perf_counter()
        rows = np.concatenate(pool.map(rensa_part, files, chunksize=1))
        groups = []
        for band in np.split(rows, BANDS, axis=1):
            keys = np.ascontiguousarray(band).view(f"V{4 * ROWS}").reshape(-1)
            order = np.argsort(keys, kind="stable")
            cuts = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
            groups += [group.tolist() for group in np.split(order, cuts) if len(group) > 1]
        first = firsts(len(rows), groups)
        seconds = time.perf_counter() - began
    return {"first": first, "seconds": seconds, "cpu": cpu_seconds() - before}


if __name__ == "__main__":
    main()
