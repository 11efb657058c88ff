"""What every test stands on: no network, quiet libraries, tiny models of every family."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
from contextlib import contextmanager

if threading.current_thread() is threading.main_thread():
    # A run started in the background ignores Ctrl-C, and its children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a second thread waits, spinning, longer than it computes
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

from offsite.experiments import cache as stages
from tests.families import FAMILIES, tiny_model, tiny_tokenizer


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where what is fetched is kept: a place of the test's own."""
    monkeypatch.setenv("OFFSITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _no_network(request, monkeypatch):
    if "slow" in request.keywords:
        return
    real = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise AssertionError(f"a test opened a connection to {address}")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


_frozen = 0  # modules whose objects the collector passes over


@pytest.fixture(autouse=True)
def _nothing_old_is_collected():
    """Trainings collect garbage; among all that was ever imported that takes longer than a tiny training."""
    global _frozen
    if len(sys.modules) > _frozen + 50:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


@pytest.fixture
def interrupted_at(monkeypatch):
    """`with interrupted_at(n)`: Ctrl-C comes as the n-th stage of an experiment is written."""

    @contextmanager
    def within(stage):
        real, count = stages.write_text, 0

        def killed(path, text):
            nonlocal count
            count += 1
            if count == stage:
                raise KeyboardInterrupt
            real(path, text)

        with monkeypatch.context() as patched:
            patched.setattr(stages, "write_text", killed)
            with pytest.raises(KeyboardInterrupt):
                yield

    return within


QUICK = ("bloom", "gemma3", "gpt2", "llama", "opt", "phi3")
"""Of the families those that differ most in layout: fused, transposed or grouped weights, tuples, windows."""


BY_FAMILY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in sorted(FAMILIES)]


@pytest.fixture(params=BY_FAMILY)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return tiny_model(family)


@pytest.fixture
def llama():
    return tiny_model("llama")


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def tokens():
    return torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(1))
