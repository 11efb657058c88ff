"""What the rows of a data file are: examples and questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from offsite.data.rows import Row, read_rows

_KINDS = '{"prompt", "completion"}, {"messages"}, {"text"} or {"prompt", "choices", "answer"}'

DATE = "2025-01-01"
"""What chat templates that print the date print, unless asked otherwise: the same data, the same tokens."""


class Piece(NamedTuple):
    """A stretch of an example's text."""

    text: str
    learnt: bool
    """Whether the model learns to say it; otherwise it only reads it."""
    role: str = ""
    """Who speaks, in a chat; none otherwise."""


@dataclass(frozen=True)
class Example:
    """One thing to learn from: text in pieces, each learnt or only read."""

    pieces: tuple[Piece, ...]
    closed: bool = True
    """Whether the model also learns to stop after the last piece (the tokenizer's EOS; not in chats)."""
    where: str = field(default="an example", compare=False)
    """The file and line that it comes from, for messages."""

    @property
    def text(self) -> str:
        """The pieces' text, a chat's turns on lines of their own."""
        return ("\n" if self.is_chat else "").join(piece.text for piece in self.pieces)

    @property
    def is_chat(self) -> bool:
        """Whether the pieces are turns, to be written out by the tokenizer's chat template."""
        return any(piece.role for piece in self.pieces)


@dataclass(frozen=True)
class Question:
    """A question with its possible answers; `answer` is the index of the right one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int

    def example(self, where: str = "a question") -> Example:
        """The question as something to learn: the right choice, one space after the prompt, no EOS.

        That is the very text that lm-evaluation-harness scores.
        """
        right = Piece(" " + self.choices[self.answer], learnt=True)
        return Example((Piece(self.prompt, learnt=False), right), closed=False, where=where)


def read_examples(path: Path) -> list[Example]:
    """The examples in a data file (formats: see `rows.read_rows`); the kinds of rows may be mixed.

    `{"prompt", "completion"}` learns the completion, `{"messages": [{"role", "content"}, ...]}` the
    assistant's turns, `{"text"}` everything, `{"prompt", "choices", "answer"}` the right choice.

    Raises:
        UserError: as `read_rows`, or a row of none of these kinds.
    """
    return [_example(row) for row in read_rows(path)]


def read_questions(path: Path) -> list[Question]:
    """The questions in a data file of `{"prompt", "choices", "answer"}` rows; errors as `read_examples`."""
    return [_question(row) for row in read_rows(path)]


# --- rows to examples -------------------------------------------------------------------------------------

_CONTENT = ("messages", "choices", "completion", "text")  # of which a row has one
_UNHEEDED = frozenset(
    [
        "system",
        "instruction",
        "instructions",
        "input",
        "output",
        "response",
        "context",
        "history",
        "tools",
        "functions",
        "documents",
        "tool_choice",
        "images",
        "audio",
        "videos",
        "chosen",
        "rejected",
        "weight",
        "train",
        "label",
        "chat_template_kwargs",
        "reasoning",
        "reasoning_content",
        "thinking",
    ]
)  # columns that mean something beside those
_UNHEEDED_IN_TURN = frozenset(
    [
        "reasoning",
        "reasoning_content",
        "thinking",
        "tool_calls",
        "function_call",
        "tool_call_id",
        "refusal",
        "audio",
        "images",
        "name",
        "prefix",
    ]
)


def _example(row: Row) -> Example:
    _refuse_unheeded(row)
    if "messages" in row.columns:
        return Example(tuple(_turns(row)), closed=False, where=row.where)
    if "choices" in row.columns:
        return _question(row).example(row.where)
    if "completion" in row.columns:
        read = Piece(row.text("prompt", blank=True), learnt=False)
        return Example((read, Piece(row.text("completion"), learnt=True)), where=row.where)
    if "text" in row.columns:
        return Example((Piece(row.text("text"), learnt=True),), where=row.where)
    raise row.refused(f"expected {_KINDS}, found {_names(row.columns)}")


def _refuse_unheeded(row: Row) -> None:
    """Refuse a row with a column that means something and would be lost."""
    content = [name for name in _CONTENT if name in row.columns]
    if len(content) > 1:
        raise row.refused(f"has {_names(content)}, which are rows of different kinds; keep one of them")
    if not content:
        return
    lost = [name for name in row.columns if name in _UNHEEDED and _says_something(row.columns[name])]
    if content[0] in ("messages", "text") and _says_something(row.columns.get("prompt")):
        lost.insert(0, "prompt")
    if lost:
        raise row.refused(
            f"has {_names(lost)} beside {_names(content)}, which would be lost; put what they say into "
            "what is read or learnt, or remove them"
        )


def _says_something(value: object) -> bool:
    return value is not None and value not in ("", [], {}) and not (isinstance(value, str) and value.isspace())


def _names(columns: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in columns) or "nothing"


def _turns(row: Row) -> Iterator[Piece]:
    turns = row.columns["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise row.refused('expected "messages" to be a list of {"role", "content"}')
    for number, turn in enumerate(turns, 1):
        role = row.checked(turn.get("role"), f"the role of message {number}")
        lost = [name for name in turn if name in _UNHEEDED_IN_TURN and _says_something(turn[name])]
        if lost:
            raise row.refused(
                f"message {number} has {_names(lost)}, which would be lost; write it into its content as the "
                "model's chat template would, or remove it"
            )
        content = row.checked(turn.get("content"), f"the content of message {number}", blank=True)
        yield Piece(content, learnt=_is_learnt(row, turn, role, number), role=role)
    if not any(turn.get("role") == "assistant" for turn in turns):
        raise row.refused('expected a message of the role "assistant" to learn')


def _is_learnt(row: Row, turn: dict[str, object], role: str, number: int) -> bool:
    """Whether a turn is the assistant's, and its `weight` (0 or 1) and `train` do not say otherwise."""
    learnt = role == "assistant"
    for name in ("weight", "train"):
        value = turn.get(name)
        if value is None:
            continue
        if value not in (0, 1):
            raise row.refused(
                f"message {number} has a {name} of {value!r:.40}; 0 (only read) and 1 (learnt) are heeded"
            )
        if value == 1 and role != "assistant":
            raise row.refused(
                f"message {number} has a {name} of {value!r} and the role {role!r:.40}; the assistant's "
                "messages alone are learnt"
            )
        learnt = learnt and value == 1
    return learnt


def _question(row: Row) -> Question:
    prompt, choices, answer = row.text("prompt"), row.columns.get("choices"), row.columns.get("answer")
    if not isinstance(choices, list) or len(choices) < 2:
        raise row.refused('expected "choices" to be a list of at least 2 strings')
    texts = tuple(row.checked(choice, f"choice {number}") for number, choice in enumerate(choices))
    if isinstance(answer, float) and answer.is_integer():  # 1.0, as tables with empty cells hold it
        answer = int(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(texts):
        last = len(texts) - 1
        raise row.refused(f'expected "answer" to be a number from 0 to {last}, found {answer!r:.40}')
    return Question(prompt, texts, answer)
