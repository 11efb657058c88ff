"""What crosses between the parties: a folder of safetensors under one strict card.

Everything that comes from the other side is hostile until checked: only the files that the card names, with
the sizes and digests it gives, tensors of the names and shapes expected, floating point, finite. Nothing is
ever unpickled and no remote code runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, with_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from offsite import record
from offsite.errors import UserError
from offsite.folders import staged
from offsite.split import Split

CARD = "card.json"
_CARD_LIMIT = 4 << 20  # bytes; ample for a thousand layers of shared tensors
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
_Hex = Field(pattern=r"^([0-9a-f]{64})?$")


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
    """What a card says of one file."""

    model_config = _STRICT
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Card(BaseModel):
    """What every bundle says of itself; `format` names its kind and version."""

    model_config = _STRICT
    kind: ClassVar[str]
    format: str
    origin: Origin
    versions: dict[str, str]
    files: dict[str, FileEntry] = {}


_C = TypeVar("_C", bound=Card)


def write(path: Path, card: Card, fill: Callable[[Path], None]) -> str:
    """Make the bundle folder `path`: `fill` writes its files, the card follows; returns the card's digest."""
    with staged(path) as folder:
        fill(folder)
        files = {file.name: _entry(file) for file in sorted(folder.iterdir())}
        text = card.model_copy(update={"files": files}).model_dump_json(indent=2)
        (folder / CARD).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def read(path: Path, kind: type[_C]) -> tuple[_C, str]:
    """The card of the bundle at `path`, once every file is what it says, and the card's digest."""
    text = _card_text(path)
    card = _parse(path, text, kind)
    present = {file.name for file in path.iterdir()} - {CARD}
    for name in sorted(present ^ set(card.files)):
        where = "is in the folder but not on the card" if name in present else "is on the card but missing"
        raise UserError(f"{path}: {name!r} {where}; ask the sender for an unaltered bundle.")
    for name, entry in card.files.items():
        file = path / name
        if file.is_symlink() or not file.is_file():
            raise UserError(f"{path}: {name!r} is not a plain file; ask the sender for an unaltered bundle.")
        if file.stat().st_size != entry.size or _sha256(file) != entry.sha256:
            raise UserError(f"{path}: {name!r} is truncated or altered; ask the sender for it again.")
    return card, hashlib.sha256(text.encode()).hexdigest()


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes that a safetensors file declares, floating point only; reads its header alone."""
    found = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                header = tensors.get_slice(name)
                if header.get_dtype() not in _DTYPES:
                    raise UserError(f"{file}: {name!r} is of type {header.get_dtype()}, not floating point.")
                found[name] = tuple(header.get_shape())
    except SafetensorError as error:
        raise UserError(f"{file} is not a readable safetensors file ({error}).") from error
    return found


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, each finite."""
    with safe_open(file, framework="pt") as tensors:
        found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    for name, tensor in found.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{file}: {name!r} holds NaN or infinity; ask the sender for a sound bundle.")
    return found


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file in the order of the names."""
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    save_file(ready, file, metadata={"format": "pt"})


def check_names(where: Path | str, found: Iterable[str], expected: Iterable[str]) -> None:
    """Refuse any tensor that is missing or not expected."""
    for name in sorted(set(found) ^ set(expected)):
        how = "does not belong there" if name in set(found) else "is missing"
        raise UserError(f"{where}: the tensor {name!r} {how}.")


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
    """Of the packages that a result hangs on."""
    return record.versions(("offsite", "torch", "transformers", "peft"))


def _entry(file: Path) -> FileEntry:
    return FileEntry(sha256=_sha256(file), size=file.stat().st_size)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _card_text(path: Path) -> str:
    if not path.exists():
        raise UserError(f"No such path: {str(path)!r}.")
    file = path / CARD
    if not file.is_file() or file.is_symlink() or file.stat().st_size > _CARD_LIMIT:
        raise UserError(f"{str(path)!r} is not a bundle: it has no proper {CARD}.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text; ask the sender for it again.") from error


def _parse(path: Path, text: str, kind: type[_C]) -> _C:
    try:
        data = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path / CARD} is not sound JSON ({error}).") from error
    said = data.get("format") if isinstance(data, dict) else None
    if said != kind.kind:
        raise UserError(f"{str(path)!r} says its format is {said!r}, where {kind.kind!r} is understood here.")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"{path / CARD}: {field!r}: {first['msg']}.") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key stands twice")
    return data
