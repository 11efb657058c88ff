"""What the tests of both pages stand on."""

from __future__ import annotations

import builtins
import math

import pytest

from tests.report.pages import SCORES, cell


@pytest.fixture
def no_plotly(monkeypatch):
    """As on a machine without the extra."""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "plotly":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


@pytest.fixture
def results():
    curve = [{"step": 10, "loss": 4.0, "heldout": None}, {"step": 20, "loss": None, "heldout": 3.5}]
    curve += [{"step": 20, "loss": 3.0, "heldout": None}, {"step": 40, "loss": math.nan, "heldout": 3.25}]
    return {
        "rows": {row: {"arc_easy": cell(*scores)} for row, scores in SCORES.items()},
        "keep": 0.7,
        "method": "uniform",
        "split": {"bottom": 2, "top": 3},
        "curves": {"fine_tuned": curve, "emulator_tuned": curve[:1]},
        "model": "smollm2-135m",
        "train": "my_train.jsonl",
        "sources": {"arc_easy": "validation split"},
        "notes": ["Half of the rows are elsewhere."],
        "tuning": {"steps": 150, "lr": 0.0002},
        "seconds": {"tune the emulator": 96.2, "compress": 2.4},
        "call": "offsite compare smollm2-135m 'my emulator/' --tasks arc_easy",
        "versions": {"torch": "2.13.0", "offsite": "0.1.0"},
        "seed": 17,
        "date": "2026-03-02T14:05:00+00:00",
        "machine": "x86_64, 2 threads",
    }
