"""The key-value cache: a contiguous row per sequence, written at each token's own position."""

from __future__ import annotations

import torch
from torch import Tensor

from openmai.model.config import ModelConfig


class KVCache:
    """Keys and values of all layers for `rows` sequences of at most `length` tokens.

    Tokens of different rows may stand at different positions, so one forward pass serves a mixed batch. Stale entries need no
    clearing: a query at position p sees only keys at positions up to p, and those have been written by then.
    """

    def __init__(
        self, config: ModelConfig, rows: int, length: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        heads = config.num_heads if config.mla else config.kv_heads
        value_width = config.mla.value_width if config.mla else config.head
        shape = (config.num_layers, rows, length, heads)
        self.length = length
        self.keys = torch.zeros(*shape, config.head, device=device, dtype=dtype)
        self.values = torch.zeros(*shape, value_width, device=device, dtype=dtype)
        self.tokens = torch.zeros(rows, length, device=device, dtype=torch.long)

    def update(self, layer: int, rows_B: Tensor, positions_BT: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, used: int) -> tuple[Tensor, Tensor]:
        """Store this step's keys and values; return all of those rows', each (B, used, G, K)."""
        self.keys[layer][rows_B[:, None], positions_BT] = k_BTGK
        self.values[layer][rows_B[:, None], positions_BT] = v_BTGK
        return self.keys[layer][rows_B, :used], self.values[layer][rows_B, :used]

    def tokens_before(self, rows_B: Tensor, positions_BT: Tensor, ids_BT: Tensor) -> Tensor:
        """Store this step's tokens; return the token before each of them, (B, T); for the first of a row its own."""
        self.tokens[rows_B[:, None], positions_BT] = ids_BT
        return self.tokens[rows_B[:, None], (positions_BT - 1).clamp(min=0)]
