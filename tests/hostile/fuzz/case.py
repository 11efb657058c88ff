"""One case: which bundle, mutated how, signed by whom and received by which command; and what that does."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

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
        return shell._print_error(*shell._explained(app, error))


def prepare(case: dict[str, Any], world: Path, home: Path) -> None:
    """Make the folder of a case, with the honest bundle in it."""
    os.chdir(world)  # not in what is removed: the audit hook asks where it is
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    shutil.copytree(world / "bundles" / case["sample"], home / "bundle")


def limit(*folders: Path) -> None:
    """Bound this process, and watch it: `folders` are what it may read besides its libraries."""
    most = memory("VmSize") * 1024 + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    readable[:] = [f"{os.path.realpath(each)}/" for each in folders]
    sys.addaudithook(spy)


def perform(case: dict[str, Any], world: Path, home: Path) -> int:
    """Mutate, sign and receive in this process; write outcome.json and return the exit code."""
    os.chdir(home)
    for stream, name in enumerate((os.devnull, "stream1", "stream2")):
        opened = os.open(name, os.O_RDONLY if name == os.devnull else os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(opened, stream)
        os.close(opened)
    outcome = _send(case, world)
    outcome["before"] = _files()
    modules = set(sys.modules)
    Path("outcome.json").write_text(json.dumps(outcome))  # for a process that does not come to its end
    Path("/proc/self/clear_refs").write_text("5")
    before, start = memory("VmRSS"), _processor()
    events.clear()
    code = receive(case, world)
    sys.stdout.flush()
    outcome["events"] = list(events)[:5]
    outcome |= {"seconds": _processor() - start, "mb": (memory("VmHWM") - before) / 1024}
    outcome["modules"] = sorted(set(sys.modules) - modules)
    Path("outcome.json").write_text(json.dumps(outcome))
    return code


def collect(case: dict[str, Any], home: Path, code: int, start: float) -> dict[str, Any]:
    """All that is known of a case that ended with `code`, and began at `start`."""
    outcome: dict[str, Any] = {"events": [], "modules": [], "mutations": []}
    outcome |= {"mb": 0.0, "seconds": 0.0, "before": None, "differs": False}
    with contextlib.suppress(OSError, ValueError):
        outcome |= json.loads((home / "outcome.json").read_text())
    outcome |= case | {"code": code, "clock": time.monotonic() - start}
    for number, name in ((1, "out"), (2, "err")):
        stream = home / f"stream{number}"
        outcome[name] = stream.read_text(errors="replace")[-20_000:] if stream.exists() else ""
    outcome["left"] = sorted(each.name for each in home.iterdir() if _names_output(each.name))
    os.chdir(home)
    outcome["changed"] = outcome.pop("before") != json.loads(json.dumps(_files()))
    outcome["canary"] = any(home.rglob(CANARY))
    return outcome


def _names_output(name: str) -> bool:
    """Whether it is `out`, or what stands beside it until it is whole."""
    return "out" in name.split("-")[0].split(".")


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
