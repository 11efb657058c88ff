"""Chats as the tokenizer's template writes them; the template may frame what is learnt, not choose it.

The template comes from the emulator's sender. In a chat of marked words, each learnt turn must come out as a
constant header, the turn's words and a constant footer; so must it then in every chat of the same roles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from offsite.data.examples import Example, Piece
from offsite.errors import UserError, brief
from offsite.untrusted.chat_renderer import Turn, Write, writer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_THINK = "</think>"


class _Frame(NamedTuple):
    """What the template writes around the words of a learnt turn, of a chat of some roles."""

    header: str
    footer: str


class Renderer:
    """Writes out chats, and refuses those whose learnt turns do not come out whole and alone."""

    def __init__(self, write: Write) -> None:
        """Take the template's `write`."""
        self._write = write
        self._frames: dict[tuple[tuple[str, bool, bool], ...], list[_Frame]] = {}

    def pieces(self, chat: Example) -> list[Piece]:
        """The chat's text in pieces, each learnt or only read.

        Raises:
            UserError: the template refuses the chat, or changes, drops or mixes what is learnt.
        """
        turns: list[Turn] = [(piece.role, piece.text, piece.learnt) for piece in chat.pieces]
        written = self._write(turns, chat.where)
        shape = tuple((role, learnt, _THINK in text) for role, text, learnt in turns)
        if shape not in self._frames:
            self._frames[shape] = self._measured(shape, chat.where)
        spoken = [text for text, learnt in written if learnt]
        wanted = [(number, text) for number, (_, text, learnt) in enumerate(turns, 1) if learnt]
        for text, frame, (number, words) in zip(spoken, self._frames[shape], wanted, strict=True):
            _check_words(text, frame, words, f"{chat.where}: message {number}")
        return [Piece(*piece) for piece in written]

    def _measured(self, shape: Sequence[tuple[str, bool, bool]], where: str) -> list[_Frame]:
        """The frame of each learnt turn, from a chat of the same roles in which every turn is a mark."""
        marks = [f"Zq{number}Zq" for number in range(len(shape))]
        texts = [
            f"<think>\nof {mark}\n{_THINK}\n\n{mark}" if thinks else mark
            for mark, (*_, thinks) in zip(marks, shape, strict=True)
        ]
        turns = [(role, text, learnt) for (role, learnt, _), text in zip(shape, texts, strict=True)]
        spoken = [text for text, learnt in self._write(turns, where) if learnt]
        learnt = [number for number, (_, learnt, _) in enumerate(shape) if learnt]
        return [
            _frame(text, texts[number], marks[number], marks, f"{where}: message {number + 1}")
            for text, number in zip(spoken, learnt, strict=True)
        ]


@contextmanager
def renderer(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, date: str
) -> Iterator[Renderer | None]:
    """What writes out the chats among the examples, on that date; None where there are none."""
    chats = [example for example in examples if example.is_chat]
    if not chats:
        yield None
        return
    if not tokenizer.chat_template:
        raise UserError(
            f"{chats[0].where}: the model's tokenizer has no chat template; give prompt and completion "
            "in place of messages."
        )
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several of which none is the usual one
        raise UserError(f"{chats[0].where}: the model's chat template refuses it: {brief(error)}.") from error
    # a chat is written anew for each of its turns that are learnt
    turns = sum(len(chat.pieces) * (1 + sum(piece.learnt for piece in chat.pieces)) for chat in chats)
    with writer(template, tokenizer.special_tokens_map, turns, date) as write:
        yield Renderer(write)


def _frame(text: str, words: str, mark: str, marks: Sequence[str], where: str) -> _Frame:
    if any(other in text for other in marks if other != mark):
        raise UserError(
            f"{where}: the model's chat template writes another turn's words where these are learnt; "
            "ask its sender for a sound one."
        )
    if words != mark and words not in text and text.count(mark) == 1:
        raise UserError(
            f"{where}: the model's chat template leaves out what stands before {_THINK!r}, so that it would "
            "not be learnt; take it out of the row, or give prompt and completion."
        )
    header, found, footer = text.partition(words)
    if not found or mark in footer:
        raise UserError(
            f"{where}: the model's chat template does not write the turn's words once, as they stand, so "
            "that others would be learnt; ask its sender for a sound one."
        )
    return _Frame(header, footer)


def _check_words(text: str, frame: _Frame, words: str, where: str) -> None:
    """Refuse a turn that comes out as anything but its words in its frame; white space may differ."""
    header, footer = frame
    inner = text[len(header) : len(text) - len(footer)]
    if text == header + inner + footer and inner.split() == words.split():
        return
    raise UserError(
        f"{where}: the model's chat template writes {brief(inner or text)!r} for {brief(words)!r}, so that "
        "other words than yours would be learnt; change the row, or give prompt and completion."
    )
