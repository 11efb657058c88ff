"""A frontier's page: each emulator is a point with its settings, and the chosen one is marked."""

from __future__ import annotations

import pytest

from offsite.errors import UserError
from offsite.report import write
from tests.report.pages import SCORES, Page, made_frontier


@pytest.fixture
def page(tmp_path):
    def made(frontier):
        return Page(write(frontier, tmp_path / "report.html").read_text(encoding="utf-8"))

    return made


def named(figure):
    return {trace["name"]: trace for trace in figure["data"]}


def test_points_lie_where_their_rows_say_and_tell_their_settings(page):
    accuracy, nll, *_ = page(made_frontier()).json
    drawn = named(accuracy)
    points = drawn["emulators"]
    assert points["meta"] == [0, 1], "what was not scored has no place"
    assert points["x"] == pytest.approx([100 * SCORES["emulator_tuned"][0] + 2 * i for i in (0, 1)])
    assert points["y"] == pytest.approx([100 * SCORES["plugged_in"][0] + 2 * i for i in (0, 1)])
    assert points["hovertext"][1].startswith("keep 0.7<br>beta 0.8<br>stored 70.0%<br>")
    assert drawn["Zero-shot"]["y"] == pytest.approx([50.3, 50.3])
    assert drawn["Fine-tuned"]["y"] == pytest.approx([61.0, 61.0])
    assert named(nll)["emulators"]["y"] == pytest.approx([SCORES["plugged_in"][1] - i / 5 for i in (0, 1)])


@pytest.mark.parametrize(("chosen", "closest", "mark"), [(1, None, "chosen"), (None, 0, "closest")])
def test_the_answers_emulator_is_ringed(page, chosen, closest, mark):
    made = page(made_frontier() | {"chosen": chosen, "closest": closest})
    drawn = named(made.json[0])
    place = closest if chosen is None else chosen
    assert drawn[mark]["meta"] == place
    assert drawn[mark]["x"] == [drawn["emulators"]["x"][place]]
    assert made.text.count(f"{mark}0.") == 1, "in the table"


def test_without_an_answer_nothing_is_ringed(page):
    frontier = made_frontier() | {"chosen": None, "closest": None, "answer": "No wish was told."}
    made = page(frontier)
    assert "No wish was told." in made.text
    assert not {"chosen", "closest"} & set(named(made.json[0]))


def test_fidelity_of_every_emulator_is_drawn_scored_or_not(page):
    cosine, error, gap = page(made_frontier()).json[-3:]
    assert cosine["data"][0]["x"] == [0.5, 0.7, 0.9]
    assert cosine["data"][0]["y"] == pytest.approx([0.75, 0.85, 0.95])
    assert error["data"][0]["y"] == pytest.approx([0.5, 0.3, 0.1])
    assert gap["data"][0]["y"] == pytest.approx([0.5, 0.3, 0.1])


def test_a_frontier_of_which_nothing_was_scored_is_a_page(page):
    frontier = made_frontier() | {"chosen": None}
    for point in frontier["points"]:
        point |= dict.fromkeys(("rows", "loss", "gap", "gap_points", "gain"))
    made = page(frontier)
    assert len(made.json) == 3
    assert "3 emulators were estimated, 0 of them" in made.text


@pytest.mark.parametrize("lacks", ["points", "ends", "answer"])
def test_what_is_no_frontier_is_refused(tmp_path, lacks):
    frontier = made_frontier()
    del frontier[lacks]
    with pytest.raises(UserError, match=lacks):
        write(frontier, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
