"""Runs cases: a warm process that has imported everything forks, once for a batch of cases.

The fork meters and judges each. A case that is wrong, or that its batch did not reach, runs again in a fork
alone, then with each of its mutations alone; what is found there counts.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from offsite.bundles.adapter import Adapter
from offsite.bundles.emulator import Emulator
from tests.hostile.fuzz.case import COMMANDS, collect, limit, perform, plan, prepare
from tests.hostile.fuzz.judge import PATIENCE, complaints
from tests.hostile.fuzz.samples import EMULATORS
from tests.hostile.fuzz.values import config_keys

BATCH = 24
REPORTED = ("seed", "code", "seconds", "mb", "command", "mutations", "modules")


class Worker:
    """Runs cases one after the other in a folder of its own."""

    def __init__(self, world: Path, home: Path) -> None:
        self.world, self.home = world, home
        self.samples = sorted(path.name for path in (world / "bundles").iterdir())
        self.usual: dict[str, float] = {}

    def warm(self) -> None:
        """Import what the commands import late, and learn how much memory each takes with an honest bundle."""
        for again in (False, True):
            for sample in self.samples:
                commands = list(COMMANDS["emulator" if sample in EMULATORS else "adapter"])
                for command in commands if sample in ("llama", "llama-whole") else commands[: 1 - again]:
                    case = plan(0, [sample]) | {"command": command, "sender": "attacker", "honest": True}
                    outcome = self.run(case)
                    wrong = [each for each in complaints(outcome, 1e9) if again]
                    assert outcome["code"] == 0, outcome
                    assert not wrong, (wrong, outcome)
                    self.usual[command] = max(self.usual.get(command, 0.0) if again else 0.0, outcome["mb"])
                    self.imported(outcome["modules"])
        for sample in self.samples:  # what an honest config or tokenizer builds is tried here, not in each fork
            load = Emulator.load if sample in EMULATORS else Adapter.load
            load(self.world / "bundles" / sample)
        config_keys()
        gc.collect()
        gc.freeze()

    def imported(self, modules: list[str]) -> None:
        """Import what a fork had to, so that no later one does."""
        for name in modules:
            with contextlib.suppress(Exception):  # of names that only stand for modules
                importlib.import_module(name)

    def run(self, case: dict[str, Any]) -> dict[str, Any]:
        """What comes of a case in a fork of its own."""
        prepare(case, self.world, self.home)
        start = time.monotonic()
        pid = os.fork()
        if not pid:
            self._alone(case)
        code = _waited(pid, start + PATIENCE)
        outcome = collect(case, self.home, code, start)
        os.chdir(self.world)
        return outcome

    def judged(self, case: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What comes of a case, and what is wrong with that."""
        outcome = self.run(case)
        return outcome, list(complaints(outcome, self.usual.get(case["command"], 0.0)))

    def batch(self, cases: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """What comes of those cases, in one fork, in which nothing is wrong; the others are left out."""
        out, into = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(out)
            self._together(cases, into)
        os.close(into)
        with os.fdopen(out, "rb", buffering=0) as stream:
            text = b""
            while select.select([stream], [], [], PATIENCE)[0] and (more := stream.read(1 << 16)):
                *lines, text = (text + more).split(b"\n")
                yield from map(json.loads, lines)
        _waited(pid, 0.0)

    def _alone(self, case: dict[str, Any]) -> None:
        """Be the fork of one case; never returns."""
        code = 70
        try:
            os.setpgid(0, 0)
            limit(self.world, self.home)
            code = perform(case, self.world, self.home)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _together(self, cases: list[dict[str, Any]], into: int) -> None:
        """Be the fork of a batch; never returns."""
        try:
            os.setpgid(0, 0)
            limit(self.world, self.home)
            for case in cases:
                prepare(case, self.world, self.home)
                start = time.monotonic()
                outcome = collect(case, self.home, perform(case, self.world, self.home), start)
                if not any(complaints(outcome, self.usual.get(case["command"], 0.0))):
                    about = {key: outcome[key] for key in REPORTED}
                    os.write(into, json.dumps(about).encode() + b"\n")
        finally:
            os._exit(0)


def _waited(pid: int, deadline: float) -> int:
    """The exit code of a fork, which is killed at the deadline."""
    pause = 0.001
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def work(scratch: Path, number: int, options: Any, results: Any) -> None:
    """Be one of several workers: report each case, and at the end None."""
    cases = options.cases // options.jobs + (number < options.cases % options.jobs)
    serve(scratch / "world", scratch / f"home{number}", options.first + number, options.jobs, cases,
          options.seconds or 1e9, results.put)  # fmt: skip
    results.put(None)


def serve(
    world: Path, home: Path, first: int, stride: int, cases: int, seconds: float, report: Callable[[Any], None]
) -> None:
    """Run every `stride`-th case from the `first` on, until `cases` are done or time is up; `report` each."""
    torch.set_num_threads(1)
    worker = Worker(world, home)
    worker.warm()
    report({"usual": worker.usual})
    start = time.monotonic()
    for number in range(0, cases, BATCH):
        if time.monotonic() - start > seconds:
            break
        numbers = range(number, min(number + BATCH, cases))
        batch = {seed: plan(seed, worker.samples) for seed in (first + each * stride for each in numbers)}
        modules: set[str] = set()
        for outcome in worker.batch(list(batch.values())):
            del batch[outcome["seed"]]
            modules.update(outcome["modules"])
            report(outcome | {"wrong": [], "alone": False})
        worker.imported(sorted(name for name in modules if name.startswith("transformers.models.")))
        for case in batch.values():
            report(_again(worker, case, world.parent / "found"))


def _again(worker: Worker, case: dict[str, Any], found: Path) -> dict[str, Any]:
    """What comes of a case alone; it is kept if that is wrong."""
    outcome, wrong = worker.judged(case)
    if wrong:
        outcome, wrong = _smaller(worker, case, outcome, wrong)
        _keep(worker.home, found, outcome, wrong)
    return {key: outcome[key] for key in REPORTED} | {"wrong": wrong, "alone": True}


def _smaller(
    worker: Worker, case: dict[str, Any], outcome: dict[str, Any], wrong: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """One mutation of the case that is enough for the same complaint, if there is one."""
    kind = wrong[0].partition(":")[0]
    several = len(outcome["mutations"])
    for which in range(several if several > 1 else 0):
        found, still = worker.judged(case | {"which": which})
        if still and still[0].partition(":")[0] == kind:
            return found, still
    return worker.judged(case) if several > 1 else (outcome, wrong)


def _keep(home: Path, found: Path, outcome: dict[str, Any], wrong: list[str]) -> None:
    """Copy the case's folder to where failing cases are kept."""
    place = found / f"{outcome['seed']}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.lstat().st_size < 10**7:
            (place / path.relative_to(home)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place / path.relative_to(home))
    (place / "case.json").write_text(json.dumps(outcome | {"wrong": wrong}, indent=1))
