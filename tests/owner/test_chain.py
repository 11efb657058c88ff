"""Methods one after the other: whose layers, whose ranks, and one budget for all."""

from __future__ import annotations

import pytest
import torch

from offsite.errors import UserError
from offsite.model.linears import Weight
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build, keep_of
from offsite.owner.chain import overlay, plan
from offsite.owner.methods import chain
from offsite.owner.methods.crash import Crash
from offsite.owner.methods.gradot import GradOT
from offsite.owner.methods.scaleot import ScaleOT
from offsite.owner.methods.src import SRC
from offsite.owner.methods.svd import SVD
from offsite.owner.methods.uniform import Uniform
from tests.families import tiny_model
from tests.owner.test_scaleot import QUICK, TOKENS

SPLIT = Split(1, 1)
METHODS = {
    "scaleot": ScaleOT(**QUICK, beta=1.0),
    "scaleot at alpha": ScaleOT(**QUICK, alpha=0.25, beta=1.0),
    "gradot": GradOT(),
    "uniform": Uniform(),
    "svd": SVD(),
    "src": SRC(beta=0.25),
    "crash": Crash(share=False),
    "crash, shared": Crash(),
}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def stage(model):
    return {name: (one, one.profile(model, SPLIT, TOKENS)) for name, one in METHODS.items()}


def test_one_stage_is_its_method_alone(stage):
    method, profile = stage["scaleot"]
    described = [
        [place.describe() for place in made]
        for made in (plan([(method, profile)], 0.6), method.plan(profile, 0.6))
    ]
    assert described[0] == described[1]


@pytest.mark.parametrize("first", ["scaleot", "scaleot at alpha", "uniform", "crash", "crash, shared"])
@pytest.mark.parametrize("then", ["gradot", "svd"])
@pytest.mark.parametrize("keep", [0.7, 0.5])
def test_a_chain_stores_what_was_asked_for(model, stage, first, then, keep):
    blueprint = plan([stage[first], stage[then]], keep)
    assert keep_of(build(model, SPLIT, blueprint), model) == pytest.approx(keep, abs=0.05)


def test_the_first_decides_the_layers_and_the_next_what_is_left_of_them(stage):
    blueprint = plan([stage["scaleot at alpha"], stage["gradot"]], 0.5)
    alone = METHODS["scaleot at alpha"].plan(stage["scaleot at alpha"][1], 0.5)
    assert [bool(p.harmonizer) for p in blueprint] == [bool(p.harmonizer) for p in alone]
    assert any(place.channels is not None for place in blueprint)
    assert not any(place.harmonizer and (place.weights or place.channels) for place in blueprint)


def test_a_stage_without_a_budget_takes_none(model, stage):
    whole = METHODS["uniform"].plan(stage["uniform"][1], 0.7)
    blueprint = plan([stage["uniform"], stage["src"]], 0.7)
    assert [p.layer for p in blueprint] == [p.layer for p in whole]
    assert all(len(w.matrices[1]) == 8 for p in blueprint for n, w in p.weights.items() if "q_proj" in n)


@pytest.mark.parametrize("first", ["gradot", "svd"])
def test_a_stage_without_a_budget_undoes_nothing(model, stage, first):
    method, profile = stage[first]
    alone, chained = method.plan(profile, 0.5), plan([stage[first], stage["src"]], 0.5)
    for place, own in zip(chained, alone, strict=True):
        assert place.weights.keys() > own.weights.keys() or place.weights.keys() == own.weights.keys()
        assert all(place.weights[name] is not None for name in own.weights)
        told, was = (one.describe().get("ranks", {}) for one in (place, own))
        assert was.items() <= told.items()
    stored = [keep_of(build(model, SPLIT, blueprint), model) for blueprint in (alone, chained)]
    assert stored[1] <= stored[0] + 1e-6


def test_a_stage_that_drops_layers_has_to_be_first(stage):
    with pytest.raises(UserError, match="'uniform' drops layers"):
        plan([stage["gradot"], stage["uniform"]], 0.5)


def test_channels_are_pruned_by_one_stage_only(stage):
    with pytest.raises(UserError, match="'svd' prunes channels"):
        plan([stage["gradot"], stage["svd"]], 0.4)


def test_the_later_stage_wins_a_weight():
    mine, own, other = (Weight((torch.full((2, 2), value),)) for value in (1.0, 2.0, 3.0))
    (place,) = overlay((Place(3, weights={"q": mine, "k": other}),), (Place(3, (0, 1), {"q": own}),))
    assert (place.weights["q"], place.weights["k"], place.channels) == (own, other, (0, 1))


class TestChain:
    def test_gives_a_knob_to_all_that_know_it(self):
        assert chain(["scaleot", "src"], ["beta=0.5", "alpha=0.25"]) == [
            ScaleOT(alpha=0.25, beta=0.5),
            SRC(beta=0.5),
        ]

    def test_goes_over_what_profiles_were_made_with(self):
        before = {"scaleot": {"steps": 7, "beta": 0.4}}
        assert chain(["scaleot", "gradot"], ["beta=0.5"], before) == [ScaleOT(steps=7, beta=0.5), GradOT()]

    @pytest.mark.parametrize(
        ("words", "knobs", "said"),
        [
            (["scaleot", "gradto"], [], "gradot"),
            (["scaleot", "gradot"], ["bta=0.5"], "beta"),
            (["src"], ["bta=0.5"], "beta"),
            (["scaleot", "gradot"], ["beta=much"], "beta=much"),
        ],
    )
    def test_refuses_what_none_of_them_knows(self, words, knobs, said):
        with pytest.raises(UserError, match=said):
            chain(words, knobs)
