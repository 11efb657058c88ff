"""The arguments and options that commands share. Values are checked as they are read.

A mistyped name is refused at once, before torch and transformers are imported, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from offsite.data_owner.config import TuneConfig
from offsite.docstrings import field_docs
from offsite.errors import UserError
from offsite.files.atomic import card_of

_T = TypeVar("_T")


def words(listed: str) -> list[str]:
    """Split a list at its commas; raise UserError for a blank word."""
    found = [word.strip() for word in listed.split(",")]
    if not all(found):
        raise UserError(f"There is a blank word in {listed!r}; put one comma between two words.")
    return found


def _checked(check: Callable[[_T], object]) -> Callable[[object], object]:
    """Make a callback that runs `check` on a value that was given, and returns the value."""

    def passed(value: Any) -> Any:
        if value is not None:
            check(value)
        return value

    return passed


@_checked
def a_model(word: str) -> None:
    """Check a folder, a named model or a hub id."""
    from offsite.model import loading

    loading.check(word)


@_checked
def a_model_or_recipe(word: str) -> None:
    """Check a model; a recipe, by its ending, passes."""
    if Path(word).suffix.lower() not in (".yaml", ".yml"):
        a_model(word)


@_checked
def a_bundle(path: Path) -> None:
    """Check the folder of a bundle."""
    card_of(path)


@_checked
def some_bundles(paths: Sequence[Path]) -> None:
    """Check several folders of bundles."""
    for path in paths:
        card_of(path)


@_checked
def a_task(word: str) -> None:
    """Check a task's name or a data file."""
    from offsite.data import tasks

    tasks.check(word)


@_checked
def some_tasks(listed: str) -> None:
    """Check several tasks, separated by commas."""
    for word in words(listed):
        a_task(word)


@_checked
def a_text(word: str) -> None:
    """Check names and files of public texts, separated by commas."""
    from offsite.data import tasks

    tasks.check_text(word)


_MEANING = {each.name: each.meaning.replace("`", "") for each in field_docs(TuneConfig)}


def tuning_option(field: str, *names: str) -> Any:
    """Return the option for a field of `TuneConfig`, whose docstring is its help."""
    return typer.Option(*names, help=_MEANING[field])


Model = Annotated[
    str, typer.Argument(callback=a_model, help="A transformers folder, a named model or a hub id.")
]
EmulatorBundle = Annotated[Path, typer.Argument(callback=a_bundle, help="The emulator bundle.")]
AnyBundle = Annotated[Path, typer.Argument(callback=a_bundle, help="An emulator or adapter bundle.")]
Tasks = Annotated[
    str, typer.Option("--tasks", callback=some_tasks, help="Tasks or files of questions, separated by commas.")
]
Train = Annotated[
    str | None,
    typer.Option(callback=a_task, help="Training data: a file or a task [default: the first of --tasks]."),
]
Text = Annotated[
    str,
    typer.Option(
        callback=a_text,
        help="Public texts, separated by commas; each gives as many blocks: mixture (running text, and "
        "questions in many formats; mixture:-sciq leaves a task out), wikipedia, wikitext2, a task or a file.",
    ),
]
Blocks = Annotated[
    int | None, typer.Option(min=1, help="Number of text blocks to read [default: the method's].")
]
Length = Annotated[int | None, typer.Option(min=2, help="Tokens in a block [default: the method's].")]
Epochs = Annotated[float | None, tuning_option("epochs")]
Steps = Annotated[int | None, tuning_option("steps")]
Rate = Annotated[float | None, tuning_option("lr")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output of an earlier run.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Random seed; the same seed gives the same numbers.")
]
Rank = Annotated[
    int | None,
    typer.Option(
        "--lora-rank",
        min=1,
        max=4096,
        help="Train a LoRA of this rank on the adapter layers [default: whole layers].",
    ),
]
Stages = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder that keeps finished stages, for later runs with other settings."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first N questions of each task.")]
Large = Annotated[
    bool, typer.Option("--allow-large", help="Open an emulator that needs far more memory than it stores.")
]
