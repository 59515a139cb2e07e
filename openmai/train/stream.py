"""The running hash of everything a run was shown: it proves that a resumed run, of any number of processes, goes on with the same data."""

from __future__ import annotations

import hashlib

import numpy as np

from openmai.parallel.processes import Processes
from openmai.train.loader import Batch

_BYTES = 16


def row_digests(batch: Batch) -> bytes:
    """Return the blake2b-128 digest of the token numbers (little-endian int64) of each row of the micro-batches, one after the other."""
    rows = (row for micro in batch for row in np.ascontiguousarray(micro["ids"].numpy(), dtype="<i8"))
    return b"".join(hashlib.blake2b(row.tobytes(), digest_size=_BYTES).digest() for row in rows)


class TokenStream:
    """Folds each step's global batch, row by row, into one digest; the processes' rows count in the order of `place`."""

    def __init__(self, processes: Processes, place: tuple[int, int] | None = None) -> None:
        """`place` is (number, count) of this process's share of the batch; processes of one number hold the same rows."""
        self.processes = processes
        self.place, self.shares = place or (processes.rank, processes.size)
        self.digest = self.before = ""

    def add(self, batch: Batch) -> str:
        """Take in one step's batch; return the digest as hex."""
        self.before, self.digest = self.digest, self._after(self.digest, batch)
        return self.digest

    def follows(self, batch: Batch) -> bool:
        """Tell whether `batch` is the one that the digest ends with."""
        return self._after(self.before, batch) == self.digest

    def _after(self, digest: str, batch: Batch) -> str:
        rows = self.processes.gather_bytes(self.place.to_bytes(8, "little") + row_digests(batch))
        by_place = {int.from_bytes(part[:8], "little"): part[8:] for part in rows}
        whole = b"".join(by_place[place] for place in range(self.shares))
        return hashlib.blake2b(bytes.fromhex(digest) + whole, digest_size=_BYTES).hexdigest()
