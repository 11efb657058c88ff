"""Which emulators a frontier scores next, and what it chooses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from offsite.errors import UserError
from offsite.experiments.frontier import Frontier, Wish
from offsite.experiments.frontier.answer import verdict
from offsite.experiments.frontier.choose import (
    choose,
    next_to_score,
    share,
    undominated,
)
from tests.experiments.frontier.points import ALL, ENDS, bare, cell, point


class TestMeasures:
    def test_gain_gap_and_fall(self):
        found = point(0.9, 2.5, 4)
        assert found.gain == pytest.approx(0.75)
        assert found.gap == pytest.approx(4)
        assert found.gap_nll == pytest.approx(0.5)
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


class TestWhatIsScored:
    KEEPS = tuple(place / 20 for place in range(21))

    def scored(self, wish, most, nll=lambda keep: 4 - 2 * keep, gap=lambda keep: 10 - 10 * keep, failed=()):
        """What each keep stores, in the order in which they are scored."""
        points = [bare(keep) for keep in reversed(self.KEEPS)]
        order = []
        for _ in range(most):
            place = next_to_score(points, wish)
            keep = points[place].stored
            order.append(keep)
            made = replace(points[place], failed=True) if keep in failed else point(keep, nll(keep), gap(keep))
            points[place] = made
        return order

    def test_the_ends_come_first_and_then_the_widest_interval(self):
        assert self.scored(ALL, 5) == [0.0, 1.0, 0.5, 0.25, 0.75]

    def test_it_bisects_to_where_the_gap_turns(self):
        order = self.scored(Wish(min_gap=3.2), 7)
        assert order[2:6] == [0.5, 0.75, 0.6, 0.65]
        assert max(keep for keep in order if 10 - 10 * keep >= 3.2) == 0.65

    def test_it_bisects_to_where_the_gain_turns(self):
        order = self.scored(Wish(max_loss=0.3), 7)
        assert {0.7} <= set(order), "4 - 2 * 0.7 is a gain of 70%"

    def test_both_wishes_turn_the_gap_first(self):
        order = self.scored(Wish(min_gap=3.2, max_loss=0.3), 8)
        assert {0.65, 0.7} <= set(order)

    def test_without_a_turn_and_after_a_failure_it_goes_on(self):
        order = self.scored(Wish(min_gap=90), 5, failed=(1.0, 0.5))
        assert order[:2] == [0.0, 1.0]
        assert order[2] == 0.95, "the end that is left"
        assert len(set(order)) == 5

    def test_every_emulator_is_scored_once(self):
        assert sorted(self.scored(Wish(min_gap=5), len(self.KEEPS))) == list(self.KEEPS)

    def test_what_stores_alike_is_ordered_by_its_cosine(self):
        points = [bare(cosine, lam=cosine) for cosine in (0.3, 0.9, 0.6)]
        points = [replace(each, stored=0.5) for each in points]
        assert next_to_score(points, ALL) == 0
        assert next_to_score([replace(points[0], failed=True), *points[1:]], ALL) == 2


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
            (Frontier(POINTS, ENDS, ALL), "; 4 of 5 were scored, the ends of what they store first, then by "
             "halving."),
        ],
    )  # fmt: skip
    def test_it_is_one_sentence_that_says_how_it_was_found(self, found, said):
        assert found.answer.endswith(said)
        assert found.answer.count(". ") == 0
