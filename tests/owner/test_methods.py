"""What every method must do, and what each one says that it does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from offsite.docstrings import about, field_docs
from offsite.errors import UserError
from offsite.model.linears import Weight
from offsite.model.split import Split
from offsite.owner.blueprint import Place, check, everything, raw
from offsite.owner.build import build, keep_of
from offsite.owner.chain import plan
from offsite.owner.methods import DEFAULT, METHODS, method_named
from offsite.owner.methods.crash import Crash, cluster, linear_cka
from offsite.owner.methods.uniform import Uniform
from offsite.owner.profile import Profile
from tests.families import tiny_model
from tests.sample_bundles import is_sentence

SPLIT = Split(1, 1)
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


QUICK = {"steps": "2", "rank": "8"}  # of those knobs, for methods that train


@pytest.fixture(params=sorted(METHODS))
def planned(request, model):
    """A method and its profile of a stack with a middle of six layers."""
    known = {knob.name for knob in field_docs(METHODS[request.param])}
    method = method_named(request.param, [f"{knob}={n}" for knob, n in QUICK.items() if knob in known])
    tokens = torch.randint(3, 120, (16, 8), generator=torch.Generator().manual_seed(0))
    return method, method.profile(model, SPLIT, tokens if method.calibration else None)


@pytest.mark.parametrize("keep", [0.01, 0.2, 0.5, 0.7, 1.0])
def test_a_plan_fits_the_middle_and_comes_as_near_to_the_budget_as_it_can(planned, model, keep):
    """Whole layers come in sixths here; ranks and channels nearer, but never quite to nothing."""
    method, profile = planned

    def kept(asked):
        blueprint = method.plan(profile, asked)
        check(blueprint, SPLIT, 8)
        return keep_of(build(model, SPLIT, blueprint), model)

    assert method.budgeted == (method.granularity != "knobs")
    if not method.budgeted:
        assert kept(keep) == kept(1.0) == pytest.approx(1.0, abs=0.1)
        return
    least, near = kept(1e-6), {"layers": 1 / 12, "components": 0.02}[method.granularity]
    assert least < 0.25
    assert kept(keep) == pytest.approx(max(keep, least), abs=near + 1e-6)


def test_keeping_everything_is_the_lossless_blueprint(planned):
    method, profile = planned
    if method.budgeted:
        assert method.plan(profile, 1.0) == everything(SPLIT, 8)


@pytest.mark.parametrize("keep", [0, -0.5, 1.01, float("nan")])
def test_a_budget_outside_0_to_1_is_refused(planned, keep):
    method, profile = planned
    with pytest.raises(UserError, match="above 0 and up to 1"):
        plan([planned], keep)
    if method.budgeted:
        with pytest.raises(UserError, match="above 0 and up to 1"):
            method.plan(profile, keep)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_all_that_commands_and_pages_show(name):
    """Each failure names what a new method still needs."""
    kind = METHODS[name]
    assert kind.name == name, "the line in METHODS and the attribute `name` differ"
    assert re.search(r"arXiv \d{4}\.\d{5}|\b(19|20)\d\d\b", kind.paper), "`paper` names no source"
    assert is_sentence(about(kind).partition("\n")[0]), "the docstring does not begin with what it keeps"
    for knob in field_docs(kind):
        assert len(knob.meaning) > 10, f"the knob {knob.name} has no docstring"
        assert knob.unit, f'the knob {knob.name} has no unit, as in Annotated[float, "share"]'
    names = {knob.name for knob in field_docs(kind)}
    assert kind.plan_knobs <= names
    assert set(kind.sweep) <= names
    assert f"`{name}`" in README.read_text(encoding="utf-8"), "README.md does not name it"


def test_the_default_is_a_method():
    assert DEFAULT in METHODS


def test_a_method_refuses_the_profile_of_another_one_and_of_none(planned, model):
    method, profile = planned
    method.check(profile)
    for stranger in (replace(profile, method="other"), Profile.of(model, SPLIT)):
        with pytest.raises(
            UserError, match=f"of the method {stranger.method!r}, not of {method.name!r}; leave"
        ):
            method.check(stranger)


def test_a_profile_says_which_method_with_which_knobs_made_it_of_what(planned):
    method, profile = planned
    assert (profile.method, profile.knobs, profile.split) == (method.name, method.knobs, SPLIT)
    assert profile.calibration == ((16, 8) if method.calibration else None)


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="'unifrom'; did you mean 'uniform'"):
        method_named("unifrom")


def test_knobs_are_set_by_name_and_wrong_ones_answered():
    assert method_named("crash", ["share=false"]) == Crash(share=False)
    with pytest.raises(UserError, match="no knob 'shar'; did you mean 'share'"):
        method_named("crash", ["shar=false"])
    with pytest.raises(UserError, match="name=value, not 'share'"):
        method_named("crash", ["share"])
    with pytest.raises(UserError, match="share=perhaps of crash"):
        method_named("crash", ["share=perhaps"])
    with pytest.raises(UserError, match="uniform has no knob 'share'; it has none"):
        method_named("uniform", ["share=false"])


def test_knobs_of_before_stand_until_they_are_set_again():
    before = Crash(share=False).knobs
    assert method_named("crash", (), before) == Crash(share=False)
    assert method_named("crash", ["share=true"], before) == Crash()
    with pytest.raises(UserError, match="crash has no knob 'lost'"):
        method_named("crash", (), {"lost": 1})


@pytest.mark.parametrize(
    ("keep", "layers"),
    [(1 / 6, [4]), (2 / 6, [1, 6]), (3 / 6, [1, 3, 6]), (4 / 6, [1, 3, 4, 6]), (5 / 6, [1, 2, 3, 5, 6])],
)
def test_uniform_follows_the_papers_formula(model, keep, layers):
    """round(i (M-1) / (k-1)) with M = 6, from layer 1; Python rounds 2.5 to 2."""
    plan = Uniform().plan(Profile.of(model, SPLIT), keep)
    assert [place.layer for place in plan] == layers


def test_cka_is_one_for_rotated_and_scaled_outputs_and_small_for_unrelated_ones():
    random = torch.Generator().manual_seed(0)
    base = torch.randn(200, 8, generator=random)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=random)).Q
    other = torch.randn(200, 8, generator=random)
    cka = linear_cka(torch.stack([base, 3 * base @ rotation, other]))
    assert cka[0, 1] == pytest.approx(1, abs=1e-5)
    assert cka[0, 2] < 0.2
    assert torch.allclose(cka, cka.T)


def test_clusters_are_neighbours_merged_by_likeness():
    alike = torch.eye(6)
    for a, b in ((0, 1), (1, 2), (0, 2), (4, 5)):
        alike[a, b] = alike[b, a] = 0.9
    assert cluster(alike, 3) == [range(0, 3), range(3, 4), range(4, 6)]
    assert cluster(alike, 6) == [range(i, i + 1) for i in range(6)]


def test_crash_keeps_each_clusters_middle_and_fills_every_place_with_the_nearest(model):
    alike = torch.eye(6)
    for a, b in ((0, 1), (1, 2), (0, 2), (4, 5)):
        alike[a, b] = alike[b, a] = 0.9
    profile = Profile.of(model, SPLIT, {"model/cka": alike})
    assert Crash(share=False).plan(profile, 0.5) == (Place(2), Place(4), Place(5))
    assert [place.layer for place in Crash().plan(profile, 0.5)] == [2, 2, 2, 4, 5, 5]


def test_crash_profiles_alike_for_alike_seeds_and_leaves_the_model(model):
    tokens = torch.randint(3, 120, (16, 8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (Crash().profile(model, SPLIT, tokens).tensors["model/cka"] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_blueprint_outside_the_middle_is_refused(model):
    with pytest.raises(UserError, match="puts layer 0"):
        build(model, SPLIT, (Place(0), Place(3)))
    with pytest.raises(UserError, match="puts layer 7"):
        build(model, SPLIT, (Place(3), stand_in(7)))


@pytest.mark.parametrize("harmonizers", [0, 1, 6])
def test_a_blueprint_of_no_layer_is_refused(model, harmonizers):
    with pytest.raises(UserError, match="The blueprint puts no layer in the middle, which is layers 1 to 6"):
        build(model, SPLIT, tuple(stand_in(layer) for layer in range(1, 1 + harmonizers)))


def stand_in(layer, rank=2):
    """A place where a harmonizer stands for the layer."""
    return Place(layer, harmonizer=Weight((torch.ones(32, rank), torch.ones(rank, 32))))


def test_places_with_harmonizers_are_told_apart_and_described():
    blueprint = (stand_in(1), Place(2), Place(3, (0, 1)), stand_in(4, rank=5))
    assert raw(blueprint) == blueprint[1:3]
    assert [place.describe() for place in blueprint] == [
        {"layer": 1, "harmonizer": 2},
        {"layer": 2},
        {"layer": 3, "channels": [0, 1]},
        {"layer": 4, "harmonizer": 5},
    ]


def test_what_is_kept_counts_harmonizers(model):
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    emulator = build(model, SPLIT, (stand_in(1), Place(2), Place(2), stand_in(4, rank=5)))
    assert keep_of(emulator, model) == pytest.approx((layer + 2 * 32 * (2 + 5)) / (6 * layer))
