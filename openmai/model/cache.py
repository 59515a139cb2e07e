"""The key-value cache in blocks: a sequence owns a list of blocks, so memory is shared out as sequences grow.

A forward pass takes tokens of several sequences side by side, (1, N), some only one token, some a stretch of a prompt; `Batch` says where
each token is written and what it may read. Paging after vLLM (arXiv:2309.06180).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from openmai.cpu.compile import compiles
from openmai.cpu.memory import Arena
from openmai.cpu.steps import store
from openmai.model.config import ModelConfig
from openmai.model.mask import Mask, make_mask

FEW = 8  # sequences with at most this many new tokens in a pass read the cache where it lies; longer ones gather theirs first


class PagedCache:
    """Keys and values of all layers, (L, blocks, G, block, K). Latent attention keeps what it has compressed, for all heads together."""

    def __init__(
        self, config: ModelConfig, blocks: int, block: int = 16, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.config, self.block, self.length = config, block, blocks * block
        groups, width = (1, config.mla.kv_rank + config.mla.rope_width) if config.mla else (config.kv_heads, config.head)
        shape = (config.num_layers, blocks, groups, block, width)

        def pool() -> Tensor:
            if torch.device(device).type == "cpu" and dtype == torch.float32:
                return torch.from_numpy(Arena().take(shape, np.float32))
            return torch.zeros(shape, device=device, dtype=dtype)

        self.keys = pool()
        self.values = self.keys[..., : config.mla.kv_rank] if config.mla else pool()


@dataclass(frozen=True)
class Span:
    """The new tokens of one sequence: `count` of them from position `start` on, at index `first` of the pass; its blocks in order."""

    blocks: Sequence[int]
    start: int
    count: int
    first: int


@dataclass
class Batch:
    """One forward pass: N tokens, of sequences with few new ones first. `ids_1N` and `positions_1N` go into the model with it.

    `tables_BM` holds the blocks of the sequences with few tokens, `row_N` and `seen_N` of their tokens the row in it and how many keys
    there are up to the token itself.
    """

    cache: PagedCache
    length: int
    "the longest that sequences of this cache may become; LongRoPE asks"
    ids_1N: Tensor
    positions_1N: Tensor
    before_1N: Tensor
    "the token before each token; for the first of a sequence, itself"
    block_N: Tensor
    offset_N: Tensor
    tables_BM: Tensor
    row_N: Tensor
    seen_N: Tensor
    long: list[Span]
    _masks: dict[tuple[int, int | None], Mask] = field(default_factory=dict)

    def write(self, layer: int, k_NGK: Tensor, v_NGK: Tensor | None = None) -> None:
        """Store this pass's keys and values; latent attention has no values of their own."""
        for pool, new_NGK in ((self.cache.keys, k_NGK), (self.cache.values, v_NGK)):
            if new_NGK is None:
                continue
            if compiles(new_NGK):
                store(pool[layer], self.block_N, self.offset_N, new_NGK)
            else:
                pool[layer][self.block_N, :, self.offset_N] = new_NGK

    def read(self, layer: int, span: Span) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a sequence up to its last new token, each (1, S, G, K)."""
        size = span.start + span.count
        blocks = torch.tensor(span.blocks[: -(-size // self.cache.block)], device=self.block_N.device)
        return tuple(  # type: ignore[return-value]
            pool[layer][blocks].transpose(1, 2).flatten(0, 1)[None, :size] for pool in (self.cache.keys, self.cache.values)
        )

    def read_few(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys and values, (N', M x block, G, K), for each token of the sequences with few; what lies beyond a token is padding."""
        tables_NM = self.tables_BM[self.row_N].long()
        return tuple(pool[layer][tables_NM].transpose(2, 3).flatten(1, 2) for pool in (self.cache.keys, self.cache.values))  # type: ignore[return-value]

    def mask(self, span: Span | None, window: int | None, slopes_H: Tensor | None) -> Mask:
        """Return what the new tokens of a span see of its keys; of None: each token with few of its own row of `read_few`."""
        key = (-1 if span is None else span.first, window)
        if key not in self._masks:
            if span is None:
                queries_BT = self.seen_N[:, None].long() - 1
                size = self.tables_BM.shape[1] * self.cache.block
            else:
                queries_BT = self.positions_1N[:, span.first : span.first + span.count]
                size = span.start + span.count
            keys_1S = torch.arange(size, device=queries_BT.device)[None]
            self._masks[key] = make_mask(queries_BT, keys_1S, window, True, None, slopes_H)
        return self._masks[key]


def batch_of(cache: PagedCache, length: int, sequences: Sequence[tuple[Sequence[int], int, Sequence[int], Sequence[int]]]) -> Batch:
    """Lay out a forward pass. Each sequence is (its new tokens, position of the first, its blocks, the token before the first or nothing).

    Sequences with more than FEW new tokens come after the others.
    """
    device, block = cache.keys.device, cache.block
    few = [number for number, (new, *_) in enumerate(sequences) if len(new) <= FEW]
    assert few == list(range(len(few))), "sequences with few new tokens come first"
    ids = [token for new, *_ in sequences for token in new]
    before = [token for new, _, _, last in sequences for token in (last or new[:1])[-1:] + new[:-1]]  # type: ignore[operator]
    positions = [position for new, start, *_ in sequences for position in range(start, start + len(new))]
    places = [blocks[p // block] for new, start, blocks, _ in sequences for p in range(start, start + len(new))]
    widest = max((-(-(start + len(new)) // block) for new, start, *_ in sequences[: len(few)]), default=0)
    tables = [list(blocks[:widest]) + [0] * (widest - len(blocks)) for _, _, blocks, _ in sequences[: len(few)]]
    rows = [number for number, (new, *_) in enumerate(sequences[: len(few)]) for _ in new]
    seen = [position + 1 for position in positions[: len(rows)]]
    long, first = [], len(rows)
    for new, start, blocks, _ in sequences[len(few) :]:
        long.append(Span(blocks, start, len(new), first))
        first += len(new)

    def tensor(values: Sequence[object], dtype: type[np.generic] = np.int64) -> Tensor:
        array = torch.from_numpy(np.array(values, dtype))  # takes a quarter of what torch.tensor does
        return array if device.type == "cpu" else array.to(device)

    offsets = [position % block for position in positions]
    return Batch(
        cache, length, tensor(ids)[None], tensor(positions)[None], tensor(before)[None], tensor(places), tensor(offsets),
        tensor(tables, np.int32).view(len(few), widest), tensor(rows, np.int32), tensor(seen, np.int32), long,
    )  # fmt: skip
