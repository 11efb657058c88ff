"""Writing beside and renaming, so that nothing half-written ever carries the final name."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offsite.errors import UserError


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a fresh, empty folder beside `path` that takes its name once the block has ended well.

    Any exception, KeyboardInterrupt included, removes the fresh folder and leaves what stood at `path` as
    it was. A folder that stood there is set aside first and removed last. A file there is a UserError, and
    so is a folder around the working or the home folder: replacing it would remove far more than was asked.
    """
    path = path.resolve()  # a link keeps pointing where it did; "." gets a name
    _refuse(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = _beside(path)
    try:
        fresh.mkdir()
        yield fresh
        _replace(path, fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` whole or not at all; missing folders above it are made."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = _beside(path)
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:12]}")


def _refuse(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"{str(path)!r} is a file where a folder is to be written; name a folder.")
    for place in (Path.cwd(), Path.home()):
        if place.is_relative_to(path):
            raise UserError(f"{str(path)!r} holds the folder {str(place)!r}; name a new folder to write.")


def _replace(path: Path, fresh: Path) -> None:
    if not path.exists():
        fresh.rename(path)
        return
    aside = _beside(path)
    try:
        path.rename(aside)
        fresh.rename(path)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise
    shutil.rmtree(aside)
