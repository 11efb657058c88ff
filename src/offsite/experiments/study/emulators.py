"""Where a study's emulators are made: what methods learnt, and what was distilled, is kept in one folder."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offsite.bundles.emulator import Emulator
from offsite.data import tasks
from offsite.experiments.compare import Bench
from offsite.experiments.study.chain import Chain
from offsite.files.atomic import remove
from offsite.owner.compress import assemble, profile_of, serving
from offsite.owner.distill import align
from offsite.owner.methods.base import Method
from offsite.owner.profile import Profile


@dataclass(frozen=True)
class Workshop:
    """Makes the emulators of one model, from one public text."""

    bench: Bench
    text: str
    """The word for the text."""
    _profiles: list[Profile] = field(default_factory=list)

    def name(self, chain: Chain, keep: float | None, seed: int) -> dict[str, Any]:
        """All that an emulator hangs on besides the model."""
        methods = [{"method": method.name, **method.knobs} for method in chain.seeded(seed)]
        text = self._digest if chain.reads else ""
        distilled = {"steps": chain.distill, "seed": seed} if chain.distill else None
        return {"methods": methods, "keep": keep, "distill": distilled, "text": text}

    def emulator(self, chain: Chain, keep: float | None, seed: int) -> Emulator:
        """Planned, built, and distilled where the chain asks for it."""
        methods = chain.seeded(seed)
        links = [(method, self._learnt(method)) for method in methods]
        made = assemble(self.bench.model, self.bench.tokenizer, links, keep or 1.0).emulator
        if chain.distill:
            self._distill(made, self.name(chain, keep, seed))
        return made

    def _learnt(self, method: Method) -> Profile:
        """A profile that this method can plan from: of this run, of an earlier one, or new."""
        if method.calibration is None:  # and needs no text
            return profile_of(self.bench.model, self.bench.tokenizer, method, self.bench.split)
        if not self._profiles:
            self._profiles.extend(map(Profile.load, sorted(self._home.glob("[!.]*"))))
        found = serving(method, self.bench.split, self._profiles)
        if found is None:
            found = self._profiled(method)
            self._profiles.append(found)
        return found

    def _profiled(self, method: Method) -> Profile:
        number = hashlib.sha256(repr((method.name, sorted(method.knobs.items()))).encode()).hexdigest()[:16]
        work = self.bench.cache.folder / "profiling" / f"{method.name}-{number}"
        here, saved = self.bench, self._home / f"{method.name}-{number}"
        profile = profile_of(here.model, here.tokenizer, method, here.split, text=self.text, work=work)
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
        kept = Emulator.load(saved)
        emulator.model = kept.model.to(here.model.device)  # type: ignore[arg-type]
        emulator.digest = kept.digest  # by which an interrupted tuning knows it again

    @property
    def _home(self) -> Path:
        """The profiles of this model and text."""
        mark = hashlib.sha256(f"{self.bench.digest} {self._digest}".encode()).hexdigest()[:16]
        return self.bench.cache.folder / "profiles" / mark

    @functools.cached_property
    def _texts(self) -> list[str]:
        return tasks.texts(self.text)

    @functools.cached_property
    def _digest(self) -> str:
        return hashlib.sha256(repr(self._texts).encode()).hexdigest()
