"""Which emulator may be sent: many from one profile, estimated cheaply, the promising ones scored in full."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.bundles.bundle import digest
from offsite.bundles.emulator import Emulator
from offsite.errors import UserError
from offsite.experiments.cache import Cache
from offsite.experiments.compare import Bench, Experiment
from offsite.experiments.frontier import choose
from offsite.experiments.frontier.answer import verdict
from offsite.experiments.frontier.choose import ESTIMATES, FrontierPoint, Wish
from offsite.experiments.frontier.grid import Settings, in_words
from offsite.files.atomic import alone_in_work
from offsite.model.split import Split
from offsite.owner.build import keep_of
from offsite.owner.chain import Link
from offsite.owner.compress import KEEP, Compressed, assemble
from offsite.owner.fidelity import Gradient, fidelity, gradient
from offsite.owner.methods.identity import identity
from offsite.owner.parts import MARK, Parts
from offsite.owner.profile import CARD
from offsite.results.statistics import Estimate
from offsite.training.rate import Rate

__all__ = ["Candidate", "Frontier", "Wish", "explore"]


@dataclass(frozen=True)
class Candidate:
    """An emulator that could be made: its settings, and the methods with their profiles."""

    settings: Settings
    links: Sequence[Link]

    @property
    def keep(self) -> float:
        """The budget that is asked for."""
        return float(self.settings.get("keep", KEEP))

    @property
    def split(self) -> Split:
        """Where its profile cuts the stack."""
        return self.links[0][1].split

    @property
    def method(self) -> str:
        """The methods' names, chained."""
        return "+".join(method.name for method, _ in self.links)

    def make(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Compressed:
        """The emulator, as `offsite compress` makes it, and what it was built from."""
        return assemble(model, tokenizer, self.links, self.keep, seed=seed)

    def key(self) -> dict[str, Any]:
        """What decides the emulator, for the cache."""
        links = [
            {
                "method": method.name,
                "code": identity(type(method)),
                "knobs": dict(method.knobs),
                "model": profile.parent,
                "profile": _measured(profile.tensors),
            }
            for method, profile in self.links
        ]
        return {"links": links, "keep": self.keep, "split": [self.split.bottom, self.split.top]}


@dataclass(frozen=True)
class Frontier:
    """The points in the order of the grid, and the answer to a wish."""

    points: Sequence[FrontierPoint]
    ends: Mapping[str, Any]
    """The rows zero-shot and fine-tuned, of the first point's split."""
    wish: Wish
    same: int = 0
    """How many settings made an emulator that others had made already, and are left out."""
    failed: Sequence[str] = ()
    """A sentence for each of which there are no figures, or no scores."""
    rate: Rate | None = None
    """The learning rate of every tuning."""
    notes: Sequence[str] = ()
    """Sentences that belong beside the scores."""

    @property
    def chosen(self) -> int | None:
        """The place of the point that meets the wish best; None where none does, or nothing is wished."""
        return choose.choose(self.points, self.wish)[0]

    @property
    def answer(self) -> str:
        """One sentence: the answer to the wish, and which emulators were scored."""
        return f"{verdict(self.points, self.wish)}; {self._how()}."

    def as_json(self) -> dict[str, Any]:
        """What `frontier.json` holds of it."""
        return {
            "points": [_as_json(point) for point in self.points],
            "frontier": choose.undominated(self.points),
            "ends": self.ends,
            "learning_rate": asdict(self.rate) if self.rate else None,
            "wish": {name: wished and str(wished) for name, wished in vars(self.wish).items()},
            "chosen": self.chosen,
            "closest": choose.choose(self.points, self.wish)[1],
            "answer": self.answer,
        }

    def _how(self) -> str:
        count, done = len(self.points), sum(point.rows is not None for point in self.points)
        how = "" if done == count else ", the ends of what they store first, then by halving"
        return f"{done} of {count} were scored{how}"


@alone_in_work
def explore(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    candidates: Sequence[Candidate],
    tokens: Tensor,
    experiment: Experiment,
    *,
    work: Path,
    most: int = 6,
    wish: Wish | None = None,
) -> Frontier:
    """Estimate every candidate, score at most `most` of them in full, and answer the `wish`.

    Estimates are `owner.fidelity` on `tokens` (blocks, length), best of a text that no method was calibrated
    on, and the emulator's own zero-shot nll. Which are scored: see `choose.next_to_score`. Each is measured
    between zero-shot and fine-tuned of its own split. What fails, as a tuning that diverges, costs itself
    only; a UserError where nothing could be scored. One emulator is in memory at a time; `model` comes back as
    it was. What is done is kept in `work`: interrupted and called again with the same, it goes on from there.
    """
    wish = wish or Wish()
    benches = {each.split: Bench(model, tokenizer, each.split, Cache(work)) for each in candidates}
    rate = benches[candidates[0].split].rate(experiment)
    experiment = replace(experiment, config=replace(experiment.config, lr=rate.lr))
    failed: list[str] = []
    known = _estimated(benches, candidates, tokens, experiment, failed)
    same = len(candidates) - len(known) - len(failed)
    ends = functools.cache(lambda split: benches[split].ends(experiment)["rows"])
    points = [point for _, point in known]

    def score(place: int) -> None:
        candidate, point = known[place]
        bench = benches[candidate.split]
        make, around = functools.partial(_made, candidate, bench), ends(candidate.split)
        try:
            trial = bench.trial({"tensors": point.digest}, make, experiment)
        except UserError as error:
            failed.append(_why(candidate, error))
            points[place] = replace(point, failed=True)
        else:
            points[place] = point.scored(trial["rows"], around)

    for _ in range(min(most, len(points))):
        score(choose.next_to_score(points, wish))
    if all(point.rows is None for point in points):
        raise UserError(failed[-1])
    first = known[0][0].split
    return Frontier(points, ends(first), wish, same, failed, rate, benches[first].notes(experiment))


def _estimated(
    benches: Mapping[Split, Bench],
    candidates: Sequence[Candidate],
    tokens: Tensor,
    experiment: Experiment,
    failed: list[str],
) -> list[tuple[Candidate, FrontierPoint]]:
    """Each different emulator with its estimates, by the first candidate that makes it."""
    text = digest({"tokens": tokens})
    full = functools.cache(lambda split: gradient(benches[split].model, split, tokens))
    known: dict[tuple[str, Split], tuple[Candidate, FrontierPoint]] = {}
    for candidate in candidates:
        bench = benches[candidate.split]
        try:
            point = _estimate(candidate, bench, tokens, text, full, experiment)
        except UserError as error:
            failed.append(_why(candidate, error))
        else:
            known.setdefault((point.digest, candidate.split), (candidate, point))
    if not known:
        raise UserError(failed[-1])
    return list(known.values())


def _estimate(
    candidate: Candidate,
    bench: Bench,
    tokens: Tensor,
    text: str,
    full: Callable[[Split], Gradient],
    experiment: Experiment,
) -> FrontierPoint:
    """The emulator of one candidate, without its scores."""
    emulator = functools.cache(functools.partial(_made, candidate, bench))

    def weigh() -> dict[str, Any]:
        true = fidelity(emulator(), bench.model, tokens, full(bench.split))
        return {
            "digest": digest(emulator().model.state_dict()),
            "stored": keep_of(emulator(), bench.model),
            "estimate": {name: getattr(true, name) for name in ESTIMATES},
        }

    key = {"stage": "estimate", "model": bench.digest, "text": text, **candidate.key()}
    found = bench.cache.once(key, weigh)
    row = bench.zero_shot({"tensors": found["digest"]}, emulator, experiment)
    nll = choose.mean({"emulator_zero_shot": row}, "emulator_zero_shot", "nll")
    estimate = found["estimate"] | ({} if nll is None else {choose.ZERO_SHOT: nll})
    return FrontierPoint(candidate.settings, found["stored"], estimate, found["digest"])


def _why(candidate: Candidate, error: UserError) -> str:
    return f"There are no figures of {in_words(candidate.settings)}: {error}"


def _made(candidate: Candidate, bench: Bench) -> Emulator:
    return candidate.make(bench.model, bench.tokenizer).emulator


_FIGURES = ("loss", "gap", "fall", "gain", "loss_points", "gap_points")


def _as_json(point: FrontierPoint) -> dict[str, Any]:
    figures: dict[str, Estimate | None] = {name: getattr(point, name) for name in _FIGURES}
    return {
        "settings": point.settings,
        "stored": point.stored,
        "estimate": dict(point.estimate),
        "rows": point.rows,
        **{name: None if figure is None else asdict(figure) for name, figure in figures.items()},
    }


def _measured(tensors: Mapping[str, Tensor]) -> str:
    """A profile's card where it was saved, the mark of one made on the way, or a digest of its tensors."""
    folder = tensors.folder if isinstance(tensors, Parts) else None
    files = [folder / name for name in (CARD, MARK)] if folder else []
    texts = (file.read_text(encoding="utf-8") for file in files if file.is_file())
    return next(texts, None) or digest(dict(tensors))
