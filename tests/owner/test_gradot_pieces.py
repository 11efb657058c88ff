"""Each piece of GradOT is a knob: with all as published it is the published form."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from offsite.experiments.study.recipe import read
from offsite.model.split import Split
from offsite.owner.build import build, keep_of
from offsite.owner.components import ridged
from offsite.owner.methods.gradot import GradOT
from offsite.owner.methods.gradot_paper import GradOTPaper
from offsite.owner.records import ChannelScores, Factors, RankScores, Repair
from tests.families import tiny_model
from tests.owner.test_gradot_scores import chance, felt, told

SPLIT = Split(1, 1)
TOKENS = torch.randint(3, 120, (16, 8), generator=torch.Generator().manual_seed(0))
PUBLISHED = {"basis": "plain", "score": "l1", "pool": "kinds", "mend": False, "evenly": 0.0}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def profiles(model):
    """The profile with each piece as published, with all, and with none."""
    sets = {name: {name: value} for name, value in PUBLISHED.items()} | {"all": PUBLISHED, "none": {}}
    return {name: GradOT(**knobs).profile(model, SPLIT, TOKENS) for name, knobs in sets.items()}


def shown(plan):
    return [(place.describe(), [w.matrices[0].sum().item() for w in place.weights.values()]) for place in plan]


def test_with_all_pieces_as_published_it_is_the_published_form(model, profiles):
    ours, theirs = GradOT(**PUBLISHED), GradOTPaper()
    paper = theirs.profile(model, SPLIT, TOKENS)
    assert set(profiles["all"].tensors) == set(paper.tensors)
    assert all(torch.equal(profiles["all"].tensors[key], tensor) for key, tensor in paper.tensors.items())
    for keep in (0.4, 0.7):
        assert shown(ours.plan(profiles["all"], keep)) == shown(theirs.plan(paper, keep))


@pytest.mark.parametrize("piece", PUBLISHED)
def test_each_piece_makes_another_emulator_of_the_same_size(model, profiles, piece):
    method = GradOT(**{piece: PUBLISHED[piece]})
    plan = method.plan(profiles[piece], 0.6)
    assert shown(plan) != shown(GradOT().plan(profiles["none"], 0.6))
    assert keep_of(build(model, SPLIT, plan), model) == pytest.approx(0.6, abs=0.02)


def test_the_pool_is_of_the_plan_alone(profiles):
    GradOT(pool="kinds").check(profiles["none"])
    assert "pool" not in GradOT().profile_knobs


@pytest.mark.parametrize("basis", ["fisher", "plain"])
@pytest.mark.parametrize("score", ["fisher", "l1"])
def test_a_ranks_score_is_its_definition_in_either_basis(basis, score):
    weight, seen = torch.randn(7, 5, generator=chance(5)), told(7, 5)
    factors, ranks = GradOT(basis=basis, score=score)._ranks(weight, seen)
    assert torch.allclose(factors.up @ factors.down, weight, atol=1e-4)
    g, a = seen.outputs.double(), seen.inputs.double()
    if (basis, score) == ("fisher", "fisher"):
        g, a = ridged(g), ridged(a)
    for k in range(5):
        change = -torch.outer(factors.up[:, k], factors.down[k]).double()
        wanted = felt(change, g, a) if score == "fisher" else (g @ change @ a).abs().sum()
        assert torch.allclose(ranks.score[k].double(), wanted, rtol=1e-3)
        assert torch.allclose(ranks.slope[k].double(), (seen.slope * change).sum(), atol=1e-4)


def test_plain_components_are_those_of_the_weight_itself(model, profiles):
    name = "self_attn.q_proj"
    factors = Factors.read(profiles["basis"].tensors, 3, name)
    values = torch.linalg.svdvals(model.model.layers[3].self_attn.q_proj.weight.detach())
    assert torch.allclose(factors.up.norm(dim=0), values, rtol=1e-4)
    assert RankScores.read(profiles["basis"].tensors, 3, name).slope is not None


def test_without_mending_nothing_takes_over_and_a_channel_scores_what_it_does_alone(model, profiles):
    name = "mlp.down_proj"
    assert Repair.places(profiles["none"].tensors)
    assert not Repair.places(profiles["mend"].tensors)
    mended, alone = (ChannelScores.read(profiles[key].tensors, 3, name).score for key in ("none", "mend"))
    assert (alone >= mended * (1 - 2e-2)).all()  # (A^-1)_jj >= 1 / A_jj; the ridge adds a hundredth
    assert (alone > 2 * mended).any()
    plan = GradOT(mend=False).plan(profiles["mend"], 0.6)
    assert all(name not in place.weights for place in plan)


def test_the_recipe_leads_from_the_published_form_to_ours():
    recipe = read(Path(__file__).parents[2] / "recipes" / "gradot-pieces.yaml")
    methods = [one for chain in recipe.chains for one in chain.methods]
    assert (methods[0], methods[5]) == (GradOTPaper(), GradOT())
    changed = [{k for k in PUBLISHED if getattr(one, k, None) != getattr(GradOT(), k)} for one in methods[1:6]]
    assert [len(each) for each in changed] == [4, 3, 2, 1, 0]
    assert all(after < before for before, after in pairwise(changed))
