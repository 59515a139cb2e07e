"""A pass of few tokens through a block in ten calls instead of sixty: around the products of one token, PyTorch's calls take longer than
the products themselves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from openmai.cpu.steps import gate, normalize, take_heads
from openmai.infer.weights import Joint, PackedNorm
from openmai.model.attention import Attention, Context, attend_in_blocks
from openmai.model.layers import FeedForward, is_swiglu
from openmai.model.moe import MoE
from openmai.model.transformer import Block

_NOTHING = np.empty((1, 1, 1, 0), np.float32)


class FewTokens:
    """Computes what a packed block does, for a pass of which all tokens are of sequences with few; the block itself is its twin."""

    def __init__(self, block: Block) -> None:
        self.block = block
        attention, mlp = block.attention, block.mlp
        assert isinstance(attention, Attention)
        self.attention, config = attention, attention.config
        self.before = [(norm.scale.numpy(), norm.eps) for norm in (block.attention_norm, block.mlp_norm) if isinstance(norm, PackedNorm)]
        heads = [norm for norm in (attention.q_norm, attention.k_norm) if isinstance(norm, PackedNorm)] if config.qk_norm else []
        self.norms = np.stack([norm.scale.numpy() for norm in heads]) if heads else _NOTHING[0, 0]
        self.eps = heads[0].eps if heads else 0.0
        self.fuses = isinstance(mlp, FeedForward) and mlp.joint is not None and is_swiglu(config)

    @staticmethod
    def fits(block: Block) -> bool:
        """Tell whether a packed block is one of those: norms before, RMS, and heads as most have them."""
        attention, config = block.attention, block.attention.config
        norms: list[nn.Module] = [block.attention_norm, block.mlp_norm]
        if not isinstance(attention, Attention) or not isinstance(attention.joint, Joint) or block.parallel or config.clip_qkv:
            return False
        if config.qk_norm:
            if config.qk_norm_span != "head" or config.qk_norm_place != "before":
                return False
            norms += [attention.q_norm, attention.k_norm]
        after = (block.attention_after, block.mlp_after)
        return (
            all(isinstance(norm, PackedNorm) for norm in norms)
            and all(isinstance(norm, nn.Identity) for norm in after)
            and not attention.place.has_value_embedding
        )

    def __call__(self, x_1ND: Tensor, context: Context) -> Tensor:
        """Return the stream after this block, (1, N, D)."""
        attention, place, config, batch = self.attention, self.attention.place, self.attention.config, context.cache
        assert batch is not None
        x = x_1ND[0].numpy()
        _, normed = normalize(x, *self.before[0])
        joint = _whole(attention)(torch.from_numpy(normed)).numpy()
        cos, sin = (table.numpy() for table in context.ropes[place.is_global]) if place.has_rope else (_NOTHING, _NOTHING)
        keys, values = (pool[place.layer].numpy() for pool in (batch.cache.keys, batch.cache.values))
        places = batch.block_N.numpy(), batch.offset_N.numpy()
        q = torch.from_numpy(take_heads(joint, config.num_heads, keys, values, *places, cos, sin, self.norms, self.eps))
        attended = attend_in_blocks(attention, context, q, attention.sinks_H)
        x, normed = normalize(x, *self.before[1], attention.o(attended.flatten(1)).numpy())
        return (torch.from_numpy(x) + self._mix(torch.from_numpy(normed)))[None]

    def _mix(self, x_ND: Tensor) -> Tensor:
        mlp = self.block.mlp
        if isinstance(mlp, MoE):
            return mlp(x_ND[None])[0][0]
        if not self.fuses:
            return mlp(x_ND[None])[0]
        both = _whole(mlp)(x_ND).numpy()
        width = both.shape[1] // 2
        return mlp.down(torch.from_numpy(gate(both[:, width:], both[:, :width])))


def _whole(module: nn.Module) -> nn.Module:
    """Return the one product that a module's `joint` is; looked up at each pass, for adapters wrap it."""
    joint = module.joint
    assert isinstance(joint, Joint)
    return joint.whole
