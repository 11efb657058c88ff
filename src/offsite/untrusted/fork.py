"""Try a function in a copy of this process that may take so much time and memory.

What an untrusted config or tokenizer builds cannot be bounded by reading it. So it is built once in a forked
copy, which is ended where it takes too much, and again here if that went well. Only Linux keeps such limits;
elsewhere nothing is tried.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from offsite.errors import UserError, brief

_SECONDS = 20
_MEMORY = 384 << 20  # bytes beyond what this process has
_PARALLELISM = "TOKENIZERS_PARALLELISM"  # where it is not set, tokenizers prints a warning at each fork

_tried: set[bytes] = set()
"""Digests of what was built within the limits."""


def try_first(build: Callable[[], object], what: str, read: bytes, memory: int = _MEMORY) -> None:
    """Run `build` in a copy of this process, which may take so many bytes; `what` it builds begins a sentence.

    What went well once in this process is not tried again: a fork of a large process takes a tenth of a second.
    `read` is all that decides what is built.

    Raises:
        UserError: `build` raised it there, or took too much.
    """
    tried = hashlib.sha256(b"%d %s" % (memory, read)).digest()
    if sys.platform != "linux" or tried in _tried:
        return
    reading, writing = os.pipe()
    with _quiet_fork():
        child = os.fork()
    if not child:
        _answer(build, writing, memory)
    os.close(writing)
    try:
        answer = _read(reading)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if answer is None:
        raise UserError(
            f"{what} takes more than {_SECONDS} seconds or {memory >> 20} MiB to build; ask its sender for a "
            "sound one."
        )
    if answer["refused"]:
        raise UserError(answer["refused"])
    _tried.add(tried)


def _answer(build: Callable[[], object], writing: int, memory: int) -> NoReturn:
    """In the child: build within limits, answer, end."""
    answer = None
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for screen in (1, 2):
            os.dup2(nowhere, screen)
        _limit(memory)
        warnings.simplefilter("ignore")
        try:
            build()
            answer = {"refused": ""}
        except UserError as error:
            answer = {"refused": str(error)}
        except MemoryError:
            pass
        except BaseException as error:  # an untrusted file can make it raise anything
            answer = {"refused": f"It cannot be built ({brief(error)})."}
        if answer is not None:
            os.write(writing, json.dumps(answer).encode()[:4000] + b"\n")
    finally:
        os._exit(0)


def _limit(memory: int) -> None:
    import resource

    with open("/proc/self/statm") as file:  # noqa: PTH123 - takes no memory to import
        data = int(file.read().split()[5]) * resource.getpagesize()
    for kind, most in (
        (resource.RLIMIT_CPU, _SECONDS),
        (resource.RLIMIT_DATA, data + memory),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, hard))


def _read(reading: int) -> dict[str, Any] | None:
    """Read the child's answer; None where it ended without one, or gave none in time."""
    waiting, line = select.poll(), b""
    waiting.register(reading, select.POLLIN)
    while not line.endswith(b"\n"):
        ready = waiting.poll(2000 * _SECONDS)  # twice the processor's time, in ms: the machine may be busy
        part = os.read(reading, 8192) if ready else b""
        if not part:
            return None
        line += part
    answer: dict[str, Any] = json.loads(line)
    return answer


@contextmanager
def _quiet_fork() -> Iterator[None]:
    """Within, the tokenizers library prints no warning at a fork."""
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = before or "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLELISM]
