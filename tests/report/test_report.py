"""The report: every number that went in is in the page, and nothing in the page runs or loads but our own."""

from __future__ import annotations

import copy
import math
import re
import shlex
from dataclasses import asdict

import pytest

from offsite.errors import UserError
from offsite.report import write
from offsite.results.measures import CHOICE
from offsite.results.schema import ROWS
from tests.report.pages import ATTACK, LOADING, SCORES, Page, browsed, cell
from tests.results.rows import five


@pytest.fixture
def page(tmp_path):
    def made(results):
        return Page(write(results, tmp_path / "report.html").read_text(encoding="utf-8"))

    return made


def test_figures_hold_the_data_of_every_row(page, results):
    made = page(results)
    accuracy, nll = made.json[:2]
    for figure, scale, which in ((accuracy, 100, 0), (nll, 1, 1)):
        assert [trace["meta"] for trace in figure["data"]] == list(SCORES)
        for trace in figure["data"]:
            assert trace["x"] == pytest.approx([scale * SCORES[trace["meta"]][which]])
            assert trace["error_x"]["array"] == pytest.approx([3.0 if which == 0 else 0.12])
            assert trace["error_x"]["visible"]


def test_table_holds_the_numbers_of_every_row(page, results):
    text = " ".join(page(results).text.split())
    for row in ROWS:
        acc, nll = SCORES[row.key]
        numbers = f"{row.name}{100 * acc:.1f} ± 3.0 {50 * acc:.1f} ± 1.5 {nll:.2f} ± 0.12"
        assert numbers.replace(" ", "") in text.replace(" ", "")


def test_choices_are_read_beside_accuracy_and_answer(page, results):
    results["rows"] = {row: {"arc_easy": asdict(tasks["t"])} for row, tasks in five().items()}
    made = page(results)
    [choice] = [CHOICE.of(five()["plugged_in"]["t"])]
    assert [trace["x"] for trace in made.json[1]["data"]][-1] == pytest.approx([choice.value])
    assert "Choice nll, nats per question" in made.text
    assert f"{choice.value:.3f}\u00a0±\u00a0{choice.stderr:.3f}" in made.text
    assert "nats of choice nll" in made.text
    assert str(five()["plugged_in"]["t"].choices[0][0]) not in made.text, (
        "what each question got stays in the file"
    )


def test_a_row_has_one_colour_everywhere(page, results):
    made = page(results)
    for row in ROWS:
        traces = [t for figure in made.json for t in figure["data"] if t["meta"] == row.key]
        assert {t["marker"]["color"] for t in traces} == {row.colour}
        assert {t["line"]["color"] for t in traces if "line" in t} <= {row.colour}
        assert f".{row.key} {{ --row: {row.colour}; }}" in made.style
    assert len({row.colour for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("ground", ["#fbfaf8", "#15171a"])
def test_row_colours_stand_out_on_both_grounds(page, results, ground):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert f"--ground: {ground}" in page(results).style
    for row in ROWS:
        low, high = sorted((luminance(row.colour), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 3, row.name


def test_curves_keep_only_what_was_taken_and_show_divergence_as_a_gap(page, results):
    loss = page(results).json[2]["data"]
    drawn = {trace["name"]: (trace["x"], trace["y"]) for trace in loss}
    assert drawn == {
        "Fine-tuned, training": ([10, 20, 40], [4.0, 3.0, None]),
        "Fine-tuned, held out": ([20, 40], [3.5, 3.25]),
        "Emulator tuned, training": ([10], [4.0]),
    }


def test_block_repeats_the_run_and_is_safe_to_paste(page, results):
    results["machine"] = "x86_64\nrm -rf ~\u2028\x1b[2J"
    results["seed"] = 17
    made = page(results)
    block = made.text[made.text.index("offsite compare") :].split("Copy")[0].strip()
    command, blank, *facts = block.splitlines()
    assert command == results["call"]
    assert not blank
    assert all(fact.startswith("# ") and fact.isprintable() for fact in facts)
    named = {fact.split()[1]: " ".join(fact.split()[2:]) for fact in facts}
    assert named["seed"] == "17"
    assert named["torch"] == "2.13.0"
    assert named["tuning"] == "steps 150, lr 0.0002"


def test_a_call_may_come_as_its_words(page, results):
    before = page(results).text
    results["call"] = shlex.split(results["call"])
    assert page(results).text == before


def test_page_loads_nothing(page, results):
    made = page(results)
    assert not [found for found in made.attributes if found[1] in LOADING]
    assert not re.search(r"@import|url\(", made.style)
    ours = made.scripts[-1]
    assert "Plotly.newPlot" in ours
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?:|WebSocket|sendBeacon", ours)
    # plotly.js can load maps; the policy forbids that, and every script but these two by their hashes.
    policy = next(value for _, name, value in made.attributes if name == "content" and "src" in value)
    assert policy.startswith("default-src 'none'; ")
    assert re.fullmatch(r"script-src( 'sha256-[\w+/]+=*'){2}", policy.split("; ")[-1])
    assert "http" not in policy


def test_plotly_is_in_the_page_once(page, results):
    results["rows"] = {row: {**tasks, "sciq": cell(0.5, 1.0)} for row, tasks in results["rows"].items()}
    made = page(results)
    assert len(made.json) == 5
    assert len(made.scripts) == 2
    assert "plotly.js v" in made.scripts[0][:200]


def filled(results, word):
    """The same results with `word` in every place that takes a string."""
    rows = {row: {word: next(iter(tasks.values()))} for row, tasks in results["rows"].items()}
    strings = dict.fromkeys(("method", "model", "train", "call", "date", "machine"), word)
    maps = {name: {word: word} for name in ("sources", "versions", "tuning")}
    return (
        results | strings | maps | {"rows": rows, "split": {word: 2}, "seconds": {word: 1.0}, "notes": [word]}
    )


def test_no_string_from_outside_becomes_markup(page, results):
    kind, evil = page(filled(results, "kind")), page(filled(results, ATTACK))
    assert evil.tags == kind.tags
    assert evil.scripts == kind.scripts
    assert evil.json == kind.json
    cut = 1  # above the headline only the day of the date stands
    assert evil.text.count(ATTACK) == kind.text.count("kind") - cut > 10
    filled_in = [(tag, name, value.replace("kind", ATTACK)) for tag, name, value in kind.attributes]
    assert evil.attributes == filled_in


def test_a_stage_is_named_in_words(page, results):
    results["seconds"] = {
        "fine_tuned-curve": 96.2,
        "emulator_tuned-curve": 80.0,
        "stored": 0.1,
        "plugged_in": 3.0,
    }
    text = page(results).text
    assert "-curve" not in text
    for words in (
        "Tuning the full model1 min 36 s",
        "Tuning the emulator",
        "Counting what",
        "Scoring: Plugged in",
    ):
        assert words in text


SHOWN = {
    "split": "Adapter layers",
    "curves": "Loss while tuning",
    "model": "smollm2-135m",
    "train": "Tuned on",
    "sources": "validation split",
    "notes": "Half of the rows",
    "tuning": "lr 0.0002",
    "seconds": "Where the time went",
    "call": "offsite compare",
    "versions": "2.13.0",
    "seed": "# seed",
    "date": "2026-03-02",
    "machine": "2 threads",
}


@pytest.mark.parametrize("part", SHOWN)
def test_a_missing_part_is_left_out(page, results, part):
    results["call"] = "offsite compare MODEL"
    assert SHOWN[part] in page(results).text
    del results[part]
    without = page(results).text
    assert SHOWN[part] not in without
    assert "None" not in without


def test_the_rows_alone_make_a_page(page, results):
    made = page({name: results[name] for name in ("rows", "keep", "method")})
    assert len(made.json) == 2
    assert "To repeat it" not in made.text
    assert "None" not in made.text


def test_scores_that_are_missing_or_not_finite_are_dashes(page, results):
    for row in results["rows"].values():
        del row["arc_easy"]["acc_norm"], row["arc_easy"]["nll_stderr"]
    results["rows"]["emulator_tuned"]["arc_easy"]["nll"] = math.inf
    made = page(results)
    assert made.text.count("–") == 6
    assert not any(trace["error_x"]["visible"] for trace in made.json[1]["data"])
    assert [trace["meta"] for trace in made.json[1]["data"]] == [r for r in SCORES if r != "emulator_tuned"]
    assert not re.search(r"\b(nan|inf|None)\b", made.text)


def test_the_same_results_make_the_same_file(tmp_path, results):
    before = copy.deepcopy(results)
    first, second = (write(results, tmp_path / name) for name in ("a.html", "b.html"))
    assert first == tmp_path / "a.html"
    assert first.read_bytes() == second.read_bytes()
    assert repr(results) == repr(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (lambda r: r["rows"].pop("plugged_in"), "plugged_in"),
        (lambda r: r["rows"].update(pluged_in={}), "pluged_in"),
        (lambda r: r["rows"]["plugged_in"].update(sciq={}), "sciq"),
        (lambda r: r["rows"]["fine_tuned"]["arc_easy"].update(acc=61.0), "rows.fine_tuned.arc_easy.acc"),
        (lambda r: r.pop("keep"), "keep"),
        (lambda r: r.update(rows={row: {} for row in SCORES}), "zero_shot"),
    ],
)
def test_results_of_another_shape_are_refused(tmp_path, results, spoil, names):
    spoil(results)
    with pytest.raises(UserError, match=re.escape(names)) as refusal:
        write(results, tmp_path / "report.html")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_without_plotly_the_extra_is_named(tmp_path, results, no_plotly):
    with pytest.raises(UserError, match=re.escape("pip install 'offsite[report]'")):
        write(results, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("evil", [False, True])
def test_a_browser_draws_it_and_complains_of_nothing(tmp_path, results, evil):
    path = write(filled(results, ATTACK) if evil else results, tmp_path / "report.html")
    dom = browsed(path, tmp_path, "--dump-dom")
    drawn = dom[: dom.index("plotly.js v")]  # what stands before the inlined library
    assert drawn.count('class="plot js-plotly-plot"') == 3
    assert drawn.count('class="point"') >= 2 * len(ROWS)
    assert "<title>owned" not in drawn
