"""A tiny world on disk, in which the commands run as a user would run them, but in this process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from offsite.cli import app, shell
from offsite.owner.methods import METHODS
from tests.families import tiny_model
from tests.sample_bundles import is_sentence

PROGRESS = re.compile(r"[\w ]+: \d+/\d+, about \d+ s left.*|  .*")  # an audit's table is set in by two
SHORT = ["--steps", "4", "--batch-size", "4", "--max-length", "32"]


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        assert self.code == 0, self.err
        return json.loads(self.out)


def command(*words):
    """Run `offsite WORDS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = shell.run(app, [str(word) for word in words])
    return Ran(code, out.getvalue(), err.getvalue())


def listing(folder):
    """Everything under `folder`, hidden or not, with the content of files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def spoken(err):
    """The lines on standard error, apart from those of progress."""
    return [line for line in err.splitlines() if not PROGRESS.fullmatch(line)]


def refused(folder, *words, code=2):
    """Run a command that must fail in one sentence and leave `folder` as it was; returns the sentence."""
    before = listing(folder)
    ran = command(*words)
    said = spoken(ran.err)
    assert (ran.code, ran.out, len(said)) == (code, "", 1), ran
    assert listing(folder) == before
    sentence = said[0].removeprefix("offsite: ")
    assert said[0] != sentence
    assert is_sentence(sentence), sentence
    assert "Traceback" not in sentence
    assert "bug in offsite" not in sentence
    return sentence


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextlib.contextmanager
def little_text():
    """Within, methods read a thousand tokens where nothing else is asked for: enough for a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        for method in METHODS.values():
            if method.calibration:
                patch.setattr(method, "calibration", (64, 16))
        yield


@pytest.fixture(scope="module", autouse=True)
def _little_text():
    with little_text():
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory, tokenizer):
    """Models, data, bundles and tuned adapters; only to be read."""
    world = tmp_path_factory.mktemp("world")
    for name, seed in (("model", 0), ("other-model", 7)):
        tiny_model("llama", seed).save_pretrained(world / name)
        tokenizer.save_pretrained(world / name)
    write_jsonl(
        world / "data.jsonl",
        [{"prompt": f"w{10 + i} w{20 + i}", "completion": f" w{40 + i} w{50 + i}"} for i in range(24)],
    )
    write_jsonl(
        world / "questions.jsonl",
        [
            {"prompt": f"w{10 + i}", "choices": [f"w{20 + i}", f"w{30 + i} w5"], "answer": i % 2}
            for i in range(6)
        ],
    )
    (world / "text.txt").write_text(" ".join(f"w{3 + i * i % 120}" for i in range(40_000)))
    made = [
        ("compress", world / "model", "-o", world / "emulator", "--method", "uniform", "--keep", "0.5"),
        ("compress", world / "model", "-o", world / "emulator-2", "--method", "uniform", "--keep", "0.25"),
        ("compress", world / "model", "-o", world / "crash", "--method", "crash", "--keep", "0.5",
         "--text", world / "text.txt"),
        ("tune", world / "emulator", "--data", world / "data.jsonl", "-o", world / "adapter", *SHORT),
        ("tune", world / "emulator", "--data", world / "data.jsonl", "-o", world / "lora", "--lora-rank", "2",
         *SHORT),
    ]  # fmt: skip
    with little_text():
        for words in made:
            ran = command(*words)
            assert ran.code == 0, ran
    return world


@pytest.fixture(autouse=True)
def _own_environment(tmp_path, monkeypatch):
    """An empty cache, a working folder of its own, and none of what a command sets for its process."""
    monkeypatch.setenv("OFFSITE_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    cwd, before = Path.cwd(), dict(os.environ)
    yield
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def here(tmp_path):
    """A folder for outputs, with something of the user's in it."""
    folder = tmp_path / "here"
    (folder / "thesis").mkdir(parents=True)
    (folder / "thesis" / "chapter.tex").write_text("mine")
    return folder
