"""python benchmarks/dedup.py --data DIR [--peer-python PATH] [--documents 20000] [--workers 2] [--ray] [--skip speed,memory]

Near-duplicates of real documents and of copies that are edited, padded, chained and filled into templates, found by openmai, and with
--peer-python by datatrove's four MinHash stages and by rensa, in one run: documents per second from Parquet files (JSON lines for
datatrove) to clusters, and against the similarity of all pairs (counted by an inverted index over word 5-grams, with words from a
regular expression and no hashes of ours) how many pairs of each similarity were joined. Then the memory and time of the global part at
100,000 and 1,000,000 documents. --ray repeats it with Daft on a Ray cluster that is started here, and compares with the local result.

DIR holds the folders openstax, gutenberg, factbook and peps (JSON lines, gzip); what is missing is said. PATH is the Python of an
environment with `datatrove[io,processing]==0.10.1`, `spacy` and `rensa`. Not equal: datatrove works on JSON lines, writes the documents
that stay, and checks no similarity; rensa's clusters are those of its index, unchecked too; both have other hash functions.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit
from numpy.typing import NDArray

from openmai.data.dedup import cluster
from openmai.data.dedup.config import Dedup
from openmai.data.dedup.exact import Dropped, exact
from openmai.data.dedup.fingerprint import Lists, fingerprint, mix
from openmai.data.dedup.near import near
from openmai.data.dedup.repeated import Repeated, repeated
from openmai.data.document import PARQUET

FOLDERS = ("openstax", "gutenberg", "factbook", "peps")
PARTS = 20
LIMITS = (1.01, 0.9, 0.8, 0.7, 0.5, 0.3)
CONFIG = Dedup(paragraph_copies=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--skip", default="", help="of speed, memory")
    parser.add_argument("--measure", type=int, help="(used by the script itself)")
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure)
    missing = [name for name in FOLDERS if options.data is None or not (options.data / name).is_dir()]
    if missing:
        print(f"--data: no folder {', '.join(missing)}; the comparison needs some of {', '.join(FOLDERS)}")
    print(f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        if len(missing) < len(FOLDERS) and "speed" not in options.skip:
            compare(options, Path(folder))
    if "memory" not in options.skip:
        memory()
    return 0


def processor() -> str:
    models = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return models[0] if models else "unknown processor"


# --- documents of known similarity


def real_texts(data: Path) -> Iterator[str]:
    for name in FOLDERS:
        for path in sorted((data / name).glob("*.jsonl.gz"))[:20]:
            with gzip.open(path, "rt") as file:
                for line in file:
                    yield json.loads(line)["text"]


def make_documents(data: Path, count: int) -> list[str]:
    """Half are real texts of 300 to 7,000 characters, half copies of them; in random order."""
    noise = random.Random(0)
    bases: list[list[str]] = []
    pieces = list(real_texts(data))
    noise.shuffle(pieces)
    for text in pieces:
        words = text.split(" ")
        start = 0
        while start < len(words) and len(bases) < 2 * count:
            size = int(noise.triangular(50, 1050, 150))
            bases.append(words[start : start + size])
            start += size
    noise.shuffle(bases)
    bases, others = bases[: count // 2], bases[count // 2 :]
    documents = list(bases)
    while len(documents) < count:
        documents += noise.choices((edited, padded, chained, filled), (60, 35, 4, 1))[0](noise.choice(bases), others, noise)
    texts = [" ".join(words) for words in documents[:count]]
    noise.shuffle(texts)
    return texts


def edited(base: list[str], others: list[list[str]], noise: random.Random) -> list[list[str]]:
    """One copy with some of its words replaced."""
    share = noise.choice((0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1))
    return [[noise.choice(noise.choice(others)) if noise.random() < share else word for word in base]]


def padded(base: list[str], others: list[list[str]], noise: random.Random) -> list[list[str]]:
    """One copy with foreign text before and behind."""
    extra = noise.choice(others)[: int(len(base) * noise.choice((0.02, 0.05, 0.1, 0.2, 0.3, 0.6)))]
    cut = noise.randrange(len(extra) + 1)
    return [extra[:cut] + base + extra[cut:]]


def chained(base: list[str], others: list[list[str]], noise: random.Random) -> list[list[str]]:
    """Ten windows over a longer text, neighbours 0.82 to 0.9 alike, the first and the last not at all."""
    long = base + [word for other in noise.choices(others, k=3) for word in other]
    size = max(60, len(long) // 2)
    step = int(size * noise.choice((0.05, 0.08, 0.1)))
    return [long[start * step : start * step + size] for start in range(10) if start * step + size <= len(long)]


def filled(base: list[str], others: list[list[str]], noise: random.Random) -> list[list[str]]:
    """Thirty pages of one template, each with a few words of its own."""
    share = noise.choice((0.01, 0.05, 0.15))
    own = max(1, int(len(base) * share))
    return [base[: len(base) // 2] + noise.choice(others)[:own] + base[len(base) // 2 :] for _ in range(30)]


# --- every pair's true similarity


def all_pairs(texts: list[str]) -> dict[tuple[int, int], float]:
    """Return the Jaccard similarity of all pairs (smaller row first) of at least 0.3."""
    words: dict[str, int] = {}
    grams: dict[tuple[int, ...], int] = {}
    sets = []
    for text in texts:
        ids = [words.setdefault(word, len(words)) for word in re.findall(r"\w+", text.casefold())]
        size = min(CONFIG.ngram, len(ids))
        sets.append(sorted({grams.setdefault(tuple(ids[i : i + size]), len(grams)) for i in range(len(ids) - size + 1)} if size else ()))
    sizes = np.array([len(found) for found in sets])
    rows, values = np.repeat(np.arange(len(texts)), sizes), np.concatenate([np.array(found, np.int64) for found in sets])
    order = np.argsort(values, kind="stable")
    postings, starts = rows[order], np.searchsorted(values[order], np.arange(len(grams) + 1))
    a, b, alike = _count_common(values, np.concatenate([[0], np.cumsum(sizes)]), postings, starts, sizes, LIMITS[-1])
    return dict(zip(zip(a.tolist(), b.tolist(), strict=True), alike.tolist(), strict=True))


@njit(cache=True)
def _count_common(values, offsets, postings, starts, sizes, least):  # type: ignore[no-untyped-def]
    counts = np.zeros(len(sizes), np.int64)
    a, b, alike = [0], [0], [0.0]
    for row in range(len(sizes)):
        touched = []
        for position in range(offsets[row], offsets[row + 1]):
            for place in range(starts[values[position]], starts[values[position] + 1]):
                other = postings[place]
                if other >= row:
                    break
                if counts[other] == 0:
                    touched.append(other)
                counts[other] += 1
        for other in touched:
            similarity = counts[other] / (sizes[row] + sizes[other] - counts[other])
            counts[other] = 0
            if similarity >= least:
                a.append(other)
                b.append(row)
                alike.append(similarity)
    return np.array(a[1:]), np.array(b[1:]), np.array(alike[1:])


# --- openmai


def part_keys(path: Path) -> tuple[NDArray[np.uint64], NDArray[np.int64], float]:
    """A worker's task: the keys of one file."""
    began = time.process_time()
    found = fingerprint(pq.read_table(path, columns=["text"])["text"].to_pylist(), CONFIG)
    return found.bands, found.words, time.process_time() - began


def texts_of(paths: list[Path], rows: NDArray[np.int64]) -> Iterator[str]:
    start = 0
    for path in paths:
        column = pq.read_table(path, columns=["text"])["text"]
        inside = rows[(rows >= start) & (rows < start + len(column))] - start
        yield from column.take(pa.array(inside)).to_pylist()
        start += len(column)


def run_openmai(paths: list[Path], workers: int, scratch: Path) -> tuple[Dropped, float, float, float]:
    """Return the result, seconds, CPU seconds of all workers, and CPU seconds of the global part."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(part_keys, paths[:1] * workers, chunksize=1)  # workers exist and have compiled code, as in the engine
        texts = lambda rows: texts_of(paths, rows)  # noqa: E731
        near([], np.zeros(0, np.bool_), np.zeros(0), texts, CONFIG, scratch)
        began = time.perf_counter()
        bands, words, seconds = zip(*pool.map(part_keys, paths, chunksize=1), strict=True)
        before = time.process_time()
        preference = np.concatenate(words).astype(np.float64)
        dropped = near(bands, np.ones(len(preference), np.bool_), preference, texts, CONFIG, scratch)
        return dropped, time.perf_counter() - began, sum(seconds), time.process_time() - before


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Print the table of speed and quality."""
    texts = make_documents(options.data, options.documents)
    count = len(texts)
    print(f"{count:,} documents, {sum(map(len, texts)) / count:,.0f} characters on average")
    paths = [folder / f"{number:02d}.parquet" for number in range(PARTS)]
    size = -(-count // PARTS)
    for number, path in enumerate(paths):
        pq.write_table(pa.table({"text": texts[number * size : (number + 1) * size]}), path, compression_level=1, **PARQUET)
    size = -(-count // options.workers)
    for number in range(options.workers):
        with (folder / f"{number:02d}.jsonl").open("w") as file:
            file.writelines(json.dumps({"text": text, "id": str(row)}) + "\n" for row, text in enumerate(texts[number * size :][:size]))
    pairs = all_pairs(texts)
    print(
        f"\n{'':<24} {'docs/s':>7} {'ratio':>6} {'CPU s':>6}  {'stay':>6}  "
        + "".join(f"{name:>9}" for name in names())
        + "  precision  <0.5 joined"
    )
    show("all pairs, greedily", reference(texts, pairs), 0, 0, 0, pairs)
    runs = [run_openmai(paths, options.workers, folder / "scratch") for _ in range(3)]
    dropped, seconds, *cpu = min(runs, key=lambda run: run[1])
    kept = np.arange(count)
    kept[dropped.rows] = dropped.kept
    show("openmai", kept.tolist(), seconds, sum(cpu), seconds, pairs)
    print(f"{'':<24} of its CPU seconds {cpu[0]:.2f} in {options.workers} workers, {cpu[1]:.2f} in the global part")
    for name in ("rensa", "datatrove") if options.peer_python else ():
        found = run_peer(options, name, folder)
        show(name, found["first"], found["seconds"], found["cpu"], seconds, pairs)
    if options.ray:
        compare_ray(texts, folder, options.workers)


def run_peer(options: argparse.Namespace, name: str, folder: Path) -> dict:
    script = Path(__file__).parent / "peers" / "near_duplicates.py"
    command = [str(options.peer_python), str(script), name, str(folder), str(options.workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def names() -> list[str]:
    return [f"{low:.1f}-{min(high, 1):.1f}" for high, low in pairwise(LIMITS[:-1])]


def reference(texts: list[str], pairs: dict[tuple[int, int], float]) -> list[int]:
    """Return who stays for whom if every similar pair is known: the longest first, dropped if similar to one that stays."""
    similar = defaultdict(list)
    for (a, b), alike in pairs.items():
        if alike >= CONFIG.jaccard:
            similar[a].append(b)
            similar[b].append(a)
    kept = list(range(len(texts)))
    lengths = [len(re.findall(r"\w+", text)) for text in texts]
    done: set[int] = set()
    for row in sorted(similar, key=lambda row: (-lengths[row], row)):
        kept[row] = next((other for other in similar[row] if other in done), row)
        if kept[row] == row:
            done.add(row)
    return kept


def show(name: str, kept: list[int], seconds: float, cpu: float, ours: float, pairs: dict[tuple[int, int], float]) -> None:
    """Print a line: speed; how many documents stay; of the pairs of each similarity, the share of which not both stay; of the documents
    that go, the share that is at least 0.8 alike to one that stays; and the pairs below 0.5 that lie in one cluster."""
    stays = [row == own for row, own in enumerate(kept)]
    totals, solved = Counter[int](), Counter[int]()
    covered: set[int] = set()
    for (a, b), alike in pairs.items():
        band = next(number for number, low in enumerate(LIMITS[1:]) if alike >= low)
        totals[band] += 1
        solved[band] += not (stays[a] and stays[b])
        if alike >= CONFIG.jaccard:
            covered |= ({a} if stays[b] else set()) | ({b} if stays[a] else set())
    gone = [row for row, own in enumerate(kept) if row != own]
    clusters = defaultdict(list)
    for row, own in enumerate(kept):
        clusters[own].append(row)
    far = sum(pairs.get(pair, 0) < 0.5 for rows in clusters.values() for pair in combinations(rows, 2))
    speed = f"{len(kept) / seconds:>7,.0f} {ours and seconds / ours:>6.1f} {cpu:>6.1f}" if seconds else " " * 21
    shares = "".join(f"{solved[band] / max(1, totals[band]):>9.4f}" for band in range(len(LIMITS) - 2))
    print(
        f"{name:<24} {speed}  {sum(stays):>6}  {shares}  {sum(row in covered for row in gone) / max(1, len(gone)):>9.4f}  {far:>11,}",
        flush=True,
    )


def compare_ray(texts: list[str], folder: Path, workers: int) -> None:
    """Start a Ray cluster of two nodes here, run both operations on it with Daft, and compare with the local result."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "true", "DAFT_PROGRESS_BAR": "0"}
    import ray
    from ray.cluster_utils import Cluster

    keys = fingerprint(texts, CONFIG)
    preference, files = keys.words.astype(float), []
    table = pa.table(keys.columns() | {"row": np.arange(len(texts)), "text": texts, "preference": preference})
    (folder / "keys").mkdir()
    size = -(-len(texts) // 4)
    for start in range(0, len(texts), size):
        files.append(str(folder / "keys" / f"{start:09d}.parquet"))
        pq.write_table(table.slice(start, size), files[-1])
    takes_part = np.ones(len(texts), np.bool_)
    local_exact = exact([keys.exact], takes_part, folder / "scratch")
    takes_part[local_exact.rows] = False
    local_near = near([keys.bands], takes_part, preference, lambda rows: (texts[row] for row in rows), CONFIG, folder / "scratch")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    daft = cluster.load_daft()
    daft.set_runner_ray(nodes.address)
    daft.set_execution_config(shuffle_aggregation_default_partitions=4)  # the 200 it takes by itself are for more than two cores
    for name, local, run in (
        ("exact", local_exact, lambda: cluster.exact(files)),
        ("near", local_near, lambda: cluster.near(files, CONFIG, without=local_exact.rows)),
    ):
        began = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - began
        same = all(np.array_equal(getattr(found, field), getattr(local, field)) for field in vars(local))
        verdict = "equal to the local result" if same else "DIFFERS"
        print(f"Daft on Ray, 2 nodes: {name:<6} {len(found.rows):>7,} go, {seconds:6.1f} s, {verdict}", flush=True)
    ray.shutdown()
    nodes.shutdown()


# --- memory of the global part


def memory() -> None:
    """Print time and peak memory of the global part on keys that are made up, each size in a process of its own."""
    print(f"\n{'global part':<16} {'peak MB':>8} {'exact s':>8} {'near s':>8} {'parts s':>8}   (CPU seconds)")
    for size in (100_000, 1_000_000):
        command = [sys.executable, __file__, "--measure", str(size)]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="", flush=True)


def measure(size: int) -> int:
    """Two of five documents are nearly the same, one of ten the same; each has four paragraphs, one of which a thousand share."""
    takes_part, preference = np.ones(size, np.bool_), np.zeros(size)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for task in (
            lambda: exact(made_up(size, 2, 10), takes_part, scratch),
            lambda: near(made_up(size, CONFIG.bands, 5), takes_part, preference, made_up_texts, CONFIG, scratch),
            lambda: take_all(repeated(made_up_paragraphs(size), takes_part, 3, scratch), size),
        ):
            began = time.process_time()
            task()
            times.append(time.process_time() - began)
    peak = peak_megabytes()
    print(f"{size:>16,} {peak:>8.0f} " + " ".join(f"{seconds:>8.1f}" for seconds in times))
    return 0


def peak_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()  # not ru_maxrss, which begins with the peak of the process that started this
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def made_up(size: int, columns: int, copies: int) -> Iterator[NDArray[np.uint64]]:
    """Keys that are all different but for one of `copies` rows, which has those of the row before."""
    for start in range(0, size, 10_000):
        rows = np.arange(start, min(start + 10_000, size), dtype=np.uint64)
        rows -= rows % np.uint64(copies) == 1
        yield mix(rows[:, None] * np.uint64(columns) + np.arange(1, columns + 1, dtype=np.uint64))


def made_up_paragraphs(size: int) -> Iterator[Lists]:
    for keys in made_up(size, 4, 10):
        keys[:, 0] = np.arange(len(keys)) // 1000 + keys[0, 0]
        yield Lists(keys.reshape(-1), np.arange(len(keys) + 1) * 4)


def take_all(parts: Repeated, size: int) -> None:
    with parts:
        assert sum(len(parts.take(end)) for end in range(0, size + 1, 10_000)) > 0.9 * size


def made_up_texts(rows: NDArray[np.int64]) -> Iterator[str]:
    for row in rows.tolist():
        yield " ".join(str((row - (row % 5 == 1)) * 1000 + word) for word in range(60 + row % 5))


if __name__ == "__main__":
    raise SystemExit(main())
