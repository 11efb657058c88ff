"""Commands that run in forks of one warm process, where they are killed, stopped or short of room.

The process is `warm`, beside this file. A fork costs milliseconds where python with torch costs seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from offsite.files.atomic import mend

SET_ASIDE = ("date", "seconds")
"""The keys of JSON objects, at any depth, that may differ between two runs."""
TOLD = re.compile(rb"\d{4}-\d\d-\d\d(T[\d:+]+)?|\d+ min \d\d s|\d+\.\d s")
"""How the pages of reports tell of those."""


@dataclass(frozen=True)
class Moment:
    """When and how a run is disturbed; not at all, if nothing is said."""

    after: float | None = None
    """Seconds, after which SIGKILL is sent."""
    event: int | None = None
    """The number of the write, counted from 1, just before which `how` is sent."""
    how: int = signal.SIGKILL
    most: int | None = None
    """Instead of a signal before: no file may become longer than so many bytes, at which the system kills."""


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code, or the number of the signal below zero."""

    code: int
    said: str
    seconds: float
    events: int | None
    """How many writes there were, if it came to its end."""


class Forks:
    """The warm process, from outside."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.count = logs, 0
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.killed.warm"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def start(self, words: list[str], moment: Moment | None = None) -> int:
        """Begin `offsite WORDS`; the number of its process."""
        self.count += 1
        moment = moment or Moment()
        log = str(self.logs / str(self.count))
        asked = {"words": words, "log": log, "event": moment.event, "how": int(moment.how), "most": moment.most}
        return self._ask(do="start", **asked)["pid"]

    def end(self, pid: int, after: float | None = None) -> Ended:
        """Wait until it has ended, by SIGKILL `after` so many seconds; a stopped one is left to be woken."""
        return Ended(**self._ask(do="end", pid=pid, after=after))

    def run(self, words: list[str], moment: Moment | None = None) -> Ended:
        """Begin and end."""
        return self.end(self.start(words, moment), moment.after if moment else None)

    def warm(self) -> None:
        """Import what the runs so far had to import themselves."""
        self._ask(do="warm")

    def close(self) -> None:
        """End the warm process."""
        self.process.communicate(timeout=60)

    def _ask(self, **asked):
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the warm process ended with {self.process.wait()}"
        return json.loads(answer)


def tree(folder: Path) -> dict[str, str | None]:
    """Everything in `folder`, hidden or not: digests of files, apart from what is set aside."""
    return {
        str(path.relative_to(folder)): _digest(path) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def _digest(file: Path) -> str:
    content = file.read_bytes()
    if file.suffix == ".json":
        with contextlib.suppress(ValueError):  # half of a file
            content = json.dumps(_apart(json.loads(content))).encode()
    elif file.suffix == ".html":
        content = TOLD.sub(b"", content)
    return hashlib.sha256(content).hexdigest()


def _apart(data):
    if isinstance(data, dict):
        return {key: _apart(value) for key, value in data.items() if key not in SET_ASIDE}
    return [_apart(each) for each in data] if isinstance(data, list) else data


def emptied(folder: Path) -> Path:
    """The `folder`, with nothing in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in folder.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    return folder


class Undisturbed:
    """A command line that writes into the folder `here`, and what it ends in where nothing disturbs it."""

    def __init__(self, forks: Forks, words: list[str], here: Path) -> None:
        self.forks, self.words, self.here = forks, words, here
        ended = forks.run(words)
        assert ended.code == 0, ended
        forks.warm()
        self.kept, self.older = here.with_name("kept"), here.with_name("older")
        shutil.copytree(here, self.kept)
        shutil.copytree(here, self.older)
        for marking in self.older.glob("*/*.json"):
            told = json.loads(marking.read_text())
            marking.write_text(json.dumps(told | {"older": True}))
        self.old = tree(self.older)
        self.whole, self.events, self.seconds = tree(here), ended.events or 0, ended.seconds

    def check(self) -> None:
        """That it ends the same each time; from then on its seconds are those of a run that imports nothing."""
        self.begin()
        ended = self.again()
        self.seconds = ended.seconds

    def moments(self, count: int, seed: int) -> list[list[Moment]]:
        """So many, in threes, for runs of which each goes on from the one before."""
        chance = random.Random(f"{seed} {self.events}")

        def moment(row: int, place: int) -> Moment:
            left = 1 / (1 + place)  # of the work, more or less
            kind = (row + place) % 3
            if kind == 0:
                return Moment(after=chance.uniform(0, self.seconds * left))
            most = None if kind == 1 else chance.choice((0, 100, 1000, 5000, 20_000))
            return Moment(event=chance.randint(1, max(1, int(self.events * left))), most=most)

        return [[moment(row, place) for place in range(3)] for row in range(count // 3)]

    def begin(self, replacing: bool = False) -> None:
        """With nothing in `here`, or in place of the outputs of an earlier run, which are others."""
        emptied(self.here)
        if replacing:
            shutil.copytree(self.older, self.here, dirs_exist_ok=True)

    def disturb(self, moment: Moment) -> Ended:
        """Run it so; afterwards all that was there is there, and all that is there is whole, old or new.

        What is new has its receipt.
        """
        before = self._shown()
        ended = self.forks.run(self.words, moment)
        for name in before - self._shown():  # set aside, just then
            mend(self.here / name)
        shown, found = self._shown(), tree(self.here)
        assert before <= shown, found
        new = {name for name in shown if _within(found, {name}) == _within(self.whole, {name})}
        assert _within(found, shown - new) == _within(self.old, shown - new)
        receipts = {name for name in self._names() if name.endswith("-receipt")}
        assert {name for name in receipts if name.removesuffix("-receipt") in new} <= new
        return ended

    def again(self) -> Ended:
        """Run it; it ends the same, and nothing else is there."""
        ended = self.forks.run(self.words)
        assert ended.code == 0, ended
        found = tree(self.here)
        apart = found.items() ^ self.whole.items()
        assert not apart, sorted({name for name, _ in apart})
        return ended

    def _names(self) -> set[str]:
        return {name.partition("/")[0] for name in self.whole}

    def _shown(self) -> set[str]:
        return {path.name for path in self.here.iterdir() if not path.name.startswith(".")}


def _within(found: dict[str, str | None], names: set[str]) -> dict[str, str | None]:
    """Of a tree what lies in the folders of these names."""
    return {name: digest for name, digest in found.items() if name.partition("/")[0] in names}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[str], Path]]:
    """A function that puts a disk of a size, in mount's words, at `folder`; called again, it grows."""

    def mount(size: str) -> Path:
        how = (
            ["mount", "-o", f"remount,size={size}"]
            if folder.is_mount()
            else ["mount", "-t", "tmpfs", "-o", f"size={size}", "none"]
        )
        try:
            subprocess.run([*how, folder], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("only root may mount a small disk")
        return folder

    try:
        yield mount
    finally:
        if folder.is_mount():
            subprocess.run(["umount", folder], check=True)
