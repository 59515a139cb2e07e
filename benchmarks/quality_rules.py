"""python benchmarks/quality_rules.py --data DIR --peer-python PATH [--work DIR]

Judges the same documents with our quality rules and with datatrove's filters and prints the agreement per filter and for the chain,
what the disagreements come from, how the words agree, and the documents per CPU second of both. DIR holds the folders web_dclaw, web_html,
gutenberg, openstax, factbook, peps and wikitext2; what is missing is said and left out. PATH is the Python of an environment with
`datatrove[processing,io]==0.10.1` and `spacy`. What the peer found is kept in --work and used again.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import mean

from fastwarc.warc import ArchiveIterator, WarcRecordType
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding

from openmai.data.filter import english
from openmai.data.filter.config import LineRules, Thresholds
from openmai.data.filter.metrics import clean_and_measure, measure
from openmai.data.filter.rules import RULES, judge
from openmai.data.filter.words import words

DEGRADED = 2500
PEER = Path(__file__).parent / "peers" / "datatrove_filters.py"
WEB = Thresholds(min_alpha_words=0.8)  # datatrove's; the only limit of `web` that is another
STRICT, LENIENT = LineRules(terminal_punctuation=True), LineRules()
# What datatrove calls the reasons that we give; all of ours it has.
REASONS = {
    "dup_para_frac": "repetition.duplicate_paragraphs",
    "dup_para_char_frac": "repetition.duplicate_paragraph_chars",
    "dup_line_frac": "repetition.duplicate_lines",
    "dup_line_char_frac": "repetition.duplicate_line_chars",
    **{f"top_{n}_gram": f"repetition.top_{n}gram" for n in range(2, 5)},
    **{f"duplicated_{n}_n_grams": f"repetition.duplicate_{n}gram" for n in range(5, 11)},
    "lorem_ipsum": "c4.lorem",
    "curly_bracket": "c4.curly",
    "too_few_sentences": "c4.sentences",
    "gopher_short_doc": "gopher.words",
    "gopher_long_doc": "gopher.words",
    "gopher_below_avg_threshold": "gopher.mean_word",
    "gopher_above_avg_threshold": "gopher.mean_word",
    "gopher_too_many_hashes": "gopher.hashes",
    "gopher_too_many_ellipsis": "gopher.ellipses",
    "gopher_too_many_bullets": "gopher.bullet_lines",
    "gopher_too_many_end_ellipsis": "gopher.ellipsis_lines",
    "gopher_below_alpha_threshold": "gopher.alpha_words",
    "gopher_enough_stop_words": "gopher.stop_words",
    "line_punct_ratio": "fineweb.line_punctuation",
    "short_line_ratio": "fineweb.short_lines",
    "char_dup_ratio": "fineweb.repeated_line_chars",
    "list_ratio": "fineweb.newlines",
}
FILTERS = ("repetition", "c4", "c4_lenient", "gopher", "fineweb")
DIGESTS = ("words", "text after C4")
NAMES = (*FILTERS, "gopher after C4", "fineweb after C4", "chain", *DIGESTS)  # c4_lenient and after C4: without terminal punctuation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "openmai-quality-rules")
    options = parser.parse_args()
    if not options.data or not options.peer_python:
        print("benchmarks/quality_rules.py needs --data and --peer-python; --help says what they are")
        return 0
    options.work.mkdir(parents=True, exist_ok=True)
    sample, peer = options.work / "sample.jsonl", options.work / "peer.jsonl"
    if not sample.exists():
        build_sample(options.data, sample)
    if not peer.exists():
        subprocess.run([options.peer_python, PEER, sample, peer.with_suffix(".part"), "300"], check=True)
        peer.with_suffix(".part").rename(peer)
    rows = [json.loads(line) for line in sample.open()]
    *verdicts, last = [json.loads(line) for line in peer.open()]
    print(f"{len(rows)} documents, {len(rows) - DEGRADED} as they are, {DEGRADED} damaged; {os.cpu_count()} cores\n")
    speed = our_speed([row["text"] for row in rows])
    compare(rows, verdicts)
    compare_chunks(rows, last["chunks"])
    print(f"\ndocuments per CPU second, whole chain: ours {speed:.0f}, datatrove {last['speed']:.1f}, ratio {speed / last['speed']:.0f}")
    sizes = [len(row["text"]) for row in rows]
    print(f"(ours on the whole sample, {mean(sizes):.0f} characters each; datatrove on its first 300, {mean(sizes[:300]):.0f} characters)")
    return 0


def our_speed(texts: list[str]) -> float:
    """Return the documents per CPU second of the whole chain, from a vocabulary that knows nothing; compiling is not counted."""
    measure("warm up.")
    start = time.process_time()
    for text in texts:
        judge(clean_and_measure(text, "en", LENIENT)[1], WEB)
    return len(texts) / (time.process_time() - start)


def compare(rows: list[dict], verdicts: list[dict]) -> None:
    """Print how often verdicts and reasons are the same, per filter and per rule, and where they are not."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
    rules: Counter[tuple[str, str]] = Counter()
    differences: list[str] = []
    for number, (row, theirs) in enumerate(zip(rows, verdicts, strict=True)):
        ours = our_verdicts(row["text"])
        for name in NAMES:
            if "after" in name and theirs["c4_lenient"]:
                continue  # the peer has not changed a text that it rejects
            mine, other = ours[name], REASONS.get(theirs[name].split(": ")[-1], theirs[name])
            is_same = mine == other if name in DIGESTS else bool(mine) == bool(other)
            counts[name].update(documents=1, verdict=is_same, reason=mine == other)
            if name in FILTERS:
                rules.update([(mine, "both")] if mine == other else [(mine, "ours"), (other, "theirs")])
            if mine != other:
                same_words = "same" if ours["words"] == theirs["words"] else "other"
                differences.append(
                    f"  {number} ({row['kind']}), {name}: ours {mine or 'keep'}, theirs {other or 'keep'}, {same_words} words"
                )
    print(f"{'filter':<26} {'documents':>9} {'same verdict':>13} {'same reason':>12}")
    for name, count in counts.items():
        total = count["documents"]
        print(f"{name:<26} {total:>9} {count['verdict'] / total:>13.4%} {count['reason'] / total:>12.4%}")
    print(f"\n{'documents that a rule rejects':<36} {'both':>6} {'only ours':>10} {'only theirs':>12}")
    for rule in dict.fromkeys(REASONS.values()):
        print(f"{rule:<36} {rules[rule, 'both']:>6} {rules[rule, 'ours']:>10} {rules[rule, 'theirs']:>12}")
    print(f"\n{len(differences)} differences", *differences[:30], sep="\n")


def our_verdicts(text: str) -> dict[str, str]:
    """Return what peers/datatrove_filters.py returns of a text, found with our rules."""
    raw, (cleaned, lenient), (_, strict) = measure(text), clean_and_measure(text, "en", LENIENT), clean_and_measure(text, "en", STRICT)
    return {
        **{name: verdict(raw, name) for name in ("repetition", "gopher", "fineweb")},
        "c4": verdict(strict, "c4"),
        "c4_lenient": verdict(lenient, "c4"),
        "gopher after C4": verdict(lenient, "gopher"),
        "fineweb after C4": verdict(lenient, "fineweb"),
        "chain": judge(lenient, WEB)[0],
        "words": digest("\0".join(words(text))),
        "text after C4": digest(cleaned),
    }


def verdict(metrics: dict[str, float], family: str) -> str:
    return next((name for name, rule in RULES.items() if name.startswith(family) and rule(metrics, WEB)), "")


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def compare_chunks(rows: list[dict], theirs: dict[str, list[str]]) -> None:
    """Print how many of the chunks between white space are cut as spaCy cuts them."""
    uses = Counter(chunk for row in rows for chunk in row["text"].split())
    other = [chunk for chunk, pieces in theirs.items() if list(english.segment(chunk)) != pieces]
    share = sum(uses[chunk] for chunk in other) / uses.total()
    print(f"\nchunks: {len(theirs)} different, {len(other)} of them cut otherwise ({share:.5%} of all {uses.total()})")
    for chunk in other[:20]:
        print(f"  {chunk[:60]!r}: ours {list(english.segment(chunk))[:8]}, theirs {theirs[chunk][:8]}")


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
        for line in gzip.decompress(file.read_bytes()).splitlines():
            yield json.loads(line)["text"]


def book_pieces(folder: Path) -> Iterator[str]:
    """Yield pieces of about 6,000 characters of the first 150 books, and the first three books whole."""
    for number, text in enumerate(islice(json_texts(folder), 150)):
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
