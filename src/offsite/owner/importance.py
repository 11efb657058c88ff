"""A score for how much each layer matters, from the losses of stacks with some layers replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

_NOISE = 1e-3  # nats; losses that differ by less do not count
_BOUND = 2.0  # standard deviations; further out a layer would be replaced always, or never


@dataclass(frozen=True)
class Judging:
    """How mixed stacks are drawn, and how their losses change the layers' scores."""

    groups: Annotated[int, "groups"] = 4
    """Groups that the layers are divided into, anew for each mixed stack; half of each group is replaced."""
    grouping: Literal["shuffled", "contiguous"] = "shuffled"
    """Whether a group holds layers from anywhere, or neighbours."""
    candidates: Annotated[int, "stacks"] = 3
    """Mixed stacks that are compared in a step."""
    reward: Literal["advantage", "exp"] = "advantage"
    """The reward of a stack: how far its loss is below the candidates' mean, in standard deviations; or, as
    published, its exp(-loss) minus their mean."""
    alone: Annotated[int, "blocks"] = 8
    """Blocks of text on which each layer is replaced alone before the first step, to start its score there; 0:
    all scores start equal."""
    score_step: Annotated[float, "step size"] = 1.0
    """Step size of the policy gradient on the scores."""


class Importance:
    """A score for each layer; the higher, the more it costs to replace it."""

    def __init__(self, layers: int, config: Judging) -> None:
        self.config = config
        self.scores = torch.zeros(layers)

    def start(self, costs: Tensor) -> None:
        """Start at twice the standardised logarithm of what replacing each layer alone costs, in nats."""
        orders = costs.clamp(min=_NOISE).log()
        above = orders - orders.median()
        spread = 1.5 * above.abs().median() + _NOISE  # about one standard deviation, outliers or not
        self.scores.copy_(2 * (above / spread).clamp(-_BOUND, _BOUND))

    def draw(self, chance: torch.Generator) -> Tensor:
        """Draw which layers stay (bool): in each group those whose p = u sigmoid(score) is above its median."""
        count = len(self.scores)
        order = torch.arange(count)
        if self.config.grouping == "shuffled":
            order = torch.randperm(count, generator=chance)
        draws = torch.rand(count, generator=chance) * self.scores.sigmoid()
        stay = torch.zeros(count, dtype=torch.bool)
        for group in order.tensor_split(max(1, min(self.config.groups, count // 2))):
            stay[group] = draws[group] > draws[group].quantile(0.5)
        return stay

    def update(self, stays: Tensor, losses: Tensor) -> None:
        """Update the scores by the `losses` (stacks) of stacks whose layers `stays` (bool, stacks by layers).

        A step of the policy gradient: s_i += step * sum_j R_j a_ji sigmoid'(s_i), a_ji: layer i stayed in stack
        j (ScaleOT).
        """
        rewards = (losses.mean() - losses) / (losses.std() + _NOISE)
        if self.config.reward == "exp":
            rewards = (-losses).exp() - (-losses).exp().mean()
        slope = self.scores.sigmoid() * (1 - self.scores.sigmoid())
        self.scores += self.config.score_step * (rewards @ stays.float()) * slope
