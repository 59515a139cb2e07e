"""Mixture of experts: router, balancing, and experts computed one group of tokens after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmai.model.config import ModelConfig
from openmai.model.layers import FeedForward, activate


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
        self.register_buffer("bias_E", torch.zeros(self.moe.num_experts), persistent=self.moe.bias_rate > 0)
        self.register_buffer("load_E", torch.zeros(self.moe.num_experts), persistent=False)
        self.penalty = torch.zeros(())

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights (N, A) and expert numbers (N, A) for tokens x_ND."""
        moe = self.moe
        logits_NE = F.linear(x_ND.float(), self.weight_ED.float())
        scores_NE = logits_NE.softmax(dim=-1) if moe.score == "softmax" else logits_NE.sigmoid()
        chosen_NA = (scores_NE.detach() + self.bias_E).topk(moe.num_active, dim=-1).indices
        weights_NA = scores_NE.gather(1, chosen_NA)
        if moe.normalize:
            weights_NA = weights_NA / (weights_NA.sum(dim=-1, keepdim=True) + 1e-20)
        if self.training:
            self._observe(logits_NE, scores_NE, chosen_NA)
        return weights_NA * moe.scale, chosen_NA

    def _observe(self, logits_NE: Tensor, scores_NE: Tensor, chosen_NA: Tensor) -> None:
        """Count the load and compute this pass's balancing penalties."""
        moe = self.moe
        load_E = torch.bincount(chosen_NA.flatten(), minlength=moe.num_experts).float()
        self.load_E += load_E
        penalty = logits_NE.new_zeros(())
        if moe.aux_loss:
            shares_NE = scores_NE / scores_NE.sum(dim=-1, keepdim=True)
            penalty = penalty + moe.aux_loss * moe.num_experts * (load_E / load_E.sum() * shares_NE.mean(dim=0)).sum()
        if moe.z_loss:
            penalty = penalty + moe.z_loss * logits_NE.logsumexp(dim=-1).square().mean()
        self.penalty = penalty

    @torch.no_grad()
    def update_bias(self) -> Tensor:
        """Move the bias towards under-used experts, restart the count, and return the load that was seen, (E,)."""
        load_E = self.load_E.clone()
        if self.moe.bias_rate:
            self.bias_E += self.moe.bias_rate * (load_E.mean() - load_E).sign()
        self.load_E.zero_()
        return load_E


class Experts(nn.Module):
    """`E` gated feed-forwards as stacked matrices."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        moe, width = config.moe, config.moe.latent_width or config.width
        self.config = config
        self.gate_EFD = nn.Parameter(torch.empty(moe.num_experts, moe.expert_width, width))
        self.up_EFD = nn.Parameter(torch.empty(moe.num_experts, moe.expert_width, width))
        self.down_EDF = nn.Parameter(torch.empty(moe.num_experts, width, moe.expert_width))

    def forward(self, x_ND: Tensor, weights_NA: Tensor, chosen_NA: Tensor) -> Tensor:
        """Send each token to its experts and add up their weighted answers, (N, D)."""
        order = chosen_NA.flatten().argsort(stable=True)
        tokens = order // chosen_NA.shape[1]
        counts = torch.bincount(chosen_NA.flatten(), minlength=self.gate_EFD.shape[0]).tolist()
        groups = x_ND[tokens].split(counts)
        outputs = [self._expert(number, group) for number, group in enumerate(groups) if len(group)]
        weighted = torch.cat(outputs) * weights_NA.flatten()[order].unsqueeze(1).type_as(x_ND)
        return torch.zeros_like(x_ND).index_add(0, tokens, weighted)

    def _expert(self, number: int, x_ND: Tensor) -> Tensor:
        gate, up = F.linear(x_ND, self.gate_EFD[number]), F.linear(x_ND, self.up_EFD[number])
        return F.linear(activate(self.config, gate) * up, self.down_EDF[number])


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

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        weights_NA, chosen_NA = self.router(x_ND)
        routed_ND = self.experts(self.latent_down(x_ND) if self.latent_down else x_ND, weights_NA, chosen_NA)
        if self.latent_up:
            routed_ND = self.latent_up(routed_ND)
        output_BTD = routed_ND.view_as(x_BTD)
        return output_BTD + self.shared(x_BTD) if self.shared else output_BTD
