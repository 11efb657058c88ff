"""One tuning: its data owner's receipt, with the loss curve."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from offsite.report.figures import curve
from offsite.report.part import Chapter, Loose, Part, Shown, read, record_block
from offsite.results.schema import ROWS, LossPoint

_PRIVATE = (
    "It names the data that was tuned on and how well the model fits it, which is the data owner’s to know."
)


class TuningReceipt(Loose):
    """What a data owner's receipt says, so far as it is drawn."""

    adapter: str
    curve: list[LossPoint]
    data: str | None = None
    config: dict[str, object] = Field(default_factory=dict)
    record: dict[str, object] = Field(default_factory=dict)


def tuning(name: str, receipt: Mapping[str, object]) -> Part:
    """The part about the tuning that `receipt` is of; a UserError where that has another shape."""
    found = read(TuningReceipt, receipt, "This receipt", "`offsite tune`")
    figure = curve(next(row for row in ROWS if row.key == "emulator_tuned"), found.curve)
    label = "Loss against tuning steps"
    shown = [Shown("Nats per answer token", figure, label, "lower is better")] if figure else []
    known = ("steps", "batch_size", "lr", "lora_rank")
    knobs = {name.replace("_", " ").capitalize(): value for name in known if (value := found.config.get(name))}
    return Part(
        title=f"Adapter: {name}",
        overline=f"Offsite tuning, an adapter · {name}",
        headline=_headline(found),
        facts={"Data": found.data or "–"} | {name: str(value) for name, value in knobs.items()},
        chapters=[Chapter("Loss while tuning", figures=shown)] if shown else [],
        block=record_block(found.record),
        private=_PRIVATE,
    )


def _headline(found: TuningReceipt) -> str:
    held = [point.heldout for point in found.curve if point.heldout is not None]
    steps = max((point.step for point in found.curve), default=0)
    if len(held) < 2:
        return f"An adapter tuned for {steps} steps; what it loses on answers held out was not taken."
    moved = "fell" if held[-1] < held[0] else "went"
    return f"In {steps} steps the loss on answers held out {moved} from {held[0]:.2f} to {held[-1]:.2f}."
