"""A program: writes out chats by one chat template, within limits. `chat` starts it and speaks with it.

It is handed SECONDS of processor time, BYTES of memory beyond what it has, and the folders where jinja2 lies.
It reads lines of JSON: first template, variables and date, then chats, of turns [role, text, learnt]. It
answers a line each: {"pieces": [[text, learnt], ...]}, {"rewritten": true} where the template writes earlier
turns anew, {"refused": why} or {"much": true}. It stands on jinja2 alone, to start soon, and writes the very
text that transformers' `apply_chat_template` does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any

if __name__ == "__main__":
    sys.path += sys.argv[3:]  # nothing but the standard library is there before

from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Write = Callable[[int, bool], str]
"""`write(turns, asked)`: so many turns of a chat and, if asked, the header of the assistant's next one."""


def main(seconds: str, memory: str, *_: str) -> None:
    """Read and answer until there is nothing more to read."""
    _limit(int(seconds), int(memory))
    _say("ready")
    given = json.loads(sys.stdin.buffer.readline())
    compiled = cache(environment(given.get("date")).from_string)
    for line in iter(sys.stdin.buffer.readline, b""):
        turns = json.loads(line)
        messages = [{"role": role, "content": text} for role, text, _ in turns]

        def write(count: int, asked: bool, messages: list[Any] = messages) -> str:
            return compiled(given["template"]).render(
                messages=messages[:count],
                tools=None,
                documents=None,
                add_generation_prompt=asked,
                **given["words"],
            )

        _say(_answer([learnt for *_, learnt in turns], write))


def environment(date: str | None = None) -> ImmutableSandboxedEnvironment:
    """Jinja's sandbox with what transformers adds to it (its `_cached_compile_jinja_template`).

    Templates read the `date` (YYYY-MM-DD) as the present; None: the machine's clock.
    """

    def strftime_now(format: str) -> str:
        return (datetime.fromisoformat(date) if date else datetime.now()).strftime(format)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {"dict": _Dict(), "namespace": _Namespace}
    made.globals |= {"raise_exception": _raise, "strftime_now": strftime_now}
    return made


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _limit(seconds: int, memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: the clock of who started this is the only limit
        return
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_CORE: 0}  # a core would hold the chats
    if sys.platform == "linux":  # macOS would not keep to it
        with open("/proc/self/statm") as file:  # noqa: PTH123 - pathlib takes long to import
            limits[resource.RLIMIT_AS] = int(file.read().split()[0]) * resource.getpagesize() + memory
    for kind, wanted in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (most, most))


def _answer(learnt: list[bool], write: Write) -> dict[str, Any]:
    try:
        pieces = _pieces(learnt, write)
    except MemoryError:
        return {"much": True}
    except Exception as error:  # a template can be made to raise whatever there is
        return {"refused": str(error)[:1000]}
    return {"rewritten": True} if pieces is None else {"pieces": pieces}


def _pieces(learnt: list[bool], write: Write) -> list[tuple[str, bool]] | None:
    """A chat as the template writes it, its learnt turns parted from the rest; None where they cannot be."""
    pieces, done = [], ""
    for number in (number for number, each in enumerate(learnt) if each):
        before, after = _around(number, write)
        if not (after.startswith(before) and before.startswith(done)):
            return None
        pieces += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    whole = write(len(learnt), False)
    return [*pieces, (whole[len(done) :], False)] if whole.startswith(done) else None


def _around(number: int, write: Write) -> tuple[str, str]:
    """The chat before and after a learnt turn; the turn's header is read where the template allows."""
    before, after = "", write(number + 1, False)
    for asked in (True, False) if number else ():
        before = write(number, asked)
        if after.startswith(before):
            break
    return before, after


# --- what transformers gives a template -------------------------------------------------------------------


class _Generation(Extension):
    """The block `generation`, which marks the assistant's words."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own way

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("written"), [], [], body).set_lineno(line)

    def written(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` without what hangs on a type."""

    def __call__(self, *args: Any, **words: Any) -> dict[Any, Any]:
        return dict(*args, **words)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace without names that begin with a line."""

    def __init__(*args: Any, **words: Any) -> None:
        self, values = args[0], dict(*args[1:], **words)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"Chat templates cannot store underscore-prefixed attributes, but got {name!r}.")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


if __name__ == "__main__":
    main(*sys.argv[1:])
