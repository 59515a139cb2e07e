"""python benchmarks/tokenizer.py --data FOLDER

Compression and speed of our tokenizers beside others, in one run. FOLDER holds, as far as it is there, `openstax/`, `gutenberg/`, `peps/`,
`factbook/` (JSON lines, gzipped, with a `text`), `wikitext2/test.txt`, and `tokenizers/` (GPT-2's files in `gpt2/`, rank files in
`tiktoken/`); code is Python's own library. Learns from about `--megabytes` of it, holds out every 20th document and all of wikitext2.

Speed is text per CPU second of one thread, so that a shared machine matters less; whole verbs are per second of the clock.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import re
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["OPENMAI_QUIET"] = "1"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from openmai.base.artifact import create
from openmai.base.config import Config
from openmai.data.document import SCHEMA
from openmai.tokenizer.compare import RANK_SPLITS, Row, load, measure, table
from openmai.tokenizer.config import EncodeConfig, TrainConfig
from openmai.tokenizer.encode import encode
from openmai.tokenizer.fast import FastEncoder, Tables
from openmai.tokenizer.sample import is_validation
from openmai.tokenizer.splits import SPLITS
from openmai.tokenizer.tokenizer import Tokenizer
from openmai.tokenizer.train import train

HELD_OUT = 0.05
Text = tuple[str, str, str]  # source, language, text


class BenchConfig(Config):
    """Says what the documents are."""

    megabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--megabytes", type=float, default=24.0)
    options = parser.parse_args()
    texts = list(read(options.data, options.megabytes * 1e6))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {_processor()}; vocabulary {options.vocabulary:,}")
    sizes = {source: sum(len(text.encode()) for found, _, text in texts if found == source) for source, _, _ in texts}
    print("text: " + ", ".join(f"{source} {size / 1e6:.1f} MB" for source, size in sizes.items()))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write(work / "documents", texts, options.megabytes)
        compare_compression(work, texts, options)
        compare_speed(work, texts, options)


def read(data: Path, budget: float) -> Iterator[Text]:
    """Yield documents, about `budget` bytes in all, the sources in equal parts as far as they reach."""
    files = {name: sorted((data / name).glob("*.jsonl.gz")) for name in ("openstax", "gutenberg", "peps", "factbook")}
    for name in [name for name, found in files.items() if not found]:
        print(f"missing: {data / name}")
    for source, found in files.items():
        left = budget / 5
        for file in found[::3]:
            for line in gzip.decompress(file.read_bytes()).splitlines():
                text = json.loads(line)["text"]
                if left > 0:
                    left -= len(text.encode())
                    yield source, "en", text
    left = budget / 5
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        if left > 0:
            left -= len(text.encode())
            yield "code", "py", text


def write(folder: Path, texts: list[Text], megabytes: float) -> None:
    """Write the texts as a documents artifact of several row groups."""
    rows = [
        {
            "id": f"{number}",
            "text": text,
            "source": source,
            "language": language,
            "url": "",
            "license": "",
            "date": "",
            "scores": [],
            "meta": "",
        }
        for number, (source, language, text) in enumerate(texts)
    ]
    with create(folder, kind="documents", version=1, config=BenchConfig(megabytes=megabytes)) as work:
        (folder / "documents").mkdir()
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "documents" / "part-00000.parquet", row_group_size=200)
        work.finish({})


def compare_compression(work: Path, texts: list[Text], options: argparse.Namespace) -> None:
    """Print bytes per token on held-out text: plain Hugging Face BPE, each of our splits, and known vocabularies."""
    learned = [text for number, (_, _, text) in enumerate(texts) if not is_validation(f"{number}", HELD_OUT)]
    held_out = [text for number, text in enumerate(texts) if is_validation(f"{number}", HELD_OUT)]
    wiki = options.data / "wikitext2" / "test.txt"
    held_out += [("wikitext2", "en", wiki.read_text(encoding="utf-8"))] if wiki.exists() else []
    plain_bpe(learned, options.vocabulary).save(str(work / "plain.json"))
    counters = {"HF plain": load(str(work / "plain.json"))}
    for split in SPLITS:
        out = work / split
        train(TrainConfig(documents=[work / "documents"], out=out, vocab_size=options.vocabulary, split=split, held_out=HELD_OUT))
        counters[split] = load(str(out))
    known = {"GPT-2 50k": "gpt2", "cl100k": "tiktoken/cl100k_base.tiktoken", "o200k": "tiktoken/o200k_base.tiktoken"}
    for name, path in known.items():
        if (options.data / "tokenizers" / path).exists():
            counters[name] = load(str(options.data / "tokenizers" / path))
    rows = measure(counters, held_out)
    print(f"\nbytes per token on held-out text (more is better); all but the last three have {options.vocabulary:,} tokens\n{table(rows)}")
    show_margins("beside HF plain", rows)
    without = [(source, language, re.sub(r" ?\d+", "", text)) for source, language, text in held_out]
    show_margins("the same without digits", measure(counters, without))


def show_margins(title: str, rows: list[Row]) -> None:
    plain = rows[0]["bytes_per_token"]["HF plain"]
    print(f"{title}: " + ", ".join(f"{split} {rows[0]['bytes_per_token'][split] / plain - 1:+.2%}" for split in SPLITS))


def plain_bpe(texts: list[str], size: int) -> tokenizers.Tokenizer:
    """Learn byte-level BPE as `tokenizers` documents it: GPT-2's split, no special tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return backend


def compare_speed(work: Path, texts: list[Text], options: argparse.Namespace) -> None:
    """Print megabytes per CPU second of encoders, most with the same vocabulary and ids, then the whole verb."""
    for split in ("qwen2", "llama-bpe", "deepseek-v3"):
        _compare_encoders(Tokenizer.load(work / split), split, [text for _, _, text in texts], options)
    size = sum(len(text.encode()) for _, _, text in texts) / 1e6
    print("\nthe whole verb `tokenizer encode`, documents to shards:")
    for workers in (1, 2):
        config = EncodeConfig(documents=[work / "documents"], tokenizer=work / "qwen2", out=work / f"shards{workers}", workers=workers)
        start, cpu = time.perf_counter(), time.process_time()
        encode(config)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(f"  {workers} workers: {size / seconds:6.1f} MB per second, {size / cpu:6.1f} MB per CPU second, with loading and hashing")


def _compare_encoders(ours: Tokenizer, split: str, texts: list[str], options: argparse.Namespace) -> None:
    data = [text.encode() for text in texts]
    size = sum(map(len, data)) / 1e6
    joined, ends = np.frombuffer(b"".join(data), np.uint8), np.cumsum([len(text) for text in data])
    spans = np.stack([ends - [len(text) for text in data], ends], 1)
    encoder = FastEncoder(Tables.of(ours))
    encoder.encode(joined, spans[:1])  # compiles
    ranks = {text: rank for rank, text in enumerate(ours.token_bytes) if not text.startswith(b"<|")}
    same = len(SPLITS[split]) == 1  # tiktoken knows one expression only
    converted = tiktoken.Encoding("ours", pat_str=SPLITS[split][0], mergeable_ranks=ranks, special_tokens={}) if same else None
    jobs: dict[str, Callable[[], Any]] = {
        "ours": lambda: encoder.encode(joined, spans),
        "tokenizers, encode_batch_fast": lambda: ours.backend.encode_batch_fast(texts, add_special_tokens=False),
    }
    if converted:
        jobs["tiktoken, encode_ordinary"] = lambda: [converted.encode_ordinary(text) for text in texts]
        jobs["tiktoken, encode_ordinary_batch (1 thread)"] = lambda: converted.encode_ordinary_batch(texts, num_threads=1)
        jobs["tiktoken, encode_to_numpy"] = lambda: [converted.encode_to_numpy(text, disallowed_special=()) for text in texts]
    ranks_file = options.data / "tokenizers" / "tiktoken" / "cl100k_base.tiktoken"
    if split == "llama-bpe" and ranks_file.exists():
        cl100k = tiktoken.Encoding("cl100k", pat_str=RANK_SPLITS["cl100k_base"], mergeable_ranks=_ranks(ranks_file), special_tokens={})
        jobs["tiktoken, its own cl100k_base"] = lambda: [cl100k.encode_ordinary(text) for text in texts]
    print(f"\nencoding {size:.1f} MB with split {split}, MB per CPU second of one thread, best of 3 (median)")
    first = 0.0
    for name, job in jobs.items():
        seconds = sorted(_cpu_seconds(job) for _ in range(3))
        first = first or seconds[0]
        print(f"  {name:<44} {size / seconds[0]:6.2f} ({size / seconds[1]:6.2f})   ours is {seconds[0] / first:5.1f}x as fast")
    fast = encoder.encode(joined, spans)[0]
    slow = np.concatenate([np.array(item.ids, np.int32) for item in jobs["tokenizers, encode_batch_fast"]()])
    print(f"  ids of ours and tokenizers equal: {np.array_equal(fast, slow)} ({len(fast):,})")
    if converted:
        theirs = np.concatenate([np.array(ids, np.int32) for ids in jobs["tiktoken, encode_ordinary"]()])
        print(f"  ids of ours and tiktoken equal: {np.array_equal(fast, theirs)}")


def _cpu_seconds(job: Callable[[], object]) -> float:
    start = time.process_time()
    job()
    return time.process_time() - start


def _ranks(file: Path) -> dict[bytes, int]:
    import base64

    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in file.read_bytes().splitlines() if line)}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
