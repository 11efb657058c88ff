"""Chats written out by a stranger's template: in a process of its own, which may take so long and so much.

No look at a template tells how long it runs or how much it writes (`template` refuses what shows), so what
renders is ended as soon as it takes more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import jinja2
import markupsafe

from offsite.errors import UserError, brief
from offsite.untrusted import chat_worker

Turn = tuple[str, str, bool]
"""Role, text, and whether it is learnt."""
Write = Callable[[Sequence[Turn], str], list[tuple[str, bool]]]
"""`write(turns, where)`: a chat as stretches of text, each learnt or only read; `where` is for messages."""

_PATIENCE = 20  # seconds for whatever is honest
_TURNS_A_SECOND = 1000  # honest templates write some ten thousand
_MEMORY = 512 << 20  # bytes
_OUTPUT, _GROWTH = 1 << 20, 8  # bytes of JSON: a template's own words, and how many times a chat's


@contextmanager
def writer(template: str, words: Mapping[str, Any], turns: int, date: str | None = None) -> Iterator[Write]:
    """Within, `write` writes out chats by a chat `template` and its variables, some `turns` in all.

    The template reads `date` (YYYY-MM-DD) as the present, so that a run repeats; None: the machine's clock.

    Raises:
        UserError: by `write`, where the template refuses a chat, writes earlier turns anew, or takes more time,
            memory or room than any honest one.
    """
    seconds = _PATIENCE + turns // _TURNS_A_SECOND
    with _started(seconds) as (tell, told):
        if told.readline(100) != b'"ready"\n':
            raise UserError(
                f"Chats are written out by a process of their own, which {sys.executable!r} does not start; "
                "run offsite with a plain Python."
            )

        def write(chat: Sequence[Turn], where: str) -> list[tuple[str, bool]]:
            asked = _line(chat)
            _send(tell, asked)
            answer = told.readline(most := _OUTPUT + _GROWTH * len(asked))
            much = len(answer) == most or not answer.endswith(b"\n")
            return _pieces({"much": True} if much else json.loads(answer), where, seconds)

        _send(tell, _line({"template": template, "words": words, "date": date}))
        yield write


def _pieces(answer: Mapping[str, Any], where: str, seconds: int) -> list[tuple[str, bool]]:
    if "refused" in answer:
        raise UserError(f"{where}: the model's chat template refuses it: {brief(answer['refused'])}.")
    if "rewritten" in answer:
        raise UserError(
            f"{where}: the model's chat template writes earlier turns anew as a chat goes on; "
            "give one row per turn of the assistant."
        )
    if "much" in answer:
        raise UserError(
            f"{where}: the model's chat template takes more than {seconds} seconds, {_MEMORY >> 20} MiB, or "
            f"{_GROWTH} times a chat's length; ask its sender for a sound one."
        )
    return [(text, learnt) for text, learnt in answer["pieces"]]


@contextmanager
def _started(seconds: int) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The program `scribe`, to be told and to tell, for so many seconds."""
    folders = {str(Path(str(each.__file__)).parents[1]) for each in (jinja2, markupsafe)}
    line = [sys.executable, "-I", "-S", chat_worker.__file__, str(seconds), str(_MEMORY), *sorted(folders)]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin
    assert process.stdout
    clock = threading.Timer(seconds, process.kill)
    clock.daemon = True
    clock.start()
    try:
        yield process.stdin, process.stdout
    finally:
        clock.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        with suppress(OSError):  # what it was not told before it ended
            process.stdin.close()


def _line(data: object) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _send(stream: IO[bytes], line: bytes) -> None:
    with suppress(OSError):  # it has ended; that nothing is answered says so
        stream.write(line)
        stream.flush()
