"""`python -m tests.killed.warm`: a process that has imported everything and loaded nothing, and forks.

It reads one JSON object a line, {"do": "start"}, {"do": "end"} or {"do": "warm"}, and answers with one.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.chmod", "written"}
"""Audited just before they happen; `written`, which is ours, stands before and after what is not written in
Python. Files that are opened to be written count too."""


class Server:
    """Answers the lines of `Forks`."""

    def __init__(self) -> None:
        self.begun: dict[int, tuple[float, Path]] = {}
        self.lacking: set[str] = set()

    def start(self, words, log, event, how, most):
        pid = os.fork()
        if not pid:
            _run(words, Path(log), event, how, most)
        os.setpgid(pid, pid)  # here, not there: it may be killed before it has run a line
        self.begun[pid] = time.monotonic(), Path(log)
        return {"pid": pid}

    def end(self, pid, after):
        start, log = self.begun.pop(pid)
        status = _wait(pid, None if after is None else start + after)
        seconds = time.monotonic() - start
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        told = log.with_suffix(".told")
        known = json.loads(told.read_text()) if told.exists() else {"events": None, "modules": []}
        self.lacking.update(known["modules"])
        code = os.waitstatus_to_exitcode(status)
        return {"code": code, "said": said, "seconds": seconds, "events": known["events"]}

    def warm(self):
        for name in sorted(self.lacking):
            with contextlib.suppress(ImportError, AttributeError):  # of names that only stand for modules
                importlib.import_module(name)
        self.lacking.clear()
        gc.collect()
        gc.freeze()  # the Trainer collects after each training, through all that was ever imported
        return {}


def _wait(pid: int, deadline: float | None) -> int:
    while deadline is not None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() >= deadline:
            os.killpg(pid, signal.SIGKILL)
            break
        time.sleep(0.001)
    return os.waitpid(pid, 0)[1]


def _run(words, log, event, how, most):
    """Be a process of its own that runs `offsite WORDS`; never returns."""
    code = 70
    try:
        written = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(written, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        before = set(sys.modules)
        sys.argv = ["offsite", *words]
        out = words[words.index("-o") + 1] if "-o" in words else words[1]  # which is signed where it is
        count = _watch(str(Path(out).parent), event, how, most)

        from offsite.cli import app, shell

        code = shell.run(app, words)
        sys.stdout.flush()
        new = [
            name for name in sys.modules if name not in before and not name.startswith("transformers_modules")
        ]
        telling = log.with_suffix(".telling")  # a kill comes here too
        telling.write_text(json.dumps({"events": count(), "modules": new}))
        telling.rename(log.with_suffix(".told"))
    finally:
        os._exit(code)


def _watch(here, event, how, most):
    """Count the writes in the folder `here`, and act at that `event`."""
    count = 0

    def hook(name, args):
        nonlocal count
        if name == "open":
            if not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif name not in WRITES:
            return
        if name != "written" and not _lies_in(here, args[0]):
            return
        count += 1
        if count != event:
            return
        if most is None:
            os.kill(os.getpid(), how)
        else:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # as a kill: no handler, no clearing up
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    sys.addaudithook(hook)
    return lambda: count


def _lies_in(here, path):
    """Also what has no folder in its name: rmtree names files by their folder's descriptor."""
    name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else "/"
    return name.startswith(here) or "/" not in name


def _audited(write):
    def audited(*args, **more):
        sys.audit("written")
        result = write(*args, **more)
        sys.audit("written")
        return result

    return audited


def serve() -> None:
    """Import, then answer until there are no more lines."""
    import safetensors.torch
    import torch

    import offsite.cli as _  # noqa: F401 - and with it the libraries that every command needs

    torch.set_num_threads(1)
    torch.save, safetensors.torch.serialize_file = map(_audited, (torch.save, safetensors.torch.serialize_file))
    server = Server()
    for line in sys.stdin:
        asked = json.loads(line)
        answer = getattr(server, asked.pop("do"))(**asked)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
