"""Linear layers whose matrices lie in blocks of outputs (openmai/cpu/products.py), in fp32 or in 8 bits, for processors with AVX-512."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from openmai.cpu.compile import Array
from openmai.cpu.memory import Arena
from openmai.cpu.products import WIDE, multiply


class BlockedLinear(nn.Module):
    """A linear layer in fp32. What a token gets does not depend on the others of its batch."""

    def __init__(self, linear: nn.Linear, arena: Arena | None = None) -> None:
        super().__init__()
        self.outputs, self.inputs = linear.weight.shape
        self.weights, self.scale, self.offset = self._lay_out(linear.weight.data, arena or Arena())
        self.bias = self._padded(torch.zeros(self.outputs) if linear.bias is None else linear.bias.data)

    def _lay_out(self, weight: Tensor, arena: Arena) -> tuple[Array, Array, Array]:
        """Return weights, scale and offset as `multiply` takes them."""
        return _in_blocks(weight, 1, arena, np.float32), np.empty(0, np.float32), np.empty(0, np.int32)

    def _padded(self, values: Tensor) -> Array:
        whole = np.zeros(-(-self.outputs // WIDE) * WIDE, np.int32 if values.dtype == torch.int32 else np.float32)
        whole[: self.outputs] = values.numpy()
        return whole

    def forward(self, x: Tensor) -> Tensor:
        y = torch.from_numpy(multiply(x.reshape(-1, self.inputs).numpy(), self.weights, self.bias, self.scale, self.offset))
        return y[:, : self.outputs].reshape(*x.shape[:-1], self.outputs)


class Blocked8BitLinear(BlockedLinear):
    """A linear layer with 8-bit weights, a scale per output, and activations brought to 8 bits token by token.

    Sums are of whole numbers and each token has a scale of its own, so what a token gets does not depend on the others of its batch.
    """

    def _lay_out(self, weight: Tensor, arena: Arena) -> tuple[Array, Array, Array]:
        step = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
        whole = (weight / step[:, None]).round().clamp(-127, 127).to(torch.int8)
        offset = whole.sum(dim=1, dtype=torch.int32) * 128
        return _in_blocks(whole, 4, arena, np.int8), self._padded(step / 127), self._padded(offset)


def _in_blocks(weight: Tensor, side_by_side: int, arena: Arena, dtype: type[np.generic]) -> Array:
    """Lay a matrix (F, K) out as blocks of outputs, in each groups of inputs, in each the outputs of the block, padded with zeros."""
    outputs, inputs = weight.shape
    groups = -(-inputs // side_by_side)
    padded = torch.zeros(-(-outputs // WIDE) * WIDE, groups * side_by_side, dtype=weight.dtype)
    padded[:outputs, :inputs] = weight
    blocks = arena.take((len(padded) // WIDE, groups, WIDE * side_by_side), dtype)
    blocks[:] = padded.view(-1, WIDE, groups, side_by_side).transpose(1, 2).flatten(2).numpy()
    return blocks
