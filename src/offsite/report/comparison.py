"""One comparison: the five rows, what they mean, how tuning went, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from offsite.report.figures import five_rows, loss_curves
from offsite.report.part import Chapter, KeyFigure, PageTable, Part, Shown, command_block, number
from offsite.report.verdict import Verdict, judge
from offsite.results.measures import ACCURACY, CHOICE, NLL, NORMALISED, measures
from offsite.results.schema import ROWS, Results
from offsite.results.statistics import Estimate

_TABLE = (ACCURACY, NORMALISED, CHOICE, NLL)


def comparison(data: Mapping[str, object]) -> Part:
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
    "what tuning can bring. Errors of differences are paired over the questions where every row kept what it "
    "gave each choice; else they take the rows as independent, which usually overstates them. A dash stands "
    "where a row was not measured so."
)


def _key_figures(verdict: Verdict) -> Iterator[KeyFigure]:
    """The loss, the gap and the gain, where they are known."""
    if known := _set_large(verdict.loss, verdict.loss_points, verdict):
        yield KeyFigure(*known[:2], "is the loss: how much worse plugged in does than fine-tuned.", known[2])
    if known := _set_large(verdict.gap, verdict.gap_points, verdict):
        meaning = (
            f"is the gap: how much worse emulator tuned does than plugged in. {verdict.size} {verdict.meaning}"
        )
        yield KeyFigure(*known[:2], meaning, known[2])
    if verdict.gain:
        meaning = f"of fine-tuning’s gain in {verdict.by} over zero-shot is kept by the plugged-in model."
        yield KeyFigure(f"{verdict.gain.show(0, 100)}%", verdict.gain.spread(0, 100), meaning)


def _set_large(nats: Estimate | None, points: Estimate | None, verdict: Verdict) -> tuple[str, str, str] | None:
    """A number, its error and unit, and the other: nats first, points of accuracy next to them."""
    sizes = [(nats, verdict.digits, f"nats of {verdict.by}"), (points, ACCURACY.digits, "points of accuracy")]
    known = [
        (each.show(digits), f"{each.spread(digits)} {unit}".strip()) for each, digits, unit in sizes if each
    ]
    return (*known[0], " ".join(known[1]) if len(known) > 1 else "") if known else None


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
    scores = [results.rows[row.key][task] for row in ROWS]
    figures = [
        Shown(measure.caption, figure, f"{measure.caption} on {task}; see the table", measure.hint)
        for measure in measures(scores)
        if (figure := five_rows(results, task, measure))
    ]  # fmt: skip
    shown = [measure for measure in _TABLE if measure is not CHOICE or measure in measures(scores)]
    table = PageTable(
        ["Row", *(measure.caption for measure in shown)],
        [
            [row.name, *(number(measure.of(score), measure.digits) for measure in shown)]
            for row, score in zip(ROWS, scores, strict=True)
        ],
        keys=[row.key for row in ROWS],
    )
    notes = [" · ".join(filter(None, about)), " ".join(several)]
    return Chapter(task, notes=[note for note in notes if note], figures=figures, table=table)


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
