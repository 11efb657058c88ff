"""Whether something can be written at a place, found out before the work that it is to hold."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from offsite.errors import UserError

_ADDED = len("..partial-0123456789ab.old")  # to a name, while what it stands for is written


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
    """Raise the UserError that nothing can be written beside `path`; a file without a name is tried."""
    nearest = next(folder for folder in path.resolve().parents if folder.exists())
    if why := _hindrance(nearest):
        raise UserError(f"{str(path)!r} cannot be written: {str(nearest)!r} {why}; name another place.")
    most = os.pathconf(nearest, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    if len(os.fsencode(path.name)) + _ADDED > most:
        raise UserError(
            f"{str(path)!r} cannot be written: its name and what is added to it meanwhile exceed {most} bytes; "
            "name a shorter one."
        )


def _hindrance(folder: Path) -> str:
    """Name what hinders writing in a folder; empty for nothing."""
    if not folder.is_dir():
        return "is no folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "may not be written to"
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"may not be written to ({error.strerror})"
    return ""


def check_removable(path: Path) -> None:
    """Raise the UserError that the folder `path` cannot be replaced, for something in it may not be removed."""
    # Found at the end, a copy under a hidden name would stay.
    for folder in (path, *path.rglob("*/")):
        if not folder.is_symlink() and not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(
                f"{str(path)!r} cannot be replaced: what is in {str(folder)!r} may not be removed, perhaps "
                "because it is another user's; name another output."
            )
