"""`tokenizer encode`: documents to token shards `train-<source>` and `val-<source>`.

Beside each shard lies a Parquet table that leads from its sequences back to their documents.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from openmai.base.artifact import Artifact, create
from openmai.base.errors import OpenmaiError
from openmai.base.progress import Progress, say
from openmai.tokenizer.config import EncodeConfig
from openmai.tokenizer.fast import Encoder, FastEncoder, SlowEncoder, Tables
from openmai.tokenizer.pieces import Piece, Plan, encode_piece, join, pieces_of
from openmai.tokenizer.sample import is_validation
from openmai.tokenizer.shards import token_type
from openmai.tokenizer.tokenizer import Tokenizer

SPLITS = ("train", "val")
FIM_TOKENS = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")


def encode(config: EncodeConfig) -> Artifact:
    """Encode all documents; each ends with the end-of-text token."""
    sources = [Artifact.load(path, "documents") for path in config.documents]
    vocabulary = Artifact.load(config.tokenizer, "tokenizer")
    with create(config.out, kind="shards", version=2, config=config, inputs=[*sources, vocabulary]) as work:
        if work.finished:
            return work.finished
        tokenizer = Tokenizer.load(vocabulary.path)
        tokens = [*(tokenizer.special[name] for name in FIM_TOKENS), tokenizer.end_of_text]
        dtype = token_type(tokenizer.vocab_size)

        def split(document_id: str) -> str:
            return "val" if is_validation(document_id, config.validation) else "train"

        plan = Plan(split, config.fim, config.spm, tokens, dtype)
        folders = _encode_pieces(pieces_of(sources), work.path / "pieces", tokenizer, plan, config.workers)
        names = sorted({file.stem.split("-", 1)[1] for folder in folders for file in folder.glob("*.parquet")})
        _check_fim(config, names)
        counts = {split: {name: join(folders, work.path / f"{split}-{name}", dtype) for name in names} for split in SPLITS}
        total = {split: sum(count["tokens"] for count in counts[split].values()) for split in SPLITS}
        if not total["train"]:
            raise OpenmaiError(f"{config.documents[0]}: no documents to encode")
        say(f"shards: {total['train']:,} training tokens, {total['val']:,} for validation, from {', '.join(names)}")
        metrics = {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint, "splits": counts}
        return work.finish(metrics, scratch=["pieces"])


def make_encoders(tokenizer: Tokenizer) -> Callable[[], Encoder]:
    """Return what makes encoders for a tokenizer: fast ones, or slow ones where its way of working has no fast twin."""
    try:
        tables = Tables.of(tokenizer)
    except ValueError as reason:
        say(f"tokenizer: encoding through the library `tokenizers`, some twenty times slower ({reason})")
        return lambda: SlowEncoder(tokenizer)
    return lambda: FastEncoder(tables)


def _encode_pieces(pieces: list[Piece], out: Path, tokenizer: Tokenizer, plan: Plan, workers: int) -> list[Path]:
    """Encode the pieces that are not there yet, on threads, as encoders let go of the interpreter's lock. Return all folders in order."""
    out.mkdir(exist_ok=True)
    folders = [out / f"{piece.number:06d}" for piece in pieces]
    todo = [(piece, folder) for piece, folder in zip(pieces, folders, strict=True) if not folder.exists()]
    make, lock = make_encoders(tokenizer), Lock()
    encoders: SimpleQueue[Encoder] = SimpleQueue()
    workers = min(workers or len(os.sched_getaffinity(0)), max(1, len(todo)))
    for _ in range(workers):
        encoders.put(make())
    with Progress("encode", sum(piece.bytes for piece, _ in todo) / 1e6, "MB") as progress, ThreadPoolExecutor(workers) as pool:

        def advance(size: int) -> None:
            with lock:
                progress.advance(size / 1e6)

        def run(job: tuple[Piece, Path]) -> None:
            encoder = encoders.get()
            encode_piece(*job, encoder, plan, advance)
            encoders.put(encoder)

        for _ in pool.map(run, todo):
            pass
    return folders


def _check_fim(config: EncodeConfig, names: list[str]) -> None:
    unknown = sorted(set(config.fim) - set(names))
    if unknown:
        raise OpenmaiError(f"fim.{unknown[0]}: no such source in the documents; known: {', '.join(names)}")
