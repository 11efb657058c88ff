"""A profile's tensors, in parts: kept in memory, or in a folder from which an interrupted run goes on."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from offsite.errors import UserError, brief
from offsite.files.atomic import write_text

SUFFIX = ".safetensors"
"""Of the file of a part."""
MARK = "mark"
_PARTIAL = ".partial-"  # in the name of what is being written; a kill leaves such


class Parts(Mapping[str, Tensor]):
    """Tensors in parts, each found as `part/name`.

    In a `folder` each part is a file, written beside and renamed, and a tensor is read when it is asked for,
    so that they may be larger than memory. Without a folder they are kept in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._held: dict[str, dict[str, Tensor]] = {}
        self._mark: str | None = None

    @classmethod
    def resumed(cls, work: Path | None, mark: str) -> Parts:
        """Return the parts in the folder `work`, from which an interrupted run goes on; without it, none.

        The `mark` is a digest of all that decides them: parts of another mark are removed, as is what a kill
        left unreadable. Raises UserError for a folder that holds other things.
        """
        found = cls(work)
        found._mark = mark
        if work is not None and work.exists():
            _clear(work, all_parts=not _bears(work, mark))
        return found

    def put(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Store the `tensors` of one part, all or none, in place of those that it had."""
        assert re.fullmatch(r"\w[\w-]*", part), f"{part!r} is no name of a file"
        ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        for name, tensor in ready.items():
            if tensor.isnan().any():
                raise UserError(
                    f"What was measured of {part}/{name} is not a number; look whether the model's weights are "
                    "sound."
                )
        if self.folder is None:
            self._held[part] = ready
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._mark is not None and not _bears(self.folder, self._mark):
            write_text(self.folder / MARK, self._mark)
        _save(ready, self._file(part))

    def drop(self, part: str) -> None:
        """Remove a part, if it is there."""
        self._held.pop(part, None)
        if self.folder is not None:
            self._file(part).unlink(missing_ok=True)

    def missing(self, layers: Iterable[int]) -> list[int]:
        """Return the `layers` that have no part yet."""
        there = self.names
        return [layer for layer in layers if str(layer) not in there]

    @property
    def names(self) -> set[str]:
        """Names of the parts that are there, and whole."""
        if self.folder is None:
            return set(self._held)
        return {file.name.removesuffix(SUFFIX) for file in self.folder.glob(f"*{SUFFIX}")}

    def __getitem__(self, key: str) -> Tensor:
        part, _, name = key.partition("/")
        if part not in self.names:
            raise KeyError(key)
        if self.folder is None:
            if name not in self._held[part]:
                raise KeyError(key)
            return self._held[part][name]
        with _opened(self._file(part)) as file:
            if name not in file.keys():  # noqa: SIM118 - not a dict
                raise KeyError(key)
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __contains__(self, key: object) -> bool:
        part, _, name = str(key).partition("/")
        return name in self._names(part)

    def __iter__(self) -> Iterator[str]:
        return (f"{part}/{name}" for part in sorted(self.names) for name in self._names(part))

    def __len__(self) -> int:
        return sum(len(self._names(part)) for part in self.names)

    def _names(self, part: str) -> list[str]:
        if part not in self.names:
            return []
        if self.folder is None:
            return list(self._held[part])
        with _opened(self._file(part)) as file:
            return list(file.keys())

    def _file(self, part: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{part}{SUFFIX}"


def write_parts(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write the parts of a profile's `tensors` into `folder`; those that are files already are linked."""
    if isinstance(tensors, Parts) and tensors.folder is not None:
        for part in tensors.names:
            _link(tensors.folder / f"{part}{SUFFIX}", folder)
        return
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        assert name, f"{key!r} is no part/name"
        parts.setdefault(part, {})[name] = tensor
    saved = Parts(folder)
    for part, within in parts.items():
        saved.put(part, within)


def _link(file: Path, folder: Path) -> None:
    """Give `file`, to which nobody writes again, a second name; a move would take it away."""
    try:
        os.link(file, folder / file.name)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(file, folder / file.name)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    fresh = file.with_name(f".{file.name}{_PARTIAL}new")
    try:
        save_file(tensors, fresh)
        fresh.replace(file)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise UserError(f"{str(file)!r} cannot be read ({brief(error)}); profile anew.") from error


def _bears(work: Path, mark: str) -> bool:
    file = work / MARK
    return file.is_file() and file.read_text(encoding="utf-8", errors="replace") == mark


def _clear(work: Path, *, all_parts: bool) -> None:
    """Remove from `work` the parts that are unreadable, or `all_parts`."""
    files = [file for file in work.iterdir() if _PARTIAL not in file.name]
    if files and not (work / MARK).is_file():
        raise UserError(
            f"{str(work)!r} holds other things than parts of a profile; name a new folder to work in."
        )
    for file in files:
        if file.suffix == SUFFIX and (all_parts or not _readable(file)):
            file.unlink()
    if all_parts:
        (work / MARK).unlink(missing_ok=True)


def _readable(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt"):
            return True
    except SafetensorError:
        return False
