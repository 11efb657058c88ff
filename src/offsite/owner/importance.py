"""How much each layer matters, learnt from what mixed stacks lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

_NOISE = 1e-3  # nats; losses that differ by less teach nothing
_BOUND = 2.0  # standard deviations; further out a layer would be replaced always, or never


@dataclass(frozen=True)
class Judging:
    """How mixed stacks are drawn and what their losses teach."""

    groups: Annotated[int, "groups"] = 4
    """Into so many groups the layers are put anew for each stack; half of each is replaced."""
    grouping: Literal["shuffled", "contiguous"] = "shuffled"
    """Whether any layers share a group, or neighbours."""
    candidates: Annotated[int, "stacks"] = 3
    """Mixed stacks that are held against each other in a step."""
    reward: Literal["advantage", "exp"] = "advantage"
    """What a stack earns: by how much its loss is below the candidates' mean, in standard deviations; or as
    published, its exp(-loss) above their mean."""
    alone: Annotated[int, "blocks"] = 8
    """Blocks of text on which each layer is judged alone before the first step, which is where its score
    starts; 0: all start equal."""
    score_step: Annotated[float, "times the policy gradient"] = 1.0
    """How far one policy gradient step goes."""


class Importance:
    """A score for each layer; the higher, the more it costs to replace it."""

    def __init__(self, layers: int, config: Judging) -> None:
        self.config = config
        self.scores = torch.zeros(layers)

    def start(self, costs: Tensor) -> None:
        """Begin at what replacing each layer alone cost, in nats: its logarithm, standardised, twice."""
        orders = costs.clamp(min=_NOISE).log()
        above = orders - orders.median()
        spread = 1.5 * above.abs().median() + _NOISE  # about one standard deviation, outliers or not
        self.scores.copy_(2 * (above / spread).clamp(-_BOUND, _BOUND))

    def draw(self, chance: torch.Generator) -> Tensor:
        """Which layers stay (bool): in each group those whose p = u sigmoid(score) is above its median."""
        count = len(self.scores)
        order = torch.arange(count)
        if self.config.grouping == "shuffled":
            order = torch.randperm(count, generator=chance)
        worth = torch.rand(count, generator=chance) * self.scores.sigmoid()
        stay = torch.zeros(count, dtype=torch.bool)
        for group in order.tensor_split(max(1, min(self.config.groups, count // 2))):
            stay[group] = worth[group] > worth[group].quantile(0.5)
        return stay

    def learn(self, stays: Tensor, losses: Tensor) -> None:
        """Take in what stacks, `stays` (bool, stacks by layers), lost on the same text: `losses` (stacks).

        A step of the policy gradient: s_i += step * sum_j R_j a_ji sigmoid'(s_i), a_ji: layer i stayed in stack
        j (ScaleOT).
        """
        rewards = (losses.mean() - losses) / (losses.std() + _NOISE)
        if self.config.reward == "exp":
            rewards = (-losses).exp() - (-losses).exp().mean()
        slope = self.scores.sigmoid() * (1 - self.scores.sigmoid())
        self.scores += self.config.score_step * (rewards @ stays.float()) * slope
