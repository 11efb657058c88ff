"""Benchmark questions and public texts by name, or from a file: what to train on and what to be judged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from offsite import text
from offsite.errors import UserError, did_you_mean
from offsite.rows import check_file, is_data_file, read_utf8
from offsite.tasks import recipe as recipes
from offsite.tasks.fetch import fetched
from offsite.tasks.recipe import Scoring, Split
from offsite.text import Example, Question

__all__ = ["Question", "Scoring", "Split", "Task", "check_text", "examples", "load", "names", "texts"]


@dataclass(frozen=True)
class Task:
    """One split of a task: its questions, and what to say of them beside a result."""

    name: str
    questions: tuple[Question, ...]
    scoring: Scoring = "multiple_choice"
    """`exact_match`: every choice is right, and the model is when it says one of them greedily."""
    note: str = ""
    """One sentence where these are not the questions that the name promises; else empty."""
    source: str = ""
    """Where they come from: `hub: ...`, `wheel: ...` or `file: ...`."""


def names() -> list[str]:
    """The tasks that are known by name."""
    return list(recipes.questions())


def load(word: str, split: Split) -> Task:
    """The questions of a task by its name, or of a file of `{"prompt", "choices", "answer"}` rows.

    A file has one split, which stands for both.

    Raises:
        UserError: neither a task nor a file, a malformed row (with its line), or a task out of reach.
    """
    recipe = recipes.questions().get(word)
    if recipe is None:
        path = _file(word, "task", recipes.questions())
        return Task(path.stem, tuple(text.read_questions(path)), source=f"file: {path.name}")
    head, rows = fetched(recipe, split)
    assert recipe.scoring is not None
    return Task(word, tuple(map(_question, rows)), recipe.scoring, head.note, head.source)


def examples(word: str) -> list[Example]:
    """What to train on: a task's `train` split by its name, or a data file of any kind of rows.

    Raises:
        UserError: as `load`, and as `text.read_examples`.
    """
    if word not in recipes.questions():
        return text.read_examples(_file(word, "task", recipes.questions()))
    questions = load(word, "train").questions
    return [question.example(f"{word}, row {number}") for number, question in enumerate(questions, 1)]


def texts(word: str) -> list[str]:
    """Public text: `wikitext2`, `wikipedia`, a `.txt` file (one text), or the rows of a data file.

    Raises:
        UserError: as `load`.
    """
    recipe = recipes.texts().get(word)
    if recipe is not None:
        return [str(row["text"]) for row in fetched(recipe, "train")[1]]
    path = _text_file(word)
    if path.suffix.lower() == ".txt":
        return [_not_blank(read_utf8(path), path)]
    return [example.text for example in text.read_examples(path)]


def check_text(word: str) -> None:
    """Refuse, before any work, a word for which `texts` would find neither a public text nor a file."""
    if word not in recipes.texts():
        check_file(_text_file(word))


def _text_file(word: str) -> Path:
    return _file(word, "text", recipes.texts())


def _file(word: str, what: str, known: dict[str, recipes.Recipe]) -> Path:
    if not is_data_file(word):
        raise UserError(f"{word!r} is neither a {what} nor a file; {did_you_mean(word, known)}")
    return Path(word)


def _not_blank(whole: str, path: Path) -> str:
    if not whole.strip():
        raise UserError(f"{path.name} holds no text; give it some.")
    return whole


def _question(row: dict[str, object]) -> Question:
    prompt, choices, answer = row["prompt"], row["choices"], row["answer"]
    assert isinstance(prompt, str)
    assert isinstance(choices, list)
    assert isinstance(answer, int)
    return Question(prompt, tuple(choices), answer)
