"""The profiles of a frontier's grid, and the command that makes one of its emulators."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offsite.experiments.frontier import Candidate
    from offsite.experiments.frontier.grid import Grid, Settings
    from offsite.model.split import Split
    from offsite.owner.methods.base import Method
    from offsite.owner.profile import Profile


@dataclass
class GridProfiles:
    """The profile for each method and split: one of those given, or made on the way and kept in `work`."""

    given: Mapping[Path, Profile]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    text: str
    blocks: int | None
    length: int | None
    work: Path
    made: dict[tuple[str, Split], Profile] = field(default_factory=dict)

    def candidate(self, grid: Grid, point: Settings) -> Candidate:
        """The methods as they are at a point, each with the profile for its split."""
        from offsite.experiments.frontier import Candidate
        from offsite.experiments.frontier.grid import split_of
        from offsite.model.split import Split

        split = split_of(point, next(iter(self.given.values())).split if self.given else Split())
        return Candidate(point, [(method, self.of(method, split)) for method in grid.of(point)])

    def of(self, method: Method, split: Split) -> Profile:
        """The profile of the method for the split."""
        if (method.name, split) not in self.made:
            self.made[method.name, split] = self._of(method, split)
        return self.made[method.name, split]

    def call(self, candidate: Candidate, grid: Grid, model: str, out: Path, seed: int) -> list[str]:
        """The words of the `offsite compress` that makes the emulator of a candidate."""
        from offsite.experiments.frontier.grid import knobs

        used = [profile for _, profile in candidate.links]
        folders = [folder for folder, profile in self.given.items() if any(profile is each for each in used)]
        call = ["offsite", "compress", model, "-o", str(out), "--method", candidate.method]
        call += [word for folder in folders for word in ("--profile", str(folder))]
        given = set(map(id, self.given.values()))
        anew = [method for method, profile in candidate.links if id(profile) not in given]
        before = {knob: value for method in anew for knob, value in _unusual(grid, method, seed).items()}
        for knob in (*_set(before), *grid.fixed, *_set(knobs(candidate.settings))):
            call += ["--set", knob]
        call += ["--keep", str(candidate.settings["keep"])] if "keep" in candidate.settings else []
        call += ["--bottom", str(candidate.split.bottom), "--top", str(candidate.split.top)]
        if len(folders) < len(used):
            read = {"--text": self.text, "--blocks": self.blocks, "--length": self.length}
            call += [word for name, value in read.items() if value is not None for word in (name, str(value))]
        return [*call, "--seed", str(seed)]

    def send(self, grid: Grid, point: Settings, model: str, out: Path, folder: Path, seed: int) -> str:
        """Write the emulator of a point and its receipt into `folder`, later `out`; the call that makes it."""
        from offsite.provenance import calling

        candidate = self.candidate(grid, point)
        call = self.call(candidate, grid, model, out / "emulator", seed)
        made = candidate.make(self.model, self.tokenizer, seed)
        with calling(call):
            made.save(folder / "emulator")
        return shlex.join(call)

    def _of(self, method: Method, split: Split) -> Profile:
        from offsite.owner.compress import profile_of, serving

        found = serving(method, split, list(self.given.values()))
        if found:
            found.check_model(self.model)
            return found
        work = self.work / f"profile-{method.name}-{split.bottom}-{split.top}"
        read = {"blocks": self.blocks, "length": self.length}
        return profile_of(self.model, self.tokenizer, method, split, text=self.text, work=work, **read)


def _unusual(grid: Grid, method: Method, seed: int) -> Mapping[str, object]:
    """The knobs that a profile made before says of a method, where nobody else would say them."""
    from offsite.owner.methods import method_named, seeded

    usual = method_named(method.name, (), seeded(method.name, seed)).knobs
    return {knob: value for knob, value in grid.before[method.name].items() if usual.get(knob) != value}


def _set(knobs: Mapping[str, object]) -> list[str]:
    return [f"{name}={value}" for name, value in knobs.items()]
