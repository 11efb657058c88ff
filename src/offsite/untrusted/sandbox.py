"""Start the worker, a process with limits, which renders chats and tokenises with untrusted files.

No look at a template or a tokenizer tells how long it runs or how much it writes. So the worker is ended as
soon as it takes more than it may: by its limits of memory and processor time (`worker`), and by the clock here.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import tokenizers

from offsite.errors import UserError
from offsite.untrusted import worker

_TICK = 0.1  # seconds
MEMORY = 512 << 20  # bytes for one request, beyond what its length explains


class Sandbox:
    """A worker that may take `seconds` in all; callers that give it more to do add to them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.late = False
        """Whether it was ended because it took too long."""
        self._spent = 0.0
        folders = {str(Path(str(each.__file__)).parents[1]) for each in (jinja2, markupsafe, tokenizers)}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", worker.__file__, *sorted(folders)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.close = weakref.finalize(self, _end, self._process)
        if self.ask({}, 100) is None:
            raise UserError(
                "Chats and texts are read by a process of their own, which "
                f"{sys.executable!r} does not start; run offsite with a plain Python."
            )

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self.close.alive and self._process.poll() is None

    def ask(self, request: dict[str, Any], most: int) -> bytes | None:
        """Return the answer, of at most so many bytes; None where it took more than it may, and is ended."""
        begun = time.monotonic()
        left = self.seconds - self._spent
        answer = None
        if self.alive and left > 0:
            self._send(json.dumps(request | {"seconds": left, "memory": MEMORY}).encode())
            answer = self._read(most, begun + left)
        self._spent += time.monotonic() - begun
        if answer is None:
            self.late = self.late or self._spent >= self.seconds
            self.close()
        return answer

    def _send(self, message: bytes) -> None:
        assert self._process.stdin
        with suppress(OSError):  # it has ended, so no answer follows
            self._process.stdin.write(worker.LENGTH.pack(len(message)) + message)
            self._process.stdin.flush()

    def _read(self, most: int, until: float) -> bytes | None:
        """Read the next message, of at most so many bytes, until so late; None for none."""
        assert self._process.stdout
        with _ended_at(until, self._process):
            head = self._process.stdout.read(worker.LENGTH.size)
            if len(head) < worker.LENGTH.size or (length := worker.LENGTH.unpack(head)[0]) > most:
                return None
            answer = self._process.stdout.read(length)
        return answer if len(answer) == length else None


@contextmanager
def _ended_at(until: float, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Within, `process` is killed when it is so late."""
    _clock.put(until, process)
    try:
        yield
    finally:
        _clock.put(math.inf, process)


class _Clock:
    """One thread that kills processes which are late; a timer for each request would take longer than most."""

    def __init__(self) -> None:
        self._ends: weakref.WeakKeyDictionary[subprocess.Popen[bytes], float] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._started = False

    def put(self, until: float, process: subprocess.Popen[bytes]) -> None:
        """Have `process` killed at a time of `time.monotonic`."""
        with self._lock:
            self._ends[process] = until
            if not self._started:
                threading.Thread(target=self._run, daemon=True).start()
                self._started = True

    def _run(self) -> None:
        while True:
            time.sleep(_TICK)
            with self._lock:
                late = [process for process, until in self._ends.items() if time.monotonic() >= until]
            for process in late:
                process.kill()


_clock = _Clock()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream
        with suppress(OSError):  # what it was not given before it ended
            stream.close()
