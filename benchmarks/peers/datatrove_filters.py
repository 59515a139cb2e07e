"""PEER_PYTHON benchmarks/peers/datatrove_filters.py SAMPLE OUT SPEED_DOCUMENTS

Judges every document of SAMPLE (JSON lines with "text") with datatrove's quality filters and writes one line each: the verdict of every
filter on the text as it is, those of the chain in datatrove's order (C4 changes the text), and a digest of the words. The last line
holds the speed of the chain on the first SPEED_DOCUMENTS and how spaCy segments every chunk between white space. Run by
benchmarks/quality_rules.py in an environment with `datatrove[processing,io]==0.10.1` and `spacy`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from functools import lru_cache
from pathlib import Path

import datatrove.utils.text as utils
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.word_tokenizers import load_word_tokenizer

FILTERS = {
    "repetition": GopherRepetitionFilter(),
    "c4": C4QualityFilter(),
    "gopher": GopherQualityFilter(),
    "fineweb": FineWebQualityFilter(),
    "c4_lenient": C4QualityFilter(filter_no_terminal_punct=False),
}
CHAIN = ("repetition", "c4_lenient", "gopher", "fineweb")  # FineWeb's: C4 without the rule on terminal punctuation


def main() -> None:
    sample, out, speed_documents = sys.argv[1], sys.argv[2], int(sys.argv[3])
    texts = [json.loads(line)["text"] for line in Path(sample).read_text().split("\n")[:-1]]
    utils.split_into_words("warm up")
    start = time.process_time()
    for text in texts[:speed_documents]:
        chain(text)
    speed = len(texts[:speed_documents]) / (time.process_time() - start)
    remember()
    with open(out, "w") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps(judge(text)) + "\n")
            if number % 500 == 0:
                print(f"datatrove: {number} of {len(texts)}", file=sys.stderr, flush=True)
        file.write(json.dumps({"speed": speed, "chunks": segment({chunk for text in texts for chunk in text.split()})}) + "\n")


def remember() -> None:
    """Let spaCy keep its memo between texts and datatrove more than its last five: the same words and sentences in a fifth of the time."""
    load_word_tokenizer("eng").tokenizer.memory_zone = contextlib.nullcontext
    utils.split_into_parts = lru_cache(1000)(utils.split_into_parts.__wrapped__)


def judge(text: str) -> dict:
    verdicts = {}
    for name, rule in FILTERS.items():
        cleaned = Document(text=text, id="")
        verdicts[name] = reason(rule, cleaned)
    for name in CHAIN[2:]:  # the last filter was C4 without terminal punctuation: `cleaned` holds the text that it leaves
        verdicts[f"{name} after C4"] = reason(FILTERS[name], cleaned)
    steps = {"repetition": "repetition", "c4": "c4_lenient", "gopher": "gopher after C4", "fineweb": "fineweb after C4"}
    verdicts["chain"] = next((f"{name}: {verdicts[step]}" for name, step in steps.items() if verdicts[step]), "")
    return verdicts | {"words": digest("\0".join(utils.split_into_words(text))), "text after C4": digest(cleaned.text)}


def chain(text: str) -> str:
    document = Document(text=text, id="")
    for name in CHAIN:
        found = reason(FILTERS[name], document)
        if found:
            return found
    return ""


def reason(rule: object, document: Document) -> str:
    result = rule.filter(document)  # type: ignore[attr-defined]
    return "" if result is True else result[1]


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def segment(chunks: set[str]) -> dict[str, list[str]]:
    tokenizer = load_word_tokenizer("eng")
    return {chunk: tokenizer.word_tokenize(chunk) for chunk in sorted(chunks)}


if __name__ == "__main__":
    main()
