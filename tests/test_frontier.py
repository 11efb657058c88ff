"""What a frontier varies, which estimate it trusts, what it scores and chooses, and that it ends the same."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace

import pytest
import torch

from offsite import experiment as stages
from offsite.data_owner.tune import TuneConfig
from offsite.errors import UserError
from offsite.experiment import Bench, Cache, Experiment
from offsite.frontier import Candidate, Frontier, Wish, explore
from offsite.frontier.answer import verdict
from offsite.frontier.choose import (
    NEEDED,
    Point,
    choose,
    correlations,
    most_promising,
    predicts,
    rank_correlation,
    share,
    spread,
    undominated,
)
from offsite.frontier.grid import Grid, before, in_words, parse_keeps, parse_split
from offsite.owner.methods import METHODS
from offsite.split import Split
from offsite.tasks import Task
from offsite.text import Question
from tests.families import tiny_model
from tests.test_laws import same, state

SPLIT = Split(2, 2)
ALL = Wish()


def cell(nll, acc=None, error=0.01):
    return {"acc": acc, "acc_stderr": error, "acc_norm": acc, "acc_norm_stderr": error, "nll": nll,
            "nll_stderr": error, "n": 100}  # fmt: skip


ENDS = {"zero_shot": {"t": cell(4.0, 0.5)}, "fine_tuned": {"t": cell(2.0, 0.6)}}


def bare(cosine, **settings):
    estimate = {"cosine": cosine, "relative_error": 1 - cosine, "loss_gap": 1 - cosine}
    return Point(settings or {"keep": cosine}, cosine, estimate)


def point(cosine, nll, gap, **settings):
    """A scored point: the answer `nll` plugged in, `gap` points of accuracy above the emulator tuned."""
    rows = {
        "emulator_zero_shot": {"t": cell(5.0, 0.4)},
        "emulator_tuned": {"t": cell(nll + 0.5, 0.55 - gap / 100)},
        "plugged_in": {"t": cell(nll, 0.55)},
    }
    return bare(cosine, **settings).scored(rows, ENDS)


class TestGrid:
    @pytest.mark.parametrize("name", METHODS)
    def test_every_method_has_a_usual_grid(self, name):
        settings = Grid([name]).settings()
        assert len(settings) >= 4
        assert ("keep" in settings[0]) == any(method.budgeted for method in Grid([name]).of(settings[0]))
        assert len({str(point) for point in settings}) == len(settings)

    def test_all_that_is_varied_is_multiplied_out_once(self):
        grid = Grid(
            ["gradot"], ["ranks=0.5"], {"lambda_channels": ["0", "0.1"]}, [0.5, 0.6, 0.5], [SPLIT, Split(1, 3)]
        )
        settings = grid.settings()
        assert len(settings) == 2 * 2 * 2
        assert settings[0] == {"keep": 0.5, "split": "2+2", "lambda_channels": 0.0}
        (method,) = grid.of(settings[-1])
        assert (method.ranks, method.lambda_channels) == (0.5, 0.1)

    def test_alpha_decides_instead_of_keep(self):
        settings = Grid(["scaleot"], varied={"alpha": ["0.2"]}).settings()
        assert settings == [{"alpha": 0.2, "beta": beta} for beta in (0.6, 0.8, 1.0)]
        settings = Grid(["scaleot"], keeps=[0.6]).settings()
        assert settings == [{"keep": 0.6}]
        settings = Grid(["scaleot"], ["alpha=0.3", "beta=1"]).settings()
        assert settings == [{}]

    def test_a_chain_varies_keep_and_what_it_is_told_to(self):
        settings = Grid(["scaleot", "gradot"], ["alpha=0.25"], {"beta": ["1"]}, [0.6]).settings()
        assert settings == [{"keep": 0.6, "beta": 1.0}]

    def test_knobs_of_a_profile_stay(self):
        grid = Grid(["crash"], before={"crash": {"share": False}})
        assert not grid.of({"keep": 0.5})[0].share
        assert before(["scaleot", "gradot"], 3, []) == {"scaleot": {"seed": 3}, "gradot": {}}

    @pytest.mark.parametrize(
        ("grid", "said"),
        [
            (Grid(["scaleot"], varied={"alpha": ["0.2"]}, keeps=[0.5]), "leave --keeps out"),
            (Grid(["src"], keeps=[0.5]), "leave --keeps out"),
            (Grid(["gradot"], keeps=[1.5]), "up to 1, not 1.5"),
            (Grid(["gradot"], varied={"lamda_channels": ["1"]}), "did you mean 'lambda_channels'"),
            (Grid(["src"], varied={"beta": ["2"]}), "not 2"),
            (Grid(["grado"]), "did you mean 'gradot'"),
        ],
    )
    def test_what_no_method_can_be_set_to_is_refused(self, grid, said):
        with pytest.raises(UserError, match=said):
            grid.settings()

    def test_words(self):
        assert parse_split("1+3") == Split(1, 3)
        assert parse_keeps(["0.5", "1"]) == [0.5, 1.0]
        assert in_words({"keep": 0.7, "split": "1+3", "share": False}) == "keep 0.7, split 1+3, share False"
        for wrong in ("2", "2-2", "a+b", "+2"):
            with pytest.raises(UserError, match="is written as 2"):
                parse_split(wrong)
        with pytest.raises(UserError, match=r"'0\.5, half' is not"):
            parse_keeps(["0.5", "half"])


class TestMeasures:
    def test_gain_gap_and_fall(self):
        found = point(0.9, 2.5, 4)
        assert found.gain == pytest.approx(0.75)
        assert found.gap == pytest.approx(4)
        assert found.gap_nll == pytest.approx(-0.5)
        assert found.fall == pytest.approx(1.5)

    def test_where_fine_tuning_gains_nothing_there_is_no_gain_but_a_fall(self):
        flat = {**ENDS, "fine_tuned": {"t": cell(4.0, 0.5)}}
        found = bare(0.9).scored(point(0.9, 2.5, 4).rows, flat)
        assert found.gain is None
        assert found.fall == pytest.approx(1.5)

    def test_texts_have_no_accuracy_and_count_no_gap(self):
        rows = {name: {**row, "w": cell(row["t"]["nll"])} for name, row in point(0.9, 2.5, 4).rows.items()}
        ends = {name: {**row, "w": cell(row["t"]["nll"])} for name, row in ENDS.items()}
        both = bare(0.9).scored(rows, ends)
        assert (both.gap, both.gain) == (pytest.approx(4), pytest.approx(0.75))
        alone = bare(0.9).scored(
            {n: {"w": r["w"]} for n, r in rows.items()}, {n: {"w": r["w"]} for n, r in ends.items()}
        )
        assert alone.gap is None
        assert alone.cost == pytest.approx(0.5)


class TestEstimates:
    def test_rank_correlation(self):
        assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
        assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
        assert rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)
        assert rank_correlation([1, 1, 2], [1, 1, 2]) == pytest.approx(1)
        assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
        assert rank_correlation([1, 2], [1, 2]) is None

    def test_no_rank_correlation_that_is_needed_comes_by_chance_more_than_once_in_twenty(self):
        for count in range(4, 8):
            row = range(count)
            found = [rank_correlation(row, order) for order in itertools.permutations(row)]
            needed = NEEDED.get(count, 0.8) - 1e-9
            assert sum(rho >= needed for rho in found) / len(found) <= 0.05

    def test_an_estimate_is_trusted_only_where_it_ranks_the_right_way_over_enough_points(self):
        good = [point(c, 4 - c, 5 - c) for c in (0.2, 0.4, 0.6, 0.8)]
        assert correlations(good)["cosine"] == pytest.approx(1)
        assert correlations(good)["loss_gap"] == pytest.approx(-1)
        assert predicts(good, ALL)
        assert not predicts(good[:3], ALL)
        assert not predicts([*good[:3], bare(0.8)], ALL)
        assert not predicts([point(c, 3 + c, 1) for c in (0.2, 0.4, 0.6, 0.8)], ALL)
        mixed = [point(c, nll, 1) for c, nll in ((0.2, 3.7), (0.4, 3.8), (0.6, 3.2), (0.8, 3.0))]
        assert correlations(mixed)["cosine"] == pytest.approx(0.8)
        assert not predicts(mixed, ALL)
        sevens = [point(c / 10, nll, 1) for c, nll in enumerate((3.8, 3.7, 3.9, 3.6, 3.5, 3.3, 3.4))]
        assert predicts(sevens, ALL)

    def test_where_a_gap_is_wished_it_must_rank_the_gaps_too(self):
        rising = [point(c, 4 - c, 5 + c) for c in (0.2, 0.4, 0.6, 0.8)]
        assert predicts(rising, Wish(max_loss=0.1))
        assert not predicts(rising, Wish(min_gap=4))
        assert predicts([point(c, 4 - c, 5 - c) for c in (0.2, 0.4, 0.6, 0.8)], Wish(min_gap=4))

    def test_another_estimate_that_ranks_them_rightly_by_luck_does_not_choose(self):
        points = [
            replace(each, estimate=each.estimate | {"cosine": cosine})
            for each, cosine in zip(
                [point(c, 4 - c, 1) for c in (0.2, 0.4, 0.6, 0.8)], (0.5, 0.2, 0.9, 0.4), strict=True
            )
        ]
        assert correlations(points)["loss_gap"] == pytest.approx(-1)
        assert not predicts(points, ALL)

    @pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
    def test_a_spread_names_each_place_once_the_ends_first(self, count):
        order = spread(count)
        assert sorted(order) == list(range(count))
        assert set(order[:2]) == {0, count - 1}
        if count >= 7:
            assert min(abs(order[2] - (count - 1) / 2), 1) < 1

    def test_the_most_promising_is_next_to_where_the_wish_is_met(self):
        scored = [point(c, 4 - 2 * c, 10 - 10 * c) for c in (0.1, 0.5, 0.9)]
        rest = [bare(c) for c in (0.2, 0.4, 0.6, 0.8)]
        points = [*scored, *rest]
        assert points[most_promising(points, ALL)].stored == 0.8
        assert points[most_promising(points, Wish(min_gap=5.5))].stored == 0.4
        assert points[most_promising(points, Wish(min_gap=3.5, max_loss=0.45))].stored == 0.6


class TestWish:
    POINTS = (
        point(0.9, 2.1, 1, keep=0.9), point(0.8, 2.2, 5, keep=0.8), point(0.7, 2.3, 6, keep=0.7),
        point(0.6, 2.5, 4, keep=0.6), bare(0.5, keep=0.5),
    )  # fmt: skip

    def test_the_frontier_is_what_nothing_beats(self):
        assert undominated(self.POINTS) == [0, 1, 2]

    @pytest.mark.parametrize(
        ("wish", "chosen"),
        [
            (Wish(min_gap=4), 1), (Wish(min_gap=5.5), 2), (Wish(max_loss=0.05), 0), (Wish(max_loss=0.1), 0),
            (Wish(5, 0.1), 1), (Wish(6, 0.15), 2),
        ],
    )  # fmt: skip
    def test_the_best_plugged_in_of_those_that_meet_it_is_chosen(self, wish, chosen):
        assert choose(self.POINTS, wish) == (chosen, None)
        said = verdict(self.POINTS, wish)
        assert said.startswith(f"The emulator of keep 0.{9 - chosen} meets the wish")
        assert ": plugged in lies " in said

    def test_a_wish_met_by_less_than_an_error_is_said_to_be(self):
        (sure,) = [replace(self.POINTS[1], gap_stderr=0.5, gain_stderr=0.02)]
        assert sure.gain == pytest.approx(0.9)
        for wish, narrow in (
            (Wish(4), False),
            (Wish(4.8), True),
            (Wish(4, 0.15), False),
            (Wish(4, 0.11), True),
        ):
            assert wish.lacks(sure) == 0
            assert ("by less than a standard error" in verdict([sure], wish)) == narrow
        assert "reaches 90.0% (standard error 2.0%)" in verdict([sure], Wish(4))

    @pytest.mark.parametrize(
        ("wish", "closest", "said"),
        [
            (Wish(7), 2, "has a gap of 7 points; the closest, of keep 0.7, lacks 1.0 points of the gap: "),
            (Wish(None, 0.01), 0, "to 1% of what fine-tuning gains; the closest, of keep 0.9, lacks 4.0% of"),
            (Wish(6, 0.1), 1, "both a gap of 6 points and a loss of at most 10% of what fine-tuning gains"),
            (Wish(7, 0.1), 1, "No emulator scored has a gap of 7 points"),
        ],
    )  # fmt: skip
    def test_a_wish_that_cannot_be_met_is_said_with_the_closest(self, wish, closest, said):
        assert choose(self.POINTS, wish) == (None, closest)
        assert said in verdict(self.POINTS, wish)

    def test_without_a_wish_none_is_chosen(self):
        assert choose(self.POINTS, ALL) == (None, None)
        assert verdict(self.POINTS, ALL).startswith("Of the emulators scored 3 are not beaten")

    def test_what_cannot_be_measured_meets_no_wish(self):
        blind = [replace(each, gap=None, gain=None) for each in self.POINTS[:4]]
        for wish, said in ((Wish(1), "no task here has an accuracy"), (Wish(None, 1), "fine-tuning does not")):
            assert choose(blind, wish) == (None, None)
            assert verdict(blind, wish).startswith(f"The wish cannot be judged: {said}")

    def test_a_gap_below_zero_can_be_wished(self):
        assert choose(self.POINTS, Wish(-3)) == (0, None)

    @pytest.mark.parametrize(("word", "value"), [("1%", 0.01), ("0.01", 0.01), (" 2.5 %", 0.025), ("0", 0.0)])
    def test_shares(self, word, value):
        assert share(word) == pytest.approx(value)

    def test_wishes_without_sense_are_refused(self):
        with pytest.raises(UserError, match="not 'one'"):
            share("one")
        for bare_number in ("1", "2"):
            with pytest.raises(UserError, match=f"write {bare_number}%"):
                share(bare_number)
        for wrong in ({"max_loss": 1.5}, {"max_loss": -0.1}, {"max_loss": float("nan")}, {"min_gap": 101.0},
                      {"min_gap": float("nan")}):  # fmt: skip
            with pytest.raises(UserError, match="not "):
                Wish(**wrong)


class TestAnswer:
    POINTS = TestWish.POINTS

    @pytest.mark.parametrize(
        ("found", "said"),
        [
            (Frontier(POINTS[:4], ENDS, ALL), "; 4 of 4 were scored."),
            (Frontier(POINTS, ENDS, ALL, 1), "; 4 of 5 were scored, 1 chosen by their cosine, which had ranked "
             "the 3 others rightly."),
            (Frontier(POINTS, ENDS, ALL), "; 4 of 5 were scored, spread over the range, for their cosine has "
             "not shown that it ranks them rightly."),
        ],
    )  # fmt: skip
    def test_it_is_one_sentence_that_says_how_it_was_found(self, found, said):
        assert found.answer.endswith(said)
        assert found.answer.count(". ") == 0


QUESTIONS = tuple(
    Question(f"w{10 + i} w{40 + i}", (f"w{10 + i}", f"w{50 + i}", f"w{90 + i}"), 0) for i in range(24)
)
ASKED = Experiment(
    (Task("mine", QUESTIONS[:6]),),
    [q.example() for q in QUESTIONS],
    TuneConfig(steps=3, lr=1e-2, max_length=32),
)


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
    told = found.told()
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
    assert found.told() == done[0].told()


def test_what_is_done_is_not_done_again_and_serves_another_wish(exploring, work, monkeypatch):
    for name in ("evaluate", "tune"):
        monkeypatch.setattr(stages, name, None)
    monkeypatch.setattr("offsite.frontier.fidelity", None)
    assert exploring(work, wish=Wish(min_gap=-100)).chosen is not None


def test_an_estimate_that_predicts_chooses_the_rest(exploring, work, monkeypatch):
    """On true scores; whether it is trusted is set by hand, for what tiny models score is noise."""
    monkeypatch.setattr("offsite.frontier.choose.predicts", lambda points, wish: True)
    monkeypatch.setattr("offsite.frontier.FEWEST", 2)
    found = exploring(work, (0.5, 0.6, 0.7, 1.0), most=3)
    low, *_, high = by_cosine = sorted(found.points, key=lambda each: each.estimate["cosine"])
    assert found.foretold == 1
    assert by_cosine[-2 if high.fall > low.fall else 1].rows is not None
    assert len(scored(found)) == 3
    assert "1 chosen by their cosine" in found.answer
