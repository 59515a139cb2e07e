"""python benchmarks/quality_rules.py --data DIR --peer-python PATH [--work DIR]

Judges the same documents with our quality rules and with datatrove's filters and prints the agreement per filter and for the chain,
what the disagreements come from, how the words agree, and the documents per CPU second of both. DIR holds the folders web_dclaw, web_html,
gutenberg, openstax, factbook, peps and wikitext2; what is missing is said and left out. PATH is the Python of an environment with
`datatrove[processing,io]==0.10.1` and `spacy`. What the peer found is kept in --work and used again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sys
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from fastwarc.warc import ArchiveIterator, WarcRecordType
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding

DEGRADED = 2500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/openmai-quality-rules"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    build_sample(options.data, options.work / "sample.jsonl")
    return 0


def build_sample(data: Path, path: Path) -> None:
    """Write the documents: real ones of every kind in random order, then real ones damaged on purpose."""
    noise = random.Random(0)
    real = [(kind, text) for kind in KINDS for text in documents(data, kind)]
    noise.shuffle(real)
    rows = real + [degrade(text, noise) for _, text in noise.sample(real, DEGRADED)]
    with path.open("w") as file:
        file.writelines(json.dumps({"kind": kind, "text": text}) + "\n" for kind, text in rows)


def documents(data: Path, kind: str) -> Iterator[str]:
    folder = data / kind
    if not folder.is_dir():
        print(f"{folder} is missing: the sample goes without it", file=sys.stderr)
        return
    for text in KINDS[kind](folder):
        if text.strip():
            yield text.encode("utf-8", "replace").decode()


def pages_of_archive(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.warc.gz")):
        with file.open("rb") as stream:
            for record in ArchiveIterator(stream, record_types=WarcRecordType.response | WarcRecordType.resource):
                yield page_text(record.reader.read())


def pages_of_tars(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.tar.gz")):
        with tarfile.open(file) as archive:
            for member in archive:
                if member.isfile() and re.search(r"source\.html$|^(cache|eval)/.*\.html$", member.name):
                    yield page_text(archive.extractfile(member).read())  # type: ignore[union-attr]


def page_text(page: bytes) -> str:
    html = bytes_to_str(page, detect_encoding(page))
    return extract_plain_text(html, main_content=True, alt_texts=False, links=False, form_fields=False, noscript=False)


def json_texts(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.jsonl.gz")):
        for line in gzip.open(file, "rt"):
            yield json.loads(line)["text"]


def book_pieces(folder: Path) -> Iterator[str]:
    """Yield pieces of about 6,000 characters of every book of one shard, and its first three books whole."""
    for number, line in enumerate(gzip.open(sorted(folder.glob("*.jsonl.gz"))[0], "rt")):
        text = json.loads(line)["text"]
        for start in range(0, len(text), max(6000, len(text) // 3)):
            yield text[start : start + 6000]
        if number < 3:
            yield text


def paragraphs(folder: Path) -> Iterator[str]:
    """Yield pieces of about 4,000 characters, whole lines."""
    for file in sorted(folder.glob("*.txt")):
        piece = ""
        for line in file.read_text().splitlines(keepends=True):
            piece += line
            if len(piece) > 4000:
                yield piece
                piece = ""


def text_heads(folder: Path) -> Iterator[str]:
    for text in json_texts(folder):
        if len(text) > 600:
            yield text[:9000]


def some_texts(folder: Path) -> Iterator[str]:
    """Yield every fourth text: more would outweigh the other kinds."""
    yield from islice(text_heads(folder), 0, None, 4)


KINDS = {
    "web_dclaw": pages_of_archive,
    "web_html": pages_of_tars,
    "gutenberg": book_pieces,
    "openstax": some_texts,
    "factbook": text_heads,
    "peps": text_heads,
    "wikitext2": paragraphs,
}


def degrade(text: str, noise: random.Random) -> tuple[str, str]:
    """Return (kind of damage, damaged text): each kind pushes some rule over its limit in many documents, and not in others."""
    lines, share = text[:8000].split("\n"), noise.random()
    line, few = noise.choice(lines), noise.sample(range(len(lines)), int(share * len(lines)))
    words, position = " ".join(lines).split(" "), noise.randrange(len(lines))

    def change(how: object) -> str:
        return "\n".join(how(old) if number in few else old for number, old in enumerate(lines))  # type: ignore[operator]

    damages = {
        "repeated line": lambda: change(lambda old: line),
        "doubled lines": lambda: change(lambda old: f"{old}\n{old}"),
        "doubled paragraphs": lambda: change(lambda old: f"\n\n{old}\n\n{old}\n\n"),
        "repeated phrase": lambda: " ".join(words + words[: noise.randrange(2, 12)] * noise.randrange(2, 60)),
        "repeated end": lambda: " ".join(words + words[-noise.randrange(1, len(words) + 1) :]),
        "bullets": lambda: change(lambda old: noise.choice("•-") + " " + old),
        "ellipses": lambda: change(lambda old: old + noise.choice(["...", "…"])),
        "hashes": lambda: " ".join(word + "#" * (noise.random() < share / 4) for word in words),
        "numbers": lambda: " ".join(str(len(word) * 137 % 999) if noise.random() < share / 3 else word for word in words),
        "no stop words": lambda: re.sub(r"\b(the|be|to|of|and|that|have|with)\b", lambda m: m[0] * (noise.random() < 0.002), text[:8000]),
        "no punctuation": lambda: change(lambda old: old.rstrip(".?!\"' ")),
        "short": lambda: " ".join(words[: noise.randrange(1, 100)]),
        "few words a line": lambda: re.sub(" ", lambda m: " \n"[noise.random() < share / 2], text[:8000]),
        "long words": lambda: re.sub(" ", lambda m: " " * (noise.random() < share), text[:8000]),
        "short words": lambda: re.sub(r"\w{3,}", lambda m: m[0][: 1 + int(share * 4)], text[:8000]),
        "very long word": lambda: change(lambda old: old + "x" * 1001),
        "curly": lambda: "\n".join([*lines[:position], "Set {x}. It is so.", *lines[position:]]),
        "lorem": lambda: "\n".join([*lines[:position], "Lorem ipsum dolor sit amet" + noise.choice([".", ""]), *lines[position:]]),
        "javascript": lambda: change(lambda old: old + " Please enable JavaScript to go on."),
        "policy": lambda: change(lambda old: "We use cookies, see our Privacy Policy. " + old),
        "citations": lambda: change(
            lambda old: re.sub(r"\. ", "[3]. ", old) + noise.choice(["[12]", " [1]", "[edit]", "[citation needed]"])
        ),
        "one line": lambda: " ".join(words),
        "white space": lambda: re.sub(" ", lambda m: noise.choice([" ", "  ", "\t", "\u00a0", " \u2009", "\x0b", "\u2028"]), text[:8000]),
    }
    kind = noise.choice(sorted(damages))
    return kind, damages[kind]()


if __name__ == "__main__":
    sys.exit(main())
