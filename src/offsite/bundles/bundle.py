"""The folders that the parties exchange: safetensors under one strict card.

Everything that comes from the other side is hostile until checked: only the files that the card names, with
the sizes and digests it gives, tensors of the names and shapes expected, floating point, finite. Nothing is
ever unpickled and no remote code runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, with_config
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from offsite import provenance
from offsite.errors import UserError, brief
from offsite.files.atomic import CARD as CARD
from offsite.files.atomic import card_of, staged
from offsite.model.split import Split
from offsite.untrusted.files import Header as Header
from offsite.untrusted.files import finite as finite
from offsite.untrusted.files import flaw, parse, read_object, read_text
from offsite.untrusted.files import headers as headers

SIGNATURE = "model.sig"  # OpenSSF model-signing's name; may lie in any bundle, for `signing` to read
MOST_SIGNATURE = 1 << 20  # bytes; an honest one has 200 for each of a dozen files
_MOST_FILES = 64
_PACKED = (
    b"\x80\x02",
    b"\x80\x03",
    b"\x80\x04",
    b"\x80\x05",
    b"PK",
    b"\x1f\x8b",
)  # first bytes: pickle, zip, gzip
_SPARSE = 8  # times as large as what is stored of it; honest weights have few zeros to leave out
_SMALL = 1 << 20  # bytes; smaller files are read in no time, sparse or not
_SOON_READ = 1 << 30  # bytes; of a larger file, a look at its header comes before its digest
_MOST_VALUES = 1000  # values on a card, its aliases apart
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
_Hex = Field(pattern=r"^([0-9a-f]{64})?$")
_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+!-]{1,60}$")]


@with_config(_STRICT)
@dataclass(frozen=True)
class Origin:
    """Which model a bundle belongs to, in digests that give nothing of it away."""

    split: Split
    parent: str = _Hex
    """Digest of everything but the adapter layers, so that plugging does not change it."""
    start: str = _Hex
    """Digest of the adapter layers before tuning; a LoRA means nothing on other ones."""
    tokenizer: str = _Hex
    """Digest of the vocabulary; empty where no tokenizer came along."""


class FileEntry(BaseModel):
    """The digest and size of one file, on a card."""

    model_config = _STRICT
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Card(BaseModel):
    """The fields of every bundle's card; `format` names its kind and version."""

    model_config = _STRICT
    kind: ClassVar[str]
    format: str
    origin: Origin
    versions: dict[_Word, _Word]
    files: dict[str, FileEntry] = {}


_C = TypeVar("_C", bound=Card)


def write(path: Path, card: Card, fill: Callable[[Path], None]) -> str:
    """Make the bundle folder `path`: `fill` writes its files, the card follows; returns the card's digest."""
    with staged(path) as folder:
        fill(folder)
        files = {file.name: _entry(file) for file in sorted(folder.iterdir())}
        assert CARD not in files, "a bundle's own file has the card's name"
        text = card.model_copy(update={"files": files}).model_dump_json(indent=2)
        (folder / CARD).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def read(path: Path, kind: type[_C]) -> tuple[_C, str]:
    """Check every file of the bundle at `path` against its card; return the card and its digest.

    What is cheap to see comes first: names, sizes and the headers of tensors, before a file is read whole.
    """
    try:
        text = read_text(card_of(path))
        card = _parse(path, text, kind)
        _check_present(path, card)
        _check_signature(path)
        for name, entry in card.files.items():
            _check_file(path, name, entry)
    except PermissionError as error:
        raise UserError(f"{error.filename!r:.200} cannot be read; give yourself the right to.") from error
    return card, hashlib.sha256(text.encode()).hexdigest()


def check_listed(path: Path, kind: type[_C]) -> _C:
    """Return the card of the bundle at `path`, once no other file than those that it lists lies there.

    Cheap: nothing but the card is read.
    """
    card = _parse(path, read_text(card_of(path)), kind)
    _check_present(path, card)
    return card


def declared_format(path: Path) -> str:
    """Return the format that the card in the folder `path` declares; empty without a sound card."""
    file = path / CARD
    if file.is_symlink() or not file.is_file():
        return ""
    try:
        declared = read_object(file).get("format")
    except UserError:  # opening the bundle raises it
        return ""
    return declared if isinstance(declared, str) else ""


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Load a safetensors file that `headers` has passed, each tensor finite; they are views of its pages."""
    found = {}
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a dict
            found[name] = tensors.get_tensor(name)
            if wrong := flaw(found[name]):
                raise UserError(f"{file}: {name!r:.80} holds {wrong}; ask the sender for a sound bundle.")
    return found


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file in the order of the names; a UserError for what no receiver would take."""
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    for name, tensor in ready.items():
        if wrong := flaw(tensor):
            raise UserError(f"The tensor {name!r} holds {wrong}; there is nothing sound to be sent.")
    save_file(ready, file, metadata={"format": "pt"})


def check_names(where: Path | str, found: Iterable[str], expected: Iterable[str]) -> None:
    """Refuse any tensor that is missing or not expected."""
    for name in sorted(set(found) ^ set(expected)):
        how = "does not belong there" if name in set(found) else "is missing"
        raise UserError(f"{where}: the tensor {name!r:.80} {how}.")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes; the same on every machine."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """sha256 over a tokenizer's vocabulary; empty for no tokenizer."""
    if tokenizer is None:
        return ""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a result depends on, without the build (`+cpu`), which tells of the machine."""
    found = provenance.versions(("offsite", "torch", "transformers", "peft"))
    return {name: number.partition("+")[0] for name, number in found.items()}


def _entry(file: Path) -> FileEntry:
    return FileEntry(sha256=file_digest(file), size=file.stat().st_size)


def file_digest(file: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_present(path: Path, card: Card) -> None:
    """Refuse any file that is missing or not on the card."""
    with os.scandir(path) as entries:
        present = {entry.name for entry in islice(entries, _MOST_FILES + 1)}
    if len(present) > _MOST_FILES:
        raise UserError(f"{path} holds more than {_MOST_FILES} files; ask the sender for an unaltered bundle.")
    for name in sorted((present - {CARD, SIGNATURE}) ^ card.files.keys()):
        where = "is in the folder but not on the card" if name in present else "is on the card but missing"
        raise UserError(f"{path}: {name!r:.80} {where}; ask the sender for an unaltered bundle.")


def _check_signature(path: Path) -> None:
    """Refuse a signature file that cannot be one; `signing` verifies it."""
    if os.path.lexists(path / SIGNATURE):
        check_plain(path, SIGNATURE)
        if (path / SIGNATURE).stat().st_size > MOST_SIGNATURE:
            raise UserError(f"{path}: {SIGNATURE!r} is larger than any signature; ask the sender for another.")


def _check_file(path: Path, name: str, entry: FileEntry) -> None:
    """Refuse a file that differs from its entry on the card."""
    file = path / name
    altered = UserError(f"{path}: {name!r:.80} is truncated or altered; ask the sender for it again.")
    check_plain(path, name)
    size = file.stat().st_size
    if size != entry.size:
        raise altered
    if size > _SMALL and _is_sparse(file):
        raise UserError(
            f"{path}: {name!r:.80} is a sparse file, with next to nothing stored of its {size} bytes; ask the "
            "sender for an unaltered bundle."
        )
    if file.suffix == ".safetensors" and size > _SOON_READ:
        headers(file)
    if file_digest(file) != entry.sha256:
        raise altered
    if file.suffix == ".safetensors":
        headers(file)


def check_plain(path: Path, name: str) -> None:
    """Refuse a link, a folder, and what would be unpacked; nothing is read that is no file."""
    file = path / name
    if file.is_symlink() or not file.is_file():
        raise UserError(f"{path}: {name!r:.80} is not a plain file; ask the sender for an unaltered bundle.")
    if file.stat().st_nlink > 1:
        raise UserError(f"{path}: {name!r:.80} is a hard link to another file; make a copy of the bundle.")
    if file.suffix != ".safetensors" and _is_packed(file):
        raise UserError(f"{path}: {name!r:.80} is a pickle or an archive, which no bundle may hold.")


def _is_sparse(file: Path) -> bool:
    """Tell whether nearly all of a file is a hole, which costs its sender nothing and its reader hours.

    Both signs are needed: some disks report late, or never, how much is stored; honest files have small holes.
    """
    stat = file.stat()
    if sys.platform == "win32" or stat.st_blocks * 512 * _SPARSE >= stat.st_size:
        return False
    with file.open("rb") as stream:
        return os.lseek(stream.fileno(), 0, os.SEEK_HOLE) < stat.st_size


def _is_packed(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) in _PACKED


def _parse(path: Path, text: str, kind: type[_C]) -> _C:
    data = parse(path / CARD, text)
    declared = data.get("format")
    if declared != kind.kind:
        whose, wanted = (str(each).partition("/")[0].removeprefix("offsite-") for each in (declared, kind.kind))
        if whose in ("adapter", "emulator") and whose != wanted:
            raise UserError(f"{str(path)!r} is an {whose}, where an {wanted} is wanted; give the other bundle.")
        raise UserError(
            f"{str(path)!r} says its format is {declared!r:.40}, where {kind.kind!r} is wanted; give that kind "
            "of bundle, or install the version of offsite that made it."
        )
    if _values({key: value for key, value in data.items() if key != "same_as"}) > _MOST_VALUES:
        raise UserError(f"{path / CARD} holds more than {_MOST_VALUES} values; ask the sender for it again.")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field, why = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path / CARD}: {field!r:.80}: {brief(why, 200)}.") from error


def _values(data: object) -> int:
    """How many values stand in `data`, at any depth."""
    rest, count = [data], 0
    while rest:
        value = rest.pop()
        count += 1
        rest += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return count
