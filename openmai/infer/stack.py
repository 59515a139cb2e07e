"""From token ids to logits in one compiled call, for passes in which every sequence has few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, cast

import numpy as np
import torch
from torch import nn

from openmai.cpu.attention import NO_WINDOW
from openmai.cpu.compile import Array, threads
from openmai.cpu.layers import run_layers
from openmai.cpu.products import WIDE
from openmai.infer.blocked import Blocked8BitLinear, BlockedLinear
from openmai.infer.few import FewTokens
from openmai.infer.weights import PackedNorm
from openmai.model.attention import Attention
from openmai.model.cache import Batch
from openmai.model.layers import FeedForward, is_swiglu, soft_cap
from openmai.model.mask import alibi_slopes
from openmai.model.rope import rope_frequencies
from openmai.model.transformer import Block, Outcome, Transformer


class Stack:
    """Computes what a packed model does, from token ids to logits."""

    def __init__(self, model: Transformer) -> None:
        self.config = model.config
        blocks = _blocks(model)
        attentions = [cast(Attention, block.attention) for block in blocks]
        self.parts = [_matrices(block) for block in blocks]  # they keep alive what addresses lead to
        self.matrices = np.array([[_describe(linear) for linear in row] for row in self.parts], np.int64)
        self.eight_bits = isinstance(self.parts[0][0], Blocked8BitLinear)
        self.head = cast(BlockedLinear, model.head)
        self.last = np.array(_describe(self.head), np.int64)
        self.widest = max(linear.weights.shape[1] for linear in self.parts[0])
        self.norms, self.eps = _stacked([[block.attention_norm, block.mlp_norm] for block in blocks] + [[model.norm, model.norm]])
        heads = [[attention.q_norm, attention.k_norm] for attention in attentions] if self.config.qk_norm else []
        none: tuple[Array, np.float32] = np.zeros((len(blocks), 0, 0), np.float32), np.float32(0)
        self.head_norms, self.head_eps = _stacked(heads) if heads else none
        self.sinks = np.stack([np.empty(0, np.float32) if one.sinks_H is None else one.sinks_H.detach().numpy() for one in attentions])
        places = [attention.place for attention in attentions]
        self.turns = np.array([1 + place.is_global if place.has_rope else 0 for place in places])
        self.frequencies: dict[int, tuple[Array, Array]] = {}
        self.slopes = alibi_slopes(self.config.num_heads).numpy() if self.config.positions == "alibi" else np.empty(0, np.float32)
        self.embedding = model.embedding.weight.detach().numpy()
        self.windows = np.array([NO_WINDOW if place.is_global else self.config.window or NO_WINDOW for place in places])

    @staticmethod
    def fits(model: Transformer) -> bool:
        """Tell whether a packed model is one of those: a plain chain of blocks like most, their matrices in blocks of outputs."""
        config, blocks = model.config, _blocks(model)
        form = type(model.head)
        if config.residual_scalars or config.backout or config.smear or config.embedding_norm or config.positions == "learned":
            return False
        if not issubclass(form, BlockedLinear) or not isinstance(model.norm, PackedNorm) or config.width % WIDE:
            return False
        return len(blocks) == config.num_layers and all(_fits(block, form) for block in blocks)

    def __deepcopy__(self, memo: dict[int, object]) -> NoReturn:
        raise TypeError("a packed model cannot be copied: it holds addresses; copy the model before it is packed")

    def __call__(self, batch: Batch, wanted: Sequence[int]) -> Outcome | None:
        """Run a pass, as Transformer.run_pass does; None for one that is not of few tokens."""
        if batch.long or torch.is_grad_enabled():
            return None
        config = self.config
        x = self.embedding[batch.ids_1N[0].numpy()] * np.float32(config.embedding_scale)
        logits = np.empty((len(wanted), len(self.head.bias)), np.float32)
        laid = np.empty(len(x) * self.widest, np.uint32 if self.eight_bits else np.float32)
        run_layers(
            len(x) * config.width**2,
            x, np.array(wanted, np.int64), logits, laid, self.matrices, self.last, self.norms, self.eps, self.head_norms, self.head_eps,
            batch.cache.keys.numpy(), batch.cache.values.numpy(), batch.block_N.numpy(), batch.offset_N.numpy(),
            batch.tables_BM.numpy(), batch.row_N.numpy(), batch.seen_N.numpy(),
            batch.positions_1N[0].numpy(), *self._rotations(batch.length), self.turns, self.windows,
            np.float32(config.score_scale), np.float32(config.attention_softcap or 0), self.sinks, self.slopes, config.num_heads, threads(),
        )  # fmt: skip
        return torch.from_numpy(x), soft_cap(torch.from_numpy(logits[:, : self.head.outputs]), config.logit_softcap)

    def _rotations(self, length: int) -> tuple[Array, Array]:
        """Return frequencies (3, R / 2) and factors (3): those that turn nothing, of layers with a window, and of global ones."""
        if length not in self.frequencies:
            kinds = [rope_frequencies(self.config, length, is_global) for is_global in (False, True)]
            nothing = np.zeros(len(kinds[0][0]), np.float32)
            found = np.stack([nothing, *(frequencies.numpy() for frequencies, _ in kinds)])
            self.frequencies[length] = found, np.array([1, *(factor for _, factor in kinds)], np.float32)
        return self.frequencies[length]


def _blocks(model: Transformer) -> list[Block]:
    return [cast(Block, block) for _, block in model.layers()]


def _fits(block: Block, form: type[nn.Module]) -> bool:
    mlp = block.mlp
    if not FewTokens.fits(block) or not isinstance(mlp, FeedForward) or mlp.joint is None or not is_swiglu(mlp.config):
        return False
    return all(type(linear) is form for linear in _matrices(block)) and _matrices(block)[-1].inputs % WIDE == 0


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
