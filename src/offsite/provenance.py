"""How a result came about: the exact call, versions, date and machine, for the one who made it.

A record may hold local paths; it goes into results, receipts and reports that stay, never into a bundle.
"""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("offsite", "torch", "transformers", "peft", "accelerate", "safetensors", "datasets")

_call: ContextVar[Sequence[str] | None] = ContextVar("call", default=None)


@contextmanager
def calling(words: Sequence[str]) -> Iterator[None]:
    """Within, records name `words` as their call (where a command runs inside another)."""
    token = _call.set(words)
    try:
        yield
    finally:
        _call.reset(token)


def record(seed: int) -> dict[str, object]:
    """What to write beside a result that was just made with `seed`."""
    return {
        "call": call(),
        "versions": versions(PACKAGES),
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
    }


def call() -> str:
    """The command that runs, as a person would type it."""
    return shlex.join(_call.get() or _command(sys.argv))


def _command(argv: Sequence[str]) -> list[str]:
    """The words of a call as a person would type them: `offsite` by its name, wherever it is installed."""
    program = Path(argv[0])
    ours = program.name == "offsite" or program.parts[-2:] == ("offsite", "__main__.py")
    return [*(["offsite"] if ours else ["python", program.name]), *argv[1:]]


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those `packages` that are installed, and of Python."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The processor in words, without the host's name."""
    import torch

    where = f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        where += f", {torch.cuda.get_device_name()}"
    return where
