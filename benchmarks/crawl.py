"""python benchmarks/crawl.py: pages per second of `data crawl` from a server on loopback, its memory, and what kills do to it.

Without a pause between requests (--delay=0), as only one's own server may be asked. The server is a thread of this process: CPU time and
memory are the crawl's alone, which is a child.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from warcio.archiveiterator import ArchiveIterator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from loopback import Answer, Site, serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, nargs="+", default=[500, 3000])
    parser.add_argument("--kilobytes", type=int, default=20, help="size of a page, which has 42 links")
    parser.add_argument("--kills", type=int, default=20, help="kill the crawl of 400 pages this often")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'pages':>8}{'kB each':>9}{'wall s':>9}{'CPU s':>8}{'pages/s':>9}{'pages/CPU s':>13}{'MB memory':>11}")
    with tempfile.TemporaryDirectory() as folder, serve(Site()) as site:
        for count in arguments.pages:
            fill(site, count, arguments.kilobytes * 1000)
            began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
            start(site, Path(folder) / str(count), count).wait()
            wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            speed = f"{count / wall:>9.0f}{count / cpu:>13.0f}"
            print(f"{count:>8}{arguments.kilobytes:>9}{wall:>9.1f}{cpu:>8.1f}{speed}{after.ru_maxrss >> 10:>11}")
        if arguments.kills:
            kill_often(site, Path(folder), arguments.kills)


def fill(site: Site, count: int, size: int) -> None:
    """Put `count` pages there, a binary tree with forty links more on each page."""
    site.pages.clear()
    for n in range(count):
        links = [f"/{2 * n + k}" for k in (1, 2) if 2 * n + k < count] + [f"/{i % count}" for i in range(n, n + 40)]
        site.html(f"/{n or ''}", *links, text=f"word{n} " * (size // 8))


def start(site: Site, out: Path, count: int) -> subprocess.Popen[bytes]:
    options = [f"--out={out}", f"--start={site.base}/", "--delay=0", f"--max_pages={count}", "--max_depth=100", "--quiet"]
    return subprocess.Popen([sys.executable, "-m", "openmai", "data", "crawl", *options])


def kill_often(site: Site, folder: Path, kills: int) -> None:
    """Crawl once in peace and once with kills at random moments; print whether the records are equal."""
    fill(site, 400, 10_000)
    for n in range(5, 400, 17):
        site.pages[f"/{n}"] = Answer(status=302, headers={"Location": f"/{n + 1}"})
    site.asked.clear()
    start(site, folder / "peace", 400).wait()
    peace = len(site.asked)
    site.asked.clear()
    chance, done = random.Random(0), 0
    while done < kills:
        process, asked, wanted = start(site, folder / "kills", 400), len(site.asked), chance.randint(1, max(1, 2 * peace // (kills + 1)))
        while process.poll() is None and len(site.asked) - asked < wanted:
            time.sleep(0.001)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        done += 1
    start(site, folder / "kills", 400).wait()
    equal = records(folder / "peace") == records(folder / "kills")
    print(f"{done} kills: {len(site.asked)} requests, {peace} without; records {'equal' if equal else 'DIFFERENT'}")


def records(folder: Path) -> list[tuple[str, str, bytes]]:
    with open(folder / "pages.warc.gz", "rb") as file:
        return [
            (record.rec_type, record.rec_headers.get_header("WARC-Target-URI"), record.content_stream().read())
            for record in ArchiveIterator(file, check_digests="raise")
            if record.rec_type != "warcinfo"
        ]


if __name__ == "__main__":
    main()
