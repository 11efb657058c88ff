"""Which estimate a frontier trusts, what it scores next, and what it chooses."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from offsite.errors import UserError
from offsite.experiments.frontier import Frontier, Wish
from offsite.experiments.frontier.answer import verdict
from offsite.experiments.frontier.choose import (
    NEEDED,
    choose,
    correlations,
    most_promising,
    predicts,
    rank_correlation,
    share,
    spread,
    undominated,
)
from tests.experiments.frontier.points import ALL, ENDS, bare, cell, point


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
            (Frontier(POINTS, ENDS, ALL, 1), "; 4 of 5 were scored, 1 chosen by their cosine, which ranked "
             "the 3 others rightly by then."),
            (Frontier(POINTS, ENDS, ALL), "; 4 of 5 were scored, spread over the range, for their cosine has "
             "not shown that it ranks them rightly."),
        ],
    )  # fmt: skip
    def test_it_is_one_sentence_that_says_how_it_was_found(self, found, said):
        assert found.answer.endswith(said)
        assert found.answer.count(". ") == 0
