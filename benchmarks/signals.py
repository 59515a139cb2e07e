"""python benchmarks/signals.py --data DIR [--peer-python PATH]

Documents and addresses per CPU second of the signals of a page: private data, adult words, adult addresses, block lists and the learned
quality score; recall of private data on generated examples and what is found per million characters of real text; held-out accuracy of
the quality score beside fastText's. DIR holds the folders gutenberg, openstax, factbook and peps; what is missing is said and left out.
PATH is the Python of an environment with `fasttext-wheel numpy<2` and `datatrove regex tldextract pyahocorasick`.

Not equal: datatrove's PIIFormatter looks for e-mail and IPv4 addresses only; its URLFilter holds 2 million domains. The quality task,
textbooks against old books, is easy; it compares the two learners, fastText untuned at its default rate, and says nothing about quality.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from openmai.data.filter.lexicon import toxic_words
from openmai.data.filter.pii import find, is_card, is_iban, mask
from openmai.data.filter.pii_facts import IBAN_LENGTHS
from openmai.data.filter.quality import QualityModel
from openmai.data.filter.quality_config import QualityTrainConfig
from openmai.data.filter.quality_train import Example, train
from openmai.data.filter.signals_config import Pii, UrlRules
from openmai.data.filter.urls import UrlFilter
from openmai.data.read.config import Source

KINDS = frozenset(Pii().kinds)
CHARS, DOCUMENTS, DOMAINS = 5000, 3000, 1_000_000

PEER_PII = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline.formatters import PIIFormatter
formatter = PIIFormatter()
texts = [json.loads(line)["text"] for line in open(sys.argv[1])]
formatter.format(texts[0])
start = time.process_time()
for text in texts:
    formatter.format(text)
print(len(texts) / (time.process_time() - start))
"""
PEER_URL = """
import sys, time
from datatrove.data import Document
from datatrove.pipeline.filters import URLFilter
keep = URLFilter()
documents = [Document(text="", id="0", metadata={"url": line.strip()}) for line in open(sys.argv[1])]
keep.filter(documents[0])
start = time.process_time()
for document in documents:
    keep.filter(document)
print(len(documents) / (time.process_time() - start))
"""
PEER_QUALITY = """
import json, sys, time
import fasttext
def lines(name):
    return [json.loads(line) for line in open(name)]
train, test = lines(sys.argv[1]), lines(sys.argv[2])
with open(sys.argv[3], "w") as file:
    for row in train:
        file.write("__label__" + str(row["good"]) + " " + " ".join(row["text"].split()) + "\\n")
start = time.process_time()
model = fasttext.train_supervised(sys.argv[3], wordNgrams=2, thread=1, epoch=5, bucket=1 << 19, verbose=0)
trained = time.process_time() - start
start = time.process_time()
found = [model.f.predict(" ".join(row["text"].split()) + "\\n", 1, 0.0, "strict")[0][1] for row in test]
rate = len(test) / (time.process_time() - start)
print(trained, rate, sum(label == "__label__" + str(row["good"]) for label, row in zip(found, test)) / len(test))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer-python", type=Path)
    options = parser.parse_args()
    os.environ["OPENMAI_QUIET"] = "1"
    print(f"machine: {os.cpu_count()} cores, {cpu()}; load {os.getloadavg()[0]:.1f}; command: {' '.join(sys.argv)}\n")
    texts = {kind: pieces(options.data, kind) for kind in ("openstax", "gutenberg", "factbook", "peps")}
    recall()
    speed(texts, options.peer_python)
    quality(texts, options.peer_python)
    return 0


def cpu() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    return found[1] if found else "unknown CPU"


def pieces(data: Path, kind: str) -> list[str]:
    """Return texts of 5,000 characters, in random order."""
    if not (data / kind).is_dir():
        print(f"{data / kind} is missing: left out", file=sys.stderr)
        return []
    texts = [
        json.loads(line)["text"]
        for file in sorted((data / kind).glob("*.jsonl.gz"))[:20]
        for line in gzip.decompress(file.read_bytes()).splitlines()
    ]
    cut = [text[at : at + CHARS] for text in texts for at in range(0, max(1, len(text) - CHARS), CHARS)]
    random.Random(0).shuffle(cut)
    return cut[:DOCUMENTS]


def rate(items: list[Any], work: Callable[[Any], Any]) -> float:
    """Return items per CPU second, best of three."""
    work(items[0])
    best = 1e9
    for _ in range(3):
        start = time.process_time()
        for item in items:
            work(item)
        best = min(best, time.process_time() - start)
    return len(items) / best


def speed(texts: dict[str, list[str]], peer: Path | None) -> None:
    everything = [text for kind in texts.values() for text in kind]
    print(f"\n{'private data':<12}{'texts':>7}{'chars':>7}{'texts/CPU s':>13}   found per million characters")
    for kind, some in texts.items():
        if some:
            counts: Counter[str] = Counter()
            for text in some:
                counts.update(mask(text, KINDS)[1])
            size = sum(map(len, some))
            found = ", ".join(f"{name} {1e6 * count / size:.1f}" for name, count in counts.most_common())
            print(f"{kind:<12}{len(some):>7}{size / len(some):>7.0f}{rate(some, lambda text: mask(text, KINDS)):>13,.0f}   {found}")
    words = [re.findall(r"\w+", text) for text in everything[:DOCUMENTS]]
    urls = addresses()
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "list.txt"
        listed.write_text("\n".join(domain() for _ in range(DOMAINS)))
        start = time.process_time()
        block = UrlFilter(UrlRules(block=[listed]))
        loading = time.process_time() - start
        rows = [
            ("private data, all", rate(everything, lambda text: mask(text, KINDS)), peer_number(peer, PEER_PII, write(folder, everything))),
            ("adult words", rate(words, toxic_words), 0.0),
            ("address, words", rate(urls, UrlFilter(UrlRules()).reason), 0.0),
            ("address, 1M list", rate(urls, block.reason), peer_number(peer, PEER_URL, write_lines(folder, urls))),
        ]
    print(f"\n{'per CPU second':<20}{'openmai':>10}{'datatrove':>11}{'ratio':>7}   (1M domains loaded in {loading:.1f} CPU s)")
    for title, ours, theirs in rows:
        print(f"{title:<20}{ours:>10,.0f}" + (f"{theirs:>11,.0f}{ours / theirs:>6.1f}x" if theirs else f"{'-':>11}"))


def write(folder: str, texts: Iterable[str]) -> Path:
    path = Path(folder) / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def write_lines(folder: str, lines: list[str]) -> Path:
    path = Path(folder) / "lines.txt"
    path.write_text("\n".join(lines))
    return path


def peer_number(peer: Path | None, script: str, *files: Path) -> float:
    return float(peer_run(peer, script, *files)[0]) if peer else 0.0


def peer_run(peer: Path, script: str, *files: Path) -> list[str]:
    done = subprocess.run([peer, "-c", script, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1].split()


def domain() -> str:
    return "".join(noise.choices(string.ascii_lowercase, k=12)) + noise.choice((".com", ".org", ".co.uk"))


def addresses() -> list[str]:
    parts = (
        "news",
        "world",
        "2021",
        "05",
        "the-quick-brown-fox",
        "article",
        "index.html",
        "science",
        "page",
        "view",
        "id",
        "archive",
        "de",
    )
    return [f"https://www.{domain()}/{'/'.join(noise.choices(parts, k=4))}" for _ in range(30_000)]


def quality(texts: dict[str, list[str]], peer: Path | None) -> None:
    if not texts["openstax"] or not texts["gutenberg"]:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {}
        for kind in ("openstax", "gutenberg"):
            (folder / f"{kind}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[kind]))
            sources[kind] = Source(name=kind, path=str(folder / f"{kind}.jsonl"))
        start = time.process_time()
        artifact = train(QualityTrainConfig(out=folder / "model", positives=[sources["openstax"]], negatives=[sources["gutenberg"]]))
        seconds = time.process_time() - start
        model = QualityModel.load(artifact.path)
        ours = rate(texts["openstax"], lambda text: model.score([text]))
        accuracy = artifact.metrics["accuracy"]
        print(f"\n{'quality':<12}{'texts/CPU s':>12}{'held-out accuracy':>19}{'training, CPU s':>17}")
        print(f"{'openmai':<12}{ours:>12,.0f}{accuracy:>19.4f}{seconds:>17.1f}")
        if peer:
            rows = [{"text": text, "good": int(kind == "openstax")} for kind in sources for text in texts[kind]]
            folds = [Example(row["text"], "", 0).fold for row in rows]
            for part, chosen in (("train", lambda fold: fold > 1), ("test", lambda fold: fold == 0)):
                lines = [json.dumps(row) + "\n" for row, fold in zip(rows, folds, strict=True) if chosen(fold)]
                (folder / f"{part}.jsonl").write_text("".join(lines))
            trained, theirs, accuracy = map(
                float, peer_run(peer, PEER_QUALITY, folder / "train.jsonl", folder / "test.jsonl", folder / "ft")
            )
            print(f"{'fastText':<12}{theirs:>12,.0f}{accuracy:>19.4f}{trained:>17.1f}\n{'ratio':<12}{ours / theirs:>11.1f}x")


# --- generated private data ------------------------------------------------------------------------------------------------------------

noise = random.Random(3)
UPPER, LETTERS = string.ascii_uppercase, string.ascii_letters + string.digits
FRAMES = ("Please use {} for this.", "{}", "({})", "Contact: {}, or write.", "He said {}.", "id={} ok", "a | {} | b", "“{}”")


def digits(count: int) -> str:
    return "".join(noise.choices(string.digits, k=count))


def letters(count: int, alphabet: str = LETTERS) -> str:
    return "".join(noise.choices(alphabet, k=count))


def email() -> str:
    name, site = letters(6).lower(), letters(7, string.ascii_lowercase)
    forms = (
        f"{name}.x@{site}.com",
        f"{name}+a@mail.{site}.co.uk",
        f"{name} [at] {site} [dot] org",
        f"{name}(at){site}.de",
        f"o'{name}@{site}.ie",
    )
    return noise.choice(forms)


def ipv4() -> str:
    while True:
        address = IPv4Address(noise.getrandbits(32))
        if address.is_global and not address.is_multicast and not address.is_reserved:
            return str(address)


def ipv6() -> str:
    return "2a02:" + ":".join(letters(4, "0123456789abcdef") for _ in range(7))


def phone() -> str:
    area, exchange, rest = (
        f"{noise.choice('23456789')}{noise.choice('012345678')}{digits(1)}",
        f"{noise.choice('23456789')}{digits(2)}",
        digits(4),
    )
    forms = (
        f"({area}) {exchange}-{rest}", f"{area}-{exchange}-{rest}", f"+1 {area} {exchange} {rest}", f"+44 20 7{digits(3)} {digits(4)}",
        f"+49 (0) 89 / {digits(4)}-{digits(2)}", f"+33 1 {digits(2)} {digits(2)} {digits(2)} {digits(2)}", f"+91-98{digits(8)}",
        f"Tel.: 030 {digits(6)}", f"Mobile 07{digits(3)} {digits(6)}", f"Phone: 555-{digits(4)}",
    )  # fmt: skip
    return noise.choice(forms)


def card() -> str:
    while True:
        prefix = noise.choice(("4", "51", "55", "2221", "34", "37", "6011", "65", "3528"))
        length = 15 if prefix in ("34", "37") else 16
        number = prefix + digits(length - len(prefix))
        if is_card(number):
            gap = noise.choice(("", " ", "-"))
            cuts = ((0, 4), (4, 10), (10, 15)) if length == 15 else ((0, 4), (4, 8), (8, 12), (12, 16))
            return gap.join(number[low:high] for low, high in cuts)


def iban() -> str:
    """Return an IBAN; the accounts of Malta and Romania may be all letters, which real ones seldom are."""
    country = noise.choice(("DE", "GB", "FR", "NL", "ES", "IT", "CH", "AT", "SE", "PL", "NO", "BE", "FI", "MT", "RO"))
    length = IBAN_LENGTHS[country] - 4
    heads = {"GB": (4, 0), "NL": (4, 0), "IT": (1, 0), "MT": (4, 18), "RO": (4, 16)}
    head, tail = heads.get(country, (0, 0))
    account = letters(head, UPPER) + digits(length - head - tail) + letters(tail, UPPER + string.digits)
    code = next(code for check in range(98) if is_iban(code := f"{country}{check:02d}{account}"))
    return noise.choice((code, " ".join(code[at : at + 4] for at in range(0, len(code), 4))))


def ssn() -> str:
    words = noise.choice(("SSN: ", "Social Security number "))
    return f"{words}{noise.choice(('123', '456', '212'))}-{noise.randint(1, 99):02d}-{noise.randint(1, 9999):04d}"


def key() -> str:
    forms = (
        f"AKIA{letters(16, UPPER + '234567')}", f"ghp_{letters(36)}", f"xoxb-{digits(12)}-{letters(24)}", f"AIza{letters(35)}",
        f"eyJhbGciOiJIUzI1NiJ9.eyJ{letters(30)}.{letters(43)}", f"-----BEGIN PRIVATE KEY-----\n{letters(64)}\n-----END PRIVATE KEY-----",
    )  # fmt: skip
    return noise.choice(forms)


def recall() -> None:
    makers = {"email": (email,), "ip": (ipv4, ipv6), "phone": (phone,), "card": (card,), "iban": (iban,), "ssn": (ssn,), "key": (key,)}
    print("recall on 1,000 generated examples each: ", end="")
    for kind, made in makers.items():
        texts = [noise.choice(FRAMES).format(noise.choice(made)()) for _ in range(1000)]
        print(f"{kind} {sum(any(found == kind for _, found in find(text, KINDS)) for text in texts) / 10:.1f} %", end="  ")
    print()


if __name__ == "__main__":
    sys.exit(main())
