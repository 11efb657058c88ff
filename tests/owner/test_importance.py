"""Which layers matter, told from the losses of mixed stacks alone."""

from __future__ import annotations

import pytest
import torch

from offsite.owner.importance import Importance, Judging

COSTS = torch.tensor([1.8, 0.05, 0.3, 0.02, 0.5, 0.1, 0.2, 0.4, 0.01, 0.7, 0.03, 0.25])


def taught(config, steps, noise=0.02):
    """The scores after stacks whose loss is the sum of the costs of what they replace."""
    chance, importance = torch.Generator().manual_seed(0), Importance(len(COSTS), config)
    for _ in range(steps):
        stays = torch.stack([importance.draw(chance) for _ in range(config.candidates)])
        text = 3 + torch.rand(1, generator=chance)  # what each batch costs any stack
        losses = text + (~stays).float() @ COSTS + noise * torch.randn(len(stays), generator=chance)
        importance.update(stays, losses)
    return importance.scores


def likeness(a, b):
    """Spearman's rank correlation."""
    ranks = torch.stack([a.argsort().argsort().float(), b.argsort().argsort().float()])
    return float(torch.corrcoef(ranks)[0, 1])


def test_half_of_every_group_stays():
    for groups, count in ((4, 16), (2, 12)):
        importance = Importance(count, Judging(groups=groups, grouping="contiguous"))
        stay = importance.draw(torch.Generator().manual_seed(0))
        assert [int(part.sum()) for part in stay.tensor_split(groups)] == [count // groups // 2] * groups


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_small_middles_have_something_to_replace(count):
    chance = torch.Generator().manual_seed(0)
    draws = torch.stack([Importance(count, Judging()).draw(chance) for _ in range(20)])
    assert (~draws).any(dim=1).all()
    assert count == 1 or draws.any()


@pytest.mark.parametrize("grouping", ["shuffled", "contiguous"])
def test_what_costs_more_stays_more_often(grouping):
    importance = Importance(12, Judging(grouping=grouping))
    importance.scores.copy_(torch.tensor([3.0, -3.0]).repeat(6))
    chance = torch.Generator().manual_seed(0)
    stays = torch.stack([importance.draw(chance) for _ in range(200)]).float().mean(0)
    assert stays[0::2].min() > stays[1::2].max() + 0.3


def test_policy_gradients_tell_the_dear_layers_from_the_cheap():
    found = taught(Judging(), 300)
    assert likeness(found, COSTS) > 0.6
    assert found[COSTS > 0.4].min() > found[COSTS < 0.04].max()


def test_the_papers_reward_moves_scores_as_its_formula_says():
    importance = Importance(3, Judging(reward="exp", score_step=2.0))
    stays = torch.tensor([[True, False, False], [False, True, False]])
    importance.update(stays, torch.tensor([1.0, 2.0]))
    gap = (torch.tensor(-1.0).exp() - torch.tensor(-2.0).exp()) / 2  # above and below the mean of the two
    assert torch.allclose(importance.scores, 2.0 * gap * 0.25 * torch.tensor([1.0, -1.0, 0.0]))


def test_scores_start_in_the_order_of_what_layers_cost_alone_and_none_is_out_of_reach():
    importance = Importance(len(COSTS), Judging())
    importance.start(torch.cat([COSTS[:-1], torch.tensor([-0.1])]))  # a replacement may even help
    assert torch.equal(importance.scores[:-1].argsort(stable=True), COSTS[:-1].argsort(stable=True))
    assert importance.scores[-1] == importance.scores.min()
    assert importance.scores.abs().max() <= 4


def test_a_start_near_the_truth_is_not_unlearnt():
    chance, importance = torch.Generator().manual_seed(0), Importance(len(COSTS), Judging())
    importance.start(COSTS)
    for _ in range(100):
        stays = torch.stack([importance.draw(chance) for _ in range(3)])
        importance.update(stays, (~stays).float() @ COSTS)
    assert likeness(importance.scores, COSTS) > 0.8
