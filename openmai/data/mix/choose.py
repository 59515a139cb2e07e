"""Which documents are taken, where not all are: by the hash of their ids, so that a smaller choice is part of a larger one.

All functions work on arrays over the documents of the pool, a few bytes each; texts are never in memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openmai.base.errors import OpenmaiError

Mask = NDArray[np.bool_]
_ROUNDS = 20


@dataclass
class Names:
    """Strings numbered in the order in which they come."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    def names(self) -> list[str]:
        return list(self.numbers)


@dataclass
class Pool:
    """The documents by number (N,): hash of the id, bytes of text, and numbers of source, licence, language and host."""

    order: NDArray[np.uint64]
    sizes: NDArray[np.int64]
    groups: dict[str, NDArray[np.int32]]
    names: dict[str, Names]

    def bytes_of(self, group: str, taken: Mask) -> dict[str, int]:
        """Return the bytes of the taken documents by the names of `group`."""
        totals = np.bincount(self.groups[group][taken], self.sizes[taken], minlength=len(self.names[group].numbers))
        return {name: int(totals[number]) for name, number in self.names[group].numbers.items()}


def order_of(document_id: str, seed: int) -> int:
    """Return the 64-bit place of a document in the order of choice."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{document_id}".encode(), digest_size=8).digest(), "big")


def cut(pool: Pool, taken: Mask, group: str, limits: dict[int, float], reach: bool = False) -> None:
    """Leave documents out of `taken` until each numbered member of `group` has at most its limit of bytes; the first in order stay.

    `reach` keeps the document that crosses the limit too, so that at least the limit is left.
    """
    codes = pool.groups[group]
    for code, limit in limits.items():
        rows = np.flatnonzero(taken & (codes == code))
        if pool.sizes[rows].sum() <= limit:
            continue
        rows = rows[np.argsort(pool.order[rows], kind="stable")]
        before = np.cumsum(pool.sizes[rows]) - (pool.sizes[rows] if reach else 0)
        taken[rows[before >= limit if reach else before > limit]] = False


def keep_shares(pool: Pool, taken: Mask, caps: dict[str, dict[str, float]], others: dict[str, float]) -> None:
    """Leave documents out of `taken` until no member of a group has more than its share of all bytes that stay.

    `caps` holds shares by group and name, `others` by group the share of names without one of their own. One group's cuts change the
    others' shares, so this goes round until nothing changes. Raises OpenmaiError where only nothing would be left.
    """
    for _ in range(_ROUNDS):
        before = int(taken.sum())
        for group in caps:
            _keep_group(pool, taken, group, caps[group], others[group])
        if int(taken.sum()) == before:
            return


def _keep_group(pool: Pool, taken: Mask, group: str, caps: dict[str, float], other: float) -> None:
    sizes = pool.bytes_of(group, taken)
    present = {name: size for name, size in sizes.items() if size}
    shares = {name: caps.get(name, other) for name in present}
    total = largest_total(list(present.values()), list(shares.values()))
    if present and total <= 0:
        listed = ", ".join(f"{name or '(none)'} {share:g}" for name, share in list(shares.items())[:5])
        raise OpenmaiError(
            f"{group}: the shares allowed ({listed}) leave nothing of these documents; for what is there they must come to at least 1"
        )
    codes = pool.names[group].numbers
    slack = 1 + 1e-12
    cut(pool, taken, group, {codes[name]: shares[name] * total * slack for name in present if shares[name] < 1})


def largest_total(sizes: list[int], shares: list[float]) -> float:
    """Return the largest K for which K = sum of min(size, share * K): members filled up to their share of what is kept.

    Those with the largest size / share are cut first; with m of them cut, K = (sizes of the others) / (1 - shares of the cut).
    """
    whole, bound = float(sum(sizes)), 0.0
    order = sorted(range(len(sizes)), key=lambda i: sizes[i] / shares[i] if shares[i] else np.inf, reverse=True)
    for i in order:
        total = whole / (1 - bound)
        if sizes[i] <= shares[i] * total * (1 + 1e-9):
            return total
        whole, bound = whole - sizes[i], bound + shares[i]
        if bound >= 1 - 1e-12:  # the shares are targets, and the one just cut is the scarcest
            return sizes[i] / shares[i]
    return 0.0
