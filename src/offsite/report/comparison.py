"""One comparison: the five rows, what they mean, how tuning went, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from offsite.report.figures import five_rows, loss_curves
from offsite.report.part import Chapter, KeyFigure, PageTable, Part, Shown, command_block, number
from offsite.report.verdict import Verdict, judge
from offsite.results.measures import ACCURACY, NLL, NORMALISED
from offsite.results.schema import ROWS, Results

_TABLE = (ACCURACY, NORMALISED, NLL)


def comparison(data: Mapping[str, Any]) -> Part:
    """The part about the `results.json` of one comparison; a UserError where it has another shape."""
    results = Results.read(data)
    verdict = judge(results, results.tasks)
    return Part(
        title=f"Comparison: {results.model or results.method}, {', '.join(results.tasks)}",
        overline="Offsite tuning, one comparison" + (f" · {results.date[:10]}" if results.date else ""),
        headline=verdict.headline,
        lead=verdict.support or "",
        figures=list(_key_figures(verdict)),
        facts=_facts(results),
        chapters=[
            Chapter("The five rows", rows=True, notes=[_NOTE, *(results.notes or [])]),
            *(_task(results, task) for task in results.tasks),
            *_tuning(results),
        ],
        block=_block(results),
    )


_NOTE = (
    "Bars and ± show one standard error over the questions. The shaded band runs from zero-shot to fine-tuned: "
    "what tuning can bring. Errors of differences take the rows as independent; as all answer the same "
    "questions, this usually overstates them. A dash stands where a row was not measured so."
)


def _key_figures(verdict: Verdict) -> Iterator[KeyFigure]:
    """The gain and the gap, where they are known."""
    if verdict.gain:
        meaning = "of fine-tuning’s gain in answer nll over zero-shot is reached by the plugged-in model."
        yield KeyFigure(f"{verdict.gain.show(0, 100)}%", verdict.gain.spread(0, 100), meaning)
    gaps = [(verdict.gap_acc, 1, "points of accuracy"), (verdict.gap_nll, 2, "nats of answer nll")]
    known = [(gap.show(digits), f"{gap.spread(digits)} {unit}".strip()) for gap, digits, unit in gaps if gap]
    if known:
        meaning = (
            f"is the gap: how much better plugged in does than emulator tuned. {verdict.size} {verdict.meaning}"
        )
        yield KeyFigure(*known[0], meaning, " ".join(known[1]) if len(known) > 1 else "")


def _facts(results: Results) -> dict[str, str]:
    split = ", ".join(f"{layers} {end}" for end, layers in (results.split or {}).items())
    facts = {
        "Model": results.model,
        "Tuned on": results.train,
        "Scored on": ", ".join(results.tasks),
        "Method": results.method,
        "Kept of the middle": f"{100 * results.keep:.0f}% of parameters",
        "Adapter layers": split,
    }
    return {name: fact for name, fact in facts.items() if fact}


def _task(results: Results, task: str) -> Chapter:
    counts = sorted({n for row in results.rows.values() if (n := row[task].n) is not None})
    asked = "–".join(map(str, dict.fromkeys([*counts[:1], *counts[-1:]])))
    about = [f"{asked} questions" if asked else "", (results.sources or {}).get(task, "")]
    verdict = judge(results, [task])
    several = [verdict.headline, verdict.meaning] if len(results.tasks) > 1 else []
    figures = [
        Shown(measure.caption, figure, f"{measure.caption} on {task}; see the table", measure.hint)
        for measure in (ACCURACY, NLL)
        if (figure := five_rows(results, task, measure))
    ]  # fmt: skip
    table = PageTable(
        ["Row", *(measure.caption for measure in _TABLE)],
        [_numbers(results, row.key, row.name, task) for row in ROWS],
        keys=[row.key for row in ROWS],
    )
    notes = [" · ".join(filter(None, about)), " ".join(several)]
    return Chapter(task, notes=[note for note in notes if note], figures=figures, table=table)


def _numbers(results: Results, key: Any, name: str, task: str) -> list[str]:
    score = results.rows[key][task]
    return [name, *(number(measure.of(score), measure.digits) for measure in _TABLE)]


def _tuning(results: Results) -> Iterator[Chapter]:
    """The loss curves and the time."""
    if curves := loss_curves(results):
        figure = Shown("Nats per answer token", curves, "Loss against tuning steps", "lower is better")
        yield Chapter("Loss while tuning", figures=[figure])
    if results.seconds:
        rows = [[_STAGES.get(stage, stage), _duration(seconds)] for stage, seconds in results.seconds.items()]
        yield Chapter("Where the time went", table=PageTable(["Step", "Time"], rows))


_STAGES: dict[str, str] = {
    **{str(row.key): f"Scoring: {row.name}" for row in ROWS},
    "fine_tuned-curve": "Tuning the full model",
    "emulator_tuned-curve": "Tuning the emulator",
    "stored": "Counting what is stored",
}
"""Keys of stages in results.json, in words."""


def _block(results: Results) -> str:
    facts: dict[str, object] = {"model": results.model, "train": results.train}
    options = [f"{name} {value}" for name, value in (results.tuning or {}).items()]
    facts |= {"seed": results.seed, "limit": results.limit, "tuning": ", ".join(options) or None}
    facts |= {"date": results.date, "machine": results.machine, **(results.versions or {})}
    return command_block(results.call, facts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
