"""The transformer: one readable model for every architecture that ModelConfig can name.

Shapes: B batch, T position, S key position, V vocabulary, D model width, F feed-forward width, H query heads, G key-value heads,
K head width, E experts, A active experts per token, N flattened tokens, L layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openmai.cpu.compile import compiles
from openmai.model.attention import Attention, Context, LatentAttention
from openmai.model.cache import Batch
from openmai.model.config import ModelConfig
from openmai.model.layers import FeedForward, make_norm, soft_cap
from openmai.model.mask import alibi_slopes, make_mask
from openmai.model.moe import MoE, Router, Routing
from openmai.model.rope import rope_table
from openmai.model.span import Span, VocabularyPart


class Carried(NamedTuple):
    """What goes from layer to layer: the stream, and what few architectures need of earlier ones; all (B, T, D)."""

    x_BTD: Tensor
    first_BTD: Tensor | None
    middle_BTD: Tensor | None


class Head(nn.Linear):
    """The output matrix; `vocabulary` says which part of the vocabulary it holds when processes divide it."""

    vocabulary: VocabularyPart | None = None


Outcome = tuple[Tensor, Tensor]
"the stream after the last block, (N, D), and the logits (W, V) of some rows of it"


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); `norm_place` moves the norm behind, or adds one there."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        before, after, self.parallel = config.norm_place != "after", config.norm_place != "before", config.parallel
        self.attention_norm = make_norm(config, config.width) if before else nn.Identity()
        self.attention = LatentAttention(config, layer) if config.mla else Attention(config, layer)
        self.attention_after = make_norm(config, config.width) if after else nn.Identity()
        self.mlp_norm = make_norm(config, config.width) if before and not config.parallel else nn.Identity()
        self.mlp = MoE(config) if config.is_moe(layer) else FeedForward(config, config.ffn_width)
        self.mlp_after = make_norm(config, config.width) if after else nn.Identity()
        self.few: Callable[[Tensor, Context], Tensor] | None = None  # computes passes of few tokens on a CPU; set by infer/pack.py

    def forward(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Routing | None]:
        """Return the stream after this layer and, of a mixture, what balancing needs."""
        if self.few is not None and context.cache is not None and not context.cache.long and compiles(x_BTD):
            return self.few(x_BTD, context), None
        normed_BTD = self.attention_norm(x_BTD)
        attended_BTD = self.attention_after(self.attention(normed_BTD, context))
        if not self.parallel:
            x_BTD = x_BTD + attended_BTD
            normed_BTD = self.mlp_norm(x_BTD)
        mixed_BTD, routing = self.mlp(normed_BTD) if isinstance(self.mlp, MoE) else (self.mlp(normed_BTD), None)
        x_BTD = x_BTD + self.mlp_after(mixed_BTD)
        return (x_BTD + attended_BTD if self.parallel else x_BTD), routing


class Predictor(nn.Module):
    """Predicts one token further ahead: joins the stream with the embedding of the next token and runs one more block.

    Multi-token prediction of DeepSeek-V3 (arXiv:2412.19437, section 2.2); embedding and head are the model's own.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stream_norm, self.embedding_norm = make_norm(config, config.width), make_norm(config, config.width)
        self.join = nn.Linear(2 * config.width, config.width, bias=False)
        self.block = Block(config, config.num_layers - 1)
        self.norm = make_norm(config, config.width)

    def forward(self, x_BTD: Tensor, ahead_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor, Routing | None]:
        """Return the stream for the next predictor, the stream as the head takes it, and what balancing needs."""
        joined_BTD = self.join(torch.cat((self.embedding_norm(ahead_BTD), self.stream_norm(x_BTD)), dim=-1))
        x_BTD, routing = self.block(joined_BTD, context)
        return x_BTD, self.norm(x_BTD), routing


class Transformer(nn.Module):
    """A decoder-only language model; it does not know that it is distributed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.embedding_norm = make_norm(config, config.width) if config.embedding_norm else nn.Identity()
        self.smear_gate = nn.Linear(config.smear_gate_width, 1, bias=False) if config.smear else None
        self.smear_scale = nn.Parameter(torch.empty(1)) if config.smear else None
        self.stream_scale_L = nn.Parameter(torch.empty(config.num_layers)) if config.residual_scalars else None
        self.embedding_scale_L = nn.Parameter(torch.empty(config.num_layers)) if config.residual_scalars else None
        self.backout_scale = nn.Parameter(torch.empty(1)) if config.backout else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = make_norm(config, config.width)
        self.head = Head(config.width, config.vocab_size, bias=config.head_bias)
        self.predictors = nn.ModuleList(Predictor(config) for _ in range(config.num_predict))
        self.penalty: Tensor | None = None
        self.compiled = False
        self.few: Callable[[Batch, Sequence[int]], Outcome | None] | None = None  # computes some passes; set by infer/pack.py
        self.span = Span()
        self.heads = slice(None)  # of ALiBi's slopes
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        cache: Batch | None = None,
        last_B: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Return logits (B, T, V), or (B, V) of only the tokens at index `last_B` of each row.

        With a `cache`, ids and positions are those of that batch, (1, N). `documents_BT` numbers the documents of packed rows: no token
        sees another's, and positions begin anew unless they are given.
        """
        x_BTD = self.stream(ids_BT, positions_BT, cache, documents_BT)
        if last_B is not None:
            x_BTD = x_BTD[torch.arange(len(last_B), device=x_BTD.device), last_B]
        return self.logits(x_BTD)

    def run_pass(self, batch: Batch, wanted: Sequence[int]) -> Outcome:
        """Run a pass with a cache; `wanted` says of which rows there shall be logits."""
        if self.few is not None and (found := self.few(batch, wanted)) is not None:
            return found
        x_ND = self.stream(batch.ids_1N, batch.positions_1N, batch)[0]
        return x_ND, self.logits(x_ND[torch.tensor(wanted, device=x_ND.device)]) if wanted else x_ND[:0]

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Return the logits (..., V) of the stream (..., D) after the last block."""
        return soft_cap(self.head(self.norm(x_BTD)), self.config.logit_softcap)

    def stream(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        cache: Batch | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the residual stream after the last block, (B, T, D); in training, keep the balancing penalty and count the load."""
        context = self.context(ids_BT, positions_BT, cache, documents_BT)
        return self.finish(self.run(self.begin(context), context))

    def layers(self) -> Iterator[tuple[int, nn.Module]]:
        """Yield the number and the block of each layer that is here: all of them, unless processes form a pipeline."""
        return ((int(name), block) for name, block in self.blocks.named_children())

    def begin(self, context: Context) -> Carried:
        """Return what the first layer gets."""
        x_BTD = self._embed(context)
        first = x_BTD if self.embedding_scale_L is not None else None
        return Carried(x_BTD, first, x_BTD if self.config.backout else None)

    def run(self, carried: Carried, context: Context) -> Carried:
        """Pass the layers that are here; in training, keep the balancing penalty and count the load."""
        x_BTD, first_BTD, middle_BTD = carried
        routings = []
        for layer, block in self.layers():
            if self.stream_scale_L is not None and self.embedding_scale_L is not None and first_BTD is not None:
                x_BTD = self.stream_scale_L[layer] * x_BTD + self.embedding_scale_L[layer] * first_BTD
            x_BTD, routing = block(x_BTD, context)
            routings.append(routing)
            if middle_BTD is not None and layer == self.config.num_layers // 2:
                middle_BTD = x_BTD
        self._observe(self.blocks, routings)
        return Carried(x_BTD, first_BTD, middle_BTD)

    def finish(self, carried: Carried) -> Tensor:
        """Return the stream (B, T, D) as norm and head take it."""
        if self.backout_scale is None or carried.middle_BTD is None:
            return carried.x_BTD
        return carried.x_BTD - self.backout_scale * carried.middle_BTD

    def streams_ahead(self, x_BTD: Tensor, ids_BT: Tensor, documents_BT: Tensor | None = None) -> list[Tensor]:
        """Return for each predictor k = 1, 2, ... the normed stream (B, T - k, D) that predicts the token k + 1 places ahead.

        What a predictor says near the end of a document about the next one is for the loss to leave out.
        """
        normed, routings = [], []
        for ahead, predictor in enumerate(self.predictors, start=1):
            documents = None if documents_BT is None else documents_BT[:, ahead:]
            context = self.context(ids_BT[:, ahead:], documents_BT=documents)
            x_BTD, normed_BTD, routing = predictor(x_BTD[:, :-1], self._embed(context), context)
            routings.append(routing)
            normed.append(normed_BTD)
        self._observe(self.predictors, routings)
        return normed

    def _embed(self, context: Context) -> Tensor:
        x_BTD = self.embedding(context.ids_BT) * self.config.embedding_scale
        if self.position_embedding is not None:
            x_BTD = x_BTD + self.position_embedding(context.positions_BT)
        x_BTD = self.embedding_norm(x_BTD)
        if self.smear_gate is None or self.smear_scale is None:
            return x_BTD
        before_BTD = self._before(x_BTD, context)
        return x_BTD + self.smear_scale * torch.sigmoid(self.smear_gate(x_BTD[..., : self.smear_gate.in_features])) * before_BTD

    def _before(self, x_BTD: Tensor, context: Context) -> Tensor:
        """Return the embedding of the token before each token, zero before the first of a document."""
        if context.cache is None:
            before_BTD = x_BTD.roll(1, dims=1)
        else:
            before_BTD = self.embedding_norm(self.embedding(context.cache.before_1N) * self.config.embedding_scale)
        return before_BTD * (context.positions_BT > 0).unsqueeze(-1)

    def context(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        cache: Batch | None = None,
        documents_BT: Tensor | None = None,
    ) -> Context:
        """Work out what the layers of one pass share, for this process's span of the rows."""
        config, device = self.config, ids_BT.device
        length = ids_BT.shape[1]
        if positions_BT is None:
            positions_BT = torch.arange(length, device=device).expand_as(ids_BT)
            if documents_BT is not None:
                positions_BT = positions_BT - _starts(documents_BT)
        elif cache is not None:
            length = cache.length  # what is rotated now must suit all that will follow in this sequence
        elif config.rope_scaling and config.rope_scaling.kind == "longrope":
            length = int(positions_BT.max()) + 1
        ids_BT, positions_BT = self.span.cut(ids_BT), self.span.cut(positions_BT, length)
        documents_BT = None if documents_BT is None else self.span.cut(documents_BT, -1)
        kinds = {config.is_global(layer) for layer in range(config.num_layers)}
        rotates = {config.is_global(layer) for layer in range(config.num_layers) if config.has_rope(layer)}
        ropes = {kind: rope_table(config, positions_BT, length, kind) for kind in rotates}
        slopes_H = alibi_slopes(config.num_heads, device)[self.heads] if config.positions == "alibi" else None
        windows = {kind: None if kind else config.window for kind in kinds}
        masks = {}
        if cache is None and not self.span.divides_positions:  # a cache makes masks of its own
            masks = {kind: make_mask(positions_BT, positions_BT, windows[kind], False, documents_BT, slopes_H) for kind in kinds}
        return Context(ids_BT, positions_BT, ropes, masks, cache, documents_BT, windows, slopes_H)

    def _observe(self, blocks: nn.Module, routings: list[Routing | None]) -> None:
        """Add this pass's load to the routers' counts, and its balancing losses to `penalty`; outside of what may be computed twice."""
        if not self.training:
            return
        found = [routing for routing in routings if routing is not None]
        routers = (module for module in blocks.modules() if isinstance(module, Router))
        for router, routing in zip(routers, found, strict=True):
            router.load_E += routing.load_E.detach()
        if found:
            total = torch.stack([routing.penalty for routing in found]).sum()
            self.penalty = total if self.penalty is None else self.penalty + total

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw all weights; each tensor's values follow from the seed and its name alone."""
        for name, parameter in self.named_parameters():
            parameter.copy_(self.draw(name, parameter.shape, seed))

    def draw(self, name: str, shape: torch.Size, seed: int, rows: range | None = None) -> Tensor:
        """Return the initial values of the weight `name` of this whole `shape`; of a stack of matrices only `rows`, if they are given.

        Matrices that read the residual stream get uniform weights of standard deviation 1/sqrt(fan-in), those that write to it start
        at zero, the output head is small: the scheme of nanochat, which suits Muon.
        """
        if len(shape) == 3:
            wanted = range(shape[0]) if rows is None else rows
            parts = [self._draw(name, torch.Size(shape[1:]), f"{seed} {name} {row}") for row in wanted]
            return torch.stack(parts) if parts else torch.empty(0, *shape[1:])
        whole = self._draw(name, shape, f"{seed} {name}")
        return whole if rows is None else whole[rows.start : rows.stop]

    def _draw(self, name: str, shape: torch.Size, key: str) -> Tensor:
        if (start := self._constant(name, shape)) is not None:
            return start
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big"))
        drawn = torch.empty(shape)
        if name.startswith(("embedding.", "position_embedding.")):
            return drawn.normal_(0, 0.02 if self.config.tied_embeddings else 0.8, generator=generator)
        if name.endswith(("smear_gate.weight", "value_gate.weight")):
            return drawn.uniform_(0, 0.02, generator=generator)  # slightly open
        if name.startswith("head"):
            return drawn.normal_(0, 0.001, generator=generator)
        if name.endswith(self._writers()):
            return drawn.zero_()
        bound = (3 / (self.config.width if "value_embedding" in name else shape[-1])) ** 0.5
        return drawn.uniform_(-bound, bound, generator=generator)

    def _constant(self, name: str, shape: torch.Size) -> Tensor | None:
        """Return the initial value of what is not drawn: norms, biases, sinks, and nanochat's scalars; None for the rest."""
        depth_L = torch.linspace(0, 1, self.config.num_layers)
        constants = {
            "smear_scale": torch.zeros(1),
            "backout_scale": torch.tensor([0.2]),
            "stream_scale_L": 1.15 - 0.10 * depth_L,
            "embedding_scale_L": 0.20 - 0.15 * depth_L,
        }
        if name in constants:
            return constants[name]
        if "bias" in name or name.endswith("sinks_H"):
            return torch.zeros(shape)
        if len(shape) > 1:
            return None
        return torch.full(shape, float(self.config.norm_weight == "scale" or self.config.norm == "layer"))

    def _writers(self) -> tuple[str, ...]:
        """Endings of the matrices that write to the residual stream; none where a norm follows them, which has no gradient scale at 0.

        Experts between latent projections write to the latent: only the projection behind them starts at zero, else none would ever learn.
        """
        if self.config.norm_place != "before":
            return ()
        latent = self.config.moe is not None and self.config.moe.latent_width is not None
        return ".o.weight", ".down.weight", "latent_up.weight" if latent else "down_EDF"

    def compile_blocks(self) -> None:
        """Compile each block with `torch.compile`; blocks of one kind share the code. The first pass takes a while."""
        for block in [*self.blocks, *(predictor.block for predictor in self.predictors)]:
            block.compile(dynamic=False)
        self.compiled = True

    def routers(self) -> list[Router]:
        """The routers of all mixture layers, in order, those of predictors last."""
        return [module for module in self.modules() if isinstance(module, Router)]

    def take_penalty(self) -> Tensor:
        """Return the sum of the balancing losses since the last call (0 for a dense model)."""
        penalty, self.penalty = self.penalty, None
        return torch.zeros((), device=next(self.parameters()).device) if penalty is None else penalty

    def matrices(self) -> list[nn.Parameter]:
        """Weights inside the blocks that are matrices or stacks of matrices (what Muon updates): no routers, embeddings, gates, biases."""
        other = ("router.", "value_embedding.", "value_gate.", "bias_E")
        named = [*self.blocks.named_parameters(), *self.predictors.named_parameters()]
        return [parameter for name, parameter in named if parameter.ndim >= 2 and not any(part in name for part in other)]


def _starts(documents_BT: Tensor) -> Tensor:
    """Return for each token the index in its row where its document begins."""
    indices_BT = torch.arange(documents_BT.shape[1], device=documents_BT.device).expand_as(documents_BT)
    begins_BT = documents_BT != documents_BT.roll(1, dims=1)
    begins_BT[:, 0] = True
    return (indices_BT * begins_BT).cummax(dim=1).values


def num_parameters(model: nn.Module) -> int:
    """Count distinct parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
