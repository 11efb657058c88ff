"""A mistyped word is refused before the libraries that take seconds to import."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MISTYPED = {
    "compress smolm2-135m -o O": "smollm2-135m",
    "compress smollm2-135m -o O --text wikipedai": "wikipedia",
    "profile smollm2-135m -o O --text wikipedia,mixtrue": "mixture",
    "profile smollm2-135m -o O --text mixture:-arc_esay": "arc_easy",
    "profile smolm2-135m -o O": "smollm2-135m",
    "frontier smollm2-135m --tasks arc_esay -o O": "arc_easy",
    "compare smolm2-135m E --tasks arc_easy -o O": "smollm2-135m",
    "compare smollm2-135m nowhere --tasks arc_easy -o O": "nowhere",
    "inspect nowhere": "nowhere",
    "inspect plain": "not a bundle",
    "inspect E --against smolm2-135m": "smollm2-135m",
    "inspect E --data arc_esay": "arc_easy",
    "tune nowhere --data arc_easy -o O": "nowhere",
    "tune E --data arc_esay -o O": "arc_easy",
    "tune E --data arc_easy -o E/inside": "overlap",
    "plug smolm2-135m E -o O": "smollm2-135m",
    "plug smollm2-135m nowhere -o O": "nowhere",
    "evaluate smolm2-135m --tasks arc_easy": "smollm2-135m",
    "evaluate smollm2-135m --tasks arc_easy,arc_esay": "arc_easy",
    "evaluate smollm2-135m --tasks arc_easy --adapter nowhere": "nowhere",
    "export nowhere -o O": "nowhere",
    "export E -o plain": "already there",
    "sign nowhere --key k": "nowhere",
    "verify nowhere --key k": "nowhere",
}
PROGRAM = """
import contextlib, io, json, sys
from offsite.cli import app, shell

told = {}
for line in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = shell.run(app, line.split())
    told[line] = code, said.getvalue(), sorted({"torch", "transformers", "datasets"} & set(sys.modules))
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What one process, which had imported nothing, says to each line."""
    folder = tmp_path_factory.mktemp("options")
    for name, file in (("E", "card.json"), ("plain", "notes.txt")):
        (folder / name).mkdir()
        (folder / name / file).write_text("{}")
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(list(MISTYPED)), cwd=folder,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(ended.stdout)


@pytest.mark.parametrize("line", MISTYPED)
def test_a_mistyped_word_is_refused_before_anything_heavy_is_imported(told, line):
    code, said, heavy = told[line]
    assert code == 2
    assert MISTYPED[line] in said
    assert said.startswith("offsite: ")
    assert said.count("\n") == 1
    assert heavy == []
