"""Benchmark questions and public texts by name, or from a file: what to train on and what to be judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from offsite.data.examples import Example, Piece, Question, read_examples, read_questions
from offsite.data.rows import check_file, is_data_file, read_utf8
from offsite.data.tasks import cache
from offsite.data.tasks import definition as definitions
from offsite.data.tasks.definition import Scoring, Split
from offsite.data.tasks.fetch import fetched, question_of
from offsite.data.tasks.sources import check_text, label, left_out, listed, not_blank, parts_of, texts, without
from offsite.errors import UserError, did_you_mean

__all__ = [
    "Question", "Scoring", "Split", "Task",
    "at_hand", "check", "check_text", "examples", "label", "left_out", "listed", "load", "names", "texts",
    "without",
]  # fmt: skip

_STRETCH = 1500  # characters: some 350 tokens, which a tuning takes whole


@dataclass(frozen=True)
class Task:
    """One split of a task: its questions or texts, and what to say of them beside a result."""

    name: str
    questions: tuple[Question, ...]
    scoring: Scoring = "multiple_choice"
    """`exact_match`: every choice is right, and the model is when it says one of them greedily;
    `perplexity`: there are `texts` in place of questions."""
    note: str = ""
    """One sentence where these are not the questions that the name promises; else empty."""
    source: str = ""
    """Where they come from: `hub: ...`, `wheel: ...` or `file: ...`."""
    texts: tuple[str, ...] = ()

    def first(self, limit: int | None) -> Task:
        """The task with only its first so many questions or texts."""
        return replace(self, questions=self.questions[:limit], texts=self.texts[:limit])


def names() -> list[str]:
    """The tasks that are known by name."""
    return list(definitions.questions())


def load(word: str, split: Split) -> Task:
    """A task by its name, or of a file: `{"prompt", "choices", "answer"}` rows, or a `.txt` to be predicted.

    A file has one split, which stands for both.

    Raises:
        UserError: neither a task nor a file, a malformed row (with its line), or a task out of reach.
    """
    definition = definitions.questions().get(word)
    if definition is None:
        return _predicted(word, split)
    head, rows = fetched(definition, split)
    assert definition.scoring is not None
    return Task(word, tuple(map(question_of, rows)), definition.scoring, head.note, head.source)


def examples(word: str) -> list[Example]:
    """What to train on: a task's `train` split by its name, or a data file of any kind of rows.

    Of a task of texts, stretches of whole lines.

    Raises:
        UserError: as `load`, and as `text.read_examples`.
    """
    if word not in _known() and Path(word).suffix.lower() != ".txt":
        return read_examples(_file(word, "task", _known()))
    found = load(word, "train")
    if found.scoring == "perplexity":
        stretches = [one for whole in found.texts for one in _stretches(whole) if one.strip()]
        return [Example((Piece(one, learnt=True),), closed=False, where=word) for one in stretches]
    return [question.example(f"{word}, row {number}") for number, question in enumerate(found.questions, 1)]


def check(word: str) -> None:
    """Refuse, before any work, a word for which `load` would find neither a task nor a file."""
    if word not in _known():
        check_file(_file(word, "task", _known()))


def at_hand(word: str) -> bool:
    """Whether all of a task, or of public text, is found without asking anyone."""
    known = definitions.questions() | definitions.texts()
    for name in (part for each in listed(word) for part in parts_of(each)):
        if name not in known:
            if not Path(name).is_file():
                return False
        elif not all(cache.take(known[name], split) for split in _splits(known[name])):
            return False
    return True


def _splits(one: definitions.TaskDefinition) -> set[Split]:
    return {split for origin in one.origins for split in origin.splits}


def _known() -> dict[str, definitions.TaskDefinition]:
    """What can be a task: questions, and the texts of which some are set apart to be predicted."""
    return definitions.questions() | {
        name: one for name, one in definitions.texts().items() if one.having("test")
    }


def _predicted(word: str, split: Split) -> Task:
    """A task that is no benchmark of questions."""
    if word in _known():
        head, rows = fetched(definitions.texts()[word], split)
        told = tuple(str(row["text"]) for row in rows)
        return Task(word, (), "perplexity", head.note, head.source, told)
    path = _file(word, "task", _known())
    if path.suffix.lower() == ".txt":
        whole = (not_blank(read_utf8(path), path),)
        return Task(path.stem, (), "perplexity", source=f"file: {path.name}", texts=whole)
    return Task(path.stem, tuple(read_questions(path)), source=f"file: {path.name}")


def _stretches(whole: str) -> Iterator[str]:
    """The text in stretches of whole lines, as long as `_STRETCH` lets them be."""
    stretch = ""
    for line in whole.splitlines(keepends=True):
        if stretch and len(stretch) + len(line) > _STRETCH:
            yield stretch
            stretch = ""
        stretch += line
    yield stretch


def _file(word: str, what: str, known: dict[str, definitions.TaskDefinition]) -> Path:
    if not is_data_file(word):
        raise UserError(f"{word!r} is neither a {what} nor a file; {did_you_mean(word, known)}")
    return Path(word)
