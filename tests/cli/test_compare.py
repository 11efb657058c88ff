"""`offsite compare RECIPE`: what it writes, says and refuses, and that a kill does not change the table."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import command, listing, refused, write_jsonl
from tests.families import tiny_model

ROWS = ["zero_shot", "fine_tuned", "emulator_zero_shot", "emulator_tuned", "plugged_in"]
SCORE = {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "nll", "nll_stderr", "n", "choices", "right"}


@pytest.fixture(scope="module")
def study(world, tmp_path_factory):
    """A folder with a recipe, and what it takes."""
    folder = tmp_path_factory.mktemp("study")
    recipe = {"model": str(world / "model"), "methods": ["uniform", "src:beta=0.5"], "keeps": 0.5,
              "tasks": str(world / "questions.jsonl"), "train": str(world / "data.jsonl"), "seeds": [0, 1],
              "steps": 3, "batch_size": 4, "limit": 4, "text": str(world / "text.txt")}  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # which is YAML too
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory):
    """What `--json` says of a run without trouble, and the folder of its output."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return command("compare", study, "-o", out, "--json").json, out


def runs(said):
    return [{name: value for name, value in run.items() if name != "seconds"} for run in said["runs"]]


def test_what_it_writes(undisturbed, study):
    said, out = undisturbed
    assert sorted(path.name for path in out.iterdir()) == [
        "report.html",
        "results.json",
        "table.md",
        "table.tex",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert json.loads((out / "results.json").read_text()) == said
    assert said["kind"] == "study"
    assert said.keys() >= {"recipe", "runs", "call", "versions", "date", "machine", "seed"}
    for run in said["runs"]:
        rows = ROWS[:2] if not run["method"] else ROWS[2:]
        assert [name for name in run if name in ROWS] == rows
        assert all(run[row].keys() == SCORE for row in rows)
    assert [run["method"] for run in said["runs"]] == ["", "uniform", "src:beta=0.5"] * 2
    assert "uniform, keep 0.5 (50.0 %)" in (out / "table.md").read_text()
    assert r"\begin{tabular}" in (out / "table.tex").read_text()
    again = refused(out.parent, "compare", study, "-o", out)
    assert "add --force to replace it" in again


def test_for_people_and_with_a_cache_that_stays(study, here, undisturbed):
    cache = here / "cache"
    first = command("compare", study, "-o", here / "out", "--cache", cache, "--set", "seeds=[0]")
    assert first.code == 0
    assert "Plugged in" in first.out
    assert "one seed" in first.out
    assert "1 of 3: the model itself on" in first.err
    both = command("compare", study, "-o", here / "out", "--cache", cache, "--force", "--json")
    assert runs(both.json) == runs(undisturbed[0])
    assert ", seed 0" not in both.err  # that was there
    assert cache.exists()


def test_a_dry_run_writes_nothing(study, here):
    before = listing(here)
    said = command("compare", study, "-o", here / "out", "--dry-run", "--json").json
    assert said["cells"] == len(said["todo"]) == 6
    assert said["seconds"] > 0
    people = command("compare", study, "-o", here / "out", "--dry-run")
    assert people.out.count("uniform at keep 0.5 on") == 1, "one line for all seeds"
    assert "0, 1" in people.out
    assert "nothing was written" in people.out
    assert listing(here) == before
    (here / "out").mkdir()
    (here / "out" / "mine.txt").write_text("mine")  # which a plan does not touch
    assert command("compare", study, "-o", here / "out", "--dry-run").code == 0


WRONG = {
    "compare M -o O": "is no recipe (.yaml)",
    "compare no.yaml -o O": "no such file: 'no.yaml'",
    "compare R -o O --steps 3": "write --set steps=3 in place of --steps",
    "compare R -o O --batch-size 3": "write --set batch_size=3 in place of --batch-size",
    "compare M E -o O --batch-size 0 --tasks arc_easy": "found '0'",
    "compare R -o O --set blocks=0": "greater than or equal to 1",
    "compare R -o O --lora-rank 3": "write --set lora_rank=3 in place of --lora-rank",
    "compare R -o O --set stepps=3": "did you mean 'steps'?",
    "compare R -o O --set methods=gradto": "did you mean 'gradot'?",
    "compare R -o O --set bottom=4 --set top=4": "no middle between 4 bottom and 4 top",
    "compare R -o O --set model=nowhere": "'nowhere' is neither a folder",
    "compare R -o O --cache O": "overlap; name an output apart from it",
    "compare M E -o O": "add, for example, --tasks arc_easy",
    "compare M E -o O --dry-run --tasks arc_easy": "--dry-run is for recipes",
    "compare M E -o O --set steps=3 --tasks arc_easy": "--set is for recipes",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_makes_no_sense(world, study, here, line):
    places = {"M": world / "model", "E": world / "emulator", "R": study, "O": here / "out"}
    said = refused(here, *(str(places.get(word, word)) for word in line.split()))
    assert WRONG[line].lower() in said.lower()


def test_a_pair_tunes_with_the_batch_size_that_is_asked_for(world, here):
    few = (
        "--tasks",
        world / "questions.jsonl",
        "--train",
        world / "data.jsonl",
        "--steps",
        "2",
        "--limit",
        "4",
    )
    pair = ("compare", world / "model", world / "emulator", *few)
    two = command(*pair, "-o", here / "two", "--batch-size", "2", "--json").json
    usual = command(*pair, "-o", here / "usual", "--json").json
    assert (two["tuning"]["batch_size"], usual["tuning"]["batch_size"]) == (2, 8)
    assert two["rows"]["fine_tuned"] != usual["rows"]["fine_tuned"]


def test_a_short_text_is_enough_for_a_recipe_of_few_blocks(world, study, here):
    short = here / "short.txt"
    short.write_text(" ".join((world / "text.txt").read_text().split()[:80]))
    line = ("compare", study, "-o", here / "out", "--set", f"text={short}", "--set", "seeds=[0]", "--json")
    assert "ask for fewer or shorter blocks" in command(*line, "--set", "methods=src").err
    ran = command(*line, "--set", "methods=src", "--set", "blocks=4", "--set", "length=16")
    assert ran.code == 0, ran.err


def test_a_tuning_that_runs_away_does_not_cost_what_was_done(study, here):
    ran = command("compare", study, "-o", here / "out", "--set", "lr=1e30")
    assert ran.code == 2
    assert "take an lr lower than" in ran.err
    assert list((here / ".out.stages").glob("zero_shot-*.json"))


@pytest.mark.long
def test_a_kill_and_then_the_same_table(study, here, undisturbed):
    call = [sys.executable, "-m", "offsite", "compare", str(study), "-o", str(here / "out"), "--json"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((here / ".out.stages").glob("emulator_tuned-curve*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (here / "out").exists()
    assert runs(command(*call[3:]).json) == runs(undisturbed[0])
    table = [(folder / "table.tex").read_text() for folder in (here / "out", undisturbed[1])]
    assert table[0] == table[1]
    assert sorted(path.name for path in here.iterdir()) == ["out", "thesis"]


@pytest.mark.long
def test_the_papers_table_on_a_tiny_opt(world, here, tokenizer, monkeypatch):
    """Twenty steps of the ready recipe, with local data in place of what needs the network."""
    recipe = Path(__file__).parents[2] / "recipes" / "papers-table1.yaml"
    monkeypatch.chdir(here)
    tiny_model("opt").save_pretrained("opt")
    tokenizer.save_pretrained("opt")
    write_jsonl(here / "ask.jsonl", [{"prompt": f"w{9 + i}", "choices": ["w5", "w6 w7"], "answer": i % 2}
                                     for i in range(8)])  # fmt: skip
    (here / "prose.txt").write_text(" ".join(f"w{10 + i % 7}" for i in range(200)))
    (here / "public.txt").write_text(" ".join(f"w{3 + i * i % 120}" for i in range(2049 * 128)))
    scaleot = "{method: scaleot, alpha: 0.25, beta: 0.8, steps: 3, regressed: 0, rank: 4}"
    over = ["model=opt", "tasks=[ask.jsonl, prose.txt]", "text=public.txt", "steps=20", "lr=0.01",
            "batch_size=4", "keeps=0.6", f"methods=[gradot, {scaleot}, uniform~5, crash]"]  # fmt: skip
    said = command(
        "compare", recipe, "-o", "out", "--json", *(w for word in over for w in ("--set", word))
    ).json
    found = {(run["method"], run["task"]): run for run in said["runs"]}
    assert len(found) == 10
    assert found["", "prose"]["zero_shot"]["acc"] is None
    assert found["", "prose"]["fine_tuned"]["nll"] < found["", "prose"]["zero_shot"]["nll"]
    assert {name for name, _ in found if "scaleot" in name} == {
        "scaleot:alpha=0.25,beta=0.8,steps=3,regressed=0,rank=4"
    }
    head = (here / "out" / "table.md").read_text().splitlines()[0]
    assert head == (
        "| method | row | loss | gap | loss, points | gap, points | gain | ask | choice nll | nll | prose ppl |"
    )
