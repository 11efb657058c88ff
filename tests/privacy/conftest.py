"""The story of `tell`, told once in a process of its own, as far as can be under the eyes of the system."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.privacy.tell import EMULATORS, MARKS

ROOT = Path(__file__).parents[2]
_FREE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "PIP_NO_INDEX", "DO_NOT_TRACK",
         "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY")  # fmt: skip
"""What would keep libraries from the network in our stead."""
_STRACE = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=bind,connect,sendto,sendmsg,sendmmsg", "-o"]


@dataclass(frozen=True)
class Story:
    """What ran in the folder `home`, and what it tried."""

    home: Path
    told: list[dict]
    """Of each command its `line`, what it `tried` of the network and of other programs, and what it `said` if
    that is for others."""
    calls: list[str] | None
    """The system's calls that send or connect, by any library in any language; None where nobody watched."""

    @property
    def emulators(self):
        """The folders of all emulator bundles."""
        return [self.home / name for name in (*EMULATORS, "demo/emulator", "frontier/emulator")]


@pytest.fixture(scope="session")
def story(tmp_path_factory):
    """Every command at least once, every method, both kinds of adapter; only to be read."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # one story for all workers
    folder = shared / "privacy" / MARKS["a folder above everything"]
    with FileLock(shared / "privacy.lock"):
        if not (folder / "told.json").exists():
            _tell(folder)
    calls = folder / "calls"
    return Story(
        folder / "home",
        json.loads((folder / "told.json").read_text()),
        calls.read_text().splitlines() if calls.exists() else None,
    )


def _tell(folder):
    folder.mkdir(parents=True)
    user, home = MARKS["the user's name"], folder / "home"
    kept = {name: value for name, value in os.environ.items() if name not in _FREE}
    env = kept | {"USER": user, "LOGNAME": user, "USERNAME": user, "HOSTNAME": MARKS["the host's name"]}
    env |= {"HOME": str(home), "OFFSITE_CACHE": str(home / "cache"), "SOME_API_TOKEN": MARKS["the environment"]}
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    watch = [*_STRACE, str(folder / "calls")] if _can_watch() else []
    words = [*watch, sys.executable, "-m", "tests.privacy.tell", str(home)]
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]


def _can_watch():
    words = [*_STRACE, os.devnull, sys.executable, "-c", ""]
    return shutil.which("strace") is not None and subprocess.run(words, capture_output=True).returncode == 0
