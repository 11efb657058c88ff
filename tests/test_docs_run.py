"""Every command line of README, docs and recipes runs, on a tiny model and few rows under the names it uses."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from offsite.cli import app
from offsite.data.tasks import cache, definition
from offsite.owner.methods import METHODS
from offsite.owner.methods.scaleot import ScaleOT
from tests.cli.conftest import command, little_text, write_jsonl
from tests.families import tiny_model
from tests.test_readme import LINES, ROOT, block

STANDS_FOR = {"MODEL": "smollm2-135m", "METHOD": "uniform", "DIR": "demo"}
NAMED = {"methods": "gradot"}  # what NAME stands for; elsewhere a task
LACKS = {"offsite profile smollm2-135m": "-o profile"}  # what a sentence leaves out
FEW = {
    "profile": "--blocks 8 --length 16",
    "tune": "--steps 2 --max-length 32",
    "evaluate": "--limit 2",
    "compare": "--limit 2 --steps 2",
    "frontier": "--limit 2 --steps 2 --score 1 --blocks 2 --length 16",
    "inspect": "--blocks 2 --length 16",
    "recipe": "--set limit=2 --set steps=2 --set seeds=[0] --set keeps=[0.7] --set blocks=16 --set length=16",
}
"""What is said once more, of which the last word counts."""
NEEDED = (  # by other lines
    "offsite keygen -o owner",
    "offsite sign demo/emulator --key owner.key",
    "offsite compress smollm2-135m -o emulator --method METHOD --keep 0.7",
)


@dataclass(frozen=True)
class Short(ScaleOT):
    """Its training is two steps."""

    steps: int = 2
    batch_size: int = 2
    rank: int = 4


@pytest.fixture(scope="module")
def told(tmp_path_factory, tokenizer):
    """`told(line)` is how it ended, in a folder where the README's story was told."""
    with pytest.MonkeyPatch.context() as patch, little_text():
        patch.setitem(METHODS, "scaleot", Short)
        folder = tmp_path_factory.mktemp("docs")
        patch.setenv("OFFSITE_CACHE", str(folder / "cache"))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.chdir(folder)
        _furnish(tokenizer)
        known = {line: run(line) for line in block("story").splitlines()}
        for line in NEEDED:
            known[line] = run(line)
        shutil.copytree("demo/profile", "profiles/gradot-fisher")
        yield lambda line: known[line] if line in known else known.setdefault(line, run(line))


def _furnish(tokenizer):
    for place, family in (("cache/models/smollm2-135m", "llama"), ("facebook/opt-1.3b", "opt")):
        tiny_model(family).save_pretrained(place)
        tokenizer.save_pretrained(place)
    shutil.copytree(ROOT / "recipes", "recipes")
    text = " ".join(f"w{3 + i * i % 120}" for i in range(4_000))
    for recipe in definition.texts().values():
        for split in ("train", "test"):
            cache.put(recipe, split, "wheel: here", "", [{"text": text}])
    rows = [
        {"prompt": f"w{10 + i}", "choices": [f"w{20 + i}", f"w{30 + i} w5"], "answer": i % 2} for i in range(9)
    ]
    for recipe in definition.questions().values():
        for split in ("train", "test"):
            cache.put(recipe, split, "wheel: here", "", rows)
    write_jsonl(Path("rows.jsonl"), rows)


def run(line):
    """Run a line, with fewer steps and rows than it says, over what an earlier one wrote."""
    name, *words = shlex.split(f"{line} {LACKS.get(line, '')}")[1:]
    words = [{"NAME": NAMED.get(name, "arc_easy"), **STANDS_FOR}.get(word, word) for word in words]
    kind = "recipe" if name == "compare" and words[0].endswith(".yaml") else name
    taken = {
        option for parameter in typer.main.get_command(app).commands[name].params for option in parameter.opts
    }
    if name != "inspect" or "--against" in words:
        words += FEW.get(kind, "").split()
    return command(name, *words, *(["--force"] if "--force" in taken else []))


def _param(line):
    many = (".yaml" in line and "--dry-run" not in line) or "--keeps" in line  # emulators, each tuned
    return pytest.param(line, marks=[pytest.mark.long] * many)


@pytest.mark.parametrize("line", [_param(line) for line in sorted({line for _, line in LINES})])
def test_every_command_line_of_the_docs_runs(told, line):
    ran = told(line)
    assert ran.code == 0, ran.err
