"""Which emulators a frontier scores next, and what it chooses."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from offsite.errors import UserError
from offsite.experiments.frontier import Frontier, Wish
from offsite.experiments.frontier.answer import verdict
from offsite.experiments.frontier.choose import (
    Amount,
    choose,
    next_to_score,
    undominated,
)
from offsite.results.measures import CHOICE, gap_of
from offsite.results.statistics import Estimate
from tests.experiments.frontier.points import ALL, ENDS, bare, cell, point, wished
from tests.results.rows import five


class TestMeasures:
    def test_loss_gap_gain_and_what_is_reached(self):
        found = point(0.9, 2.5, 4)
        assert found.gain.value == pytest.approx(0.75)
        assert found.gap.value == pytest.approx(4)
        assert found.loss.value == pytest.approx(0.5)
        assert (found.loss_points.value, found.gap_points.value) == (pytest.approx(5), pytest.approx(5))
        assert found.reached == pytest.approx(1.5)

    def test_where_fine_tuning_gains_nothing_there_is_no_gain_but_a_fall(self):
        flat = {**ENDS, "fine_tuned": {"t": cell(4.0, 0.5)}}
        found = bare(0.9).scored(point(0.9, 2.5, 4).rows, flat)
        assert found.gain is None
        assert found.reached == pytest.approx(1.5)
        assert Wish(max_loss=Amount(0.5, share=True)).lacks(found) == float("inf")

    def test_texts_have_no_accuracy_but_a_gap_in_nats(self):
        rows = {name: {**row, "w": cell(row["t"]["nll"])} for name, row in point(0.9, 2.5, 4).rows.items()}
        ends = {name: {**row, "w": cell(row["t"]["nll"])} for name, row in ENDS.items()}
        both = bare(0.9).scored(rows, ends)
        assert (both.gap.value, both.gain.value) == (pytest.approx(4), pytest.approx(0.75))
        alone = bare(0.9).scored(
            {n: {"w": r["w"]} for n, r in rows.items()}, {n: {"w": r["w"]} for n, r in ends.items()}
        )
        assert alone.gap_points is None
        assert alone.gap.value == pytest.approx(4)

    def test_where_a_task_has_choices_only_they_count(self):
        five_rows = {row: {"t": asdict(tasks["t"]), "w": cell(2.0)} for row, tasks in five().items()}
        ends = {row: five_rows.pop(row) for row in ("zero_shot", "fine_tuned")}
        found = bare(0.9).scored(five_rows, ends)
        expected = gap_of(five(), ["t"], CHOICE)
        assert (found.gap.value, found.gap.stderr) == pytest.approx((expected.value, expected.stderr))


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
        order = self.scored(wished(3.2), 7)
        assert order[2:6] == [0.5, 0.75, 0.6, 0.65]
        assert max(keep for keep in order if 10 - 10 * keep >= 3.2) == 0.65

    def test_it_bisects_to_where_the_gain_turns(self):
        order = self.scored(wished(None, 0.3), 7)
        assert {0.7} <= set(order), "4 - 2 * 0.7 is a gain of 70%"

    def test_both_wishes_turn_the_gap_first(self):
        order = self.scored(wished(3.2, 0.3), 8)
        assert {0.65, 0.7} <= set(order)

    def test_without_a_turn_and_after_a_failure_it_goes_on(self):
        order = self.scored(wished(90), 5, failed=(1.0, 0.5))
        assert order[:2] == [0.0, 1.0]
        assert order[2] == 0.95, "the end that is left"
        assert len(set(order)) == 5

    def test_every_emulator_is_scored_once(self):
        assert sorted(self.scored(wished(5), len(self.KEEPS))) == list(self.KEEPS)

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
            (wished(4), 1), (wished(5.5), 2), (wished(None, 0.05), 0), (wished(None, 0.1), 0),
            (wished(5, 0.1), 1), (wished(6, 0.15), 2), (Wish(Amount(2.5, share=True)), 1),
            (Wish(max_loss=Amount(0.15)), 0),
        ],
    )  # fmt: skip
    def test_the_best_plugged_in_of_those_that_meet_it_is_chosen(self, wish, chosen):
        assert choose(self.POINTS, wish) == (chosen, None)
        said = verdict(self.POINTS, wish)
        assert said.startswith(f"The emulator of keep 0.{9 - chosen} meets the wish")
        assert ": plugged in loses " in said

    def test_a_wish_met_by_less_than_an_error_is_said_to_be(self):
        (sure,) = [replace(self.POINTS[1], gap=Estimate(5.0, 0.5), loss=Estimate(0.2, 0.04))]
        assert sure.gain.value == pytest.approx(0.9)
        for wish, narrow in (
            (wished(4), False),
            (wished(4.8), True),
            (wished(4, 0.15), False),
            (wished(4, 0.11), True),
        ):
            assert wish.lacks(sure) == 0
            assert ("by less than a standard error" in verdict([sure], wish)) == narrow
        said = verdict([sure], wished(4))
        assert "plugged in loses 0.200 ± 0.040 nats (5.0 ± 1.4 points) against fine-tuned" in said
        assert "keeps 90.0% of what fine-tuning gains" in said
        assert "the emulator tuned is 5.000 ± 0.500 nats (5.0 ± 1.4 points) worse" in said

    @pytest.mark.parametrize(
        ("wish", "closest", "said"),
        [
            (wished(7), 2, "has a gap of 7 nats; the closest, of keep 0.7, lacks 1.000 nats of the gap: "),
            (wished(None, 0.01), 0, "to 1% of what fine-tuning gains; the closest, of keep 0.9, loses 0.080 "),
            (wished(6, 0.1), 2, "both a gap of 6 nats and a loss of at most 10% of what fine-tuning gains"),
            (wished(7, 0.1), 2, "No emulator scored has a gap of 7 nats"),
        ],
    )  # fmt: skip
    def test_a_wish_that_cannot_be_met_is_said_with_the_closest(self, wish, closest, said):
        assert choose(self.POINTS, wish) == (None, closest)
        assert said in verdict(self.POINTS, wish)

    def test_without_a_wish_none_is_chosen(self):
        assert choose(self.POINTS, ALL) == (None, None)
        assert verdict(self.POINTS, ALL).startswith("Of the emulators scored 3 are not beaten")

    def test_what_cannot_be_measured_meets_no_wish(self):
        blind = [replace(each, gap=None, fall=Estimate(0.1, 0.2)) for each in self.POINTS[:4]]
        for wish in (wished(1), wished(None, 1)):
            assert choose(blind, wish) == (None, None)
            assert verdict(blind, wish).startswith("The wish cannot be judged: fine-tuning is no better than")

    def test_a_gap_below_zero_can_be_wished(self):
        assert choose(self.POINTS, wished(-3)) == (0, None)

    @pytest.mark.parametrize(
        ("word", "amount", "said"),
        [
            ("1%", Amount(0.01, share=True), "1% of what fine-tuning gains"),
            ("0.01", Amount(0.01), "0.01 nats"),
            (" 2.5 %", Amount(0.025, share=True), "2.5% of what fine-tuning gains"),
            ("-100", Amount(-100), "-100 nats"),
        ],
    )
    def test_amounts(self, word, amount, said):
        assert Amount.of(word) == amount
        assert str(amount) == said

    def test_wishes_without_sense_are_refused(self):
        with pytest.raises(UserError, match="not 'one'"):
            Amount.of("one")
        nan = Amount(float("nan"))
        for wrong in ({"max_loss": Amount(1.5, share=True)}, {"max_loss": Amount(-0.1)},
                      {"min_gap": Amount(101)}, {"max_loss": nan}, {"min_gap": nan}):  # fmt: skip
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
