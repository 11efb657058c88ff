"""From a model to its emulator, in one call: profile, plan, build and, if asked for, distill."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.bundles.emulator import Emulator, check_types
from offsite.data import DEFAULT_TEXT, tasks
from offsite.data.blocks import blocks as cut
from offsite.errors import UserError
from offsite.files.atomic import alone_in_work, staged
from offsite.model.decoder import Decoder, check_length, longest
from offsite.model.split import Split
from offsite.owner import distill as distillation
from offsite.owner.blueprint import Blueprint
from offsite.owner.build import build, keep_of
from offsite.owner.chain import Link, plan
from offsite.owner.methods import DEFAULT, before, chain
from offsite.owner.methods.base import Method, check_keep
from offsite.owner.profile import Profile
from offsite.owner.receipt import write_receipt

KEEP = 0.7
"""The share of the middle that is stored where nobody says another."""
DISTILL = "distill"
"""The key of the distillation's folder in `work`."""


@dataclass(frozen=True)
class Compressed:
    """An emulator with the owner's private knowledge of it: which layers stand in it."""

    emulator: Emulator
    """What is sent."""
    blueprint: Blueprint
    """What it was built from; private."""
    asked: float
    """`keep` as it was asked for."""
    kept: float
    """`keep` as it came out: parameters stored in the emulator's middle over those of the model's middle."""
    budgeted: bool
    """Whether `asked` had a say, rather than the methods' knobs alone."""
    seed: int = 0
    """The run's seed, for the receipt."""

    def save(self, path: Path | str, receipt: Path | str | None = None) -> None:
        """Write the emulator bundle to `path`, and the private record of it to `receipt` or `PATH-receipt`."""
        target = Path(path)
        private = Path(receipt) if receipt else target.with_name(f"{target.name}-receipt")
        with staged(target) as folder, staged(private) as notes:  # the receipt takes its name first
            self.write(folder, notes)

    def write(self, folder: Path, notes: Path) -> None:
        """Fill two empty folders: the bundle into `folder`, its receipt into `notes`."""
        self.emulator.save(folder)
        write_receipt(notes, self.emulator, self.blueprint, asked=self.asked, kept=self.kept, seed=self.seed)


def compress(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    methods: str | Method | Sequence[Method] | None = None,
    keep: float = KEEP,
    *,
    split: Split | None = None,
    profiles: Sequence[Profile] = (),
    text: str | Sequence[str] = DEFAULT_TEXT,
    blocks: int | None = None,
    length: int | None = None,
    distill: int = 0,
    seed: int = 0,
    work: Mapping[str, Path] | None = None,
) -> Compressed:
    """Make the emulator of `model` that stores the share `keep` of its middle; `model` stays as it is.

    `methods` is a name such as `gradot`, a chain such as `scaleot+gradot`, or methods with their knobs set; by
    default those of the `profiles`, or else the default method. A method without a profile reads the public
    `text` in `blocks` of `length` tokens (default: the method's numbers); its names and files are as of
    `offsite.texts`. `distill` is a
    number of steps. `work` names the folders from which interrupted work goes on: a profile's under its
    method's name, the distillation's under `distill`.

    Raises UserError for what cannot be cut, planned or read, and for profiles of another model or split.
    """
    check_keep(keep)
    check_types(model)  # which saving would refuse, after all the work
    chosen = resolve(methods, profiles, seed=seed)
    where = split_of(profiles, split)
    for profile in profiles:
        profile.check_model(model)
    work = work or {}

    def made(method: Method) -> Profile:
        folder = work.get(method.name)
        return profile_of(model, tokenizer, method, where, text=text, work=folder, blocks=blocks, length=length)

    if (blocks or length) and all(serving(method, where, profiles) for method in chosen):
        raise UserError("blocks and length are for a profile that is made on the way; leave them out.")
    links = [(method, serving(method, where, profiles) or made(method)) for method in chosen]
    compressed = assemble(model, tokenizer, links, keep, seed=seed)
    if distill:
        with _folder(work.get(DISTILL)) as folder:
            distillation.align(
                compressed.emulator, model, tasks.texts(text), steps=distill, seed=seed, work=folder
            )
    return compressed


def assemble(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    links: Sequence[Link],
    keep: float = KEEP,
    *,
    seed: int = 0,
) -> Compressed:
    """Plan and build with profiles that are there: the way in which every emulator is made."""
    blueprint = plan(links, keep)
    name = "+".join(method.name for method, _ in links)
    emulator = build(model, links[0][1].split, blueprint, method=name, tokenizer=tokenizer)
    budgeted = any(method.budgeted for method, _ in links)
    return Compressed(emulator, blueprint, keep, keep_of(emulator, model), budgeted, seed)


@alone_in_work
def profile_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    split: Split | None = None,
    *,
    text: str | Sequence[str] = DEFAULT_TEXT,
    work: Path | None = None,
    blocks: int | None = None,
    length: int | None = None,
) -> Profile:
    """Let `method` profile `model`, from so many `blocks` of `length` tokens of the public `text`.

    Both numbers are the method's where they are not given. An interrupted run goes on from the folder `work`.
    """
    split = split or Split()
    split.middle(len(Decoder.of(model)))  # what cannot be cut is refused before any text is read
    if method.calibration is None:
        return method.profile(model, split, work=work)
    count, usual = method.calibration
    length = length or min(usual, longest(model))
    check_length(model, length)
    return method.profile(model, split, cut(tasks.texts(text), tokenizer, length, blocks or count), work)


def resolve(
    methods: str | Method | Sequence[Method] | None,
    profiles: Sequence[Profile] = (),
    knobs: Sequence[str] = (),
    seed: int = 0,
) -> list[Method]:
    """Return the methods that are meant, after checking that each of the `profiles` serves one of them.

    By name they take the knobs of their profiles, over which `knobs`, each `name=value`, go.
    """
    if len({profile.method for profile in profiles}) < len(profiles):
        raise UserError(f"Several profiles are of {profiles[0].method}; give one for each method.")
    if isinstance(methods, Method):
        methods = [methods]
    if methods is None or isinstance(methods, str):
        names = methods.split("+") if methods else [profile.method for profile in profiles] or [DEFAULT]
        methods = chain(names, knobs, before(names, seed, profiles))
    for profile in profiles:
        next((each for each in methods if each.name == profile.method), methods[0]).check(profile)
    return list(methods)


def split_of(profiles: Sequence[Profile], split: Split | None = None) -> Split:
    """Return the split that the profiles share, or the one asked for, which all of them must serve."""
    found = split or (profiles[0].split if profiles else Split())
    for profile in profiles:
        profile.check_split(found)
    return found


def serving(method: Method, split: Split, profiles: Sequence[Profile]) -> Profile | None:
    """Return the first of the profiles that `method` can plan from at this split, if there is one."""
    return next((each for each in profiles if each.split == split and _serves(each, method)), None)


def _serves(profile: Profile, method: Method) -> bool:
    try:
        method.check(profile)
    except UserError:  # the refusal is the answer
        return False
    return True


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="offsite-") as folder:
        yield Path(folder)
