"""Opens every attacked bundle in a process of its own and writes what happened, one JSON line an attack.

Usage: python -m tests.hostile.runner SCRATCH [PART OF A NAME]. Each goes through the library, and one in SHARE
through the command line as well. In a process of its own because the peak of memory
belongs to a process, and because an audit hook, which sees every file opened and every program started, stays.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers

from offsite.bundles.adapter import Adapter, Lora, adapter_linears
from offsite.bundles.emulator import Emulator
from offsite.cli import app, shell
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build, origin
from offsite.owner.plug import plug
from tests.families import tiny_model, tiny_tokenizer
from tests.hostile.all import ATTACKS
from tests.hostile.corpus import CANARY, Attack

ROOT = Path(__file__).parents[2]
SPLIT = Split(1, 1)
PATIENCE = 20  # seconds
SHARE = int(os.environ.get("HOSTILE_SHARE", "8"))
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVIL = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class",
         "socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname",
         "os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink")  # fmt: skip
_OWN = tuple(  # where Python, the libraries and this code read
    {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), ROOT)}
)
_SYSTEM = ("/dev/", "/proc/", "/sys/")
theirs: list[str] = []  # where the receiver has the bundle and what is its own
events: list[str] = []
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class Watch:
    """What a stretch of code did: its peak of memory, its words and warnings, its files and programs."""

    def __init__(self) -> None:
        self.told = {}

    def __enter__(self) -> Watch:
        events.clear()
        self._out = tempfile.TemporaryFile()
        self._kept = [os.dup(1), os.dup(2)]
        self._warnings = warnings.catch_warnings(record=True)
        self._warned = self._warnings.__enter__()
        warnings.simplefilter("always")
        for number in (1, 2):
            os.dup2(self._out.fileno(), number)
        Path("/proc/self/clear_refs").write_text("5")
        self._before, self._start = memory("VmRSS"), time.process_time()
        events.clear()
        return self

    def __exit__(self, *_):
        found = list(events)
        self.told = {"mb": round((memory("VmHWM") - self._before) / 1024, 1), "events": found[:5]}
        self.told["seconds"] = round(time.process_time() - self._start, 2)
        for number, kept in zip((1, 2), self._kept, strict=True):
            os.dup2(kept, number)
            os.close(kept)
        self._warnings.__exit__(None, None, None)
        self._out.seek(0)
        said = self._out.read().decode(errors="replace")
        self.told["leaked"] = said[:200] + "".join(str(each.message)[:200] for each in self._warned)
        self._out.close()


def memory(what: str) -> int:
    """Of this process, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def honest(folder: Path) -> None:
    """A model and what honest senders would send."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    build(model, SPLIT, (Place(3), Place(4)), tokenizer=tokenizer).save(folder / "emulator")
    parts = origin(model, SPLIT)
    Adapter.of(model, parts).save(folder / "adapter")
    tensors = {}
    for site, turned in adapter_linears(model, SPLIT).items():
        rows, columns = Adapter.of(model, parts).tensors[f"{site}.weight"].shape[:: -1 if turned else 1]
        tensors[f"{site}.lora_A.weight"] = torch.full((2, columns), 0.01)
        tensors[f"{site}.lora_B.weight"] = torch.full((rows, 2), 0.01)
    Adapter(tensors, parts, lora=Lora(rank=2, alpha=4)).save(folder / "lora")


def tree(folder: Path) -> dict[str, object]:
    """What there is under a folder, and since when."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        found[str(path)] = (stat.st_mode, stat.st_size, stat.st_mtime_ns)
    return found


def opened(kind: str, folder: Path, model) -> None:
    """Do with a bundle what its receiver does."""
    if kind == "emulator":
        Emulator.load(folder)
    else:
        plug(model, Adapter.load(folder))


def words(kind: str, folder: Path, world: Path) -> list[str]:
    """The command line of its receiver."""
    command = ["export"] if kind == "emulator" else ["plug", str(world / "honest" / "model")]
    return [*command, str(folder), "-o", str(world / "cwd" / "out")]


def run(each: Attack, world: Path, model) -> dict:
    """Make one attack and say what came of it."""
    folder = world / "attacked" / each.kind
    shutil.copytree(world / "honest" / each.kind, folder)
    each.alter(folder)
    size = sum(512 * path.lstat().st_blocks for path in folder.iterdir())  # of a sparse file, what is there
    before = tree(world)
    signal.alarm(PATIENCE)
    told = {"name": each.name, "why": each.why, "declared": round(size / 2**20, 1), "error": "", "said": ""}
    with Watch() as watch, unprivileged(folder):
        try:
            opened(each.kind, Path("../attacked") / each.kind, model)
        except BaseException as error:
            told |= {"error": type(error).__name__, "said": str(error)}
    told |= watch.told
    if ATTACKS.index(each) % SHARE == 0:
        told |= commanded(each.kind, folder, world)
    signal.alarm(0)
    told["changed"] = sorted({name for name, _ in before.items() ^ tree(world).items()})
    told["canary"] = any(world.rglob(CANARY))
    clear(world)
    return told


def clear(world: Path) -> None:
    """Away with the attacked bundle and what a command wrote."""
    for path in (*(world / "attacked").iterdir(), *(world / "cwd").iterdir()):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def commanded(kind: str, folder: Path, world: Path) -> dict:
    """What the command line of the receiver says of it."""
    out, err = io.StringIO(), io.StringIO()
    with (
        Watch() as watch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        unprivileged(folder),
    ):
        code = shell.run(app, words(kind, Path(os.path.relpath(folder)), world))
    told = {"code": code, "out": out.getvalue()[:500], "err": err.getvalue()[:2000]}
    return told | {f"cli_{key}": value for key, value in watch.told.items()}


@contextlib.contextmanager
def unprivileged(folder: Path):
    """Within, root is nobody where a file is locked, for nothing is locked to root."""
    locked = os.geteuid() == 0 and any(path.lstat().st_mode & 0o777 == 0 for path in folder.glob("*"))
    if locked:
        os.seteuid(65534)
    try:
        yield
    finally:
        if locked:
            os.seteuid(0)


def spy(event: str, arguments: tuple) -> None:
    """The audit hook: writing, reading elsewhere, starting, connecting, unpickling."""
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int):  # a file that was open already
            return
        if how := undue(os.path.realpath(os.fsdecode(path)), flags):
            events.append(f"open for {how}: {os.fsdecode(path)}")
    elif event in _EVIL:
        events.append(f"{event} {str(arguments)[:100]}")


def undue(path: str, flags: object) -> str:
    """What a file is opened for, if that is none of its receiver's business; empty if it is."""
    if path.startswith(_SYSTEM):
        return ""
    if isinstance(flags, int) and flags & _WRITING:
        # in a folder itself only a file without a name is opened: whether the output's place takes one
        return "" if path == str(Path.cwd()) else "writing"
    return "" if path.startswith((*_OWN, *theirs)) else "reading"


def late(*_) -> None:
    """What takes too long ends in an error that no refusal is."""
    raise TimeoutError


def main() -> None:
    """Run the corpus."""
    signal.signal(signal.SIGALRM, late)
    world, part = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    for name in ("honest", "attacked", "cwd", "tmp"):
        (world / name).mkdir()
        (world / name).chmod(0o755)
    os.chdir(world / "cwd")
    os.environ["CANARY"] = str(world / CANARY)
    tempfile.tempdir = str(world / "tmp")
    honest(world / "honest")
    model = tiny_model("llama")
    for kind in ("emulator", "adapter", "lora"):  # what is imported late is not an attack's doing
        opened(kind, world / "honest" / kind, model)
        model = tiny_model("llama")
        told = commanded(kind, world / "honest" / kind, world)
        assert told["code"] == 0, told
        clear(world)
    own = ("honest", "cwd", "tmp", *(f"attacked/{kind}" for kind in ("emulator", "adapter", "lora")))
    theirs.extend(f"{os.path.realpath(world / name)}/" for name in own)
    sys.addaudithook(spy)
    for each in ATTACKS:
        if part in each.name:
            print(json.dumps(run(each, world, model)), flush=True)  # noqa: T201 - to the process that started it


if __name__ == "__main__":
    main()
