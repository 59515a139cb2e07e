"""Fill-in-the-middle: a share of the documents is put into another order, so that the model learns to write between two given texts.

Bavarian et al. 2022, arXiv:2207.14255: two cuts at characters drawn evenly over the document; order prefix-suffix-middle (PSM), or
suffix-prefix-middle with its tokens arranged as in section 3 (SPM). The three parts are encoded apart, as they are when the model is asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]  # data[start:stop], or (-1, id) for a token


def choose(document_id: str, rate: float, spm: float) -> tuple[str, float, float]:
    """Return "", "psm" or "spm" for a document, and where to cut it (shares of its length, in order): a pure function of its id."""
    digest = hashlib.blake2b(document_id.encode(), digest_size=32, person=b"fim").digest()
    chance, order, *cuts = (number / 2**64 for number in np.frombuffer(digest, "<u8").tolist())
    first, second = sorted(cuts)
    return ("" if chance >= rate else "spm" if order < spm else "psm"), first, second


def rearrange(data: NDArray[np.uint8], start: int, stop: int, choice: tuple[str, float, float], tokens: Sequence[int]) -> list[Span]:
    """Return the parts of data[start:stop] in the chosen order; `tokens`: the ids of prefix, middle, suffix and end of text."""
    order, *shares = choice
    prefix, middle, suffix, end = ((-1, token) for token in tokens)
    if not order:
        return [(start, stop), end]
    first, second = (_cut(data, start, stop, share) for share in shares)
    if order == "psm":
        return [prefix, (start, first), suffix, (second, stop), middle, (first, second), end]
    return [prefix, suffix, (second, stop), middle, (start, first), (first, second), end]


def _cut(data: NDArray[np.uint8], start: int, stop: int, share: float) -> int:
    """Return the beginning of the character that lies at `share` of the text."""
    place = start + int(share * (stop - start))
    while start < place < stop and data[place] & 0xC0 == 0x80:
        place -= 1
    return place
