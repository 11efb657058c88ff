"""Runs cases: a warm process that has imported everything forks for each, and meters what the fork does.

The fork mutates the bundle, signs it if its sender would, and then runs one command as its receiver. What is judged: the
exit code, the words, what was opened, written and started, processor time, memory, and what was left behind.
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
MOST_SECONDS, MOST_MEGABYTES, LONGEST = 30.0, 160.0, 700
PATIENCE = 90  # seconds on the clock, after which a case hangs
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
    code, told = 70, {}
    try:
        os.chdir(home)
        for stream in (1, 2):
            os.dup2(os.open(f"stream{stream}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        told["mutations"] = _sent(case, world)
        told["before"] = _files()
        most = memory("VmSize") * 1024 + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        readable[:] = [f"{os.path.realpath(each)}/" for each in (world, home)]
        sys.addaudithook(spy)
        modules = set(sys.modules)
        Path("told.json").write_text(json.dumps(told))  # for a fork that does not come to its end
        Path("/proc/self/clear_refs").write_text("5")
        before, start = memory("VmRSS"), _processor()
        events.clear()
        code = receive(case, world)
        sys.stdout.flush()
        told["events"] = list(events)[:5]
        told |= {"seconds": _processor() - start, "mb": (memory("VmHWM") - before) / 1024}
        told["modules"] = sorted(set(sys.modules) - modules)
        Path("told.json").write_text(json.dumps(told))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _sent(case: dict[str, Any], world: Path) -> list[str]:
    """Make the bundle as its sender does; the names of its mutations."""
    dice, folder = Random(f"{case['seed']} mutations"), Path("bundle")
    if case["sender"] == "owner":
        signing.sign(folder, world / "owner.key")
    honest = case.get("honest", False)
    names = [] if honest else mutate(dice, folder, case.get("which"))
    if case["sender"] == "attacker":
        with contextlib.suppress(Exception):  # of what is no bundle any more
            signing.sign(folder, world / "attacker.key")
            if dice.random() < 0.2 and not honest:
                (folder / SIGNATURE).write_bytes(flipped(dice, (folder / SIGNATURE).read_bytes()))
    return names


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
    """Whether a path is among what a command may write: its output, and what stands beside until it is whole."""
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
                    told = self.run(case)
                    wrong = [each for each in complaints(told, 1e9) if again]
                    assert told["code"] == 0, told
                    assert not wrong, (wrong, told)
                    self.usual[command] = max(self.usual.get(command, 0.0) if again else 0.0, told["mb"])
                    for name in told["modules"]:
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
        told = {"events": [], "modules": [], "mb": 0.0, "seconds": 0.0, "before": None, "mutations": []}
        with contextlib.suppress(OSError, ValueError):
            told |= json.loads((self.home / "told.json").read_text())
        told |= case | {"code": os.waitstatus_to_exitcode(status), "clock": time.monotonic() - start}
        for number, name in ((1, "out"), (2, "err")):
            stream = self.home / f"stream{number}"
            told[name] = stream.read_text(errors="replace")[-20_000:] if stream.exists() else ""
        told["left"] = sorted(each.name for each in self.home.iterdir() if "out" in each.name.split("-")[0].split("."))
        os.chdir(self.home)
        told["changed"] = told.pop("before") != json.loads(json.dumps(_files()))
        told["canary"] = any(self.home.rglob(CANARY))
        os.chdir(self.world)
        return told

    def judged(self, case: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What came of a case, and what is wrong with that."""
        told = self.run(case)
        return told, list(complaints(told, self.usual.get(case["command"], 0.0)))


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


def complaints(told: dict[str, Any], usual: float) -> Any:
    """What is wrong with how a case ended; each begins with a word or two that are the same for its kind."""
    said, code = told["err"], told["code"]
    if code not in (0, 2):
        yield f"code {code}: {said[-700:]}"
    if code == 2:
        lines = said.strip().splitlines()
        last = lines[-1] if lines else ""
        if not (last.startswith("offsite: ") and len(last) <= LONGEST and last.endswith((".", "?", "`"))):
            yield f"no sentence: {said[-700:]!r}"
        if told["left"]:
            yield f"left behind: {told['left']}"
    if odd := [each for each in said + told["out"] if not (each.isprintable() or each in "\n\r\t")]:
        yield f"steers the terminal: {odd[:5]!r} in {said[-300:]!r} {told['out'][-300:]!r}"
    if "Traceback" in said or "panicked" in said:
        yield f"leaks: {said[-700:]!r}"
    if told["events"]:
        yield f"did more: {told['events']}"
    if told["seconds"] > MOST_SECONDS or told["clock"] > PATIENCE:
        yield f"slow: {told['seconds']:.0f} s of processor time, {told['clock']:.0f} s"
    if told["mb"] > max(usual, 0.0) + MOST_MEGABYTES:
        yield f"large: {told['mb']:.0f} MiB, where {usual:.0f} are usual"
    if told["changed"] or told["canary"]:
        yield f"changed: {told['changed']}, canary {told['canary']}"
    if code == 0 and told["sender"] == "owner" and told["command"] in ("verify", "tune", "plug") and told["mutations"]:
        yield from _accepted(told)


def _accepted(told: dict[str, Any]) -> Any:
    """What the owner signed was altered after that, and passed."""
    if told.get("differs"):
        yield "altered: it passed as signed"


def work(scratch: Path, number: int, options: Any, told: Any) -> None:
    """Be one of several workers: tell of each case, and at the end None."""
    cases = options.cases // options.jobs + (number < options.cases % options.jobs)
    serve(scratch / "world", scratch / f"home{number}", options.first + number, options.jobs, cases,
          options.seconds or 1e9, told.put)  # fmt: skip
    told.put(None)


def serve(world: Path, home: Path, first: int, stride: int, cases: int, seconds: float, tell: Callable[[Any], None]) -> None:
    """Run every `stride`-th case from the `first` on, until `cases` are done or time is up; `tell` of each."""
    torch.set_num_threads(1)
    worker = Worker(world, home)
    worker.warm()
    tell({"usual": worker.usual})
    start = time.monotonic()
    for number in range(cases):
        if time.monotonic() - start > seconds:
            break
        case = plan(first + number * stride, worker.samples)
        told, wrong = worker.judged(case)
        if wrong:
            told, wrong = _smaller(worker, case, told, wrong)
            told["kept"] = str(_keep(worker.home, world.parent / "found", told, wrong))
        tell({key: told[key] for key in ("seed", "code", "seconds", "mb", "command")} | {"wrong": wrong} |
             ({"kept": told["kept"], "mutations": told["mutations"]} if wrong else {}))  # fmt: skip


def _smaller(worker: Worker, case: dict[str, Any], told: dict[str, Any], wrong: list[str]) -> tuple[dict[str, Any], list[str]]:
    """One mutation of the case that is enough for the same complaint, if there is one."""
    kind = wrong[0].partition(":")[0]
    several = len(told["mutations"])
    for which in range(several if several > 1 else 0):
        found, still = worker.judged(case | {"which": which})
        if still and still[0].partition(":")[0] == kind:
            return found, still
    return worker.judged(case) if several > 1 else (told, wrong)


def _keep(home: Path, found: Path, told: dict[str, Any], wrong: list[str]) -> Path:
    """Copy the case's folder to where findings stay."""
    place = found / f"{told['seed']}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.lstat().st_blocks * 512 < 10**7:
            (place / path.relative_to(home)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place / path.relative_to(home))
    (place / "case.json").write_text(json.dumps(told | {"wrong": wrong}, indent=1))
    return place
