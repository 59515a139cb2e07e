"""Mixture of experts: router, balancing, and experts computed in one grouped product or one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmai.model.config import ModelConfig
from openmai.model.grouped import grouped_product
from openmai.model.layers import FeedForward, activate_gated
from openmai.model.span import Span


class Routing(NamedTuple):
    """What one pass through a router leaves for balancing: tokens per expert, (E,), and the balancing losses.

    They leave the layer as results, not as a side effect, so that a layer that is computed again for its backward pass counts once.
    """

    load_E: Tensor
    penalty: Tensor


class Router(nn.Module):
    """Choose `num_active` experts per token; scores are computed in fp32.

    `bias_E` takes part in the choice only, not in the weights (arXiv:2408.15664). `load_E` counts the tokens that each expert got
    since the last `update_bias`.
    """

    bias_E: Tensor
    load_E: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        self.moe = config.moe
        self.weight_ED = nn.Parameter(torch.empty(self.moe.num_experts, config.width))
        self.logit_bias_E = nn.Parameter(torch.empty(self.moe.num_experts)) if self.moe.router_bias else None
        self.register_buffer("bias_E", torch.zeros(self.moe.num_experts), persistent=self.moe.bias_rate > 0)
        self.register_buffer("load_E", torch.zeros(self.moe.num_experts), persistent=False)
        self.span = Span()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Move counts and bias with the model, but never cast them: bf16 counts to 256, and swallows a step of 0.001."""
        kept = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if (moved := self.get_buffer(name)).dtype != buffer.dtype:
                self.register_buffer(name, buffer.to(moved.device), persistent=name not in self._non_persistent_buffers_set)
        return self

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Routing]:
        """Return weights (N, A) and expert numbers (N, A) of the tokens, and what balancing needs."""
        moe = self.moe
        bias = None if self.logit_bias_E is None else self.logit_bias_E.float()
        logits_NE = F.linear(x_BTD.flatten(0, 1).float(), self.weight_ED.float(), bias)
        if moe.score == "sparsemixer":
            scores_NE = logits_NE.softmax(dim=-1)
            weights_NA, chosen_NA = sparse_mixer(logits_NE, moe.jitter)
        else:
            scores_NE = logits_NE.softmax(dim=-1) if moe.score == "softmax" else logits_NE.sigmoid()
            chosen_NA = self._choose(scores_NE.detach() + self.bias_E)
            weights_NA = scores_NE.gather(1, chosen_NA)
        if moe.normalize:
            weights_NA = weights_NA / (weights_NA.sum(dim=-1, keepdim=True) + 1e-20)
        return weights_NA * moe.scale, chosen_NA, self._observe(logits_NE, scores_NE, chosen_NA, x_BTD.shape[0])

    def _choose(self, scores_NE: Tensor) -> Tensor:
        """Return the best experts of each token, (N, A), within its best groups where there are groups."""
        moe = self.moe
        if moe.num_groups > 1:
            by_group = scores_NE.unflatten(1, (moe.num_groups, -1))
            best = by_group.topk(2, dim=-1).values.sum(dim=-1).topk(moe.active_groups, dim=-1).indices
            closed = torch.ones_like(by_group[..., 0], dtype=torch.bool).scatter(1, best, False)
            scores_NE = by_group.masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(1)
        return scores_NE.topk(moe.num_active, dim=-1).indices

    def _observe(self, logits_NE: Tensor, scores_NE: Tensor, chosen_NA: Tensor, rows: int) -> Routing:
        """Count the load and work out the balancing losses of this pass: this process's share of them, where others share the rows."""
        moe, parts = self.moe, self.span.parts
        chosen_BM = chosen_NA.view(rows, -1)
        load_BE = scores_NE.new_zeros(rows, moe.num_experts).scatter_add(1, chosen_BM, torch.ones_like(chosen_BM, dtype=scores_NE.dtype))
        penalty = logits_NE.new_zeros(())
        if moe.aux_loss:
            shares_BTE = (scores_NE / scores_NE.sum(dim=-1, keepdim=True)).unflatten(0, (rows, -1))
            together = moe.aux_span == "batch"
            load = self.span.total(load_BE.sum(0, keepdim=True) if together else load_BE)
            shares = shares_BTE.mean(dim=(0, 1), keepdim=True)[0] if together else shares_BTE.mean(dim=1)
            balance_B = moe.num_experts * (load / load.sum(dim=1, keepdim=True) * shares).sum(dim=1)
            penalty = penalty + moe.aux_loss / parts * balance_B.mean()
        if moe.z_loss:
            penalty = penalty + moe.z_loss / parts * logits_NE.logsumexp(dim=-1).square().mean()
        return Routing(load_BE.sum(0), penalty)

    @torch.no_grad()
    def update_bias(self) -> Tensor:
        """Move the bias towards under-used experts, restart the count, and return the load that was seen, (E,)."""
        load_E = self.load_E.clone()
        if self.moe.bias_rate:
            self.bias_E += self.moe.bias_rate * (load_E.mean() - load_E).sign()
        self.load_E.zero_()
        return load_E


def sparse_mixer(scores_NE: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """Return weights (N, 2) and experts (N, 2) as Phi-3.5-MoE chooses them (SparseMixer-v2, arXiv:2409.12136).

    Each choice has the softmax over those experts whose score is within `2 * jitter` of the best, in relation to it. The best two are taken
    in training as well; the paper's sampling and its estimate of the gradient are left out.
    """
    weights, chosen = [], []
    left_NE = scores_NE
    for _ in range(2):
        best_N1, number_N1 = left_NE.max(dim=-1, keepdim=True)
        far_NE = (best_N1 - scores_NE) / torch.maximum(scores_NE.abs(), best_N1) > 2 * jitter
        weights.append(left_NE.masked_fill(far_NE, float("-inf")).softmax(dim=-1).gather(1, number_N1))
        chosen.append(number_N1)
        left_NE = left_NE.scatter(1, number_N1, float("-inf"))
    return torch.cat(weights, dim=1), torch.cat(chosen, dim=1)


Exchange = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor], Tensor]
"(compute, rows sorted by expert, rows per expert) -> answers in the same order: what brings rows to experts in other processes"


class Experts(nn.Module):
    """`E` gated feed-forwards as stacked matrices."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        moe, width = config.moe, config.moe.latent_width or config.width
        self.config, self.num_experts = config, moe.num_experts
        self.gate_EFD = nn.Parameter(torch.empty(moe.num_experts, moe.expert_width, width))
        self.up_EFD = nn.Parameter(torch.empty(moe.num_experts, moe.expert_width, width))
        self.down_EDF = nn.Parameter(torch.empty(moe.num_experts, width, moe.expert_width))
        self.gate_bias_EF = nn.Parameter(torch.empty(moe.num_experts, moe.expert_width)) if moe.expert_bias else None
        self.up_bias_EF = nn.Parameter(torch.empty(moe.num_experts, moe.expert_width)) if moe.expert_bias else None
        self.down_bias_ED = nn.Parameter(torch.empty(moe.num_experts, width)) if moe.expert_bias else None
        self.exchange: Exchange | None = None  # for experts that are elsewhere

    def forward(self, x_ND: Tensor, weights_NA: Tensor, chosen_NA: Tensor) -> Tensor:
        """Send each token to its experts and add up their weighted answers, (N, D)."""
        order_M = chosen_NA.flatten().argsort(stable=True)  # M = N x A pairs of token and expert, sorted by expert
        tokens_M, experts_M = order_M // chosen_NA.shape[1], chosen_NA.flatten()[order_M]
        weights_M1 = weights_NA.flatten()[order_M].unsqueeze(1).type_as(x_ND)
        counts_E = torch.zeros_like(weights_NA[0, 0], dtype=torch.int32).repeat(self.num_experts)
        counts_E = counts_E.scatter_add(0, experts_M, torch.ones_like(experts_M, dtype=torch.int32))
        x_MD = x_ND[tokens_M]
        weigh_input = self.config.moe is not None and self.config.moe.weigh_input
        if weigh_input:
            x_MD = x_MD * weights_M1
        y_MD = self.compute(x_MD, counts_E) if self.exchange is None else self.exchange(self.compute, x_MD, counts_E)
        return torch.zeros_like(x_ND).index_add(0, tokens_M, y_MD if weigh_input else y_MD * weights_M1)

    def compute(self, x_MD: Tensor, counts_E: Tensor) -> Tensor:
        """Return the answers (M, D) of the experts that are here; the first `counts_E[0]` rows are for the first of them, and so on."""
        return self._grouped(x_MD, counts_E) if _can_group(x_MD, self.gate_EFD) else self._looped(x_MD, counts_E)

    def _grouped(self, x_MD: Tensor, counts_E: Tensor) -> Tensor:
        """All experts in one product per matrix."""
        ends_E = counts_E.cumsum(0).int()
        biased = self.gate_bias_EF is not None
        experts_M = torch.arange(len(counts_E), device=x_MD.device).repeat_interleave(counts_E, output_size=len(x_MD)) if biased else None

        def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            y = grouped_product(x, weight.type_as(x).mT, ends_E)
            return y if bias is None else y + bias[experts_M]

        gate, up = product(x_MD, self.gate_EFD, self.gate_bias_EF), product(x_MD, self.up_EFD, self.up_bias_EF)
        return product(activate_gated(self.config, gate, up), self.down_EDF, self.down_bias_ED)

    def _looped(self, x_MD: Tensor, counts_E: Tensor) -> Tensor:
        """The readable twin of `_grouped`: one expert after the other."""
        outputs = []
        for number, group in enumerate(x_MD.split(counts_E.tolist())):
            gate_bias, up_bias, down_bias = (
                None if bias is None else bias[number] for bias in (self.gate_bias_EF, self.up_bias_EF, self.down_bias_ED)
            )
            gate, up = F.linear(group, self.gate_EFD[number], gate_bias), F.linear(group, self.up_EFD[number], up_bias)
            outputs.append(F.linear(activate_gated(self.config, gate, up), self.down_EDF[number], down_bias))
        return torch.cat(outputs)


def _can_group(x_MD: Tensor, weight_EFD: Tensor) -> bool:
    """Tell whether grouped products take these: rows of whole 16 bytes; on a GPU its kernels are for bf16."""
    aligned = all(size * x_MD.element_size() % 16 == 0 for size in weight_EFD.shape[1:])
    return aligned and x_MD.dtype != torch.float64 and (x_MD.device.type != "cuda" or x_MD.dtype == torch.bfloat16)


class MoE(nn.Module):
    """Router, routed experts, and optionally shared experts and a latent width for the routed ones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        moe = config.moe
        self.router, self.experts = Router(config), Experts(config)
        self.latent_down = nn.Linear(config.width, moe.latent_width, bias=False) if moe.latent_width else None
        self.latent_up = nn.Linear(moe.latent_width, config.width, bias=False) if moe.latent_width else None
        self.shared = FeedForward(config, moe.num_shared * moe.expert_width) if moe.num_shared else None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        x_ND = x_BTD.flatten(0, 1)
        weights_NA, chosen_NA, routing = self.router(x_BTD)
        routed_ND = self.experts(self.latent_down(x_ND) if self.latent_down else x_ND, weights_NA, chosen_NA)
        if self.latent_up:
            routed_ND = self.latent_up(routed_ND)
        output_BTD = routed_ND.view_as(x_BTD)
        return (output_BTD + self.shared(x_BTD) if self.shared else output_BTD), routing
