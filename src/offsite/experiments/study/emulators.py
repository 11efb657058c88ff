"""Make a study's emulators; profiles and what was distilled are kept in its cache."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offsite.bundles.emulator import Emulator
from offsite.data import tasks
from offsite.data.blocks import Source
from offsite.experiments.compare import Bench
from offsite.experiments.study.chain import Chain
from offsite.files.atomic import remove
from offsite.model.modes import move
from offsite.owner.compress import assemble, profile_of, serving
from offsite.owner.distill import align
from offsite.owner.methods.base import Method
from offsite.owner.methods.identity import identity
from offsite.owner.profile import Profile

_code = functools.cache(identity)  # which reads source files


@dataclass(frozen=True)
class EmulatorMaker:
    """Makes the emulators of one model, from one public text."""

    bench: Bench
    text: str
    """As the recipe names it."""
    blocks: int | None = None
    length: int | None = None
    """How much of it a method reads; None: the method's number."""
    _profiles: dict[Path, list[Profile]] = field(default_factory=dict)
    """By the folder that they are in."""

    def name(self, chain: Chain, keep: float | None, seed: int) -> dict[str, Any]:
        """What decides an emulator besides the model, for the cache: also the methods' own code."""
        methods = [
            {"method": method.name, "code": _code(type(method)), "read": self._read(method), **method.knobs}
            for method in chain.seeded(seed)
        ]
        text = self._digest if chain.reads else ""
        distilled = {"steps": chain.distill, "seed": seed} if chain.distill else None
        return {"methods": methods, "keep": keep, "distill": distilled, "text": text}

    def emulator(self, chain: Chain, keep: float | None, seed: int) -> Emulator:
        """Planned, built, and distilled where the chain asks for it."""
        methods = chain.seeded(seed)
        links = [(method, self._profile(method)) for method in methods]
        made = assemble(self.bench.model, self.bench.tokenizer, links, keep or 1.0).emulator
        if chain.distill:
            self._distill(made, self.name(chain, keep, seed))
        return made

    def _profile(self, method: Method) -> Profile:
        """A profile that this method can plan from: of this run, of an earlier one, or new."""
        if method.calibration is None:  # and needs no text
            return profile_of(self.bench.model, self.bench.tokenizer, method, self.bench.split)
        home = self._home(method)
        if home not in self._profiles:
            self._profiles[home] = list(map(Profile.load, sorted(home.glob("[!.]*"))))
        found = serving(method, self.bench.split, self._profiles[home])
        if found is None:
            found = self._profiled(method, home)
            self._profiles[home].append(found)
        return found

    def _profiled(self, method: Method, home: Path) -> Profile:
        number = hashlib.sha256(repr((method.name, sorted(method.knobs.items()))).encode()).hexdigest()[:16]
        work = self.bench.cache.folder / "profiling" / f"{home.name}-{method.name}-{number}"
        here, saved = self.bench, home / f"{method.name}-{number}"
        read = {"blocks": self.blocks, "length": self.length}
        profile = profile_of(here.model, here.tokenizer, method, here.split, text=self.text, work=work, **read)
        profile.save(saved, text=self.text)
        remove(work)
        return Profile.load(saved)

    def _distill(self, emulator: Emulator, name: dict[str, Any]) -> None:
        """In place; once for every task."""
        here = self.bench
        key = {"stage": "distilled", "model": here.digest, "emulator": name}
        saved, work = here.cache.place(key, "-emulator"), here.cache.place(key, "-checkpoints")
        if not saved.exists():
            align(emulator, here.model, self._texts, **name["distill"], work=work)
            emulator.save(saved)
            remove(work)
        kept = Emulator.load(saved, allow_large=True)  # made here
        emulator.model = move(kept.model, here.model.device)
        emulator.digest = kept.digest  # by which an interrupted tuning knows it again

    def _home(self, method: Method) -> Path:
        """The profiles of this model and text by a method with this code."""
        decides = f"{self.bench.digest} {self._digest} {_code(type(method))} {self._read(method)}"
        return self.bench.cache.folder / "profiles" / hashlib.sha256(decides.encode()).hexdigest()[:16]

    def _read(self, method: Method) -> tuple[int, int] | None:
        """How many blocks of how many tokens the method reads."""
        if method.calibration is None:
            return None
        count, length = method.calibration
        return self.blocks or count, self.length or length

    @functools.cached_property
    def _texts(self) -> Source:
        return tasks.texts(self.text)

    @functools.cached_property
    def _digest(self) -> str:
        return hashlib.sha256(repr(self._texts).encode()).hexdigest()
