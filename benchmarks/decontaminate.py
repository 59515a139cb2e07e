"""Plant evaluation questions into books and measure what `data decontaminate` finds, what it finds by mistake, and how fast.

    python benchmarks/decontaminate.py --data DIR [--items 1000] [--megabytes 60]

DIR holds mmlu/data, gsm8k, gutenberg/*.jsonl.gz and openstax/*.jsonl.gz. Real questions (MMLU test, gsm8k test) are planted, one per
document of about 6 kB, as they are or changed; the documents without a plant show the false finds. Other engines are not compared:
datatrove's decontamination needs a hub and a package for its tasks, OLMo's is a Rust program of its own.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from openmai.data.decontaminate.config import Overlap
from openmai.data.decontaminate.index import Contamination
from openmai.data.decontaminate.items import Item, read_items

THRESHOLDS = (0.1, 0.3, 0.5, 0.8, 1.0)
DOCUMENT = 6000


def written(item: Item) -> str:
    """The item as a web page would have it."""
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCDEFGH", item.choices, strict=False))
    return f"{item.context}\n{item.question}{choices}\nAnswer: {item.answer}"


def reformatted(item: Item, noise: random.Random) -> str:
    """Other case, other white space, no punctuation."""
    text = re.sub(r"[^\w\s'’]", " ", written(item)).upper()
    return re.sub(r"\s+", lambda _: noise.choice([" ", "  ", "\n", "\t"]), text)


def edited(share: float) -> Callable[[Item, random.Random], str]:
    """Every word replaced with the given probability."""

    def change(item: Item, noise: random.Random) -> str:
        return " ".join("changed" if noise.random() < share else word for word in written(item).split(" "))

    return change


def beginning(share: float) -> Callable[[Item, random.Random], str]:
    """Only the first part of the question, and no answer."""

    def change(item: Item, noise: random.Random) -> str:
        words = item.question.split()
        return " ".join(words[: round(share * len(words))])

    return change


PLANTS: dict[str, Callable[[Item, random.Random], str]] = {
    "verbatim": lambda item, noise: written(item),
    "question and answer": lambda item, noise: f"{item.context}\n{item.question} {item.answer}",
    "question alone": lambda item, noise: f"{item.context}\n{item.question}",
    "case, space, punctuation": reformatted,
    "2 % of words changed": edited(0.02),
    "5 % of words changed": edited(0.05),
    "10 % of words changed": edited(0.1),
    "first 75 % of question": beginning(0.75),
    "first half of question": beginning(0.5),
}


def clean_documents(data: Path, megabytes: float) -> list[bytes]:
    """Books and textbooks in pieces of about 6 kB, half and half."""
    out: list[bytes] = []
    for kind in ("gutenberg", "openstax"):
        size = 0
        for text in texts(data / kind):
            for start in range(0, len(text), DOCUMENT):
                out.append(text[start : start + DOCUMENT].encode())
                size += len(out[-1])
            if size >= megabytes * 5e5:
                break
    return out


def texts(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)


def plant(document: bytes, text: str, noise: random.Random) -> bytes:
    place = document.rfind(b" ", 0, noise.randrange(200, max(201, len(document))))
    return document[:place] + b"\n\n" + text.encode() + b"\n\n" + document[place:]


def measure(name: str, overlap: Overlap, items: list[Item], chosen: list[int], clean: list[bytes]) -> None:
    Contamination(items[:50], overlap).check(b"compile " * 60)
    began = time.process_time()
    index = Contamination(items, overlap.model_copy(update={"threshold": min(THRESHOLDS)}))
    built = time.process_time() - began
    began = time.process_time()
    false = [hit for document in clean for hit in index.check(document)[:1]]
    seconds = time.process_time() - began
    size = sum(map(len, clean)) / 1e6
    print(
        f"\n{name}: {len(items):,} items, {len(index.unchecked)} too short; index in {built:.1f} s; {size / seconds:.1f} MB/s of CPU time"
    )
    print(f"{'share of plants found at threshold':<36}" + "".join(f"{threshold:>8}" for threshold in THRESHOLDS) + "   plants")
    noise = random.Random(1)
    same = {item.question: set() for item in items}
    for number, item in enumerate(items):
        same[item.question].add(number)
    for label, change in PLANTS.items():
        best = []
        for place, number in enumerate(chosen):
            hits = index.check(plant(clean[place], change(items[number], noise), noise))
            best.append(max((hit.score for hit in hits if hit.item in same[items[number].question]), default=0.0))
        found = [sum(score >= threshold - 1e-9 for score in best) / len(best) for threshold in THRESHOLDS]
        print(f"{label:<36}" + "".join(f"{100 * share:>7.1f}%" for share in found) + f"{len(best):>9}")
    counts = [sum(hit.score >= threshold - 1e-9 for hit in false) for threshold in THRESHOLDS]
    print(f"{'clean documents taken for contaminated':<36}" + "".join(f"{count:>8}" for count in counts) + f"   of {len(clean):,}")
    for hit in sorted(false, key=lambda hit: -hit.score)[:3]:
        print(f"    {hit.score:.2f} {hit.task} {hit.id}: {' '.join(items[hit.item].question.split())[:90]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--items", type=int, default=1000, help="plants of each kind")
    parser.add_argument("--megabytes", type=float, default=60.0, help="clean text")
    given = parser.parse_args()
    needed = [] if given.data is None else [given.data / name for name in ("mmlu/data", "gsm8k", "gutenberg", "openstax")]
    missing = [str(folder) for folder in needed if not folder.is_dir()]
    if given.data is None or missing:
        print(f"left out: needs --data DIR with mmlu/data, gsm8k, gutenberg, openstax; missing: {', '.join(missing) or '--data'}")
        return
    items = list(read_items([f"mmlu={given.data / 'mmlu/data'}", f"gsm8k={given.data / 'gsm8k/test.jsonl'}"]))
    clean = clean_documents(given.data, given.megabytes)
    tested = [number for number, item in enumerate(items) if item.task in ("mmlu/test", "gsm8k")]
    chosen = random.Random(0).sample(tested, min(given.items, len(clean)))
    measure("13 words", Overlap(), items, chosen, clean)
    measure("8 words", Overlap(n=8), items, chosen, clean)
    measure("50 letters", Overlap(n=50, unit="char"), items, chosen, clean)
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores; python {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
