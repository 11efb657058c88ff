"""Runs cases: a warm process that has imported everything forks for each, and meters what the fork does.

The fork mutates the bundle, signs it if its sender would, and then runs one command as its receiver. Judged are
the exit code, the messages, files opened and written, programs started, processor time, memory, and leftovers.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
import typer

from offsite.bundles import signing
from offsite.bundles.adapter import Adapter, adapter_tensors
from offsite.bundles.emulator import Emulator
from offsite.cli import app, shell
from tests.hostile.corpus import CANARY
from tests.hostile.fuzz.judge import PATIENCE, complaints
from tests.hostile.fuzz.mutations import SIGNATURE, mutate
from tests.hostile.fuzz.samples import EMULATORS
from tests.hostile.fuzz.values import flipped
from tests.hostile.runner import _EVIL, memory, tree, undue
from tests.hostile.runner import theirs as readable

COMMANDS = {  # and how often, in twenties: most cases end before the bundle is open, whatever the command
    "emulator": {"inspect": 5, "laws": 5, "tune": 4, "evaluate": 2, "export": 2, "verify": 1, "report": 1},
    "adapter": {"inspect": 6, "plug": 8, "verify": 3, "laws": 3},
}
SENDERS = ("nobody", "nobody", "nobody", "attacker", "owner")  # the owner signs before the mutation
ROOM = 3 << 30  # bytes that a fork may map beyond what it has, to spare the machine
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink")  # allowed where the outputs go
events: list[str] = []


def plan(seed: int, samples: list[str]) -> dict[str, Any]:
    """What the case of this number is, but for its mutations."""
    dice = Random(seed)
    sample = dice.choice(samples)
    kind = "emulator" if sample in EMULATORS else "adapter"
    weights = COMMANDS[kind]
    command = dice.choices(list(weights), list(weights.values()))[0]
    data = dice.choice(["prompts", "chats", "chats", "texts"])
    return {"seed": seed, "sample": sample, "command": command, "sender": dice.choice(SENDERS), "data": data}


def words(case: dict[str, Any], world: Path) -> list[str]:
    """The command line of the receiver."""
    command, family = case["command"], case["sample"].partition("-")[0]
    key = world / ("owner.pub" if case["sender"] == "owner" else "attacker.pub")
    trusted = [] if case["sender"] == "nobody" else ["--trusted-key", str(key)]
    questions = ["--tasks", str(world / "questions.jsonl"), "--limit", "2", "-o", "out.json"]
    return {
        "inspect": ["inspect", "bundle", *(["--json"] if case["seed"] % 2 else [])],
        "tune": ["tune", "bundle", "--data", str(world / f"{case['data']}.jsonl"), "-o", "out", "--steps", "2",
                 "--batch-size", "2", "--max-length", "48", *trusted],
        "plug": ["plug", str(world / "models" / family), "bundle", "-o", "out", *trusted],
        "evaluate": ["evaluate", "bundle", *questions],
        "export": ["export", "bundle", "-o", "out"],
        "verify": ["verify", "bundle", "--key", str(key)],
        "report": ["report", "bundle", "-o", "out.html"],
    }[command]  # fmt: skip


def laws() -> int:
    """Open the bundle through the library; what trains shares memory with nothing else."""
    if not Path("bundle/config.json").exists():
        Adapter.load("bundle")
        return 0
    emulator = Emulator.load("bundle")
    trained = adapter_tensors(emulator.model, emulator.split)
    inside = {id(tensor) for tensor in trained.values()}
    at = {tensor.untyped_storage().data_ptr() for tensor in trained.values() if tensor.numel()}
    assert len(at) == sum(tensor.numel() > 0 for tensor in trained.values()), "two adapter tensors share memory"
    for name, tensor in emulator.model.state_dict(keep_vars=True).items():
        shared = id(tensor) not in inside and tensor.numel() and tensor.untyped_storage().data_ptr() in at
        assert not shared, f"an adapter tensor shares memory with {name}"
    return 0


class _Built:
    """The command line, put together once: that takes longer than most cases."""

    registered_commands = app.registered_commands
    command = staticmethod(typer.main.get_command(app))

    def __call__(self, **how: Any) -> Any:
        return self.command(**how)


def receive(case: dict[str, Any], world: Path) -> int:
    """Be the receiver; the exit code."""
    if case["command"] != "laws":
        return shell.run(_Built(), words(case, world))
    try:
        return laws()
    except Exception as error:
        return shell._say(*shell._explained(app, error))


def _child(case: dict[str, Any], world: Path, home: Path) -> None:
    """Mutate, sign, receive and write down what it took; never returns."""
    code, outcome = 70, {}
    try:
        os.chdir(home)
        for stream in (1, 2):
            os.dup2(os.open(f"stream{stream}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        outcome |= _send(case, world)
        outcome["before"] = _files()
        most = memory("VmSize") * 1024 + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        readable[:] = [f"{os.path.realpath(each)}/" for each in (world, home)]
        sys.addaudithook(spy)
        modules = set(sys.modules)
        Path("outcome.json").write_text(json.dumps(outcome))  # for a fork that does not come to its end
        Path("/proc/self/clear_refs").write_text("5")
        before, start = memory("VmRSS"), _processor()
        events.clear()
        code = receive(case, world)
        sys.stdout.flush()
        outcome["events"] = list(events)[:5]
        outcome |= {"seconds": _processor() - start, "mb": (memory("VmHWM") - before) / 1024}
        outcome["modules"] = sorted(set(sys.modules) - modules)
        Path("outcome.json").write_text(json.dumps(outcome))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _send(case: dict[str, Any], world: Path) -> dict[str, Any]:
    """Make the bundle as its sender does; return the mutations, and whether they changed any bytes."""
    dice, folder, honest = Random(f"{case['seed']} mutations"), Path("bundle"), case.get("honest", False)
    if case["sender"] == "owner":
        signing.sign(folder, world / "owner.key")
    signed = _contents(folder)
    names = [] if honest else mutate(dice, folder, case.get("which"))
    if case["sender"] == "attacker":
        with contextlib.suppress(Exception):  # of what is no bundle any more
            signing.sign(folder, world / "attacker.key")
            if dice.random() < 0.2 and not honest:
                (folder / SIGNATURE).write_bytes(flipped(dice, (folder / SIGNATURE).read_bytes()))
    return {"mutations": names, "differs": _contents(folder) != signed}


def _contents(folder: Path) -> dict[str, Any]:
    """The bytes of every file but the signature; None for what is no plain file."""
    plain = {path: path.is_file() and path.stat().st_size < 10**8 for path in folder.iterdir()}
    return {path.name: path.read_bytes() if plain[path] else None for path in plain if path.name != SIGNATURE}


def _files() -> dict[str, object]:
    return {name: list(stat) for name, stat in tree(Path("bundle")).items()}


def _processor() -> float:
    """Seconds of processor time of this process and of those that it started and waited for."""
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in both)


def spy(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook: writing outside of the outputs, reading elsewhere, starting, connecting, unpickling."""
    if event == "open":
        path, _, flags = arguments
        if not isinstance(path, int) and (how := undue(os.path.realpath(os.fsdecode(path)), flags)):
            if how == "writing" and _is_output(path):
                return
            events.append(f"open for {how}: {os.fsdecode(path)}")
    elif event in ("subprocess.Popen", "os.posix_spawn", "os.exec"):
        if os.path.realpath(os.fsdecode(arguments[0])) != os.path.realpath(sys.executable):
            events.append(f"{event} {str(arguments)[:100]}")
    elif event in _EVIL and not (event in WRITES and _is_output(arguments[0])):
        events.append(f"{event} {str(arguments)[:100]}")


def _is_output(path: Any) -> bool:
    """Whether a command may write to a path: its output, or a temporary file for it."""
    name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else "/"
    here = os.path.realpath(os.getcwd())  # noqa: PTH109 - pathlib's is slower
    whole = os.path.realpath(name)
    return whole.startswith((f"{here}/", "/tmp/", "/dev/shm/")) and not whole.startswith(f"{here}/bundle/")


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
                    for name in outcome["modules"]:
                        with contextlib.suppress(Exception):  # of names that only stand for modules
                            importlib.import_module(name)
        gc.collect()
        gc.freeze()

    def run(self, case: dict[str, Any]) -> dict[str, Any]:
        """What came of a case."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        shutil.copytree(self.world / "bundles" / case["sample"], self.home / "bundle")
        start = time.monotonic()
        pid = os.fork()
        if not pid:
            os.setpgid(0, 0)
            _child(case, self.world, self.home)
        status = _waited(pid, start + PATIENCE)
        outcome = {
            "events": [],
            "modules": [],
            "mb": 0.0,
            "seconds": 0.0,
            "before": None,
            "mutations": [],
            "differs": False,
        }
        with contextlib.suppress(OSError, ValueError):
            outcome |= json.loads((self.home / "outcome.json").read_text())
        outcome |= case | {"code": os.waitstatus_to_exitcode(status), "clock": time.monotonic() - start}
        for number, name in ((1, "out"), (2, "err")):
            stream = self.home / f"stream{number}"
            outcome[name] = stream.read_text(errors="replace")[-20_000:] if stream.exists() else ""
        outcome["left"] = sorted(
            each.name for each in self.home.iterdir() if "out" in each.name.split("-")[0].split(".")
        )
        os.chdir(self.home)
        outcome["changed"] = outcome.pop("before") != json.loads(json.dumps(_files()))
        outcome["canary"] = any(self.home.rglob(CANARY))
        os.chdir(self.world)
        return outcome

    def judged(self, case: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What came of a case, and what is wrong with that."""
        outcome = self.run(case)
        return outcome, list(complaints(outcome, self.usual.get(case["command"], 0.0)))


def _waited(pid: int, deadline: float) -> int:
    pause = 0.001
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


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
    for number in range(cases):
        if time.monotonic() - start > seconds:
            break
        case = plan(first + number * stride, worker.samples)
        outcome, wrong = worker.judged(case)
        if wrong:
            outcome, wrong = _smaller(worker, case, outcome, wrong)
            _keep(worker.home, world.parent / "found", outcome, wrong)
        about = ("seed", "code", "seconds", "mb", "command", "mutations")
        report({key: outcome[key] for key in about} | {"wrong": wrong})


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
    """Copy the case's folder to where findings stay."""
    place = found / f"{outcome['seed']}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.lstat().st_blocks * 512 < 10**7:
            (place / path.relative_to(home)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place / path.relative_to(home))
    (place / "case.json").write_text(json.dumps(outcome | {"wrong": wrong}, indent=1))
