"""python benchmarks/warc_records.py --data FOLDER

Counts the records of every web archive under FOLDER by type with our reader, with FastWARC and with warcio, each in a process of its own
with a time limit. The verdict of a file:

  equal     the same records as a peer that read the whole file without an error
  more      more records than any peer that read the whole file
  alone     no peer read the whole file
  reported  fewer than such a peer, and our reader says what is lost
  SILENT    fewer than such a peer, and our reader says nothing: the loss that must not be

A ! marks a peer that did not succeed: it stopped with an error, or warned that it had lost its place. FastWARC reads no ARC; neither peer
reads WACZ, of which the members are unpacked for them. Exits with status 1 if any file is SILENT or crashes our reader.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from fastwarc.warc import ArchiveIterator as FastwarcIterator
from warcio.archiveiterator import ArchiveIterator as WarcioIterator

from openmai.data.read.warc import count_records

LIMIT = 120
ENDS = (".warc", ".wet", ".wat", ".arc", ".wacz")


@dataclass(frozen=True)
class Count:
    """What a reader says of a file; `error` if it did not come to the end."""

    records: Counter[str]
    error: str

    def total(self) -> int:
        return self.records.total() - self.records["lost"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of web archives")
    parser.add_argument("--all", action="store_true", help="list the equal files too")
    arguments = parser.parse_args()
    files = [file for file in sorted(arguments.data.rglob("*")) if file.is_file() and any(end in file.name.lower() for end in ENDS)]
    if not files:
        print(f"{arguments.data}: no web archive in it", file=sys.stderr)
        return 2
    verdicts: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    print(f"{'verdict':<9}{'ours':>6}{'lost':>5}{'fastwarc':>9}{'warcio':>7}  file")
    began = time.monotonic()
    for file in files:
        own, peers = count(ours, file), [unpacked(reader, file) for reader in (fastwarc, warcio)]
        verdict = judge(own, peers)
        verdicts[verdict] += 1
        totals.update({"files": 1, "records": own.total(), "lost": own.records["lost"]})
        totals.update({f"peer {number}": peer.total() for number, peer in enumerate(peers)})
        if verdict != "equal" or own.records["lost"] or arguments.all:
            show(verdict, own, peers, file.relative_to(arguments.data))
    print(
        f"\n{totals['files']} files, {totals['records']} records (FastWARC {totals['peer 0']}, warcio {totals['peer 1']}), "
        f"{totals['lost']} damaged places reported, {time.monotonic() - began:.0f} s: "
        + ", ".join(f"{number} {verdict}" for verdict, number in sorted(verdicts.items()))
    )
    return 1 if verdicts["SILENT"] or verdicts["CRASH"] else 0


def ours(file: Path) -> Count:
    """Count with our reader."""
    return Count(count_records(file), "")


def fastwarc(file: Path) -> Count:
    """Count with FastWARC."""
    counts: Counter[str] = Counter()
    try:
        for record in FastwarcIterator(open(file, "rb"), parse_http=False):  # noqa: SIM115 (the process ends)
            record.reader.read()
            counts[(record.headers.get("WARC-Type") or "unknown").lower()] += 1
    except Exception as error:
        return Count(counts, f"{type(error).__name__}: {error}")
    return Count(counts, "")


def warcio(file: Path) -> Count:
    """Count with warcio; its warning that it has lost its place in the file is a failure."""
    counts: Counter[str] = Counter()
    sys.stderr = io.StringIO()
    try:
        for record in WarcioIterator(open(file, "rb"), arc2warc=True):  # noqa: SIM115
            record.raw_stream.read()
            counts[str(record.rec_type)] += 1
    except Exception as error:
        return Count(counts, f"{type(error).__name__}: {error}")
    return Count(counts, "lost its place" if "Record not followed by newline" in sys.stderr.getvalue() else "")


def count(reader: Callable[[Path], Count], file: Path) -> Count:
    """Run a reader on a file in a process of its own."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(reader, file, theirs))
    process.start()
    theirs.close()
    try:
        return mine.recv() if mine.poll(LIMIT) else Count(Counter(), f"not finished after {LIMIT} s")
    except EOFError:
        process.join()
        return Count(Counter(), f"exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _send(reader: Callable[[Path], Count], file: Path, pipe: Connection) -> None:
    pipe.send(reader(file))


def unpacked(reader: Callable[[Path], Count], file: Path) -> Count:
    """Run a reader that knows no WACZ, on the archives inside of one."""
    if not file.name.lower().endswith(".wacz"):
        return count(reader, file)
    total = Count(Counter(), "")
    try:
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(file) as members:
            for info in members.infolist():
                if any(end in info.filename.lower() for end in ENDS[:4]):
                    one = count(reader, Path(members.extract(info, folder)))
                    total = Count(total.records + one.records, total.error or one.error)
    except zipfile.BadZipFile as error:
        return Count(total.records, str(error))
    return total


def judge(own: Count, peers: list[Count]) -> str:
    """Return the verdict on a file."""
    if own.error:
        return "CRASH"
    done = [peer for peer in peers if not peer.error]
    records = Counter({kind: number for kind, number in own.records.items() if kind != "lost"})
    if any(peer.records == records for peer in done):
        return "equal"
    if not done:
        return "alone"
    if all(peer.total() <= own.total() for peer in done):
        return "more"
    return "reported" if own.records["lost"] else "SILENT"


def show(verdict: str, own: Count, peers: list[Count], file: Path) -> None:
    columns = [f"{peer.total()}{'!' if peer.error else ''}" for peer in peers]
    print(f"{verdict:<9}{own.total():>6}{own.records['lost']:>5}{columns[0]:>9}{columns[1]:>7}  {file}")
    if verdict in ("SILENT", "CRASH"):
        print(f"{'':<11}ours {dict(own.records)} {own.error}")
        for peer in peers:
            print(f"{'':<11}peer {dict(peer.records)} {peer.error}")


if __name__ == "__main__":
    raise SystemExit(main())
