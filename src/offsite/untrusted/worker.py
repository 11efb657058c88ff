"""Render chats and tokenise texts within limits: a program, which `sandbox` starts and speaks with.

It is given the folders where jinja2 and tokenizers lie, and imports nothing else, to start soon. A message is
eight bytes of length and then so many bytes. Each request is a JSON object, with the `seconds` and the bytes of
`memory` that it may take:

- {"template", "words", "date"} sets a chat template, its variables and the present.
- {"chat": [[role, text, learnt], ...]} is answered by {"pieces": [[text, learnt], ...]}, or {"rewritten": true}
  where the template writes earlier turns anew. The text is that of transformers' `apply_chat_template`.
- {"tokenizer": the text of tokenizer.json} sets a tokenizer.
- {"texts", "special", "split", "offsets"} is answered by the letter T and 32-bit numbers: how many tokens each
  text has, all ids and, if `offsets`, where each token begins and ends.

What fails is answered by {"refused": why}, too much memory by {"much": true} or by the program's end.
"""

from __future__ import annotations

import gc
import json
import os
import struct
import sys
from array import array
from collections.abc import Callable
from datetime import datetime
from functools import cache
from itertools import chain
from typing import Any

if __name__ == "__main__":
    sys.path += sys.argv[1:]  # nothing but the standard library is there before

from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Write = Callable[[int, bool], str]
"""`write(turns, asked)`: so many turns of a chat and, if asked, the header of the assistant's next one."""
LENGTH = struct.Struct(">Q")
"""What comes before each message: its length."""
_THREAD = 4 << 20  # bytes that a thread of the tokenizers library reserves
_A_BYTE = 512  # bytes that an honest tokenizer takes for a byte of a request, its tokens included
_state: dict[str, Any] = {}


def main() -> None:
    """Read requests and answer them until there are no more."""
    gc.disable()  # there are no cycles, but lists of many tokens
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    while head := sys.stdin.buffer.read(LENGTH.size):
        raw = sys.stdin.buffer.read(LENGTH.unpack(head)[0])
        request = json.loads(raw)
        _limit(request["seconds"], request["memory"] + _A_BYTE * len(raw))
        answer = _answer(request)
        sys.stdout.buffer.write(LENGTH.pack(len(answer)) + answer)
        sys.stdout.buffer.flush()


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


def _answer(request: dict[str, Any]) -> bytes:
    answer: dict[str, Any] = {}
    try:
        if "texts" in request:
            return b"T" + _tokens(request)
        if "chat" in request:
            answer = _chat(request["chat"])
        elif "tokenizer" in request:
            _state["tokenizer"] = _opened(request["tokenizer"])
        elif "template" in request:
            _state.update(request, compiled=cache(environment(request["date"]).from_string))
    except MemoryError:
        answer = {"much": True}
    except BaseException as error:  # the tokenizers library panics with what is no Exception
        answer = {"refused": str(error)[:1000]}
    return json.dumps(answer).encode()


def _chat(turns: list[Any]) -> dict[str, Any]:
    messages = [{"role": role, "content": text} for role, text, _ in turns]

    def write(count: int, asked: bool) -> str:
        text: str = _state["compiled"](_state["template"]).render(
            messages=messages[:count],
            tools=None,
            documents=None,
            add_generation_prompt=asked,
            **_state["words"],
        )
        return text

    pieces = _pieces([learnt for *_, learnt in turns], write)
    return {"rewritten": True} if pieces is None else {"pieces": pieces}


def _opened(data: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(data)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _tokens(request: dict[str, Any]) -> bytes:
    tokenizer, offsets = _state["tokenizer"], request["offsets"]
    tokenizer.encode_special_tokens = request["split"]
    encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
    rows = encode(request["texts"], add_special_tokens=request["special"])
    ids = [row.ids for row in rows]
    numbers = array("I", map(len, ids))
    numbers.extend(chain.from_iterable(ids))
    if offsets:
        numbers.extend(chain.from_iterable(chain.from_iterable(row.offsets for row in rows)))
    return numbers.tobytes()


def _limit(seconds: float, memory: int) -> None:
    """Take at most so many more seconds of each processor, and so many bytes beyond what is taken now."""
    try:
        import resource
    except ImportError:  # Windows: the clock of who started this is the only limit
        return
    cores = os.cpu_count() or 1
    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = {resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime + seconds * cores) + 1}
    limits[resource.RLIMIT_CORE] = 0  # a core would hold the texts
    if sys.platform == "linux":  # macOS would not keep to it
        with open("/proc/self/statm") as file:  # noqa: PTH123 - pathlib takes long to import
            data = int(file.read().split()[5]) * resource.getpagesize()
        limits[resource.RLIMIT_DATA] = data + memory + _THREAD * cores
    for kind, wanted in limits.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _pieces(learnt: list[bool], write: Write) -> list[tuple[str, bool]] | None:
    """Render a chat with its learnt turns apart from the rest; None where they cannot be told apart."""
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
    """Render the chat before and after a learnt turn; the turn's header is read where the template allows."""
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
    """`dict` without the attributes of a type."""

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
    main()
