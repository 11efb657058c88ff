"""ScaleOT on tiny models: what is learnt, that it resumes, and what its plans are made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offsite.errors import UserError
from offsite.model.split import Split
from offsite.owner import harmonize as training
from offsite.owner.build import build, keep_of
from offsite.owner.methods import method_named
from offsite.owner.methods.scaleot import ScaleOT, least_within
from offsite.owner.methods.src import SRC
from tests.families import tiny_model
from tests.sample_bundles import is_sentence
from tests.test_laws import same, state

SPLIT = Split(1, 1)
MIDDLE = list(SPLIT.middle(8))
TOKENS = torch.randint(3, 120, (64, 16), generator=torch.Generator().manual_seed(0))
QUICK = {"steps": 6, "batch_size": 4, "rank": 4, "regressed": 16}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def profile(model):
    return ScaleOT(**QUICK).profile(model, SPLIT, TOKENS)


def test_a_model_in_half_precision_is_learnt_about_in_float32():
    half = tiny_model("llama").bfloat16()
    half.config.dtype = torch.bfloat16
    chosen = ScaleOT(**QUICK, alpha=0.5)
    learnt = chosen.profile(half, SPLIT, TOKENS)
    assert learnt.tensors[f"harmonizers/{MIDDLE[0]}.factors.up"].dtype == torch.float32
    built = build(half, SPLIT, chosen.plan(learnt, 0.5)).model
    assert {tensor.dtype for tensor in built.state_dict().values()} == {torch.bfloat16}
    with torch.no_grad():
        assert built(TOKENS[:2]).logits.isfinite().all()


class StopError(Exception):
    pass


def interrupted(monkeypatch, after):
    """Lets training stop once so many steps are done."""
    real = training._Training.step

    def step(self):
        if self.done == after:
            raise StopError
        real(self)

    monkeypatch.setattr(training._Training, "step", step)
    return lambda: monkeypatch.setattr(training._Training, "step", real)


def test_learning_leaves_the_model_as_it_was(model):
    before, forwards = state(model), [layer.forward for layer in model.model.layers]
    ScaleOT(**QUICK).profile(model, SPLIT, TOKENS)
    assert same(state(model), before)
    assert [layer.forward for layer in model.model.layers] == forwards
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_every_harmonizer_and_every_score_moves(model, profile):
    start = ScaleOT(**QUICK | {"steps": 1, "lr": 1e-9}).profile(model, SPLIT, TOKENS)
    for layer in MIDDLE:
        for part in ("up", "down"):
            key = f"harmonizers/{layer}.factors.{part}"
            assert not torch.allclose(profile.tensors[key], start.tensors[key], atol=1e-5), key
    assert (profile.tensors["harmonizers/scores"] != 0).all()
    curves = profile.tensors["harmonizers/curve.scores"]
    assert torch.equal(curves[-1], profile.tensors["harmonizers/scores"])


def test_harmonizers_learn(model):
    """On a text that can be learnt: one word, again and again."""
    longer = ScaleOT(**QUICK | {"steps": 40, "regressed": 0, "lr": 1e-2})
    found = longer.profile(model, SPLIT, torch.full_like(TOKENS, 7)).tensors
    loss = found["harmonizers/curve.loss"]
    assert loss[-10:].mean() < loss[:10].mean() / 2


def test_the_regression_starts_nearer_to_the_layers_than_the_identity(model):
    def error(regressed):
        chosen = ScaleOT(**QUICK | {"steps": 1, "lr": 1e-9, "regressed": regressed, "alpha": 0.5, "beta": 1.0})
        plan = chosen.plan(chosen.profile(model, SPLIT, TOKENS), 0.5)
        with torch.no_grad():
            found, whole = (one(TOKENS).logits for one in (build(model, SPLIT, plan).model, model))
        return float((found - whole).square().mean())

    assert error(32) < error(0)


def test_reduced_rank_regression_finds_a_map_of_that_rank():
    chance = torch.Generator().manual_seed(0)
    x, true = torch.randn(500, 12, generator=chance), torch.randn(12, 3, generator=chance)
    true = true @ torch.randn(3, 9, generator=chance)
    up, down = training.reduced_rank(x.T @ x, x.T @ (x @ true), 3)
    assert (up.shape, down.shape) == ((9, 3), (3, 12))
    assert torch.allclose((up @ down).T, true, atol=0.1)


@pytest.mark.parametrize("after", [0, 3, 11])
def test_an_interrupted_run_ends_as_an_undisturbed_one(model, tmp_path, monkeypatch, after):
    monkeypatch.setattr(training, "_EVERY", 2)
    chosen = ScaleOT(**QUICK | {"steps": 12, "align": 1.0})
    whole = chosen.profile(model, SPLIT, TOKENS, tmp_path / "undisturbed")
    go_on = interrupted(monkeypatch, after)
    with pytest.raises(StopError):
        chosen.profile(model, SPLIT, TOKENS, tmp_path / "work")
    go_on()
    resumed = chosen.profile(model, SPLIT, TOKENS, tmp_path / "work")
    assert same(dict(resumed.tensors), dict(whole.tensors))
    assert training.STATE not in resumed.tensors.names


def test_the_same_seed_gives_the_same_profile_and_another_another(model, profile):
    again, other = (ScaleOT(**QUICK | {"seed": seed}).profile(model, SPLIT, TOKENS) for seed in (0, 1))
    assert same(dict(again.tensors), dict(profile.tensors))
    assert not same(dict(other.tensors), dict(profile.tensors))


@pytest.mark.parametrize(("alpha", "replaced"), [(0.0, 0), (0.25, 2), (0.5, 3), (0.99, 5)])
def test_alpha_replaces_the_layers_of_the_least_score(profile, alpha, replaced):
    plan = ScaleOT(**QUICK, alpha=alpha).plan(profile, 0.7)
    gone = [place.layer for place in plan if place.harmonizer]
    order = profile.tensors["harmonizers/scores"].argsort().tolist()
    assert sorted(gone) == sorted(MIDDLE[i] for i in order[:replaced])
    assert [place.layer for place in plan] == MIDDLE


def test_within_groups_the_same_share_of_each_is_replaced(profile):
    scores = torch.tensor([0.0, 1, 2, 3, 9, 8, 7, 6, 4, 5, 4.5, 10])
    assert least_within(scores, 3, 4) == [0, 7, 8]
    assert least_within(scores, 6, 4) == [0, 1, 7, 6, 8, 10]
    assert least_within(scores, 3, 0) == [0, 1, 2]
    for size in (0, 1, 3, 4, 5, 12, 99):
        for count in range(13):
            found = least_within(scores, count, size)
            assert len(set(found)) == len(found) == count
            shares = [sum(i // size == g for i in found) for g in range(12 // size)] if size else []
            assert max(shares, default=0) - min(shares, default=0) <= 1
    plan = ScaleOT(**QUICK, alpha=1 / 3, within=3).plan(profile, 0.7)
    gone = [place.layer for place in plan if place.harmonizer]
    order = profile.tensors["harmonizers/scores"]
    assert gone == [MIDDLE[int(order[:3].argmin())], MIDDLE[3 + int(order[3:].argmin())]]


@pytest.mark.parametrize("keep", [1.0, 0.7, 0.4])
def test_keep_chooses_alpha_where_none_is_set(model, profile, keep):
    plan = ScaleOT(**QUICK, beta=1.0).plan(profile, keep)
    assert keep_of(build(model, SPLIT, plan), model) == pytest.approx(keep, abs=0.5 / len(MIDDLE) + 0.05)


@pytest.mark.parametrize("beta", [0.5, 0.25])
def test_beta_is_the_share_of_rank_in_attention_and_nowhere_else(model, profile, beta):
    for chosen in (ScaleOT(**QUICK, alpha=0.25, beta=beta), SRC(beta=beta)):
        learnt = profile if isinstance(chosen, ScaleOT) else chosen.profile(model, SPLIT, TOKENS)
        built = build(model, SPLIT, chosen.plan(learnt, 0.7)).model
        for layer in built.model.layers[1:-1]:
            query = layer.self_attn.q_proj
            dense = query.up.weight @ query.down.weight if hasattr(query, "up") else query.weight
            assert torch.linalg.matrix_rank(dense, rtol=1e-4) == round(beta * 32)
            assert layer.mlp.down_proj.weight.shape == model.model.layers[1].mlp.down_proj.weight.shape


def test_plain_src_is_the_best_matrix_of_its_rank(model):
    plain = SRC(beta=0.25, norm="plain")
    plan = plain.plan(plain.profile(model, SPLIT, TOKENS), 1.0)
    name, weight = next(iter(plan[0].weights.items()))
    up, down = weight.matrices
    old = model.model.layers[plan[0].layer].get_submodule(name).weight
    lost = torch.linalg.svdvals(old.detach())[len(down) :].norm()
    assert torch.allclose(torch.linalg.norm(old.detach() - up @ down), lost, rtol=1e-4)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"alpha": 1.0}, "alpha is the share"), ({"alpha": -0.1}, "alpha is the share"),
        ({"within": -1}, "within is a number of layers, or 0 for the whole stack, not -1"),
        ({"beta": 0.0}, "beta is the share"), ({"beta": 1.1}, "beta is the share"),
    ],
)  # fmt: skip
def test_shares_that_are_none_are_refused_at_once(knobs, said):
    with pytest.raises(UserError, match=said):
        ScaleOT(**QUICK, **knobs)
    with pytest.raises(UserError, match=said):  # on the command line too, and in the same sentence
        method_named("scaleot", [f"{name}={value}" for name, value in knobs.items()])


@pytest.mark.parametrize(
    "knobs",
    [
        {"steps": 0},
        {"lr": -1.0},
        {"rank": 0},
        {"candidates": 1},
        {"align": -1.0},
        {"regressed": -1},
        {"alone": -1},
        {"seed": 2**32},
        {"align": 0.0},
        {"sobolev": -1.0},
    ],
)
def test_senseless_knobs_are_refused(knobs):
    with pytest.raises(UserError) as caught:
        ScaleOT(**knobs)
    with pytest.raises(UserError) as again:
        method_named("scaleot", [f"{name}={value}" for name, value in knobs.items()])
    assert str(caught.value) == str(again.value)
    assert is_sentence(str(caught.value))


@pytest.mark.parametrize("tokens", [TOKENS[:4], TOKENS[:, :1]], ids=["few", "short"])
def test_too_little_text_is_refused_before_anything_is_learnt(model, tmp_path, tokens):
    with pytest.raises(UserError, match="too few"):
        ScaleOT(**QUICK).profile(model, SPLIT, tokens, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_what_is_asked_of_beta_holds_at_any_keep(profile):
    assert not any(place.weights for place in ScaleOT(**QUICK).plan(profile, 1.0))
    assert all(place.weights for place in ScaleOT(**QUICK, beta=0.5).plan(profile, 1.0))


def test_dropout_rests_and_modes_come_back(profile):
    model = tiny_model("gpt2").train()
    model.transformer.h[2].eval()
    modes = [module.training for module in model.modules()]
    chosen = ScaleOT(**QUICK)
    first, second = (chosen.profile(model, SPLIT, TOKENS).tensors for _ in range(2))
    assert same(dict(first), dict(second))
    assert [module.training for module in model.modules()] == modes


def test_layers_that_do_not_fit_at_once_are_fitted_in_turn(model, profile, monkeypatch):
    monkeypatch.setattr(training, "_ROOM", 2 * 8 * 32**2)  # two layers of a width of 32
    again = ScaleOT(**QUICK).profile(model, SPLIT, TOKENS)
    assert same(dict(again.tensors), dict(profile.tensors))


def test_a_profile_serves_any_alpha_and_beta_but_no_other_training(profile):
    ScaleOT(**QUICK, alpha=0.3, beta=0.5).check(profile)
    older = {name: value for name, value in profile.knobs.items() if name != "sobolev"}  # when there was none
    ScaleOT(**QUICK).check(replace(profile, knobs=older))
    with pytest.raises(UserError, match=r"sobolev=0\.0, not 1\.0"):
        ScaleOT(**QUICK, sobolev=1.0).check(replace(profile, knobs=older))
    with pytest.raises(UserError, match="rank=4"):
        ScaleOT(**QUICK | {"rank": 8}).check(profile)


def test_a_profile_of_one_norm_serves_no_other(model):
    with pytest.raises(UserError, match="norm=plain"):
        SRC().check(SRC(norm="plain").profile(model, SPLIT, TOKENS))
