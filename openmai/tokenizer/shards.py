"""Token shards: Megatron's indexed dataset (`.bin` ids, `.idx` index), memory-mapped, one sequence per document.

Layout of the index, little endian: magic, version (u64), type code (u8), number of sequences (u64), number of document marks (u64),
lengths (i32 each), byte offsets (i64 each), document marks (i64 each). Other trainers (Megatron-LM, NeMo) read it as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openmai.base.errors import OpenmaiError
from openmai.base.files import atomic_file

MAGIC = b"MMIDIDX\x00\x00"
CODES: dict[int, type[np.generic]] = {8: np.uint16, 4: np.int32}


def token_type(vocab_size: int) -> type[np.generic]:
    """Return the smallest type that Megatron uses for a vocabulary."""
    return np.uint16 if vocab_size < 65_500 else np.int32


def write_shard(prefix: Path, documents: Iterable[list[int]], vocab_size: int) -> tuple[int, int]:
    """Write `prefix`.bin and `prefix`.idx; return the numbers of documents and tokens."""
    dtype = token_type(vocab_size)
    lengths = []
    with atomic_file(prefix.with_suffix(".bin")) as file:
        for ids in documents:
            lengths.append(len(ids))
            file.write(np.asarray(ids, dtype=dtype).tobytes())
    sizes = np.asarray(lengths, dtype=np.int32)
    write_index(prefix, lambda: iter([sizes]), len(sizes), dtype)
    return len(sizes), int(sizes.sum(dtype=np.int64))


def write_index(prefix: Path, lengths: Callable[[], Iterator[NDArray[np.int32]]], count: int, dtype: type[np.generic]) -> None:
    """Write `prefix`.idx for `count` sequences, whose lengths come in portions, anew for each section of the file."""
    code = next(code for code, kind in CODES.items() if kind is dtype)
    with atomic_file(prefix.with_name(f"{prefix.name}.idx")) as file:
        file.write(MAGIC + struct.pack("<QBQQ", 1, code, count, count + 1))
        for sizes in lengths():
            file.write(sizes.tobytes())
        before = 0
        for sizes in lengths():
            ends = before + np.cumsum(sizes, dtype=np.int64)
            file.write(((ends - sizes) * np.dtype(dtype).itemsize).tobytes())
            before = int(ends[-1]) if len(ends) else before
        for start in range(0, count + 1, 1 << 20):
            file.write(np.arange(start, min(start + (1 << 20), count + 1), dtype=np.int64).tobytes())


class Shard:
    """A memory-mapped shard: `tokens` is the concatenation of all documents, `lengths` (documents,) their sizes.

    `begins` (documents,) are the bytes before each. The index is mapped as well: that of a billion documents is not held in memory.
    """

    def __init__(self, prefix: Path) -> None:
        index = prefix.with_suffix(".idx")
        try:
            size = index.stat().st_size
            with index.open("rb") as file:
                data = file.read(len(MAGIC) + struct.calcsize("<QBQQ"))
        except FileNotFoundError:
            raise OpenmaiError(f"{index}: no such file; expected a token shard") from None
        head = len(MAGIC) + struct.calcsize("<QBQQ")
        if len(data) < head or data[: len(MAGIC)] != MAGIC:
            raise OpenmaiError(f"{index}: not a token shard index")
        _, code, count, _ = struct.unpack("<QBQQ", data[len(MAGIC) : head])
        dtype = np.dtype(CODES[code])
        if size < head + 12 * count:
            raise OpenmaiError(f"{index}: {size} bytes, too few for its {count} documents: damaged; encode again")
        kinds: list[tuple[type[np.generic], int]] = [(np.int32, head), (np.int64, head + 4 * count)]
        self.lengths, self.begins = (np.memmap(index, kind, "r", at, count) if count else np.zeros(0, kind) for kind, at in kinds)
        binary = prefix.with_suffix(".bin")
        expected = int(self.lengths.sum()) * dtype.itemsize
        if binary.stat().st_size != expected:
            raise OpenmaiError(f"{binary}: {binary.stat().st_size} bytes, but its index says {expected}: damaged; encode again")
        self.tokens: np.ndarray = np.memmap(binary, dtype, "r") if expected else np.zeros(0, dtype)

    def documents(self) -> list[np.ndarray]:
        """Return every document's ids, each ending with the end-of-text token."""
        return np.split(self.tokens, np.cumsum(self.lengths)[:-1])
