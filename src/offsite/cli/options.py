"""The arguments and options that commands share; words are checked as they are read.

So a mistyped name is refused at once, before torch and transformers are imported, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from offsite.errors import UserError
from offsite.files.atomic import card_of

_T = TypeVar("_T")


def words(listed: str) -> list[str]:
    """The words of a list with commas, none of them blank."""
    found = [word.strip() for word in listed.split(",")]
    if not all(found):
        raise UserError(f"There is a blank word in {listed!r}; put one comma between two words.")
    return found


def _checked(check: Callable[[_T], object]) -> Callable[[Any], Any]:
    """A callback that lets pass what `check` does not refuse, and what was not given."""

    def passed(value: Any) -> Any:
        if value is not None:
            check(value)
        return value

    return passed


@_checked
def a_model(word: str) -> None:
    """For a folder, a named model or a hub id."""
    from offsite.model import loading

    loading.check(word)


@_checked
def a_model_or_recipe(word: str) -> None:
    """For a model, or what ends like a recipe."""
    if Path(word).suffix.lower() not in (".yaml", ".yml"):
        a_model(word)


@_checked
def a_bundle(path: Path) -> None:
    """For the folder of a bundle."""
    card_of(path)


@_checked
def some_bundles(paths: Sequence[Path]) -> None:
    """For several folders."""
    for path in paths:
        card_of(path)


@_checked
def a_task(word: str) -> None:
    """For a task's name or a data file."""
    from offsite.data import tasks

    tasks.check(word)


@_checked
def some_tasks(listed: str) -> None:
    """For several, by commas."""
    for word in words(listed):
        a_task(word)


@_checked
def a_text(word: str) -> None:
    """For public text."""
    from offsite.data import tasks

    tasks.check_text(word)


Model = Annotated[str, typer.Argument(callback=a_model, help="A folder, a named model or a hub id.")]
EmulatorBundle = Annotated[Path, typer.Argument(callback=a_bundle, help="The emulator bundle.")]
AnyBundle = Annotated[Path, typer.Argument(callback=a_bundle, help="An emulator or adapter bundle.")]
Tasks = Annotated[
    str, typer.Option("--tasks", callback=some_tasks, help="Names or files of questions, by commas.")
]
Train = Annotated[
    str | None, typer.Option(callback=a_task, help="A data file or task [default: the first task].")
]
Text = Annotated[str, typer.Option(callback=a_text, help="Public text: wikipedia, wikitext2 or a file.")]
Blocks = Annotated[int | None, typer.Option(min=1, help="Blocks of text to read [default: the method's].")]
Length = Annotated[int | None, typer.Option(min=2, help="Tokens of a block [default: the method's].")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Examples in a step [default: 8].")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, for machines.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if an earlier run left one.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Of everything random; the same seed gives the same numbers.")
]
Rank = Annotated[
    int | None, typer.Option("--lora-rank", min=1, max=4096, help="Train a LoRA; default: whole layers.")
]
Stages = Annotated[
    Path | None, typer.Option("--cache", help="Keep finished stages here, for later runs and other questions.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Ask only the first so many questions of each task.")]
Large = Annotated[
    bool, typer.Option("--allow-large", help="Open an emulator that needs far more memory than it stores.")
]
