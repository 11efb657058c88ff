"""What a method measured of a model, once: saved, resumable, private to the owner, good for every budget."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from offsite.bundles.bundle import FileEntry, digest
from offsite.errors import UserError, brief
from offsite.files.atomic import staged
from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.parts import SUFFIX, Parts, write_parts
from offsite.progress import track
from offsite.provenance import record, versions

CARD = "profile.json"
_HASHED_UP_TO = 64 << 20  # bytes of a part; larger ones are not read whole each time a profile is opened

Knobs = dict[str, bool | int | float | str]
"""A method's settings by name."""


@dataclass(frozen=True)
class Profile:
    """The shape of the model's stack, and what the method measured."""

    split: Split
    sizes: tuple[int, ...]
    """Parameters of each layer, by index; 0 outside the middle."""
    tensors: Mapping[str, Tensor] = field(default_factory=Parts)
    parent: str = ""
    """Digest of the whole model that it was made from."""
    method: str = ""
    """The name of the method that made it; empty where none did."""
    knobs: Knobs = field(default_factory=dict)
    """That method's knobs, as they were."""
    calibration: tuple[int, int] | None = None
    """How many blocks of text it was made from, and of how many tokens; None: no text was read."""

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        split: Split,
        tensors: Mapping[str, Tensor] | None = None,
        *,
        method: str = "",
        knobs: Knobs | None = None,
        calibration: tuple[int, int] | None = None,
    ) -> Profile:
        """Return a profile of `model` with a method's `tensors`; a UserError if it cannot be cut so."""
        decoder = Decoder.of(model)
        middle = split.middle(len(decoder))
        sizes = tuple(
            sum(tensor.numel() for tensor in decoder.tensors(i).values()) if i in middle else 0
            for i in range(len(decoder))
        )
        found = Parts() if tensors is None else tensors
        return cls(split, sizes, found, digest(model.state_dict()), method, knobs or {}, calibration)

    @property
    def middle(self) -> range:
        """The indices of the middle layers."""
        return self.split.middle(len(self.sizes))

    def fingerprint(self, tokens: Tensor | None, knobs: Sequence[str], code: str) -> str:
        """Return a digest of all that decides the tensors, by which an interrupted run is known again.

        That is the model, the split, the method, those of its `knobs`, the text's `tokens`, the `code` that
        computes (`methods.identity`) and the versions of libraries.
        """
        text = "" if tokens is None else digest({"tokens": tokens})
        values = [(knob, self.knobs.get(knob)) for knob in knobs]
        inputs = (self.parent, self.split, self.method, values, text, code)
        return hashlib.sha256(
            repr((inputs, versions(("offsite", "torch", "transformers")))).encode()
        ).hexdigest()

    def check_split(self, split: Split) -> None:
        """Refuse another split than the profile's."""
        if split != self.split:
            raise UserError(
                f"The profile is of {self.split.bottom} bottom and {self.split.top} top layers, not of "
                f"{split.bottom} and {split.top}; take those, or profile the model anew for these."
            )

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse another model than the one that it was made from."""
        layers = len(Decoder.of(model))
        if layers != len(self.sizes):
            raise UserError(
                f"The profile is of a model of {len(self.sizes)} layers, and this one has {layers}; profile "
                "this one."
            )
        parent = digest(model.state_dict())
        if parent != self.parent:
            raise UserError(
                f"The profile is of another model, with the digest {self.parent:.12}, and this one's is "
                f"{parent:.12}; profile this model."
            )

    def save(self, path: Path | str, *, text: str = "", seed: int = 0) -> None:
        """Write the profile as a folder: one card, and a file for each part of the tensors.

        `text` is the name of the public text that was read. Files of tensors that are in a folder already
        are linked into place, not copied, where the disk allows that.
        """
        with staged(Path(path)) as folder:
            write_parts(self.tensors, folder)
            card = _Card(
                method=self.method,
                knobs=self.knobs,
                split=self.split,
                sizes=self.sizes,
                parent=self.parent,
                calibration=self.calibration,
                text=",".join(Path(word).name for word in text.split(",")),
                files=_entries(folder),
                # the call may hold local paths
                record={name: value for name, value in record(seed).items() if name != "call"},
            )
            (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> Profile:
        """Load the profile saved at `path`; its tensors stay on disk until they are asked for.

        Raises UserError for what is no profile, or no longer as it was saved. Large files are
        checked by size alone.
        """
        folder = Path(path)
        card = _card(folder)
        _check_files(folder, card.files)
        about = {name: getattr(card, name) for name in ("parent", "method", "knobs", "calibration")}
        return cls(card.split, card.sizes, Parts(folder), **about)


_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_FileName = Annotated[str, StringConstraints(pattern=r"^\w[\w-]*\.safetensors$")]


class _Card(BaseModel):
    """The card of a saved profile."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, ser_json_inf_nan="constants")

    format: Literal["offsite-profile/2"] = "offsite-profile/2"
    method: str
    knobs: Knobs
    split: Split
    sizes: tuple[Annotated[int, Field(ge=0)], ...]
    parent: _Digest
    calibration: tuple[int, int] | None
    text: str
    files: dict[_FileName, FileEntry]
    record: dict[str, object]


def _card(path: Path) -> _Card:
    if not path.exists():
        raise UserError(f"There is no {str(path)!r}; give the folder that `offsite profile` wrote.")
    file = path / CARD
    if not file.is_file():
        raise UserError(f"{str(path)!r} is not a profile: it has no {CARD}; `offsite profile` makes one.")
    try:
        card = _Card.model_validate_json(file.read_bytes())
        card.split.middle(len(card.sizes))
    except ValidationError as error:
        first = error.errors()[0]
        where, why = ".".join(map(str, first["loc"])) or CARD, brief(first["msg"], 200)
        raise UserError(f"{file} is not a sound profile's: {where!r:.80}: {why}; profile anew.") from error
    return card


def _check_files(folder: Path, files: Mapping[str, FileEntry]) -> None:
    present = {file.name for file in folder.glob(f"*{SUFFIX}")}
    for name in sorted(present ^ set(files)):
        how = "does not belong to it" if name in present else "is missing"
        raise UserError(
            f"The profile {str(folder)!r} is not as it was saved: {name!r:.80} {how}; profile anew."
        )
    for name, entry in files.items():
        size = (folder / name).stat().st_size
        if size != entry.size or (size <= _HASHED_UP_TO and _sha256(folder / name) != entry.sha256):
            raise UserError(
                f"The profile {str(folder)!r} is not as it was saved: {name!r} is truncated or altered; copy "
                "it again, or profile anew."
            )


def _entries(folder: Path) -> dict[str, FileEntry]:
    files = sorted(folder.iterdir())
    hashed = track(files, "Sealing the profile", len(files))
    return {file.name: FileEntry(sha256=_sha256(file), size=file.stat().st_size) for file in hashed}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
