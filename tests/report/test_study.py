"""A study's page: every run is in a figure, and errors are those over seeds."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict

import pytest

from offsite.errors import UserError
from offsite.report import write
from offsite.results.measures import CHOICE, gap_of, loss_of
from offsite.results.schema import ROWS
from tests.report.pages import SCORES, Page, made_study
from tests.results.rows import five

OWN = [row.key for row in ROWS[2:]]


@pytest.fixture
def page(tmp_path):
    def made(study):
        return Page(write(study, tmp_path / "report.html").read_text(encoding="utf-8"))

    return made


def traces(figure):
    return {trace["meta"]: trace for trace in figure["data"]}


def test_every_method_has_its_five_rows(page):
    _, accuracy, nll, *_ = page(made_study()).json
    for figure, scale, which, shift in ((accuracy, 100, 0, 0.0), (nll, 1, 1, 1.0)):
        drawn = traces(figure)
        assert set(drawn) == set(SCORES)
        for row in OWN:
            assert drawn[row]["x"] == pytest.approx(
                [scale * SCORES[row][which], scale * SCORES[row][which] + shift]
            )
    assert traces(accuracy)["zero_shot"]["x"] == pytest.approx([50.3, 50.3])
    assert traces(nll)["fine_tuned"]["x"] == pytest.approx([2.57, 2.57]), "the mean over both seeds"


def test_errors_are_over_seeds_and_else_over_questions(page):
    study = made_study()
    study["runs"][3]["plugged_in"]["nll"] += 0.5
    values = [SCORES["plugged_in"][1], SCORES["plugged_in"][1] + 0.5]
    nll = traces(page(study).json[2])["plugged_in"]
    assert nll["x"][0] == pytest.approx(statistics.mean(values))
    over_seeds = statistics.stdev(values) / math.sqrt(2)
    assert nll["error_x"]["array"] == pytest.approx([over_seeds, 0.12]), "one seed: its own over questions"


def test_a_method_that_fixes_its_own_size_is_drawn_like_the_others(page):
    study = made_study()
    for run in study["runs"]:
        run |= {"keep": None} if run["method"] == "gradot" else {}
    made = page(study)
    assert traces(made.json[1])["plugged_in"]["x"] == traces(page(made_study()).json[1])["plugged_in"]["x"]
    assert "0.69, 0.7" in made.text


def test_gain_is_of_the_same_seed(page):
    study = made_study()
    zero, tuned, plugged = (SCORES[row][1] for row in ("zero_shot", "fine_tuned", "plugged_in"))
    gains = [(zero + seed / 10 - plugged) / (zero - tuned) for seed in (0, 1)]
    made = page(study)
    assert "On arc_easy, gradot at keep 0.70 loses 0.74 ± 0.05 nats" in made.text
    assert f"{100 * statistics.mean(gains):.1f}\u00a0±" in made.text


def test_no_gain_is_told_of_some_seeds_only(page):
    study = made_study()
    study["runs"][1]["fine_tuned"]["nll"] = study["runs"][1]["zero_shot"]["nll"] - 0.01
    made = page(study)
    assert "Fine-tuning is no better than zero-shot on arc_easy beyond its standard error (0.01 ±" in made.text
    assert made.text.count("so there is nothing to keep") == 2, "in the headline, and under the task"


def test_methods_stand_in_the_order_of_the_runs_as_in_the_table(page):
    study = made_study()
    study["runs"] = study["runs"][4:5] + study["runs"][:4] + study["runs"][5:]
    text = page(study).text
    numbers = text[text.index("Seeds") :]
    assert numbers.index("uniform") < numbers.index("gradot"), "though gradot gains more"


def test_an_error_over_questions_is_marked(page):
    text = page(made_study()).text.replace("\u00a0", " ")
    assert "33.7 ± 3.0†" in text, "the same with both seeds"
    assert "4.56 ± 0.05" in text
    assert "4.56 ± 0.05†" not in text, "apart by the seeds"


def test_methods_are_ranked_on_one_budget(page):
    study = made_study()
    rich = [run | {"method": "rich", "keep": 0.9, "plugged_in": run["plugged_in"] | {"nll": 0.1}}
            for run in study["runs"] if run["method"] == "gradot"]  # fmt: skip
    made = page(study | {"runs": [*study["runs"], *rich]})
    assert "On arc_easy, gradot at keep 0.70 loses" in made.text
    assert "the least of 2 methods on that budget" in made.text


def test_a_text_without_answers_is_read_by_its_perplexity(page):
    made = page(made_study())
    perplexity = traces(made.json[3])
    assert perplexity["plugged_in"]["x"] == pytest.approx([math.exp(2.5)])
    assert perplexity["zero_shot"]["x"][0] == pytest.approx(math.exp(3.0))
    assert "Perplexity" in made.text
    assert "50 texts." in made.text
    assert "300 questions." in made.text
    assert len(made.json) == 5


def test_loss_against_gap_is_drawn_method_by_method(page):
    study = made_study()
    made = page(study)
    drawn = {trace["name"]: trace for trace in made.json[0]["data"]}
    assert list(drawn) == ["Fine-tuned", "Zero-shot", "gradot", "uniform"], "in the order of the runs"
    tuned, emulator, plugged = (SCORES[row][1] for row in ("fine_tuned", "emulator_tuned", "plugged_in"))
    assert drawn["gradot"]["x"] == pytest.approx([plugged - tuned - 0.05]), "the mean over both seeds"
    assert drawn["uniform"]["x"] == pytest.approx([plugged + 1 - tuned])
    assert drawn["uniform"]["y"] == pytest.approx([emulator - plugged])
    assert drawn["uniform"]["error_y"]["array"] == pytest.approx([math.hypot(0.12, 0.12)])
    assert drawn["Fine-tuned"]["x"] == [0.0, 0.0]
    assert drawn["Zero-shot"]["x"] == pytest.approx([SCORES["zero_shot"][1] - tuned] * 2)
    assert "nats a token of answer nll" in made.text


def test_loss_and_gap_are_of_choices_where_tasks_have_them(page):
    rows = {row: asdict(tasks["t"]) for row, tasks in five().items()}
    ends = {row: rows.pop(row) for row in ("zero_shot", "fine_tuned")}
    about = {"task": "asked", "seed": 0}
    runs = [{"method": "", **about, **ends}, {"method": "gradot", "keep": 0.7, **about, **rows}]
    made = page({"kind": "study", "runs": runs})
    loss, gap = (of(five(), ["t"], CHOICE) for of in (loss_of, gap_of))
    [dots] = [trace for trace in made.json[0]["data"] if trace["name"] == "gradot"]
    assert (dots["x"], dots["y"]) == (pytest.approx([loss.value]), pytest.approx([gap.value]))
    assert f"loses {loss.value:.3f} ± {loss.stderr:.3f} nats; its gap is {gap.value:.3f} ±" in made.text
    assert "Choice nll, nats per question" in made.text


def test_runs_alone_make_a_page(page):
    made = page({"kind": "study", "runs": made_study()["runs"]})
    assert "To repeat it" not in made.text
    assert "None" not in made.text


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([], "runs"),
        ([{"method": "", "task": "t"}], "no run of any method"),
        ([{"method": 3, "task": "t"}], "runs.0.method"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path, runs, says):
    with pytest.raises(UserError, match=says) as refusal:
        write({"kind": "study", "runs": runs}, tmp_path / "report.html")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())
