"""What can be taken out of a layer, piece by piece: singular components of attention, feed-forward channels.

A method scores them once, in its profile; here a budget decides which of them stay, as a blueprint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from offsite.model.decoder import Decoder
from offsite.model.linears import Weight
from offsite.owner.blueprint import Blueprint, Place
from offsite.owner.profile import Profile
from offsite.owner.records import ChannelScores, Factors, Means, RankScores, Repair, Scores

_DECADES = 16  # of prices that are tried
_TINY = 1e-6  # of the mean energy, for channels that are always zero
_STEPS = 50  # of a bisection; finer than one component
_NOTHING = 1e-30  # of energy, where there is none at all
_RIDGE = 1e-2  # of each channel's energy: how far a kept channel may stand in for another

Kept = list[Tensor]
"""For each of the candidates, in their order: the indices of the components that stay, ascending."""


@dataclass(frozen=True)
class Candidates:
    """The singular components of one linear, or the channels that a feed-forward's last linear reads."""

    layer: int
    name: str
    """The linear's name in the layer."""
    channels: bool
    score: Tensor
    """(n): how much each matters; the least goes first."""
    cost: int
    """Parameters that one component stores."""
    dense: int
    """Parameters of the whole; no number of components stores more."""
    slope: Tensor | None = None
    """(n): by how much the loss changes to first order where each is taken out."""

    def stored(self, count: Tensor) -> Tensor:
        """Return the parameters that so many components store."""
        return (count * self.cost).clamp(max=self.dense)

    def best(self, count: int) -> Tensor:
        """Return the indices of the `count` best components, ascending."""
        return self.score.argsort(descending=True, stable=True)[:count].sort().values

    def least(self, floor: float) -> int:
        """Return how many always stay, where the share `floor` of them does."""
        return max(1, int(floor * len(self.score)))


Rule = Callable[[Sequence[Candidates], float], Kept]
"""What stays at a level from 0 (least) to 1 (all)."""


def channel_cost(decoder: Decoder, layer: int) -> Tensor:
    """Return the parameters of one feed-forward channel of a layer, and of all."""
    feed = decoder.feed_forward(layer)
    inner = sum(decoder.matrix(layer, name).numel() for name in (*feed.ups, feed.down))
    return torch.tensor([inner // feed.width, inner])


def candidates(profile: Profile) -> list[Candidates]:
    """Return all whose scores a profile has."""
    kinds: tuple[type[Scores], ...] = (RankScores, ChannelScores)
    places = sorted((place, kind is ChannelScores) for kind in kinds for place in kind.places(profile.tensors))
    return [_candidates(profile, *place, channels) for place, channels in places]


def _candidates(profile: Profile, layer: str, name: str, channels: bool) -> Candidates:
    kind: type[Scores] = ChannelScores if channels else RankScores
    found = kind.read(profile.tensors, layer, name)
    cost, dense = found.cost.long().tolist()
    slope = None if found.slope is None else found.slope.double()
    return Candidates(int(layer), name, channels, found.score.double(), cost, dense, slope)


def with_privacy(among: Sequence[Candidates], attention: float, channels: float) -> list[Candidates]:
    """Subtract GradOT's privacy term from the scores: the slopes, times the weight for each kind."""
    weighed = []
    for each in among:
        weight = channels if each.channels else attention
        if weight:
            assert each.slope is not None, "methods with a privacy term measure slopes"
            each = replace(each, score=each.score - weight * each.slope)
        weighed.append(each)
    return weighed


def choose(profile: Profile, among: Sequence[Candidates], keep: float, rule: Rule) -> Kept:
    """Return what stays by the `rule`, at the level that brings the middle nearest to the share `keep`."""
    if keep == 1:
        return [torch.arange(len(each.score)) for each in among]
    fixed = sum(profile.sizes) - sum(each.dense for each in among)
    wanted = keep * sum(profile.sizes) - fixed
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        level = (low + high) / 2
        low, high = (low, level) if _stored(among, rule(among, level)) > wanted else (level, high)
    ends = [rule(among, level) for level in (low, high)]
    return min(ends, key=lambda kept: abs(_stored(among, kept) - wanted))


def by_price(floor: float, ranks: float = 1.0) -> Rule:
    """Keep what scores above its price; scores are losses in one unit that add up over the whole stack.

    At a price for a parameter each of the candidates, by itself, minimises the scores that it loses plus the
    price of what it stores; over all of them that is the least loss for the total stored (a Lagrangian). The
    best share `floor` of each stays at any price; of ranks, no more than the share `ranks`.
    """

    def rule(among: Sequence[Candidates], level: float) -> Kept:
        price = _price(among, level)
        return [each.best(_count(each, price, floor, 1.0 if each.channels else ranks)) for each in among]

    return rule


def by_share(floor: float, pool: Callable[[Candidates], object]) -> Rule:
    """Keep the best share of the components in each pool; `pool` names the one that candidates belong to."""

    def rule(among: Sequence[Candidates], level: float) -> Kept:
        pools: dict[object, list[Tensor]] = {}
        for each in among:
            pools.setdefault(pool(each), []).append(each.score)
        least = {name: _least_of(torch.cat(scores), level) for name, scores in pools.items()}
        counts = (int((each.score >= least[pool(each)]).sum()) for each in among)
        return [each.best(max(each.least(floor), count)) for each, count in zip(among, counts, strict=True)]

    return rule


def by_size(among: Sequence[Candidates], level: float) -> Kept:
    """Keep the best components of each that the share `level` of its parameters stores, at least one."""
    return [each.best(max(1, int(level * each.dense / each.cost))) for each in among]


def whole_where_free(rule: Rule) -> Rule:
    """Let all components stay where those that stay by the `rule` store as much as the whole."""

    def filled(among: Sequence[Candidates], level: float) -> Kept:
        return [
            torch.arange(len(each.score)) if len(kept) * each.cost >= each.dense else kept
            for each, kept in zip(among, rule(among, level), strict=True)
        ]

    return filled


def blueprint(profile: Profile, among: Sequence[Candidates], kept: Kept) -> Blueprint:
    """Return the places of the middle with what was `kept`.

    Where the profile has the `Repair` of a feed-forward, the channels that stay take over what they can; where
    it has `Means` of a linear, its bias takes over what those that go add on average.
    """
    channels: dict[int, tuple[int, ...]] = {}
    weights: dict[int, dict[str, Weight]] = {layer: {} for layer in profile.middle}
    repairs, means = (set(kind.places(profile.tensors)) for kind in (Repair, Means))
    for each, indices in zip(among, kept, strict=True):
        if len(indices) == len(each.score):
            continue
        place = str(each.layer), each.name
        mean = Means.read(profile.tensors, *place) if place in means else None
        bias = None if mean is None else mean.without(indices)
        if not each.channels:
            factors = Factors.read(profile.tensors, *place)
            weights[each.layer][each.name] = Weight.of(factors.up[:, indices], factors.down[indices], bias)
            continue
        channels[each.layer] = tuple(indices.tolist())
        if place in repairs:
            repair = Repair.read(profile.tensors, *place)
            weights[each.layer][each.name] = Weight((refitted(repair.weight, repair.moment, indices),))
        elif mean is not None and mean.weight is not None:
            weights[each.layer][each.name] = Weight((mean.weight[:, indices],), bias)
    return tuple(Place(layer, channels.get(layer), weights[layer]) for layer in profile.middle)


def refitted(weight: Tensor, moment: Tensor, kept: Tensor) -> Tensor:
    """Return the columns `kept` of `weight` (out, in), changed so that the output changes least in mean square.

    `moment` is E[x xT] of what the weight reads (in, in): W A_K (A_KK + ridge)^-1, with A_K the columns kept.
    """
    columns = ridged(moment)[:, kept]
    solved: Tensor = torch.linalg.solve(columns[kept], (weight.double() @ columns).T).T
    return solved.to(weight.dtype)


def ridged(moment: Tensor, ridge: float = _RIDGE) -> Tensor:
    """Return `moment` in float64 with a part of each channel's energy added, so that it has an inverse."""
    energy = moment.diagonal().double().clamp(min=0)
    raised = moment.to(torch.float64, copy=True)
    raised.diagonal().add_(ridge * energy + _TINY * energy.mean() + _NOTHING)
    return raised


def root(moment: Tensor, ridge: float = _RIDGE) -> Tensor:
    """Return the lower L with L LT = `ridged(moment)`; with more ridge where rounding outweighs it."""
    lower, failed = torch.linalg.cholesky_ex(ridged(moment, ridge))
    while failed:  # at the latest where the ridge makes the diagonal outweigh its rows
        ridge *= 4
        lower, failed = torch.linalg.cholesky_ex(ridged(moment, ridge))
    found: Tensor = lower
    return found


def _stored(among: Sequence[Candidates], kept: Kept) -> int:
    return sum(int(e.stored(torch.tensor(len(k)))) for e, k in zip(among, kept, strict=True))


def _price(among: Sequence[Candidates], level: float) -> float:
    """Return the price of a parameter: falling from above all scores; below zero where some scores are."""
    cost = min(each.cost for each in among)
    least, dearest = (float(f(torch.cat([each.score for each in among]))) for f in (torch.min, torch.max))
    if least >= 0:
        return dearest * float(10.0 ** (-_DECADES * level)) / cost
    sign, decades = (1, 2 * level) if level < 0.5 else (-1, 2 * (1 - level))
    return sign * max(dearest, -least) * float(10.0 ** (-_DECADES * decades)) / cost


def _count(each: Candidates, price: float, floor: float, most: float) -> int:
    """Return how many components minimise the scores lost plus the price of what is stored."""
    scores = each.score.sort(descending=True).values
    counts = torch.arange(each.least(floor), max(each.least(floor), int(most * len(scores))) + 1)
    lost = (scores.sum() - torch.cat([scores.new_zeros(1), scores.cumsum(0)]))[counts]
    return int(counts[(lost + price * each.stored(counts)).argmin()])


def _least_of(scores: Tensor, share: float) -> float:
    """Return the least score among the best `share`."""
    count = round(share * len(scores))
    return float(scores.sort(descending=True).values[count - 1]) if count else float("inf")
