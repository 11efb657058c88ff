"""Every candidate is estimated, some are scored, and wherever it was stopped it ends the same."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from offsite.data_owner.tune import TuneConfig
from offsite.errors import UserError
from offsite.experiments import cache as stages
from offsite.experiments import compare, frontier
from offsite.experiments.cache import Cache
from offsite.experiments.compare import Bench
from offsite.experiments.frontier import Candidate, Wish, explore
from offsite.experiments.frontier.choose import Amount
from offsite.experiments.frontier.grid import parse_split
from offsite.model.split import Split
from offsite.owner.methods import METHODS
from tests.experiments.test_compare import ASKED as FIVE_ROWS
from tests.families import tiny_model
from tests.test_laws import same, state

SPLIT = Split(2, 2)
ASKED = replace(FIVE_ROWS, config=TuneConfig(steps=3, lr=1e-2, max_length=32))
KEEPS = (0.5, 0.7, 1.0)


@pytest.fixture(scope="module")
def whole():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def exploring(whole, tokenizer):
    tokens = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(1))

    def explored(work, keeps=KEEPS, name="svd", **more):
        method = METHODS[name]()
        profile = method.profile(whole, SPLIT)
        asked = [Candidate({"keep": keep}, [(method, profile)]) for keep in keeps]
        return explore(whole, tokenizer, asked, tokens, ASKED, work=work, **{"most": 2, **more})

    return explored


@pytest.fixture(scope="module")
def done(exploring, tmp_path_factory):
    """A frontier, and the folder with all that was done for it."""
    work = tmp_path_factory.mktemp("done")
    return exploring(work), work


@pytest.fixture
def work(done, tmp_path):
    return shutil.copytree(done[1], tmp_path / "work")


def scored(found):
    return [point.settings["keep"] for point in found.points if point.rows is not None]


def test_every_candidate_is_estimated_and_some_are_scored(done):
    found = done[0]
    assert [point.settings["keep"] for point in found.points] == list(KEEPS)
    stored = [point.stored for point in found.points]
    assert stored == sorted(stored)
    assert found.points[-1].estimate["cosine"] == pytest.approx(1)
    assert found.points[-1].estimate["loss_gap"] == pytest.approx(0, abs=1e-4)
    ends = sorted(found.points, key=lambda each: each.estimate["cosine"])[::2]
    assert set(scored(found)) == {point.settings["keep"] for point in ends}
    told = found.as_json()
    assert set(told["ends"]) == {"zero_shot", "fine_tuned"}
    assert set(told["points"][-1]["rows"]) == {"emulator_zero_shot", "emulator_tuned", "plugged_in"}
    lossless = told["points"][-1]["rows"]["plugged_in"]["mine"]["nll"]
    assert lossless == pytest.approx(told["ends"]["fine_tuned"]["mine"]["nll"], rel=1e-4)


def test_settings_that_make_the_same_emulator_stand_once(exploring, work):
    found = exploring(work, (0.5, 0.55, 0.75), "uniform", most=1)
    assert [point.settings["keep"] for point in found.points] == [0.5, 0.75]
    assert found.same == 1


def test_emulators_of_several_splits_are_each_held_against_their_own(whole, tokenizer, tokens, done, work):
    method = METHODS["uniform"]()
    made = [
        Candidate({"keep": 0.5, "split": word}, [(method, method.profile(whole, parse_split(word)))])
        for word in ("2+2", "1+1")
    ]
    before = state(whole)
    found = explore(whole, tokenizer, made, tokens, ASKED, work=work)
    assert same(state(whole), before)
    assert found.ends == done[0].ends
    assert all(point.rows for point in found.points)
    assert found.points[0].rows["plugged_in"] != found.points[1].rows["plugged_in"]
    own = Bench(whole, tokenizer, Split(1, 1), Cache(work)).ends(ASKED)["rows"]
    assert own["fine_tuned"] != found.ends["fine_tuned"]
    for point, ends in zip(found.points, (found.ends, own), strict=True):
        assert point == point.scored(point.rows, ends)


def test_killed_after_every_single_stage_it_ends_the_same(whole, exploring, done, tmp_path, monkeypatch):
    before, real, kills = state(whole), stages.write_text, 0

    def killed(path, text):
        real(path, text)
        raise KeyboardInterrupt

    while True:
        with monkeypatch.context() as patch:
            patch.setattr(stages, "write_text", killed)
            try:
                found = exploring(tmp_path / "work")
                break
            except KeyboardInterrupt:
                kills += 1
                assert same(state(whole), before)
    assert kills == len(list(done[1].glob("*.json"))) > 10
    assert found.as_json() == done[0].as_json()


def test_what_is_done_is_not_done_again_and_serves_another_wish(exploring, work, monkeypatch):
    for name in ("evaluate", "tune"):
        monkeypatch.setattr(compare, name, None)
    monkeypatch.setattr("offsite.experiments.frontier.fidelity", None)
    assert exploring(work, wish=Wish(Amount(-100))).chosen is not None


def test_it_bisects_on_what_is_stored(exploring, work):
    found = exploring(work, (0.5, 0.6, 0.7, 0.8, 1.0), most=3)
    by_size = sorted(found.points, key=lambda each: each.stored)
    assert [each.rows is not None for each in by_size] == [True, False, True, False, True]
    assert found.answer.endswith("3 of 5 were scored, the ends of what they store first, then by halving.")


def test_another_code_of_the_method_makes_the_estimate_anew(exploring, work, monkeypatch):
    monkeypatch.setattr("offsite.experiments.frontier.identity", lambda kind: "other code")
    monkeypatch.setattr("offsite.experiments.frontier.fidelity", None)
    with pytest.raises(TypeError):
        exploring(work)


@pytest.fixture
def failing(monkeypatch):
    """`failing(where, name, times)`: the first calls of that end in a refusal."""

    def made(where, name, times):
        real, calls = getattr(where, name), []

        def once(*args, **more):
            calls.append(name)
            if len(calls) <= times:
                raise UserError("The tuning ran away.")
            return real(*args, **more)

        monkeypatch.setattr(where, name, once)

    return made


@pytest.mark.parametrize("where", [(Bench, "trial"), (frontier, "fidelity")], ids=["scored", "estimated"])
def test_a_candidate_that_fails_costs_itself_only_and_is_told(exploring, tmp_path, failing, where):
    failing(*where, times=1)
    found = exploring(tmp_path / "work", most=3)
    assert len(scored(found)) == 2
    assert len(found.points) == (3 if where[0] is Bench else 2)
    (said,) = found.failed
    assert said.startswith("There are no figures of keep ")
    assert said.endswith(": The tuning ran away.")
    assert found.same == 0


@pytest.mark.parametrize("where", [(Bench, "trial"), (frontier, "fidelity")], ids=["scored", "estimated"])
def test_where_all_fail_there_is_no_frontier(exploring, tmp_path, failing, where):
    failing(*where, times=9)
    with pytest.raises(UserError, match="The tuning ran away"):
        exploring(tmp_path / "work")
