"""python benchmarks/fuzz_readers.py --data FOLDER --minutes N [--seed S] [--bounds] [--failures FOLDER]

Feeds broken input to every reader, to the extractor and to `annotate`: files of FOLDER (web archives, and what is made of their pages:
JSON lines, Parquet, HTML, WACZ ...) with flipped, cut, doubled, spliced and invented bytes, in the compressed data and below the
compression, and HTML from a generator. A child process does the work, so that a crash of native code is seen; each input has a CPU
deadline and a memory limit.

What must hold for any bytes:
  - nothing but Gap, Damaged, OpenmaiError and ExtractError comes out, and the process lives
  - no pass over an input takes more than --seconds of CPU time or 2 GB of memory; a page that wants more raises MemoryError
  - a second look gives the same
  - what a gzip checksum covers never comes out altered, and never goes missing, without a word
  - every record of a whole WARC that follows a broken one in the same file comes out

Input number N depends on the seed and N only; `--only N` repeats one. Failing inputs are kept in the folder of failures, at most three with
the same last line. Exits with status 1 if there were any.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from openmai.base.errors import OpenmaiError
from openmai.data.config import Annotation
from openmai.data.document import Raw, raw_batch
from openmai.data.engine.steps import annotate
from openmai.data.extract.html import ExtractError, decode, extract
from openmai.data.read.config import Source
from openmai.data.read.files import Damaged, Gap
from openmai.data.read.sources import read, reader_of

SOURCE = Source(name="fuzz", path="fuzz")
CONFIG = Annotation()
MEMORY = 2 << 30
LARGEST = 1_500_000  # bytes of a file that is mutated
PATIENCE = 90  # times the CPU limit: a process that only waits is stuck
WORDS = [
    *(b"WARC/1.0\r\n", b"WARC-Type: response\r\n", b"Content-Length: 99999999999\r\n", b"Content-Length: -1\r\n", b"\r\n\r\n", b"PAR1"),
    *(b"HTTP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: br\r\n", b"Content-Encoding: zstd, gzip\r\n"),
    *(b"FFFFFFFFFFFF\r\n", b"0\r\n\r\n", b"http://x/ 1.1.1.1 20200101000000 text/html 17\n", b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"),
    *(b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"\x5d\x2a\x4d\x18", b"\0" * 40, b"\xff" * 9, b"\xed\xa0\x80"),
    *(b"[" * 3000, b'{"text": "\\ud800"}\n', b"\n", b"<!--", b"]]>", b"<![CDATA[", b"&#x110000;", b"charset=utf-7", b"<div>" * 2000),
]
TAGS = (
    *("div", "p", "span", "a", "li", "ul", "ol", "table", "tr", "td", "th", "h1", "h2", "pre", "code", "b", "i", "script", "style"),
    *("main", "article", "section", "nav", "template", "svg", "math", "select", "option", "form", "frameset", "noscript", "iframe"),
    *("textarea", "title", "body", "html", "head", "blockquote", "details", "br", "img", "hr", "input", "dl", "dt", "dd", "figure"),
    *("caption", "button", "p:x", "x-y", "math", "mfrac", "mi", "annotation", "ruby", "rt", "picture", "source", "time", "summary"),
)
ATTRIBUTES = (
    *(" class=nav", ' id="a b"', " href='x'", " hidden", " colspan=99999", ' style="display:none"', " a=\"'>", " =", " rowspan=-1"),
    *(" rowspan=65535", ' class="language-py highlight"', " lang=xx", ' itemprop="articleBody"', " role=main", " alt=x", " start=-9"),
)
TEXTS = (
    *("the", "of", "naïve", "漢字", "&amp;", "&nbsp;", "&#0;", "&bogus;", "\u202e", "🙂", "a" * 50, "and.", "\n", "  ", "$x^2$"),
    *("\\begin{a}", "|", "```", "# ", "e\u0301" * 9, "{", "javascript", "2024-02-30", "http://x.y/z", "me@x.org", "\u3000", "\u0e01"),
)
ODD = ("<!--", "-->", "<![CDATA[", "]]>", "<", ">", "&", "<?php ", "</", "<!", "\0", "<a b=", "<plaintext>", "</p>" * 500, "<td>" * 300)
CHARSETS = ("utf-8", "utf-16", "shift_jis", "x-nonsense", "iso-2022-kr", "windows-1252", "gb18030")


# Inputs


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Return `data` with one to eight random changes; `other` gives foreign pieces."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        start, end = sorted(rng.randrange(len(changed) + 1) for _ in range(2))
        if rng.random() < 0.7:
            end = min(end, start + rng.choice((1, 4, 64, 4096)))
        kind = rng.randrange(8)
        if kind <= 1 and changed:
            for _ in range(rng.choice((1, 2, 20))):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del changed[rng.choice((start, len(changed) - min(200, len(changed)))) :]
        elif kind == 3:
            del changed[start:end]
        elif kind == 4:
            changed[start:start] = changed[start:end] * rng.choice((1, 1, 2, 50))
        elif kind == 5:
            piece = rng.randrange(len(other) + 1)
            changed[start:end] = other[piece : piece + rng.choice((16, 512, 65536))]
        elif kind == 6:
            changed[start : start + rng.choice((0, 0, 20))] = rng.choice(WORDS)
        else:
            digit = next((at for at in range(start, min(len(changed), start + 5000)) if 48 <= changed[at] <= 57), None)
            if digit is not None:
                changed[digit : digit + 1] = rng.choice((b"", b"9", b"99999999", b"0", b"-", b"1e9"))
        if len(changed) > 4 * LARGEST:
            del changed[4 * LARGEST :]
    return bytes(changed)


def below_compression(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Change what a gzip file holds, and compress it again, in members of a random size."""
    try:
        plain = gzip.decompress(data)
    except (OSError, EOFError, ValueError):
        return mutate(rng, data, other)
    plain = mutate(rng, plain[: 2 * LARGEST], other)
    step = rng.choice((500, 20_000, len(plain) + 1))
    return b"".join(gzip.compress(plain[at : at + step], 1) for at in range(0, len(plain) + 1, step))


def page(rng: random.Random) -> bytes:
    """Return invented HTML: well-formed here and there, deep, wide, wrongly nested, in any character set."""
    out, open_tags = [], []
    if rng.random() < 0.5:
        out.append(f'<!doctype html><meta charset="{rng.choice(CHARSETS)}"><title>T</title>')
    for _ in range(rng.choice((3, 30, 300, 3000))):
        choice = rng.random()
        if choice < 0.35:
            tag = rng.choice(TAGS)
            attributes = "".join(rng.choice(ATTRIBUTES) for _ in range(rng.choice((0, 0, 1, 3))))
            out.append(f"<{tag}{attributes}>" * rng.choice((1, 1, 1, 1, 1, rng.choice((2, 200, 2000)))))
            open_tags.append(tag)
        elif choice < 0.6 and open_tags:
            out.append(f"</{open_tags.pop() if rng.random() < 0.8 else rng.choice(TAGS)}>")
        elif choice < 0.95:
            out.append(" ".join(rng.choice(TEXTS) for _ in range(rng.choice((1, 8, 60)))))
        else:
            out.append(rng.choice(ODD))
    data = "".join(out).encode(rng.choice(("utf-8", "utf-8", "utf-16", "shift_jis", "windows-1252", "gb18030")), errors="replace")
    return mutate(rng, data, data) if rng.random() < 0.3 else data


def repeated(rng: random.Random) -> bytes:
    """Return a page of one to three pieces over and over: what takes time beyond all proportion shows here."""
    choices = [f"<{rng.choice(TAGS)}{rng.choice(('', *ATTRIBUTES))}>", f"</{rng.choice(TAGS)}>", rng.choice(TEXTS), rng.choice(ODD)]
    choices += [
        f"<meta name='x' content='{rng.choice(TEXTS)}'>",
        '<script type="application/ld+json">{"@type": "Article"',
        "{" * 20,
        "\\(x",
    ]
    piece = "".join(rng.choice(choices) for _ in range(rng.choice((1, 1, 2, 3))))
    return (piece * (rng.choice((20_000, 200_000, 1_000_000)) // len(piece.encode()))).encode()


def make_files(archives: list[Path], folder: Path) -> list[Path]:
    """Write what archives hold in all the other kinds of file that there are readers for."""
    pages: list[Raw] = []
    for file in archives:
        if len(pages) < 400:
            try:
                pages += [
                    raw for raw in read(file, SOURCE) if isinstance(raw, Raw) and raw.mime == "text/html" and len(raw.content) < 200_000
                ][:20]
            except Damaged:
                continue
    rows: list[dict[str, Any]] = [
        {"text": raw.content.decode("utf-8", "replace")[:20_000], "url": raw.url, "n": {"a": [1, None]}} for raw in pages[:60]
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table, row_group_size=20)
    bundle = io.BytesIO()
    with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as zipped:
        small = [file for file in archives if file.stat().st_size < 100_000][:6]
        for number, file in enumerate(small):
            zipped.writestr(f"archive/{file.name}", file.read_bytes(), zipfile.ZIP_STORED if number % 2 else zipfile.ZIP_DEFLATED)
    plain = next(file.read_bytes() for file in archives if file.name.lower().endswith(".warc"))
    contents = {
        "a.jsonl": lines,
        "a.jsonl.gz": gzip.compress(lines, 1),
        "a.jsonl.zst": zstandard.compress(lines),
        "a.jsonl.lz4": lz4.frame.compress(lines),
        "a.json": json.dumps(rows).encode(),
        "a.parquet": table.getvalue(),
        "a.md": rows[0]["text"].encode(),
        "a.wacz": bundle.getvalue(),
        "a.warc.zst": zstandard.compress(plain[: len(plain) // 2]) + zstandard.compress(plain[len(plain) // 2 :]),
        "a.warc.lz4": lz4.frame.compress(plain),
    } | {f"page{number}.html": raw.content for number, raw in enumerate(pages)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def is_packed(data: bytes) -> bool:
    """True for gzip data; the name does not always say."""
    return data.startswith(b"\x1f\x8b")


def make_input(seed: int, number: int, files: dict[str, list[Path]]) -> tuple[str, bytes, str, Path | None]:
    """Return the name and bytes of an input, and a file whose records it must hold: "flips" of compressed bits, or as its "tail"."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choices(("archive", "table", "html", "invented", "repeated"), (40, 15, 20, 20, 5))[0]
    if kind in ("invented", "repeated"):
        return f"{kind}.html", page(rng) if kind == "invented" else repeated(rng), "", None
    file, other = rng.choice(files[kind]), rng.choice(files[rng.choice(list(files))])
    data, name = file.read_bytes(), file.name.lower()
    if name.endswith((".warc.gz", ".arc.gz")) and rng.random() < 0.3:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return name, bytes(changed), "flips", file
    change = below_compression if name.endswith(".gz") and rng.random() < 0.6 else mutate
    changed_data = change(rng, data, other.read_bytes()[:LARGEST])
    end = ".warc.gz" if name.endswith(".warc.gz") else ".warc"
    if name.endswith(end) and is_packed(data) == (end == ".warc.gz") and rng.random() < 0.4:
        tails = [file for file in files["archive"] if file.name.endswith(end) and file.stat().st_size < 100_000]
        tail = rng.choice([file for file in tails if is_packed(file.read_bytes()) == is_packed(data)])
        return name, changed_data + tail.read_bytes(), "tail", tail
    return name, changed_data, "", None


# The child


def work(pipe: Connection, seconds: float) -> None:
    """Check inputs until the pipe closes; answer with a complaint, or "" and the peak of memory in MB."""
    check_page(b"<p>Everything is loaded before the limits hold.</p>")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe.send("ready")
    while True:
        try:
            file, relation, original = pipe.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
        began = time.process_time()
        try:
            check(file, relation, original)
            complaint = ""
        except MemoryError:  # the limit held: the engine rejects such a page, and says so
            complaint = "" if file.suffix == ".html" else traceback.format_exc()
        except Exception:  # whatever comes out here should not have
            complaint = traceback.format_exc()
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send((complaint, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, time.process_time() - began))


def allow() -> None:
    """Give the next pass over the input all the CPU time that one may take: the timer begins anew."""
    seconds = signal.getitimer(signal.ITIMER_PROF)[1]
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds)


def check(file: Path, relation: str, original: Path | None) -> None:
    """Raise AssertionError, or whatever the code under test raises, if a property does not hold."""
    first, reported, raws = look(file)
    assert look(file)[:2] == (first, reported), "a second look gives something else"
    if original is not None:
        before, was_reported, _ = look(original)
        if relation == "flips":
            assert reported or was_reported or set(first) == set(before), "checksummed data came out altered or went missing silently"
        elif not was_reported and (file.suffix == ".gz" or file.read_bytes()[:2] not in (b"\x1f\x8b", b"PK", b"\x28\xb5", b"\x04\x22")):
            assert first[len(first) - len(before) :] == before, "records behind the damage are missing"
    if file.name.endswith(".html"):
        check_page(file.read_bytes())
    elif raws:
        check_annotate(raws[:: max(1, len(raws) // 2)][:2])


def look(file: Path) -> tuple[list[str], bool, list[Raw]]:
    """Return digests of what a reader yields, whether it reports damage, and the usable records."""
    allow()
    digests: list[str] = []
    raws: list[Raw] = []
    reported = False
    try:
        for item in read(file, SOURCE):
            assert isinstance(item, Raw | Gap)
            if isinstance(item, Gap) or item.problem:
                reported = True
                continue
            digests.append(
                hashlib.blake2b(repr((item.url, item.content, item.mime, item.meta)).encode("utf-8", "surrogatepass")).hexdigest()
            )
            if len(item.content) < LARGEST and len(raws) < 50:
                raws.append(item)
    except (Damaged, OpenmaiError):
        reported = True
    return digests, reported, raws


def check_page(content: bytes) -> None:
    """Extract and annotate a page."""
    allow()
    with contextlib.suppress(ExtractError):
        extract(decode(content, ""), CONFIG.limits.depth)
    charset = ("", "utf-8", "x-nonsense", "shift_jis", "utf-16")[len(content) % 5]
    check_annotate([Raw(content, "http://x/", "text/html", charset)])


def check_annotate(raws: list[Raw]) -> None:
    batch = raw_batch([("f", number, raw) for number, raw in enumerate(raws)], "s", "")
    allow()
    first = annotate(batch, CONFIG)
    assert first.num_rows == len(raws)
    allow()
    assert first.equals(annotate(batch, CONFIG)), "annotated differently the second time"
    for row in first.to_pylist():
        row["text"].encode()
        assert isinstance(json.loads(row["meta"]), dict)


# The parent


class Child:
    """A process that checks inputs one at a time."""

    def __init__(self, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.seconds = seconds
        self.process = context.Process(target=work, args=(theirs, seconds), daemon=True)
        self.process.start()
        theirs.close()
        assert self.pipe.recv() == "ready"

    def check(self, file: Path, relation: str, original: Path | None) -> tuple[str, int, float]:
        """Return the complaint ("" for none), the peak of memory in MB (0 if the child is dead), and CPU seconds."""
        try:
            self.pipe.send((file, relation, original))
            if self.pipe.poll(PATIENCE * self.seconds):
                return self.pipe.recv()
            complaint = "stuck: it waits for something"
        except (EOFError, ConnectionResetError, BrokenPipeError):
            self.process.join()
            code = self.process.exitcode
            complaint = f"deadline: more than {self.seconds:g} CPU seconds" if code == -signal.SIGPROF else f"crash: exit code {code}"
        self.process.kill()
        self.process.join()
        return complaint, 0, 0.0


class Failures:
    """Keeps failing inputs, and counts them by their last line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: Counter[str] = Counter()

    def add(self, name: str, data: bytes, complaint: str) -> None:
        """Keep an input and what was wrong with it."""
        signature = complaint.strip().splitlines()[-1][:150]
        self.counts[signature] += 1
        if self.counts[signature] <= 3:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(data)
            (self.folder / f"{name}.txt").write_text(complaint)
            print(f"FAILURE {name}: {signature}", flush=True)


def run(arguments: argparse.Namespace, folder: Path) -> Failures:
    """Check inputs for the minutes of CPU time asked for, those of the code under test alone."""
    archives = [file for file in sorted(arguments.data.rglob("*")) if file.is_file() and reader_of(file) and file.stat().st_size <= LARGEST]
    archives = [file for file in archives if any(end in file.name.lower() for end in ("warc", "arc", "wacz"))]
    made = make_files(archives, folder)
    pages = [file for file in made if file.suffix == ".html"]
    files = {"archive": archives, "table": [file for file in made if file not in pages], "html": pages}
    failures, child, kinds, peak = Failures(arguments.failures), Child(arguments.seconds), Counter[str](), 0
    active = shown = 0.0
    number = arguments.only or 0
    while active < 60 * arguments.minutes:
        name, data, relation, original = make_input(arguments.seed, number, files)
        file = folder / f"input-{name}"
        file.write_bytes(data)
        complaint, megabytes, seconds = child.check(file, relation, original)
        peak = max(peak, megabytes)
        kinds[next((end for end in (".html", ".json", ".parquet", ".wacz", ".warc", ".arc") if end in name), "other")] += 1
        if complaint:
            failures.add(f"{arguments.seed}-{number}-{name}", data, complaint)
            if not megabytes:
                child = Child(arguments.seconds)
        file.unlink()
        number += 1
        active += seconds
        if active - shown > 60:
            shown = active
            print(f"{active / 60:6.1f} CPU min  {number:>8} inputs  {failures.counts.total()} failures  peak {peak} MB", flush=True)
        if arguments.only is not None:
            break
    child.process.kill()
    print(f"{active / 60:6.1f} CPU min, {kinds.total()} inputs: " + ", ".join(f"{count} {end}" for end, count in kinds.most_common()))
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of web archives")
    parser.add_argument("--minutes", type=float, default=5, help="of CPU time of the code under test")
    parser.add_argument("--seconds", type=float, default=20, help="CPU time for one pass over an input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bounds", action="store_true", help="let compiled loops check the bounds of arrays (slower, compiled anew)")
    parser.add_argument("--only", type=int, help="repeat one input")
    parser.add_argument("--failures", type=Path, default=Path("runs/fuzz"))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.minutes:g} CPU minutes, process {os.getpid()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.bounds:
            os.environ |= {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": f"{folder}/compiled"}
        failures = run(arguments, Path(folder))
    for signature, count in failures.counts.most_common():
        print(f"{count:>6} x {signature}")
    print("no failure" if not failures.counts else f"{failures.counts.total()} failures, kept in {arguments.failures}")
    return 1 if failures.counts else 0


if __name__ == "__main__":
    sys.exit(main())
