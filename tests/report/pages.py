"""Made-up results of every kind, and what a page made of them is looked at with."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

LOADING = {
    "src", "href", "srcset", "data", "action", "poster", "formaction", "background", "ping", "xlink:href",
}  # fmt: skip
ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=\"document.title='owned'\">{{ 7 * 7 }}"
# Accuracy and answer nll of the five rows, as once measured.
SCORES = {
    "zero_shot": (0.503, 4.51),
    "fine_tuned": (0.610, 2.52),
    "emulator_zero_shot": (0.337, 6.05),
    "emulator_tuned": (0.490, 4.00),
    "plugged_in": (0.543, 3.31),
}
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=5000"
)


def made_study(name="gradot", task="arc_easy"):
    """Two methods, one of two seeds, on two tasks, of which one is a text without answers."""
    runs = []
    for seed in (0, 1):
        ends = {row: cell(SCORES[row][0], SCORES[row][1] + seed / 10) for row in ("zero_shot", "fine_tuned")}
        runs.append({"method": "", "task": task, "seed": seed, **ends})
    own = ("emulator_zero_shot", "emulator_tuned", "plugged_in")
    for method, keep, seed in ((name, 0.7, 0), (name, 0.7, 1), ("uniform", 0.7, 0)):
        shift = 0.0 if method == name else 1.0
        rows = {row: cell(SCORES[row][0], SCORES[row][1] + shift) for row in own}
        runs.append({"method": method, "keep": keep, "stored": keep - 0.01, "task": task, "seed": seed, **rows})
    text = {"acc": None, "acc_stderr": None, "nll_stderr": 0.01, "n": 50}
    runs.append(
        {"method": "", "task": "text", "zero_shot": text | {"nll": 3.0}, "fine_tuned": text | {"nll": 2.0}}
    )
    rows = {row: text | {"nll": 2.5} for row in own}
    runs.append({"method": "uniform", "keep": 0.7, "task": "text", "seed": 0, **rows})
    return {"kind": "study", "recipe": {"model": "tiny"}, "runs": runs, "call": f"offsite compare {name}.yaml",
            "versions": {"torch": "2"}, "seed": 0, "date": "2026-01-02", "machine": "m"}  # fmt: skip


def made_frontier(word="beta", task="arc_easy"):
    """Three emulators, two of them scored, the second chosen."""
    points = []
    for place, keep in enumerate((0.5, 0.7, 0.9)):
        rows = {row: {task: cell(SCORES[row][0] + place / 50, SCORES[row][1] - place / 5)}
                for row in ("emulator_zero_shot", "emulator_tuned", "plugged_in")}  # fmt: skip
        scored = place < 2
        points.append({
            "settings": {"keep": keep, word: 0.8},
            "stored": keep,
            "estimate": {"cosine": 0.5 + keep / 2, "relative_error": 1 - keep, "loss_gap": 1 - keep},
            "rows": rows if scored else None,
            "loss": {"value": 0.79, "stderr": 0.1} if scored else None,
            "gap": {"value": 0.69, "stderr": None} if scored else None,
            "gap_points": {"value": 5.3, "stderr": 4.2} if scored else None,
            "gain": {"value": 0.6 + place / 10, "stderr": None} if scored else None,
        })  # fmt: skip
    ends = {row: {task: cell(*SCORES[row])} for row in ("zero_shot", "fine_tuned")}
    return {"kind": "frontier", "model": word, "method": word, "tasks": [task], "tuning": {"steps": 5},
            "points": points, "ends": ends, "wish": {"min_gap": "4 nats"}, "chosen": 1,
            "closest": None, "answer": f"Send {word}.", "call": "offsite frontier", "versions": {},
            "seed": 0, "date": "2026-01-02", "machine": "m"}  # fmt: skip


def made_fidelity(word="gradot"):
    points = [{"method": m, "keep": k, "cosine": k, "relative_error": 1 - k, "loss_gap": 1 - k}
              for m in (word, "svd") for k in (0.9, 0.5)]  # fmt: skip
    return {"about": {"model": word}, "points": points}


def made_receipt(word="arc_easy"):
    """A data owner's."""
    curve = [{"step": s, "loss": 5.0 - s / 4, "heldout": 5.0 - s / 5} for s in (1, 2, 3)]
    return {"adapter": "ab", "data": word, "config": {"steps": 3, "lr": 2e-4}, "curve": curve,
            "record": {"call": f"offsite tune {word}", "seed": 0, "versions": {"torch": "2"}}}  # fmt: skip


def blueprint_receipt(places, method="gradot", word="offsite compress", digest="cd"):
    """A model owner's."""
    return {"emulator": digest, "parent": "p", "method": method, "split": {"bottom": 2, "top": 2},
            "keep": {"asked": 0.7, "kept": 0.7}, "blueprint": places,
            "record": {"call": word, "seed": 0}}  # fmt: skip


def put(folder, name, data):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(data))
    return folder


def browsed(page, folder, *flags):
    """The page's DOM as Chromium leaves it, without the scripts' own text; skips where there is no Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on PATH")
    command = [chromium, *FLAGS.split(), *flags, f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in ran.stderr
    return ran.stdout


def cell(acc, nll, error=0.03):
    return {
        "acc": acc,
        "acc_stderr": error,
        "acc_norm": acc / 2,
        "acc_norm_stderr": error / 2,
        "nll": nll,
        "nll_stderr": 4 * error,
        "n": 300,
    }


class Page(HTMLParser):
    """What a browser's parser finds: attributes, scripts, styles and the text that shows."""

    def __init__(self, html):
        super().__init__()
        self.attributes, self.scripts, self.json, self.style, self.text = [], [], [], "", ""
        self.tags: list[str] = []
        self._inside = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in ("script", "style"):
            self._inside = dict(attrs).get("type", tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside = None

    def handle_data(self, data):
        match self._inside:
            case None:
                self.text += data
            case "style":
                self.style += data
            case "application/json":
                self.json.append(json.loads(data))
            case _:
                self.scripts.append(data)
