"""The data file of a task: where its rows come from, and templates that read a row; a task is no code."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from offsite.data.examples import Example, Piece, Question

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

Split = Literal["train", "test"]
Scoring = Literal["multiple_choice", "exact_match", "perplexity"]
"""`exact_match`: every choice is right, and the model is when it says one of them greedily; `perplexity`: no
questions, but texts, each token of which is predicted."""

Columns = Mapping[str, object]


class TaskSource(BaseModel):
    """One place that holds a task's rows, and how they read there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["hub", "wheel"]
    path: str = ""
    """The data set on the hub."""
    config: str | None = None
    splits: dict[Split, str]
    """Our split to the hub's, or to the wheel's folder; `name[:700]` is the first 700 rows of it."""
    table: str = ""
    """In the wheel: the folder that holds a folder of tables for each of the `subjects`."""
    subjects: tuple[str, ...] = ()
    """Only rows of these, by their column `subject`."""
    seed: int | None = None
    """Shuffles the rows, by a hash of it and the question, before `splits` cuts them."""
    note: str = ""
    """One sentence for whoever reads the results, where this is not what the name promises."""

    prompt: str = ""
    """Jinja template of the prompt, over the row's columns."""
    choices: str = ""
    """Jinja template of a JSON list of strings."""
    answer: str = ""
    """Jinja template of the index of the right choice."""

    text: str = ""
    """Jinja template of a text, where the rows are no questions."""
    begins: str = ""
    """Where rows are the lines of texts: a pattern of the line that begins the next one."""

    def chosen(self, rows: Iterable[Columns]) -> list[Columns]:
        """The rows of the `subjects`, shuffled by the `seed`."""
        found = [row for row in rows if not self.subjects or row["subject"] in self.subjects]
        if self.seed is None:
            return found
        return sorted(found, key=lambda row: _shuffled(f"{self.seed} {row['question']} {row['choices']}"))

    def question(self, row: Columns) -> Question:
        """The question in a row."""
        choices = json.loads(_render(self.choices, row))
        return Question(_render(self.prompt, row), tuple(choices), int(_render(self.answer, row)))

    def texts(self, rows: Iterable[Columns]) -> Iterator[str]:
        """The texts in rows, each once and none blank."""
        lines = (_render(self.text, row) for row in rows)
        whole = _grouped(lines, re.compile(self.begins)) if self.begins else lines
        return (text for text in dict.fromkeys(whole) if text.strip())


class TaskDefinition(BaseModel):
    """A task's (or a public text's) data file, read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    digest: str
    """Of the file; what was read by other templates is read anew."""
    scoring: Scoring | None = None
    """How answers are judged; None where the rows are texts."""
    origins: tuple[TaskSource, ...]
    """In the order in which they are tried."""

    def having(self, split: Split) -> list[TaskSource]:
        """The origins that have a split."""
        return [origin for origin in self.origins if split in origin.splits]


class Format(BaseModel):
    """How a question with its answer is written: as text, or as two turns of a chat.

    Templates read `question` (without words such as "Question:"), `choices`, `answer`, and `letter`, that of
    the right choice in a list from A on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = ""
    """Jinja template of what is read: in a chat, of the user's turn."""
    answer: str
    """Jinja template of what is said: in a chat, of the assistant's turn."""
    chat: bool = False

    def example(self, question: Question) -> Example:
        """The question in this format."""
        columns = {
            "question": _bare(question.prompt),
            "choices": [choice.strip() for choice in question.choices],
            "answer": question.choices[question.answer].strip(),
            "letter": "ABCDEFGHIJ"[question.answer],
        }
        prompt, answer = (_render(template, columns) for template in (self.prompt, self.answer))
        roles = ("user", "assistant") if self.chat else ("", "")
        return Example((Piece(prompt, False, roles[0]), Piece(answer, True, roles[1])), closed=False)


class Mixture(BaseModel):
    """A public text that is made of others and of tasks' train rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    turns: tuple[str, ...]
    """Texts and tasks in the order in which they give a block each; one that stands there twice gives two."""
    formats: tuple[Format, ...]
    """Of the questions."""


@functools.cache
def questions() -> dict[str, TaskDefinition]:
    """The question tasks by name."""
    return _definitions("questions")


@functools.cache
def texts() -> dict[str, TaskDefinition]:
    """The public texts by name."""
    return _definitions("texts")


@functools.cache
def mixtures() -> dict[str, Mixture]:
    """The mixtures by name."""
    found = {name: yaml.safe_load(raw) for name, raw in _files("texts").items()}
    return {name: Mixture(**values) for name, values in found.items() if "turns" in values}


def _definitions(folder: str) -> dict[str, TaskDefinition]:
    found = {name: (raw, yaml.safe_load(raw)) for name, raw in _files(folder).items()}
    return {
        name: TaskDefinition(name=name, digest=hashlib.sha256(raw).hexdigest()[:16], **values)
        for name, (raw, values) in found.items()
        if "origins" in values
    }


def _files(folder: str) -> dict[str, bytes]:
    files = resources.files(__package__).joinpath(folder).iterdir()
    found = {file.name: file.read_bytes() for file in files if file.name.endswith(".yaml")}
    return {name.removesuffix(".yaml"): raw for name, raw in sorted(found.items())}


def _bare(prompt: str) -> str:
    """Take from a task's prompt the words that tell question and answer apart."""
    bare = prompt.strip().removesuffix("Answer:").strip()
    before, parted, asked = bare.rpartition("Question:")
    return f"{before.strip()}\n{asked.strip()}".strip() if parted else bare


def _shuffled(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _grouped(lines: Iterable[str], begins: re.Pattern[str]) -> Iterator[str]:
    text = ""
    for line in lines:
        if begins.match(line):
            yield text
            text = ""
        text += line
    yield text


def _render(template: str, row: Columns) -> str:
    return _compiled(template)(**row)


@functools.cache
def _compiled(template: str) -> Callable[..., str]:
    return _environment().from_string(template).render


@functools.cache
def _environment() -> SandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["literal_eval"] = ast.literal_eval
    environment.filters["regex_replace"] = lambda text, pattern, new: re.sub(pattern, new, text)
    return environment
