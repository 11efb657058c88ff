"""Writing beside and renaming, so that nothing half-written ever carries the final name.

What is being written is called `.NAME.partial-ID` until it is whole, and its writer holds a lock (flock) on it,
which the system lets go however the writer ends. What nobody holds was left by a kill: who next writes at NAME
sweeps it. Where there are no such locks (Windows, some network disks) nothing is swept, and nobody kept out.
"""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import ParamSpec, TypeVar

from offsite.errors import UserError
from offsite.files.lock import Lock
from offsite.files.places import check

CARD = "card.json"  # what makes a folder a bundle
_OLD = ".old"  # ends the name of a whole output, set aside for the moment in which its successor is renamed
_ours: ContextVar[frozenset[Path]] = ContextVar("_ours", default=frozenset())  # folders held by these calls
_P = ParamSpec("_P")
_R = TypeVar("_R")
# A list of numbers as json indents it. No string matches, for none holds a line break.
_NUMBERS = re.compile(r"\[(?:\n\s*-?\d[-+.\deE]*,?)+\n\s*\]")
_staging: set[Path] = set()  # the folders that `staged` has yielded, in this process


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a fresh, empty folder beside `path` that takes its name once the block has ended well.

    Any exception, KeyboardInterrupt included, removes the fresh folder and leaves what stood at `path` as
    it was. A folder that stood there is set aside first and removed last. Within a block, the folder that it
    was given is as good as fresh: it is yielded again. UserErrors are those of `check`.
    """
    check(path)
    path = path.resolve()  # a link keeps pointing where it did; "." gets a name
    if path in _staging:
        assert not any(path.iterdir()), "a folder is staged once"
        yield path
        return
    with parents_of(path), _mended(path), _partial(path, Path.mkdir) as fresh:
        _staging.add(fresh)
        try:
            yield fresh
        finally:
            _staging.remove(fresh)
        _readable(fresh)
        _settle(fresh)
        _replace(path, fresh)


def card_of(path: Path) -> Path:
    """The card of the bundle at `path`, not yet read; a UserError where nothing there looks like one."""
    if not path.exists():
        raise UserError(f"There is no {str(path)!r}; give the folder of a bundle.")
    file = path / CARD
    if not file.is_file() or file.is_symlink():
        raise UserError(
            f"{str(path)!r} is not a bundle, for it has no {CARD}; `offsite compress` and `tune` make them."
        )
    return file


def write_text(path: Path, text: str, *, mode: int = 0o666, new: bool = False) -> None:
    """Write `text` (UTF-8) to `path` whole or not at all; missing folders above it are made.

    Never, not while it is being written either, is it more open than `mode` (less the umask). Where it is to be
    `new`, and something is there by then, that stays, and FileExistsError is raised.
    """
    path = path.resolve()
    with parents_of(path), _mended(path), _partial(path, lambda new: new.touch(mode)) as fresh:
        fresh.write_text(text, encoding="utf-8")
        _settle(fresh)
        _claim(fresh, path) if new else fresh.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write a `value` as `indented` and `write_text` do."""
    write_text(path, indented(value) + "\n")


def indented(value: object) -> str:
    """Indented JSON, a list of numbers on one line.

    It has null for infinity and NaN, which JSON cannot say, and words for what is no JSON.
    """
    plain = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[0][1:-1].split())}]", json.dumps(plain, indent=2))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep others who hold it out of `folder`, made if need be; a UserError where one of them is there already.

    A holder that was killed holds nothing. The folder may be renamed within, and emptied, but not replaced.
    """
    lock = None
    while lock is None:
        folder.mkdir(exist_ok=True)
        try:
            lock = Lock(folder)
        except FileNotFoundError:  # its holder has removed it just now
            continue
        except BlockingIOError:
            raise UserError(
                f"Another offsite is at work in {str(folder)!r}; wait for it, or name another output."
            ) from None
    ours = _ours.set(_ours.get() | {folder.resolve()})
    try:
        mend(folder)
        yield
    finally:
        _ours.reset(ours)
        lock.release()


def alone_in_work(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function to hold the folder that it takes as `work`, unless its caller does or it is None."""
    parameters = inspect.signature(function)

    @functools.wraps(function)
    def alone(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        work: Path | None = parameters.bind(*args, **kwargs).arguments.get("work")
        if work is None or work.resolve() in _ours.get():
            return function(*args, **kwargs)
        new = not work.exists()
        with parents_of(work.resolve()), held(work):
            try:
                return function(*args, **kwargs)
            finally:
                with suppress(OSError):  # what it kept stays
                    work.rmdir() if new else None

    return alone


def mend(path: Path) -> None:
    """Put right what a kill left of writing at `path`: an output set aside comes back, partial ones go."""
    path = path.resolve()
    for left in _abandoned(path):
        with suppress(OSError):  # of another user
            _put_right(left, path)


def was_cut_off(path: Path) -> bool:
    """Whether a kill left nothing at `path` but a partial one, which `mend` would sweep."""
    path = path.resolve()
    return not path.exists() and any(not left.name.endswith(_OLD) for left in _abandoned(path))


def remove(folder: Path) -> None:
    """Remove a folder, if it is there; under its name a kill leaves all of it or nothing."""
    gone = _beside(folder)
    try:
        folder.rename(gone)
    except OSError:  # it is not there, or something in it is in use (Windows)
        gone = folder
    shutil.rmtree(gone, ignore_errors=True)


def empty(folder: Path) -> None:
    """Remove what is in `folder`, if it is there, but not itself: somebody may hold it."""
    for each in folder.iterdir() if folder.is_dir() else ():
        if each.is_dir() and not each.is_symlink():
            remove(each)
        else:
            each.unlink()


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


def _settle(fresh: Path) -> None:
    """Have it all on the disk, or a machine that dies just after the rename keeps a name with nothing in it."""
    for each in (*fresh.rglob("*"), fresh):
        if each.is_dir() and sys.platform == "win32":  # which opens no folders
            continue
        opened = os.open(each, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _replace(path: Path, fresh: Path) -> None:
    """Give `fresh` the name `path`; between the two renames what stood there is held, and `mend` knows it."""
    while not _renamed(fresh, path):
        with suppress(FileNotFoundError):  # another process writes here too, and was quicker
            lock = Lock(path, wait=True)
            try:
                aside = path.rename(_beside(path, _OLD))
                done = _renamed(fresh, path)
                _delete(aside)
            finally:
                lock.release()
            if done:
                return


def _renamed(fresh: Path, path: Path) -> bool:
    """Rename unless a folder that is not empty stands there."""
    try:
        fresh.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _claim(fresh: Path, path: Path) -> None:
    """Give `fresh` the name `path` unless something has it."""
    try:
        os.link(fresh, path)
    except FileExistsError:
        raise
    except OSError as error:  # a disk without links, on which two may be as quick as each other
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        fresh.rename(path)
    else:
        fresh.unlink()


def _beside(path: Path, ending: str = "") -> Path:
    return path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:12]}{ending}")


@contextmanager
def _partial(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """What `make` makes beside `path`, held; removed if the block fails."""
    lock = None
    while lock is None:
        fresh = _beside(path)
        try:
            make(fresh)
            with suppress(FileNotFoundError, BlockingIOError):  # a sweep came before the lock
                lock = Lock(fresh)
        except BaseException:
            _delete(fresh)
            raise
    try:
        yield fresh
    except BaseException:
        _delete(fresh)
        raise
    finally:
        lock.release()


@contextmanager
def _mended(path: Path) -> Iterator[None]:
    mend(path)
    try:
        yield
    except BaseException:
        mend(path)  # the old output comes back if it was set aside just then
        raise


def _abandoned(path: Path) -> Iterator[Path]:
    """What nobody holds of all that was being written at `path`, each held for as long as it is looked at."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.partial-[0-9a-f]{{12}}({re.escape(_OLD)})?")
    names = os.listdir(path.parent) if path.parent.is_dir() else []  # noqa: PTH208 - names are enough
    for left in (path.parent / name for name in names if ours.fullmatch(name)):
        try:
            lock = Lock(left)
        except OSError:  # held by its writer, swept by another, or of another user
            continue
        try:
            if lock.is_sure:
                yield left
        finally:
            lock.release()


def _put_right(left: Path, path: Path) -> None:
    if left.name.endswith(_OLD) and not path.exists():
        left.rename(path)
    else:
        _delete(left)


def _delete(path: Path) -> None:
    if path.name.endswith(_OLD):  # half of it must not come back
        path = path.rename(path.with_name(path.name.removesuffix(_OLD)))
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
