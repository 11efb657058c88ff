"""A bar with the time left on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_T = TypeVar("_T")
_LINE_EVERY = 5.0  # seconds between plain lines

Advance = Callable[[int, str], None]
"""`advance(steps, note)`: so many steps further; the note (a loss, say) stands beside the bar."""


@contextmanager
def bar(what: str, total: int) -> Iterator[Advance]:
    """Show how far `what` is, out of `total` steps; the first two seconds stay silent off a terminal."""
    with _rich_bar(what, total) if sys.stderr.isatty() else _plain_lines(what, total) as advance:
        yield advance


def track(items: Iterable[_T], what: str, total: int) -> Iterator[_T]:
    """Yield the `items` while a bar follows."""
    with bar(what, total) as advance:
        for item in items:
            yield item
            advance(1, "")


@contextmanager
def _rich_bar(what: str, total: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total, note="")

        def advance(steps: int, note: str = "") -> None:
            progress.update(task, advance=steps, note=note)

        yield advance


@contextmanager
def _plain_lines(what: str, total: int) -> Iterator[Advance]:
    start = time.monotonic()
    done, printed = 0, start - _LINE_EVERY + 2.0

    def advance(steps: int, note: str = "") -> None:
        nonlocal done, printed
        done += steps
        now = time.monotonic()
        if now - printed < _LINE_EVERY or not done:
            return
        printed = now
        left = (now - start) * (total - done) / done
        sys.stderr.write(f"{what}: {done}/{total}, about {left:.0f} s left {note}".rstrip() + "\n")

    yield advance
