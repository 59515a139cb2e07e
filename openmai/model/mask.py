"""Which keys a query sees: not the future, not beyond the window, not another document."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


@dataclass
class Mask:
    """What limits attention in some layers; `dense` None means that every token sees all before it.

    `dense` is (B or 1, 1 or H, T, S): bool, or numbers that are added to the scores. `blocks` says the same to FlexAttention, which
    skips what nobody sees; it is there on a GPU, without a cache.
    """

    dense: Tensor | None = None
    blocks: BlockMask | None = None


def make_mask(
    positions_BT: Tensor, keys_BS: Tensor, window: int | None, cached: bool, documents_BT: Tensor | None, slopes_H: Tensor | None
) -> Mask:
    """Describe what queries at `positions_BT` see of keys at `keys_BS` (their positions).

    `documents_BT` numbers the documents of a packed row: tokens see their own only. `slopes_H` are ALiBi's. Without a cache queries and
    keys are the same tokens, in the order of their positions within a document.
    """
    length = positions_BT.shape[1]
    if window is not None and window >= length and not cached:
        window = None
    if not (cached or window is not None or documents_BT is not None or slopes_H is not None):
        return Mask()
    if positions_BT.is_cuda and not cached and slopes_H is None:
        return Mask(blocks=_blocks(positions_BT, window, documents_BT))
    behind_BTS = positions_BT[:, :, None] - keys_BS[:, None, :]
    seen = behind_BTS >= 0
    if window is not None:
        seen = seen & (behind_BTS < window)
    if documents_BT is not None:
        seen = seen & (documents_BT[:, :, None] == documents_BT[:, None, :])
    if slopes_H is None:
        return Mask(seen[:, None])
    return Mask((-slopes_H[:, None, None] * behind_BTS[:, None]).masked_fill(~seen[:, None], float("-inf")))


def _blocks(positions_BT: Tensor, window: int | None, documents_BT: Tensor | None) -> BlockMask:
    batch, length = positions_BT.shape

    def seen(b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        ok = i >= j
        if window is not None:
            ok = ok & (i - j < window)
        return ok if documents_BT is None else ok & (documents_BT[b, i] == documents_BT[b, j])

    rows = None if documents_BT is None else batch
    return create_block_mask(seen, rows, None, length, length, device=str(positions_BT.device))


def alibi_slopes(heads: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the fall of the score per token of distance, (H,) (ALiBi, arXiv:2108.12409; for any number of heads as its code has it)."""
    power = 1 << (heads.bit_length() - 1)  # the largest power of two among the heads
    first = 2.0 ** (-8.0 / power * torch.arange(1, power + 1, device=device))
    between = 2.0 ** (-4.0 / power * torch.arange(1, 2 * (heads - power) + 1, 2, device=device))
    return torch.cat((first, between))
