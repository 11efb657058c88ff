"""Writing beside and renaming, so that nothing half-written ever carries the final name."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from offsite.errors import UserError


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a fresh, empty folder beside `path` that takes its name once the block has ended well.

    Any exception, KeyboardInterrupt included, removes the fresh folder and leaves what stood at `path` as
    it was. A folder that stood there is set aside first and removed last. UserErrors are those of `check`.
    """
    check(path)
    path = path.resolve()  # a link keeps pointing where it did; "." gets a name
    fresh = _beside(path)
    with parents_of(path):
        try:
            fresh.mkdir()
            yield fresh
            _readable(fresh)
            _replace(path, fresh)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` whole or not at all; missing folders above it are made."""
    path = path.resolve()
    fresh = _beside(path)
    with parents_of(path):
        try:
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise


def check(path: Path) -> None:
    """Raise the UserError that a folder cannot be written at `path`, for those who want to know beforehand.

    A file is in the way, nothing may be written there, or it holds the working or the home folder: replacing
    that would remove far more than was asked.
    """
    whole = path.resolve()
    if whole.exists() and not whole.is_dir():
        raise UserError(f"{str(path)!r} is a file where a folder is to be written; name a folder.")
    for place in (Path.cwd(), Path.home()):
        if place.is_relative_to(whole):
            raise UserError(f"{str(path)!r} holds the folder {str(place)!r}; name a new folder to write.")
    check_parent(path)


def check_parent(path: Path) -> None:
    """Raise the UserError that nothing can be written beside `path`."""
    nearest = next(folder for folder in path.resolve().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        why = "is no folder" if not nearest.is_dir() else "may not be written to"
        raise UserError(f"{str(path)!r} cannot be written: {str(nearest)!r} {why}; name another place.")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:12]}")


@contextmanager
def parents_of(path: Path) -> Iterator[None]:
    """The folders above `path` are there; those that had to be made go again if the block fails."""
    new = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in new:
            with suppress(OSError):  # something else was put there meanwhile
                folder.rmdir()
        raise


def _readable(folder: Path) -> None:
    """Let files be as open as the umask has the folder; safetensors writes them for the owner alone."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _replace(path: Path, fresh: Path) -> None:
    aside = _beside(path)
    try:
        while not _renamed(fresh, path):
            shutil.rmtree(aside, ignore_errors=True)  # of an earlier turn: another process writes here too
            with suppress(FileNotFoundError):
                path.rename(aside)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _renamed(fresh: Path, path: Path) -> bool:
    """Rename unless a folder that is not empty stands there."""
    try:
        fresh.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True
