"""offsite frontier: what it writes and says, the emulator that it chooses, and what it refuses."""

from __future__ import annotations

import json
import shlex

import pytest

from offsite.bundles.emulator import Emulator
from offsite.experiments import cache as stages
from offsite.experiments import compare
from tests.cli.conftest import command, listing, refused
from tests.cli.test_bad_input import asked

FEW = "--train D --steps 2 --limit 4 --lr 1e-2 --text T --blocks 2 --length 16"


def line(more, world, out):
    return asked(f"frontier M --tasks Q -o O {FEW} {more}", world, out)


@pytest.fixture(scope="module")
def profile(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile") / "pro"
    few = ("--text", world / "text.txt", "--blocks", "8", "--length", "16")
    assert command("profile", world / "model", "-o", folder, *few, "--set", "evenly=0.5").code == 0
    return folder


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        ("--profile P --keeps 0.4,0.6 --vary lambda_channels=0.1 --set ranks=0.9", {"keep", "lambda_channels"}),
        (
            "--method uniform+src --set norm=plain --keeps 0.5 --betas 0.5 --splits 1+3 --seed 3",
            {"keep", "split", "beta"},
        ),
        pytest.param(
            "--profile P --splits 1+3 --keeps 0.5",
            {"keep", "split"},
            marks=pytest.mark.long,
            id="profiled anew for another split",
        ),
        pytest.param(
            "--method gradot --keeps 0.5 --profile-blocks 8 --profile-length 16",
            {"keep"},
            marks=pytest.mark.long,
            id="profiled on few blocks",
        ),
    ],
    ids=["profile", "chain", None, None],
)
def test_the_emulator_that_is_chosen_is_that_of_the_command(world, here, profile, more, settings):
    out = here / "f"
    words = line(f"{more} --score 1 --min-gap -100", world, out)
    told = command(*[str(profile) if word == "P" else word for word in words], "--json").json
    assert sorted(path.name for path in out.iterdir()) == [
        "emulator", "emulator-receipt", "frontier.json", "report.html",
    ]  # fmt: skip
    assert json.loads((out / "frontier.json").read_text()) == told
    chosen = told["points"][told["chosen"]]
    assert set(chosen["settings"]) == settings
    assert told["answer"].startswith("The emulator of keep 0.")
    receipt = json.loads((out / "emulator-receipt" / "receipt.json").read_text())
    assert receipt["record"]["call"] == told["command"]
    again = shlex.split(told["command"])
    assert again[:2] == ["offsite", "compress"]
    again[again.index("-o") + 1] = str(here / "again")
    assert command(*again[1:]).code == 0
    assert Emulator.load(out / "emulator").digest == Emulator.load(here / "again").digest == receipt["emulator"]
    assert receipt["keep"]["kept"] == chosen["stored"]


def test_without_a_wish_it_shows_the_points_and_chooses_none(world, here):
    words = line("--method uniform --keeps 0.25,0.3,0.75,1 --score 2", world, here / "f")
    ran = command(*words)
    assert ran.code == 0, ran.err
    told = json.loads((here / "f" / "frontier.json").read_text())
    assert sorted(path.name for path in (here / "f").iterdir()) == ["frontier.json", "report.html"]
    assert (told["kind"], told["chosen"], told["closest"], told["command"]) == ("frontier", None, None, None)
    assert told["wish"] == {"min_gap": None, "max_loss": None}
    assert set(told["points"][0]["estimate"]) == {"cosine", "relative_error", "loss_gap", "zero_shot_nll"}
    assert [point["settings"]["keep"] for point in told["points"]] == [0.25, 0.75, 1.0]
    assert sum(point["rows"] is not None for point in told["points"]) == 2
    assert told["answer"] in ran.out
    assert "1 more settings make" in ran.out
    assert "\n>" not in ran.out.replace("\n> chosen", "")
    lines = [words.split() for words in ran.out.splitlines() if "keep " in words]
    assert [words[words.index("keep") + 1] for words in lines] == ["0.25", "0.75", "1"]
    assert sum("/" in "".join(words) for words in lines) == 2
    again = command(*words, "--force", "--json")
    assert again.json["points"] == told["points"]
    assert sorted(path.name for path in here.iterdir()) == ["f", "thesis"]


def test_a_cache_answers_another_wish_without_more_work(world, here, monkeypatch):
    words = line("--method uniform --keeps 0.25,0.75 --score 2", world, here / "f")
    more = ("--cache", here / "stages", "--force", "--json")
    first = command(*words, *more).json
    for name in ("evaluate", "tune"):
        monkeypatch.setattr(compare, name, None)
    second = command(*words, *more, "--min-gap", "-100").json
    assert [point["rows"] for point in second["points"]] == [point["rows"] for point in first["points"]]
    assert second["chosen"] is not None
    assert first["chosen"] is None


def test_a_wish_that_cannot_be_met_is_said_and_nothing_is_sent(world, here):
    ran = command(*line("--method uniform --keeps 1 --score 1 --min-gap 90", world, here / "f"))
    assert ran.code == 0, ran.err
    assert "No emulator scored has a gap of 90 nats; the closest, of keep 1, lacks 90.000 nats" in ran.out
    assert sorted(path.name for path in (here / "f").iterdir()) == ["frontier.json", "report.html"]


def test_interrupted_it_goes_on_to_the_same_end(world, here, monkeypatch):
    def words(out):
        return line("--method src --set norm=plain --betas 0.5,1 --score 1 --min-gap -100", world, out)

    real, count = stages.write_text, 0

    def killed(path, text):
        nonlocal count
        count += 1
        real(path, text)
        if count in (1, 5):
            raise KeyboardInterrupt

    monkeypatch.setattr(stages, "write_text", killed)
    for _ in range(2):
        assert command(*words(here / "f")).code == 130
        assert sorted(path.name for path in here.iterdir()) == [".f.frontier", "thesis"]
    assert command(*words(here / "f")).code == 0
    assert command(*words(here / "undisturbed")).code == 0
    assert sorted(path.name for path in here.iterdir()) == ["f", "thesis", "undisturbed"]
    cut, whole = (json.loads((here / name / "frontier.json").read_text()) for name in ("f", "undisturbed"))
    for told in (cut, whole):
        for name in ("date", "command", "call"):
            told.pop(name)
    assert cut == whole
    digests = {Emulator.load(here / name / "emulator").digest for name in ("f", "undisturbed")}
    assert len(digests) == 1


REFUSED = {
    "--method gradott": "did you mean 'gradot'?",
    "--method uniform --vary share=1,2": "has no knob 'share'",
    "--method src --keeps 0.5": "leave --keeps out",
    "--method src --betas 0.5,2": "not 2",
    "--method uniform --keeps half": "'half' is not",
    "--method uniform --keeps 0.5,,": "blank word",
    "--method uniform --splits 2": "is written as 2+2",
    "--method uniform --splits 4+4": "no middle between 4 bottom and 4 top",
    "--vary keep=0.5": "not 'keep=0.5'",
    "--vary labels=text,sampled": "was made with labels=text, not sampled",
    "--vary form=fisher,paper": "form=paper is the method gradot-paper",
    "--profile no/such": "There is no 'no/such'",
    "--max-loss some": "not 'some'",
    "--max-loss 200%": "not '200%'",
    "--min-gap 101": "not '101'",
    "--score 0": "found '0'",
    "--method uniform --length 129": "129 tokens are longer than the 128",
    "--method uniform --blocks 99999": "where 99999 are wanted",
}


@pytest.mark.parametrize("more", REFUSED)
def test_what_is_asked_wrongly_is_refused_before_any_work(world, here, more):
    assert REFUSED[more] in refused(here, *line(more, world, here / "f"))


def test_a_profile_of_another_model_is_refused(world, here, profile):
    words = line("--keeps 0.5", world, here / "f")
    words[words.index(str(world / "model"))] = str(world / "other-model")
    before = listing(here)
    assert "The profile is of another model" in refused(here, *words, "--profile", profile)
    assert listing(here) == before
