"""One emulator: what its bundle reveals, and, where its owner's receipt is at hand, what was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from offsite.bundles.contents import Sent, sent
from offsite.model.split import Split
from offsite.report.figures import Figure, drawn, layout_of
from offsite.report.part import Chapter, Loose, PageTable, Part, Shown, millions, read, record_block
from offsite.report.stack import PlaceRecord, drawing, floors, in_words
from offsite.results.measures import ACCURACY
from offsite.results.schema import Results, RowKey

_FATES = {"in full size": "#1d9475", "lossy": "#b08449", "not at all": "rgba(128, 134, 145, 0.35)"}
_SENT: tuple[RowKey, RowKey] = ("emulator_zero_shot", "zero_shot")
_PRIVATE = "It says which layers of the model were kept, and a data owner is not to know."


class _Ends(Loose):
    bottom: Annotated[int, Field(ge=1)]
    top: Annotated[int, Field(ge=1)]


class _Keep(Loose):
    asked: float
    kept: Annotated[float, Field(gt=0, le=4)]


class Receipt(Loose):
    """What an owner's receipt says, so far as it is drawn."""

    emulator: str
    method: str
    split: _Ends
    keep: _Keep
    blueprint: Annotated[list[PlaceRecord], Field(min_length=1)]
    record: dict[str, object] = Field(default_factory=dict)


def emulator(
    name: str, folder: Path | None, receipt: Mapping[str, object] | None, comparisons: Sequence[Results] = ()
) -> Part:
    """The part about an emulator: its bundle's `folder`, its owner's `receipt`, or both.

    `comparisons` of it tell how well it answers as it is sent. Raises a UserError for a bundle or a
    receipt that is not sound.
    """
    assert folder or receipt, "there is something to tell of"
    kept = read(Receipt, receipt, "This receipt", "`offsite compress`") if receipt else None
    bundle = sent(folder) if folder else None
    facts = _facts(bundle, kept)
    chapters = _reveals(bundle, kept, _of(kept, comparisons)) if bundle else []
    chapters += _stack(bundle, kept) if kept else []
    return Part(
        title=f"Emulator: {name}",
        overline=f"Offsite tuning, an emulator · {name}",
        headline=_headline(bundle, kept),
        facts=facts,
        chapters=chapters,
        block=record_block(kept.record) if kept else "",
        private=_PRIVATE if kept else None,
    )


def _of(kept: Receipt | None, comparisons: Sequence[Results]) -> list[Results]:
    """Those comparisons that are of the emulator of the receipt, by what results say of it."""
    if kept is None:
        return []
    return [one for one in comparisons if one.method == kept.method and abs(one.keep - kept.keep.kept) < 1e-6]


def _whole(bundle: Sent, kept: Receipt | None) -> int | None:
    """Parameters of the model: around, adapter and the whole middle, which only the receipt tells."""
    return None if kept is None else bundle.around + bundle.adapter + round(bundle.middle / kept.keep.kept)


def _fates(bundle: Sent, whole: int) -> dict[str, int]:
    """The model's parameters by what became of them."""
    lossy = min(bundle.stands_for, whole - bundle.unchanged)
    gone = whole - bundle.unchanged - lossy
    return dict(zip(_FATES, (bundle.unchanged, lossy, gone), strict=True))


def _headline(bundle: Sent | None, kept: Receipt | None) -> str:
    if bundle is None:
        assert kept is not None
        return f"An emulator by {kept.method} that stores {kept.keep.kept:.1%} of the middle."
    whole = _whole(bundle, kept)
    if whole is None:
        return f"The emulator brings {millions(bundle.unchanged)} parameters in full size."
    parts = [f"{count / whole:.0%} {fate}" for fate, count in _fates(bundle, whole).items()]
    return f"Of the model’s parameters the emulator brings {parts[0]}, {parts[1]}, and {parts[2]}."


def _facts(bundle: Sent | None, kept: Receipt | None) -> dict[str, str]:
    source = kept or bundle
    assert source is not None
    facts = {"Method": source.method}
    facts |= {"Adapter layers": f"{source.split.bottom} bottom, {source.split.top} top"}
    if kept:
        facts["Kept of the middle"] = f"{kept.keep.kept:.1%} of parameters, {kept.keep.asked:g} asked"
    return facts


def _reveals(bundle: Sent, kept: Receipt | None, comparisons: Sequence[Results]) -> list[Chapter]:
    rows = [
        ["Embeddings, head, last norm", millions(bundle.around), "as they are"],
        ["Adapter layers", millions(bundle.adapter), "as they are"],
        ["Middle, in full size", millions(bundle.full), "as they are, at the most"],
        ["Middle, factored or narrowed", millions(bundle.thin), "lossy"],
        ["Harmonizers", millions(bundle.harmonizers), "none of the model’s"],
    ]
    whole = _whole(bundle, kept)
    shown = []
    if whole:
        figure = _bar(_fates(bundle, whole), whole)
        label = "Shares of the model’s parameters that were sent in full size, lossy, and not at all"
        shown = [Shown("The model’s parameters, %", figure, label)]
    table = PageTable(["Sent", "Parameters", "How"], [row for row in rows if row[1] != millions(0)])
    text = [_answered(one, task) for one in comparisons for task in one.tasks]
    return [Chapter("What it reveals", text=[t for t in text if t], figures=shown, table=table, after=_CAREFUL)]


_CAREFUL = (
    "In full size is as it is in the model, but for matrices that a method truncated and stored whole, because "
    "their factors would be larger: what is revealed is this much at the most. The tokenizer and the method’s "
    "name are sent too."
)


def _answered(results: Results, task: str) -> str:
    ours, whole = (ACCURACY.of(results.rows[row][task]) for row in _SENT)
    if not ours or not whole:
        return ""
    return (
        f"As it is sent, it answers {ours.show(1)} {ours.spread(1)} % of {task}; the full model "
        f"answers {whole.show(1)} {whole.spread(1)} %."
    )


def _bar(fates: Mapping[str, int], whole: int) -> Figure:
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": fate,
            "meta": fate,
            "x": [100 * count / whole],
            "y": [0],
            "width": 0.8,
            "marker": {"color": _FATES[fate]},
            "hovertemplate": f"{fate}: {100 * count / whole:.1f}%, {millions(count)}<extra></extra>",
        }
        for fate, count in fates.items()
    ]
    layout = layout_of(height=130, showlegend=True)
    layout |= {"barmode": "stack"}
    layout["margin"] |= {"t": 48}
    layout["legend"] |= {"traceorder": "normal"}
    layout["xaxis"] |= {"range": [0, 100]}
    layout["yaxis"] |= {"visible": False}
    return drawn(traces, layout)


def _stack(bundle: Sent | None, kept: Receipt) -> list[Chapter]:
    split = Split(kept.split.bottom, kept.split.top)
    layers = round(bundle.middle / kept.keep.kept / bundle.layer) if bundle else 0
    stack = floors(kept.blueprint, split, bundle, layers)
    notes = [
        _BARS if bundle else f"{_BARS} The bundle is not at hand: bars are against the widest of their kind."
    ]
    figure = Shown(
        "The stack, bottom to top",
        drawing(stack),
        "What stands in each place; " + in_words(stack),
        "shares of rank, of channels",
    )
    return [Chapter("The blueprint", text=[in_words(stack)], notes=notes, figures=[figure])]


_BARS = (
    "A bar of full width is a layer’s whole attention, or all of its feed-forward channels; a harmonizer is as "
    "wide as its rank is of the hidden states. Point at one for its numbers."
)
