"""What the tests of both pages stand on."""

from __future__ import annotations

import builtins

import pytest


@pytest.fixture
def no_plotly(monkeypatch):
    """As on a machine without the extra."""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "plotly":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
