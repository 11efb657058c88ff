"""The table says what the runs say: means, standard errors, averages and gaps, in every form."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from statistics import fmean, stdev

import pytest

from offsite.experiments.study import tabulate
from offsite.results.measures import CHOICE, gap_of, loss_of
from tests.results.rows import five

ROWS = ("emulator_zero_shot", "emulator_tuned", "plugged_in")


def score(acc, nll=2.0):
    known = None if acc is None else 0.01
    return {"acc": acc, "acc_stderr": known, "acc_norm": acc, "acc_norm_stderr": known, "nll": nll,
            "nll_stderr": 0.1, "n": 5}  # fmt: skip


def results(seeds=(0, 1, 2), method="gradot", tasks=("a_1", "b&b"), texts=()):
    runs = []
    for seed in seeds:
        for number, task in enumerate((*tasks, *texts)):
            value = (
                (lambda x: None) if task in texts else (lambda x, s=seed, n=number: x + 0.01 * s * s + 0.1 * n)
            )
            runs.append({"method": "", "task": task, "seed": seed, "zero_shot": score(value(0.2)),
                         "fine_tuned": score(value(0.4)), "seconds": 1})  # fmt: skip
            rows = {row: score(value(0.3 + 0.05 * i)) for i, row in enumerate(ROWS)}
            runs.append({"method": method, "keep": 0.7, "stored": 0.71, "task": task, "seed": seed, **rows})
    return {"runs": runs}


def cells(table, line=-1):
    """A line by the names of its columns."""
    return dict(zip(table.head, table.lines[line], strict=True))


def test_means_errors_average_and_gap():
    table = tabulate(results())
    judged = ("loss", "gap", "loss, points", "gap, points", "gain")
    assert table.head == ("method", "row", *judged, "a_1", "b&b", "average", "nll")
    name = "gradot, keep 0.7 (71.0 %)"
    assert [line[0] for line in table.lines] == ["full model", "", name, "", ""]
    assert [line[1] for line in table.lines][:3] == ["Zero-shot", "Fine-tuned", "Emulator zero-shot"]
    last = cells(table)
    first, second, average, gap = (last[name] for name in ("a_1", "b&b", "average", "gap, points"))
    of = [40.0, 41.0, 44.0]
    assert first.value == pytest.approx(fmean(of))
    assert first.stderr == pytest.approx(stdev(of) / math.sqrt(3))
    assert second.value == pytest.approx(fmean(of) + 10)
    assert average.value == pytest.approx(fmean(of) + 5)
    assert gap.value == pytest.approx(5)
    assert gap.over_questions, "the same with every seed"
    assert gap.stderr == pytest.approx(1.0)
    assert last["loss, points"].value == pytest.approx(0)
    assert last["gap"].value == pytest.approx(0), "in nats"
    assert {line[2:7] for line in table.lines[:-1]} == {(None,) * 5}
    assert "±" in table.markdown()


def test_the_nll_and_how_much_of_fine_tunings_fall_plugged_in_reaches():
    falling = results(tasks=("a", "b"))
    nlls = {"zero_shot": 4.0, "fine_tuned": 2.0, "plugged_in": 2.5}
    for run in falling["runs"]:
        for row in nlls.keys() & run.keys():  # task b falls by two more; all rows rise with the seed
            more = 2 if run["task"] == "b" and row != "zero_shot" else 0
            run[row] = score(0.3, nlls[row] + 0.1 * run["seed"] - more)
    table = tabulate(falling)
    nll, gain, loss = (cells(table)[name] for name in ("nll", "gain", "loss"))
    assert loss.value == pytest.approx(0.5)
    assert "Fine-tuning gains 3.00 ± 0.10† nats a token of answer nll over zero-shot." in table.markdown()
    assert nll.value == pytest.approx(2.5 + 0.1 - 1)
    assert nll.stderr == pytest.approx(0.1 / math.sqrt(3))
    assert gain.value == pytest.approx(100 * (1.5 + 1) / (2 + 1))
    assert gain.over_questions, "the same with every seed"
    assert str(nll) == "1.60 ± 0.06"
    assert [cells(table, line)["gain"] for line in range(4)] == [None] * 4


def test_where_fine_tuning_gains_nothing_there_is_no_gain_and_it_is_said():
    table = tabulate(results())
    assert cells(table)["gain"] is None
    said = "Fine-tuning is no better than zero-shot on a_1 and b&b beyond its standard error (0.00 ± 0.10 nats)"
    assert said in table.markdown()


def test_loss_and_gap_are_of_choices_where_tasks_have_them():
    lines, every = [], five()
    for task in ("t", "u"):
        for names in (list(every)[:2], list(every)[2:]):
            about = {"method": "", "task": task, "seed": 0}
            about |= {"method": "m", "keep": 0.7, "stored": 0.7} if len(names) > 2 else {}
            lines.append(about | {row: asdict(every[row]["t"]) for row in names})
    asked = {"method": "", "task": "exact", "seed": 0, "zero_shot": score(0.2), "fine_tuned": score(0.4)}
    table = tabulate({"runs": [*lines, asked]})
    assert table.head[-5:] == ("u", "exact", "average", "choice nll", "nll")
    last, loss = cells(table), loss_of(every, ["t"], CHOICE)
    assert last["loss"].value == pytest.approx(loss.value)
    assert last["loss"].stderr == pytest.approx(loss.stderr / math.sqrt(2))
    assert last["gap"].value == pytest.approx(gap_of(every, ["t"], CHOICE).value)
    assert last["choice nll"].digits == 3
    assert "nats a question of choice nll, then in points of accuracy" in table.markdown()
    assert "of the mean over t, u." in table.markdown()


def test_a_cell_that_failed_costs_its_own_seed_only():
    lacking = results()
    lacking["runs"] = [
        run for run in lacking["runs"] if not run["method"] or (run["task"], run["seed"]) != ("a_1", 1)
    ]
    table = tabulate(lacking)
    names = ("a_1", "b&b", "average", "gap, points", "nll")
    first, second, average, gap, nll = (cells(table)[name] for name in names)
    assert first.value == pytest.approx(fmean([40.0, 44.0]))
    assert second.value == pytest.approx(fmean([50.0, 51.0, 54.0]))
    assert [one.seeds for one in (first, second, average, gap, nll)] == [2, 3, 2, 2, 2]
    assert "± is the standard error over 3 seeds, or fewer where one failed." in table.markdown()


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_left_out(wrong):
    odd = results(tasks=("a",))
    next(run for run in odd["runs"] if run["method"])["plugged_in"]["nll"] = wrong
    table = tabulate(odd)
    assert (cells(table)["a"].seeds, cells(table)["nll"].seeds) == (3, 2)
    assert not re.search("nan|inf", table.markdown() + table.latex())


def test_of_one_question_no_error_is_known():
    single = results(seeds=(0,), tasks=("a",))
    for run in single["runs"]:
        for row in run.keys() & {"zero_shot", "fine_tuned", *ROWS}:
            run[row] = score(1.0) | {"acc_stderr": 0.0, "n": 1}
    table = tabulate(single)
    assert str(cells(table)["a"]) == "100.0†"
    assert "$100.0^{\\dagger}$" in table.latex()


def test_keeps_that_look_alike_stay_apart():
    both = results(seeds=(0,), tasks=("a",))
    other = [run | {"keep": 0.70000001} for run in both["runs"] if run["method"]]
    assert len(tabulate({"runs": both["runs"] + other}).lines) == 2 + 3 + 3


def test_one_task_is_its_own_average():
    assert tabulate(results(tasks=("a",))).head[-2:] == ("a", "nll")


def test_what_no_seed_moves_has_the_error_of_the_score_and_says_so():
    alike = results(tasks=("a",))
    for run in alike["runs"]:
        run |= {"zero_shot": score(0.25)} if "zero_shot" in run else {"emulator_zero_shot": score(0.3)}
    table = tabulate(alike)
    known = {(line[0], line[1]): line[table.head.index("a")] for line in table.lines}
    zero = known["full model", "Zero-shot"]
    assert (zero.value, zero.stderr, zero.over_questions) == (25.0, 1.0, True)
    tuned = known["", "Emulator tuned"]
    assert not tuned.over_questions
    assert "the same score with every seed" in table.markdown()
    assert "± is the standard error over 3 seeds" in table.markdown()


def test_one_seed_shows_the_scores_own_error_and_says_so():
    table = tabulate(results(seeds=(4,)))
    cell, average, gap = (cells(table)[name] for name in ("a_1", "average", "gap, points"))
    assert (cell.stderr, cell.over_questions) == (pytest.approx(1.0), True)
    assert average.stderr == pytest.approx(math.sqrt(2) / 2)
    assert gap.stderr == pytest.approx(1.0)
    assert "† one seed" in table.markdown()
    assert r"^{\dagger}" in table.latex()


def test_a_text_has_a_perplexity_and_no_part_in_the_average():
    table = tabulate(results(texts=("wiki",)))
    assert table.head[-3:] == ("average", "nll", "wiki ppl")
    assert table.lines[-1][-1].value == pytest.approx(math.exp(2.0))
    alone = tabulate(results(tasks=(), texts=("wiki",)))
    assert alone.head == ("method", "row", "loss", "gap", "gain", "wiki ppl")


def test_latex_is_escaped_and_even():
    text = tabulate(results(method="a_b~9:x=50%&{#}$^\\")).latex()
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {10}
    assert r"a\_b\textasciitilde{}9:x=50\%\&\{\#\}\$\textasciicircum{}\textbackslash{}" in text
    assert r"b\&b" in text
    assert text.count(r"\midrule") == 2
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_markdown_is_even():
    lines = tabulate(results(method="a|b")).markdown().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {12}
