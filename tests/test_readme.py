"""What the README and the docs say is what there is: the story, the code, the tree, the links, the numbers."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from offsite.cli import app
from offsite.cli.demo import story
from offsite.cli.shell import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def block(mark, text=README):
    """The fenced block after a mark."""
    return re.search(rf"<!-- {mark} -->\n```\w*\n(.*?)```", text, re.DOTALL).group(1)


def paths_of(tree):
    """The files and folders that an indented tree names, each with a purpose beside it."""
    folders, named = [], []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        assert re.match(r"^\s*[\w./]+\s{2,}\S", line), f"no purpose: {line}"
        del folders[depth:]
        if name.endswith("/"):
            folders.append(name)
            named.append("".join(folders))
        else:
            named.append("".join([*folders, name]))
    return named


def test_the_story_is_what_the_demo_runs():
    told = block("story").splitlines()
    assert told == [" ".join(["offsite", *words]) for words in story(Path("demo"), quick=False)]


def test_every_command_named_in_the_docs_exists_and_has_an_example(capsys):
    known = {command.name for command in app.registered_commands}
    named = {
        word for doc in DOCS for word in re.findall(r"\boffsite ([a-z]+)\b", doc.read_text(encoding="utf-8"))
    }
    assert known <= named
    for name in known:
        assert run(app, [name, "--help"]) == 0
        assert f"offsite {name}" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_every_command_but_the_demo_takes_json():
    for command in app.registered_commands:
        taken = inspect.signature(command.callback).parameters
        assert ("json" in taken) == (command.name != "demo"), command.name


def test_the_readmes_tree_names_every_room_and_fits_a_screen():
    named = paths_of(block("tree"))
    assert len(named) <= 40
    assert all((ROOT / name).exists() for name in named)
    rooms = {f"src/offsite/{path.parent.name}/" for path in (ROOT / "src/offsite").glob("*/__init__.py")}
    assert rooms <= set(named)


def test_the_architecture_names_every_source_file_once_and_nothing_else():
    named = paths_of(block("tree", ARCHITECTURE))
    assert len(named) == len(set(named))
    assert all((ROOT / name).exists() for name in named)
    there = [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    assert {name for name in named if name.endswith(".py")} == {p.relative_to(ROOT).as_posix() for p in there}


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_links_lead_somewhere(doc):
    for target in re.findall(r"\]\(([^)#]+)", doc.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (doc.parent / target).exists(), target


def test_the_install_lines_name_extras_that_exist_and_the_pinned_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chapter = README.partition("## Install")[2].partition("\n## ")[0]
    installed = re.findall(r"pip install (?:-c \S+ )?'?([^\s'`]+)", chapter)
    assert "." in installed
    assert {name for each in installed for name in re.findall(r"\[(.*)\]", each)} <= set(
        project["optional-dependencies"]
    )
    assert set(re.findall(r"`(\w+)` \(", chapter)) <= set(project["optional-dependencies"])
    pinned = [each for each in installed if each.startswith("torch==")]
    assert pinned
    assert set(pinned) <= set((ROOT / "constraints.txt").read_text(encoding="utf-8").split())


def test_make_has_the_two_commands():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path):
    """As it stands, but for fewer steps and questions."""
    code = block("python").replace("steps=60", "steps=2").replace("limit=150", "limit=8")
    code += "\nassert scores['arc_easy'].n == 8\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=600)


@pytest.mark.slow
def test_the_quick_demo_tells_the_whole_story(tmp_path):
    """Every command of the story on the real model, each shown before it runs; the report is there."""
    told = subprocess.run(
        [sys.executable, "-m", "offsite", "demo", "--quick"],
        cwd=tmp_path, capture_output=True, text=True, timeout=900, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    shown = [line for line in told.stderr.splitlines() if line.startswith("$ ")]
    assert shown == ["$ " + " ".join(["offsite", *words]) for words in story(Path("demo"), quick=True)]
    assert "Traceback" not in told.stderr
    results = json.loads((tmp_path / "demo/comparison/results.json").read_text(encoding="utf-8"))
    assert {row["arc_easy"]["n"] for row in results["rows"].values()} == {12}
    assert (tmp_path / "demo/comparison/report.html").stat().st_size > 1_000_000
    assert told.stdout.rstrip().splitlines()[-1].endswith("report.html")


@pytest.mark.slow
def test_tuning_through_a_uniform_emulator_helps_the_real_model(tmp_path):
    """Plugged in, the answers are likelier than zero-shot and than the tuned emulator's own."""
    commands = [
        ["compress", "smollm2-135m", "-o", "emulator", "--method", "uniform", "--keep", "0.7"],
        ["compare", "smollm2-135m", "emulator", "--tasks", "arc_easy", "--limit", "80", "--steps", "60",
         "-o", "comparison"],
    ]  # fmt: skip
    for words in commands:
        subprocess.run([sys.executable, "-m", "offsite", *words], cwd=tmp_path, check=True, timeout=1800)
    rows = json.loads((tmp_path / "comparison/results.json").read_text(encoding="utf-8"))["rows"]
    nll = {name: row["arc_easy"]["nll"] for name, row in rows.items()}
    assert nll["plugged_in"] < nll["zero_shot"] - 0.2
    assert nll["plugged_in"] < nll["emulator_tuned"] - 0.2
    assert nll["fine_tuned"] < nll["plugged_in"] + 0.1


def lines_of(doc):
    """The `offsite ...` command lines of a page or recipe: in code, or after a comment sign."""
    text = doc.read_text(encoding="utf-8")
    blocks = re.findall(r"^(?:#\s+)?(offsite [a-z]+ .*?)(?:\s{2,}.*)?$", text, re.MULTILINE)
    return [*blocks, *re.findall(r"`(offsite [a-z]+ [^`\n]*)`", text)]


LINES = [(doc, line) for doc in [*DOCS, *sorted((ROOT / "recipes").glob("*.yaml"))] for line in lines_of(doc)]


@pytest.mark.parametrize("line", sorted({line for _, line in LINES}))
def test_every_command_line_of_the_docs_is_one_that_offsite_takes(line):
    """Its options and arguments are read; nothing runs."""
    import typer

    name, *words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app).commands[name]
    _, rest, _ = command.make_parser(command.context_class(command)).parse_args(words)
    assert rest == []
