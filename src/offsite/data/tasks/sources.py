"""Public text by its words: named texts, a task's train rows, files, mixtures; several take turns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from offsite.data.blocks import Mixed, Rows, Running, Source
from offsite.data.examples import Example, Question, read_examples
from offsite.data.rows import check_file, is_data_file, read_utf8
from offsite.data.tasks import definition as definitions
from offsite.data.tasks.definition import Format, Mixture
from offsite.data.tasks.fetch import fetched, question_of
from offsite.errors import UserError, did_you_mean

Words = str | Sequence[str]
"""Names and files of public text, listed or with commas between them."""
_LESS = ":-"  # before each task that a mixture is to leave out


def texts(text: Words) -> Source:
    """Read public text: named texts, mixtures, tasks' train rows, `.txt` files (running text), data files.

    Raises:
        UserError: neither a text, a task nor a file; a malformed row (with its line), or what is out of reach.
    """
    found = [_source(word) for word in listed(text)]
    return found[0] if len(found) == 1 else Mixed(label(text), tuple(found))


def check_text(text: Words) -> None:
    """Refuse, before any work, words for which `texts` would find no public text."""
    for word in listed(text):
        name, less = _parted(word)
        if name in definitions.mixtures():
            _turns(name, less)
        elif name not in _names():
            check_file(text_file(word))


def listed(text: Words) -> list[str]:
    """List the words of public text."""
    if not isinstance(text, str):
        words = list(text)
    else:
        words = [text] if Path(text).is_file() else [word.strip() for word in text.split(",")]
    if not words or not all(words):
        raise UserError(f"There is a blank word in the text {text!r}; put one comma between two words.")
    return words


def label(text: Words) -> str:
    """Name public text to others: its words, of files the name alone."""
    return ",".join(Path(word).name for word in listed(text))


def without(text: Words, tasks: Iterable[str]) -> str:
    """Have the mixtures among the words of public text leave out what they hold of the `tasks`."""
    words = []
    for word in listed(text):
        name, less = _parted(word)
        mixture = definitions.mixtures().get(name)
        held = [task for task in dict.fromkeys([*less, *tasks]) if mixture and task in mixture.turns]
        words.append("".join([name, *(f"{_LESS}{task}" for task in sorted(held))]) if mixture else word)
    return ",".join(words)


def left_out(texts: Iterable[str]) -> list[str]:
    """Say, beside results, which of the `texts` of profiles leave tasks out; no sentence where none does."""
    less = sorted({word for text in texts for word in listed(text) if _parted(word)[1]})
    if not less:
        return []
    return [f"What profiles read holds no rows of the task that is scored or trained on: {', '.join(less)}."]


def parts_of(word: str) -> list[str]:
    """List the names that a word of public text stands for: of a mixture, those of its parts."""
    name, less = _parted(word)
    return list(dict.fromkeys(_turns(name, less))) if name in definitions.mixtures() else [word]


def text_file(word: str) -> Path:
    """Take a word for a file; a UserError where it can be none."""
    if not is_data_file(word):
        raise UserError(f"{word!r} is neither a text nor a file; {did_you_mean(word, _names())}")
    return Path(word)


def not_blank(whole: str, path: Path) -> str:
    """Let a file's text pass unless it is blank."""
    if not whole.strip():
        raise UserError(f"{path.name} holds no text; give it some.")
    return whole


def _names() -> list[str]:
    return [*definitions.mixtures(), *definitions.texts(), *definitions.questions()]


def _parted(word: str) -> tuple[str, list[str]]:
    """Part a mixture's name from the tasks that it is to leave out."""
    name, *less = word.split(_LESS)
    return (name, less) if name in definitions.mixtures() else (word, [])


def _turns(name: str, less: Sequence[str]) -> list[str]:
    """List what takes turns in a mixture, without the tasks to be left out."""
    for task in less:
        if task not in definitions.questions():
            near = did_you_mean(task, definitions.questions())
            raise UserError(f"{task!r}, which {name} is to leave out, is no task; {near}")
    return [turn for turn in definitions.mixtures()[name].turns if turn not in less]


def _source(word: str) -> Source:
    name, less = _parted(word)
    if mixture := definitions.mixtures().get(name):
        parts = {turn: _part(turn, mixture) for turn in dict.fromkeys(_turns(name, less))}
        return Mixed(word, tuple(parts[turn] for turn in _turns(name, less)))
    if word in definitions.texts() or word in definitions.questions():
        return _part(word)
    path = text_file(word)
    if path.suffix.lower() == ".txt":
        return Running(path.name, (not_blank(read_utf8(path), path),))
    rows = tuple(read_examples(path))
    if all(not row.is_chat and all(piece.learnt for piece in row.pieces) for row in rows):
        return Running(path.name, tuple(row.text for row in rows))
    return Rows(path.name, rows)


def _part(word: str, mixture: Mixture | None = None) -> Source:
    """Read a named text, or a task's train rows in the formats of a mixture."""
    if text := definitions.texts().get(word):
        return Running(word, tuple(str(row["text"]) for row in fetched(text, "train")[1]))
    _, rows = fetched(definitions.questions()[word], "train")
    return Rows(word, Asked(tuple(map(question_of, rows)), mixture.formats if mixture else ()))


@dataclass(frozen=True)
class Asked(Sequence[Example]):
    """Questions with their right answers, each in one of the `formats`, chosen by a hash of the question."""

    questions: tuple[Question, ...]
    formats: tuple[Format, ...] = ()
    """None: the prompt and the answer, as a task is trained on."""

    def __len__(self) -> int:
        return len(self.questions)

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Example]: ...
    def __getitem__(self, number: int | slice) -> Example | Sequence[Example]:
        if isinstance(number, slice):
            return Asked(self.questions[number], self.formats)
        question = self.questions[number]
        if not self.formats:
            return question.example()
        digest = hashlib.sha256(repr((question.prompt, question.choices)).encode()).digest()
        return self.formats[int.from_bytes(digest[:8], "big") % len(self.formats)].example(question)
