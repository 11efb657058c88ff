"""One profile: what a method found out about a model, and its training if it has one."""

from __future__ import annotations

from pathlib import Path

from offsite.owner.methods import training_of
from offsite.owner.profile import Profile
from offsite.report.part import Part
from offsite.report.training import PRIVATE, training


def profile(name: str, folder: Path) -> Part:
    """The part about the profile in `folder`; UserErrors as `Profile.load`."""
    found = Profile.load(folder)
    facts = _facts(found)
    curves = training_of(found)
    if curves is not None:
        return training(title=name, layers=found.middle, facts=facts, **curves.lists())
    size = sum(file.stat().st_size for file in folder.iterdir() if file.suffix == ".safetensors")
    return Part(
        title=f"Profile: {name}",
        overline=f"Offsite tuning, a profile · {name}",
        headline=f"What {found.method or 'the method'} found out about the model, in {size / 1e6:,.1f} MB.",
        lead="It serves every keep; there was no training, so there is no curve to draw.",
        facts=facts,
        private=PRIVATE if size else None,
    )


def _facts(found: Profile) -> dict[str, str]:
    facts = {"Method": found.method or "–", "Middle layers": str(len(found.middle))}
    facts |= {"Adapter layers": f"{found.split.bottom} bottom, {found.split.top} top"}
    if found.calibration:
        facts["Text"] = "{} blocks of {} tokens".format(*found.calibration)
    knobs = ", ".join(f"{name} {value}" for name, value in found.knobs.items())
    return facts | ({"Knobs": knobs} if knobs else {})
