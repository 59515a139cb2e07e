"""The transformer: one readable model for every architecture that ModelConfig can name.

Shapes: B batch, T position, S key position, V vocabulary, D model width, F feed-forward width, H query heads, G key-value heads,
K head width, E experts, A active experts per token, N flattened tokens, L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openmai.model.attention import Attention, Context, LatentAttention
from openmai.model.cache import KVCache
from openmai.model.config import ModelConfig
from openmai.model.layers import FeedForward, make_norm, rope_table
from openmai.model.moe import MoE, Router


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); `norm_place` moves the norm behind, or adds one there."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        before, after = config.norm_place != "after", config.norm_place != "before"
        self.attention_norm = make_norm(config, config.width) if before else nn.Identity()
        self.attention = LatentAttention(config, layer) if config.mla else Attention(config, layer)
        self.attention_after = make_norm(config, config.width) if after else nn.Identity()
        self.mlp_norm = make_norm(config, config.width) if before else nn.Identity()
        self.mlp = MoE(config) if config.is_moe(layer) else FeedForward(config, config.ffn_width)
        self.mlp_after = make_norm(config, config.width) if after else nn.Identity()

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_BTD = x_BTD + self.attention_after(self.attention(self.attention_norm(x_BTD), context))
        return x_BTD + self.mlp_after(self.mlp(self.mlp_norm(x_BTD)))


class Transformer(nn.Module):
    """A decoder-only language model; it does not know that it is distributed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = make_norm(config, config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=config.head_bias)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        cache: KVCache | None = None,
        rows_B: Tensor | None = None,
        last_B: Tensor | None = None,
    ) -> Tensor:
        """Return logits (B, T, V), or (B, V) of only the tokens at index `last_B` of each row.

        With a `cache`, `rows_B` names the cache row of each sequence and `positions_BT` the place of each token in it.
        """
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
        context = self._context(positions_BT, cache, rows_B)
        x_BTD = self.embedding(ids_BT)
        if self.position_embedding is not None:
            x_BTD = x_BTD + self.position_embedding(positions_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, context)
        if last_B is not None:
            x_BTD = x_BTD[torch.arange(len(last_B), device=x_BTD.device), last_B]
        return self.head(self.norm(x_BTD))

    def _context(self, positions_BT: Tensor, cache: KVCache | None, rows_B: Tensor | None) -> Context:
        config = self.config
        used = int(positions_BT.max()) + 1 if cache is not None else positions_BT.shape[1]
        width = config.mla.rope_width if config.mla else config.head
        rope = rope_table(positions_BT, width, config.rope_theta) if config.positions == "rope" else None
        keys_S = torch.arange(used, device=positions_BT.device) if cache is not None else positions_BT[0]
        ahead_BTS = positions_BT[:, :, None] - keys_S
        masks: dict[bool, Tensor | None] = {True: (ahead_BTS >= 0)[:, None] if cache is not None else None}
        if config.window is not None:
            masks[False] = ((ahead_BTS >= 0) & (ahead_BTS < config.window))[:, None]
        return Context(positions_BT, rope, masks, cache, rows_B, used)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw all weights from one seeded generator, in the order of their names.

        Matrices that read the residual stream get uniform weights of standard deviation 1/sqrt(fan-in), those that write to it start
        at zero, the output head is small: the scheme of nanochat, which suits Muon.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in sorted(self.named_parameters()):
            drawn = torch.empty(parameter.shape)
            if parameter.ndim == 1:
                drawn.fill_(0.0 if name.endswith("bias") else 1.0)
            elif name.startswith(("embedding", "position_embedding")):
                drawn.normal_(0, 0.02 if self.config.tied_embeddings else 0.8, generator=generator)
            elif name.startswith("head"):
                drawn.normal_(0, 0.001, generator=generator)
            elif name.endswith(self._writers()):
                drawn.zero_()
            else:
                bound = (3 / parameter.shape[-1]) ** 0.5
                drawn.uniform_(-bound, bound, generator=generator)
            parameter.copy_(drawn)

    def _writers(self) -> tuple[str, ...]:
        """Endings of the matrices that write to the residual stream; none where a norm follows them, which has no gradient scale at 0.

        Experts between latent projections write to the latent: only the projection behind them starts at zero, else none would ever learn.
        """
        if self.config.norm_place != "before":
            return ()
        latent = self.config.moe is not None and self.config.moe.latent_width is not None
        return ".o.weight", ".down.weight", "latent_up.weight" if latent else "down_EDF"

    def routers(self) -> list[Router]:
        """The routers of all mixture layers, in order."""
        return [module for module in self.modules() if isinstance(module, Router)]

    def balance_penalty(self) -> Tensor:
        """Sum of the balancing penalties of the last training forward pass (0 for a dense model)."""
        return sum((router.penalty for router in self.routers()), start=torch.zeros((), device=self.embedding.weight.device))

    def matrices(self) -> list[nn.Parameter]:
        """Weights inside the blocks that are matrices or stacks of matrices (what Muon updates), without routers."""
        routers = {id(router.weight_ED) for router in self.routers()}
        return [parameter for parameter in self.blocks.parameters() if parameter.ndim >= 2 and id(parameter) not in routers]


def num_parameters(model: nn.Module) -> int:
    """Count distinct parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
