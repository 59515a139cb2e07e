"""python benchmarks/data_pipeline.py --data DIR [--peer-python PATH] [--pages 800] [--compared 3200]

The whole data engine from one web archive: pages per CPU second beside datatrove with the same steps in the same run, start-up included
(some 5 s of ours), so on more pages than the rest; time and memory at ten times the input; and whether any number of workers, any kill
and a changed threshold give the bytes they should. The two keep other documents because trafilatura drops every <aside>, where this
archive has the citations below a section, which the rule on words with a letter rejects.
`DIR/web_dclaw/dc-law.warc.gz` is the archive; PATH is the Python of an environment with datatrove (see peers/datatrove_pipeline.py).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from fastwarc.warc import ArchiveIterator, WarcRecordType

HERE = Path(__file__).parent
SAME_STEPS = ("--lines={}", "--web.min_alpha_words=0.8")  # what FineWeb does and we do not unless asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--pages", type=int, default=800)
    parser.add_argument("--compared", type=int, default=3200, help="pages for the comparison with datatrove")
    arguments = parser.parse_args()
    archive = arguments.data / "web_dclaw" / "dc-law.warc.gz"
    if not archive.exists():
        sys.exit(f"{archive}: no such file; give the folder of the data with --data")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        small, large = cut(archive, arguments.pages, work / "small"), cut(archive, 10 * arguments.pages, work / "large")
        build(small, work / "warm-up", 1)  # compiled loops are kept on disk from here on
        ours, theirs = compare(cut(archive, arguments.compared, work / "compared"), work, arguments)
        if theirs:
            print(f"ratio: {ours / theirs:.1f} times the pages per CPU second")
        scale(small, large, arguments.pages, work)
        equal(small, work)


def cut(archive: Path, pages: int, folder: Path) -> Path:
    """Write the first pages of an archive of one gzip member per record to a folder of its own."""
    folder.mkdir()
    with open(archive, "rb") as stream:
        records = ArchiveIterator(stream, record_types=WarcRecordType.response, parse_http=False)
        positions = [record.stream_pos for record, _ in zip(records, range(pages + 1), strict=False)]
    end = positions[pages] if len(positions) > pages else archive.stat().st_size
    target = folder / "pages.warc.gz"
    target.write_bytes(archive.read_bytes()[:end])
    with gzip.open(target) as whole:  # a cut inside a member would be an error here
        while whole.read(1 << 20):
            pass
    return target


def compare(archive: Path, work: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """Print pages per CPU second of both engines."""
    print(f"\n{arguments.compared} pages, one worker        pages per CPU second   wall s   largest process MB   documents")
    cpu, wall, memory = build(archive, work / "ours", 1, *SAME_STEPS)
    rate = arguments.compared / cpu
    print(f"openmai                            {rate:14.1f} {wall:14.1f} {memory:14.0f} {documents(work / 'ours'):15}")
    if not arguments.peer_python:
        return rate, 0.0
    command = [arguments.peer_python, HERE / "peers" / "datatrove_pipeline.py", archive.parent, work / "theirs"]
    cpu, wall, memory = run(command, {"PYTHONPATH": ""})
    count = sum(gzip.decompress(file.read_bytes()).count(b"\n") for file in (work / "theirs" / "documents").glob("*.gz"))
    print(f"datatrove                          {arguments.compared / cpu:14.1f} {wall:14.1f} {memory:14.0f} {count:15}")
    return rate, arguments.compared / cpu


def scale(small: Path, large: Path, pages: int, work: Path) -> None:
    """Print time and memory at once and ten times the input."""
    print("\nworkers 2          pages   CPU s   wall s   largest process MB")
    figures = []
    for name, archive, count in (("once", small, pages), ("ten times", large, 10 * pages)):
        cpu, wall, memory = build(archive, work / name, 2)
        figures.append((cpu, wall, memory))
        print(f"{name:12} {count:11} {cpu:7.1f} {wall:8.1f} {memory:12.0f}")
    (cpu, wall, memory), (more_cpu, more_wall, more_memory) = figures
    print(f"ten times the input: {more_cpu / cpu:.1f} times the CPU time, {more_memory / memory:.2f} times the memory")
    started = time.monotonic()
    build(large, work / "ten times", 2, "--web.min_words=80")
    print(f"a changed threshold: {time.monotonic() - started:.1f} s instead of {more_wall:.1f}")


def equal(archive: Path, work: Path) -> None:
    """Build with 1, 2 and 3 workers and through kills; exit if any byte differs."""
    build(archive, work / "workers-1", 1)
    expected = contents(work / "workers-1")
    for workers in (2, 3):
        build(archive, work / f"workers-{workers}", workers)
        check(f"{workers} workers", expected, contents(work / f"workers-{workers}"))
    rng, kills = random.Random(1), 0
    while not (work / "killed" / "manifest.json").exists():
        process = subprocess.Popen(command(archive, work / "killed", 2), start_new_session=True)
        try:
            process.wait(rng.uniform(2, 8) + 2 * kills)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    check(f"{kills} times killed", expected, contents(work / "killed"))


def check(name: str, expected: dict[str, bytes], found: dict[str, bytes]) -> None:
    print(f"{name}: {'the same bytes' if expected == found else 'DIFFERENT'} in {len(found)} files")
    if expected != found:
        sys.exit(1)


def command(archive: Path, out: Path, workers: int, *more: str) -> list[str]:
    source = json.dumps([{"name": "law", "path": str(archive)}])
    settings = ["--languages=[]", f"--sources={source}", f"--out={out}", f"--workers={workers}", "--quiet", *more]
    return [sys.executable, "-m", "openmai", "data", "build", *settings]


def build(archive: Path, out: Path, workers: int, *more: str) -> tuple[float, float, float]:
    shutil.rmtree(out, ignore_errors=True)
    return run(command(archive, out, workers, *more), {})


def run(arguments: Sequence[object], environment: dict[str, str]) -> tuple[float, float, float]:
    """Run a command; return its CPU seconds with all its children, wall seconds, and MB of its largest process."""
    started = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in arguments], env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, arguments))}\n{errors[-2000:]}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - started, usage.ru_maxrss / 1e3


def documents(out: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in (out / "documents").glob("*.parquet"))


def contents(out: Path) -> dict[str, bytes]:
    files = [file for file in out.rglob("*") if file.is_file() and file.name not in ("manifest.json", ".lock")]
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(files)}


if __name__ == "__main__":
    main()
