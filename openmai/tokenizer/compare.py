"""`tokenizer compare`: bytes per token of several tokenizers on the same documents, by source and language."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from openmai.base.artifact import Artifact
from openmai.base.errors import OpenmaiError
from openmai.tokenizer.config import CompareConfig
from openmai.tokenizer.sample import count_sources, rates, take
from openmai.tokenizer.splits import SPLITS

Count = Callable[[list[str]], list[int]]  # texts to their numbers of tokens
Row = dict[str, Any]
_BATCH = 64
ALL = ""  # source and language of a row over everything

# The splits of OpenAI's rank files, by file name; o200k tells all letters' case apart, other than our llama.cpp form of it.
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RANK_SPLITS = {
    "r50k_base": SPLITS["gpt-2"][0],
    "p50k_base": SPLITS["gpt-2"][0],
    "cl100k_base": SPLITS["llama-bpe"][0],
    "o200k_base": _CASED,
}


def compare(config: CompareConfig) -> None:
    """Print a table of bytes per token."""
    documents = [Artifact.load(path, "documents") for path in config.documents]
    sizes = count_sources(documents)
    if not sum(sizes.values()):
        raise OpenmaiError(f"{config.documents[0]}: no text to compare on")
    texts = take(documents, rates(sizes, {}, config.max_megabytes * 1e6))
    rows = measure(load_all(config.tokenizers), texts)
    print(json.dumps(rows, indent=2, ensure_ascii=False) if config.as_json else table(rows))


def measure(counters: dict[str, Count], texts: Iterable[tuple[str, str, str]]) -> list[Row]:
    """Count bytes and tokens of (source, language, text); one row per source and language, the first over everything.

    A row holds source, language, bytes, and bytes_per_token by tokenizer.
    """
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    tokens: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: dict.fromkeys(counters, 0))
    pending = iter(texts)
    while batch := list(islice(pending, _BATCH)):
        counted = {name: count([text for _, _, text in batch]) for name, count in counters.items()}
        for number, (source, language, text) in enumerate(batch):
            for key in {(source, language), (ALL, ALL)}:
                sizes[key] += len(text.encode())
                for name in counters:
                    tokens[key][name] += counted[name][number]
    return [
        {
            "source": key[0],
            "language": key[1],
            "bytes": sizes[key],
            "bytes_per_token": {name: sizes[key] / max(1, count) for name, count in tokens[key].items()},
        }
        for key in sorted(sizes)
    ]


def table(rows: list[Row]) -> str:
    """Lay rows of `measure` out as text, a column per tokenizer."""
    names = list(rows[0]["bytes_per_token"])
    head = ["source", "language", "MB", *names]
    lines = [
        [row["source"] or "all", row["language"], f"{row['bytes'] / 1e6:.2f}", *(f"{row['bytes_per_token'][name]:.3f}" for name in names)]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *lines]
    )


def load_all(names: list[str]) -> dict[str, Count]:
    """Load tokenizers under the names of their folders or files, or under their paths where these are not distinct."""
    short = [_label(name) for name in names]
    return {label if short.count(label) == 1 else name: load(name) for label, name in zip(short, names, strict=True)}


def _label(name: str) -> str:
    path = Path(name)
    return path.parent.name if path.name == "tokenizer.json" else path.stem if path.is_file() else path.name


def load(name: str) -> Count:
    """Load a tokenizer by path or by its name in tiktoken; raises OpenmaiError when it is not at hand."""
    path = Path(name)
    if path.is_dir():
        for vocabulary, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
            if (path / merges).exists():
                return _count_with(_gpt2(path / vocabulary, path / merges))
        path = path / "tokenizer.json"
    if path.suffix == ".tiktoken" and path.is_file():
        return _load_ranks(path)
    if path.suffix == ".json":
        try:
            return _count_with(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception for a broken file
            raise OpenmaiError(f"{path}: not a tokenizer ({error})") from None
    return _load_named(name)


def _count_with(backend: tokenizers.Tokenizer) -> Count:
    backend.encode_special_tokens = True
    return lambda texts: [len(encoding.ids) for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _gpt2(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLITS["gpt-2"][0]), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return backend


def _tiktoken() -> Any:
    try:
        import tiktoken
    except ImportError:
        raise OpenmaiError("compare: needs the package tiktoken; pip install 'openmai[interop]', or leave compare empty") from None
    return tiktoken


def _load_ranks(path: Path) -> Count:
    if path.stem not in RANK_SPLITS:
        raise OpenmaiError(f"compare={path}: a rank file does not say how text is split; known by name: {', '.join(RANK_SPLITS)}")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in path.read_bytes().splitlines() if line)}
    encoding = _tiktoken().Encoding(path.stem, pat_str=RANK_SPLITS[path.stem], mergeable_ranks=ranks, special_tokens={})
    return lambda texts: [len(encoding.encode_ordinary(text)) for text in texts]


def _load_named(name: str) -> Count:
    try:
        encoding = _tiktoken().get_encoding(name)
    except (ValueError, OSError) as error:  # an unknown name; no network and not in the cache
        raise OpenmaiError(
            f"compare={name}: no such file, and cannot be had ({error}); put it into TIKTOKEN_CACHE_DIR, give a path, or leave it out"
        ) from None
    return lambda texts: [len(encoding.encode_ordinary(text)) for text in texts]
