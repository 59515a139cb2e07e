"""All blocks of a model in one compiled call, for passes in which every sequence has few tokens."""

from __future__ import annotations

from typing import NoReturn, cast

import numpy as np
import torch
from torch import Tensor, nn

from openmai.cpu.attention import NO_WINDOW
from openmai.cpu.compile import Array, compiles, threads
from openmai.cpu.layers import run_layers
from openmai.cpu.products import WIDE
from openmai.infer.blocked import Blocked8BitLinear, BlockedLinear
from openmai.infer.few import FewTokens
from openmai.infer.weights import PackedNorm
from openmai.model.attention import Attention, Context
from openmai.model.layers import FeedForward, is_swiglu
from openmai.model.transformer import Block, Transformer


class Stack:
    """Computes what the packed blocks of a model do one after the other."""

    def __init__(self, model: Transformer) -> None:
        self.config = model.config
        blocks = _blocks(model)
        attentions = [cast(Attention, block.attention) for block in blocks]
        self.parts = [_matrices(block) for block in blocks]  # they keep alive what addresses lead to
        self.matrices = np.array([[_describe(linear) for linear in row] for row in self.parts], np.int64)
        self.eight_bits = isinstance(self.parts[0][0], Blocked8BitLinear)
        self.widest = max(linear.weights.shape[1] for linear in self.parts[0])
        self.norms, self.eps = _stacked([[block.attention_norm, block.mlp_norm] for block in blocks])
        heads = [[attention.q_norm, attention.k_norm] for attention in attentions] if self.config.qk_norm else []
        none: tuple[Array, np.float32] = np.zeros((len(blocks), 0, 0), np.float32), np.float32(0)
        self.head_norms, self.head_eps = _stacked(heads) if heads else none
        self.sinks = np.stack([np.empty(0, np.float32) if one.sinks_H is None else one.sinks_H.detach().numpy() for one in attentions])
        places = [attention.place for attention in attentions]
        self.kinds = sorted({place.is_global for place in places if place.has_rope})
        self.turns = np.array([self.kinds.index(place.is_global) + 1 if place.has_rope else 0 for place in places])
        self.windows = np.array([NO_WINDOW if place.is_global else self.config.window or NO_WINDOW for place in places])

    @staticmethod
    def fits(model: Transformer) -> bool:
        """Tell whether a packed model is one of those: a plain chain of blocks like most, their matrices in blocks of outputs."""
        config, blocks = model.config, _blocks(model)
        plain = not config.residual_scalars and not config.backout and len(blocks) == config.num_layers
        return plain and config.width % WIDE == 0 and all(_fits(block) for block in blocks)

    def __deepcopy__(self, memo: dict[int, object]) -> NoReturn:
        raise TypeError("a packed model cannot be copied: it holds addresses; copy the model before it is packed")

    def __call__(self, x_1ND: Tensor, context: Context) -> Tensor | None:
        """Return the stream after all blocks, (1, N, D); None for a pass that is not of few tokens."""
        batch, config = context.cache, self.config
        if batch is None or batch.long or not compiles(x_1ND):
            return None
        x = x_1ND[0].numpy().copy()
        laid = np.empty(len(x) * self.widest, np.uint32 if self.eight_bits else np.float32)
        slopes = np.empty(0, np.float32) if context.slopes_H is None else context.slopes_H.numpy()
        run_layers(
            len(x) * config.width**2,
            x, laid, self.matrices, self.norms, self.eps, self.head_norms, self.head_eps,
            batch.cache.keys.numpy(), batch.cache.values.numpy(), batch.block_N.numpy(), batch.offset_N.numpy(),
            batch.tables_BM.numpy(), batch.row_N.numpy(), batch.seen_N.numpy(), *self._tables(context, len(x)), self.turns, self.windows,
            np.float32(config.score_scale), np.float32(config.attention_softcap or 0), self.sinks, slopes, config.num_heads, threads(),
        )  # fmt: skip
        return torch.from_numpy(x)[None]

    def _tables(self, context: Context, count: int) -> tuple[Array, Array]:
        """Return cosines and sines, (kinds, N, R / 2): first those that turn nothing, then of each kind of layer."""
        ropes = [context.ropes[kind] for kind in self.kinds]
        half = ropes[0][0].shape[-1] if ropes else 0
        cos, sin = np.ones((len(ropes) + 1, count, half), np.float32), np.zeros((len(ropes) + 1, count, half), np.float32)
        for number, (cosines, sines) in enumerate(ropes, start=1):
            cos[number], sin[number] = cosines[0, :, 0].numpy(), sines[0, :, 0].numpy()
        return cos, sin


def _blocks(model: Transformer) -> list[Block]:
    return [cast(Block, block) for _, block in model.layers()]


def _fits(block: Block) -> bool:
    mlp = block.mlp
    if not FewTokens.fits(block) or not isinstance(mlp, FeedForward) or mlp.joint is None or not is_swiglu(mlp.config):
        return False
    kinds = {type(linear) for linear in _matrices(block)}
    return len(kinds) == 1 and issubclass(kinds.pop(), BlockedLinear) and _matrices(block)[-1].inputs % WIDE == 0


def _matrices(block: Block) -> list[BlockedLinear]:
    """Return a block's matrices in the order of openmai/cpu/layers.py."""
    attention, mlp = block.attention, cast(FeedForward, block.mlp)
    found = [cast(nn.Module, attention.joint).whole, attention.o, cast(nn.Module, mlp.joint).whole, mlp.down]
    return [cast(BlockedLinear, linear) for linear in found]


def _describe(linear: BlockedLinear) -> list[int]:
    """Return what compiled code must know of a matrix."""
    arrays = (linear.weights, linear.bias, linear.scale, linear.offset)
    return [array.ctypes.data for array in arrays] + [linear.weights.shape[1], len(linear.bias)]


def _stacked(norms: list[list[nn.Module]]) -> tuple[Array, np.float32]:
    """Return the weights of norms of all blocks, and their epsilon."""
    found = [[cast(PackedNorm, norm) for norm in row] for row in norms]
    return np.stack([[norm.scale.numpy() for norm in row] for row in found]), np.float32(found[0][0].eps)
