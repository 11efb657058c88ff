"""Render chats by an untrusted template, in the worker, which may take so long and so much."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from offsite.errors import UserError, brief
from offsite.untrusted.sandbox import MEMORY, Sandbox

Turn = tuple[str, str, bool]
"""Role, text, and whether it is learnt."""
Write = Callable[[Sequence[Turn], str], list[tuple[str, bool]]]
"""`write(turns, where)`: a chat as stretches of text, each learnt or only read; `where` is for messages."""

_PATIENCE = 20  # seconds for whatever is honest
_TURNS_A_SECOND = 1000  # honest templates write some ten thousand
_OUTPUT, _GROWTH = 1 << 20, 8  # bytes of JSON: a template's constant text, and how many times a chat's


@contextmanager
def writer(template: str, words: Mapping[str, object], turns: int, date: str | None = None) -> Iterator[Write]:
    """Within, `write` renders chats by a chat `template` and its variables, some `turns` in all.

    The template reads `date` (YYYY-MM-DD) as the present, so that a run repeats; None: the machine's clock.

    Raises:
        UserError: by `write`, where the template refuses a chat, writes earlier turns anew, or takes more time,
            memory or room than any honest one.
    """
    sandbox = Sandbox(_PATIENCE + turns // _TURNS_A_SECOND)

    def write(chat: Sequence[Turn], where: str) -> list[tuple[str, bool]]:
        most = _OUTPUT + _GROWTH * len(json.dumps(chat))
        answer = sandbox.ask({"chat": chat}, most)
        return _pieces(json.loads(answer) if answer else {"much": True}, where, int(sandbox.seconds))

    try:
        sandbox.ask({"template": template, "words": dict(words), "date": date}, _OUTPUT)
        yield write
    finally:
        sandbox.close()


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
            f"{where}: the model's chat template takes more than {seconds} seconds, {MEMORY >> 20} MiB, or "
            f"{_GROWTH} times a chat's length; ask its sender for a sound one."
        )
    return [(text, learnt) for text, learnt in answer["pieces"]]
