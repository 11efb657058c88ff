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
from offsite.errors import UserError, brief
from offsite.folders import staged
from offsite.split import Split

CARD = "card.json"
_JSON_LIMIT = 16 << 20  # bytes; ample for a thousand layers of shared tensors
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
Header = tuple[torch.dtype, tuple[int, ...]]
"""What a safetensors file says of a tensor before it is read: its type and shape."""


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
    """The card of the bundle at `path`, once every file is what it says, and the card's digest."""
    text = _card_text(path)
    card = _parse(path, text, kind)
    present = {file.name for file in path.iterdir()} - {CARD}
    for name in sorted(present ^ set(card.files)):
        where = "is in the folder but not on the card" if name in present else "is on the card but missing"
        raise UserError(f"{path}: {name!r:.80} {where}; ask the sender for an unaltered bundle.")
    for name, entry in card.files.items():
        file = path / name
        if file.is_symlink() or not file.is_file():
            raise UserError(f"{path}: {name!r} is not a plain file; ask the sender for an unaltered bundle.")
        if file.stat().st_size != entry.size or _sha256(file) != entry.sha256:
            raise UserError(f"{path}: {name!r} is truncated or altered; ask the sender for it again.")
    return card, hashlib.sha256(text.encode()).hexdigest()


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a small file from elsewhere; a UserError unless it is sound, with no key twice."""
    return _object(file, _text(file))


def headers(file: Path) -> dict[str, Header]:
    """The tensors that a safetensors file declares, floating point only; reads no more than its header."""
    found = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                header = tensors.get_slice(name)
                said = header.get_dtype()
                if said not in _DTYPES:
                    raise UserError(f"{file}: {name!r:.80} is of type {said}; a bundle holds F32, F16, BF16.")
                found[name] = (_DTYPES[said], tuple(header.get_shape()))
    except SafetensorError as error:
        raise UserError(f"{file} is not a readable safetensors file ({brief(error)}).") from error
    return found


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, each finite."""
    with safe_open(file, framework="pt") as tensors:
        found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    for name, tensor in found.items():
        if not finite(tensor):
            raise UserError(f"{file}: {name!r} holds NaN or infinity; ask the sender for a sound bundle.")
    return found


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file in the order of the names; a UserError for what no receiver would take."""
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    for name, tensor in ready.items():
        if not finite(tensor):
            raise UserError(f"The tensor {name!r} holds NaN or infinity; there is nothing sound to be sent.")
    save_file(ready, file, metadata={"format": "pt"})


def finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    return bool(torch.isfinite(tensor).all())


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
    """Of the packages that a result hangs on."""
    return record.versions(("offsite", "torch", "transformers", "peft"))


def _entry(file: Path) -> FileEntry:
    return FileEntry(sha256=_sha256(file), size=file.stat().st_size)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _card_text(path: Path) -> str:
    if not path.exists():
        raise UserError(f"There is no {str(path)!r}; give the folder of a bundle.")
    file = path / CARD
    if not file.is_file() or file.is_symlink():
        raise UserError(
            f"{str(path)!r} is not a bundle, for it has no {CARD}; `offsite compress` and `tune` make them."
        )
    return _text(file)


def _text(file: Path) -> str:
    if file.stat().st_size > _JSON_LIMIT:
        raise UserError(f"{file} is larger than any honest one; ask the sender for it again.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text; ask the sender for it again.") from error


def _object(file: Path, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not sound JSON ({brief(error)}).") from error
    if not isinstance(data, dict):
        raise UserError(f"{file} holds no JSON object; ask the sender for it again.")
    return data


def _parse(path: Path, text: str, kind: type[_C]) -> _C:
    said = _object(path / CARD, text).get("format")
    if said != kind.kind:
        raise UserError(
            f"{str(path)!r} says its format is {said!r:.40}, where {kind.kind!r} is wanted; give that kind of "
            "bundle, or install the version of offsite that made it."
        )
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field, why = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path / CARD}: {field!r:.80}: {brief(why, 200)}.") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key stands twice")
    return data
