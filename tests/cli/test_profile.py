"""offsite profile, and compress from what it wrote: the same emulator as without, or one sentence."""

from __future__ import annotations

import json
import shutil

import pytest

import offsite
from offsite.cli.profile import DEFAULT as SAID
from offsite.owner import methods
from offsite.owner.methods import METHODS
from offsite.owner.profile import Profile
from tests.cli.conftest import command, listing, refused
from tests.cli.test_bad_input import asked
from tests.owner.test_profile import Slow

SMALL = "--text T --blocks 16 --length 8"
METHOD = {
    "uniform": "--method uniform",
    "crash": "--method crash --text T",
    "gradot": "--text T",
    "svd": "--method svd",
    "scaleot": "--method scaleot --text T --set steps=4 --set rank=4 --seed 3",
    "src": "--method src --text T",
}


@pytest.fixture
def slow(monkeypatch):
    """A method that takes its time, among the others."""
    monkeypatch.setattr(Slow, "learnt", [])
    monkeypatch.setattr(Slow, "stop", None)
    monkeypatch.setitem(METHODS, "slow", Slow)
    return Slow


@pytest.fixture(scope="module")
def profiles(world, tmp_path_factory):
    """A profile by each method; only to be read."""
    folder = tmp_path_factory.mktemp("profiles")
    for name, how in METHOD.items():
        ran = command(*asked(f"profile M -o O {how}", world, folder / name))
        assert ran.code == 0, ran
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_writes_a_profile_and_says_what_comes_next(world, here, monkeypatch):
    monkeypatch.chdir(here)
    ran = command(*asked("profile M --method crash --set share=false --bottom 1 --top 3 -o pro", world, here),
                  "--text", world / "text.txt", "--blocks", "16", "--length", "8", "--seed", "5")  # fmt: skip
    assert ran.code == 0, ran
    assert names(here) == ["pro", "thesis"]
    learnt = Profile.load(here / "pro")
    assert (learnt.method, learnt.knobs, learnt.calibration) == ("crash", {"share": False}, (16, 8))
    assert learnt.middle == range(1, 5)
    assert "keep it to yourself" in ran.out
    next_words = ran.out.split("Next: offsite ")[1].split()
    assert command(*next_words).code == 0
    assert names(here) == ["pro", "pro-emulator", "pro-emulator-receipt", "thesis"]
    files = "".join(path.read_text(errors="replace") for path in (here / "pro").iterdir())
    assert str(world) not in files
    assert json.loads((here / "pro" / "profile.json").read_text())["record"]["seed"] == 5


def test_for_machines(world, here):
    said = command(*asked("profile M -o O --json --method crash " + SMALL, world, here / "out")).json
    assert said == {
        "profile": str(here / "out"),
        "method": "crash",
        "bytes": sum(path.stat().st_size for path in (here / "out").iterdir()),
        "parent": Profile.load(here / "out").parent,
        "calibration": [16, 8],
    }


@pytest.mark.parametrize("name", METHOD)
@pytest.mark.parametrize("keep", ["0.3", pytest.param("0.7", marks=pytest.mark.long)])
def test_an_emulator_is_the_same_with_a_profile_and_without(world, here, profiles, name, keep):
    line = f"compress M -o O --json --keep {keep} "
    if name == "scaleot":
        assert (profiles / name / "report.html").is_file()
    without = command(*asked(line + METHOD[name], world, here / "without")).json
    planned = command(*asked(line, world, here / "with"), "--profile", profiles / name).json
    assert planned["digest"] == without["digest"]
    assert planned["method"] == name
    assert names(here) == ["thesis", "with", "with-receipt", "without", "without-receipt"]


def test_knobs_are_the_profiles_until_they_are_set(world, here):
    command(*asked("profile M -o O --method crash --set share=false " + SMALL, world, here / "pro"))
    for more, places in (([], 2), (["--set", "share=true"], 4), (["--method", "crash"], 2)):
        command("compress", world / "model", "--profile", here / "pro", "-o", here / "em", "--keep", "0.5",
                "--force", *more)  # fmt: skip
        receipt = json.loads((here / "em-receipt" / "receipt.json").read_text())
        assert len(receipt["blueprint"]) == places


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("--method crash", "The profile is of the method 'uniform', not of 'crash'; leave the method out"),
        ("--bottom 1", "The profile is of 2 bottom and 2 top layers, not of 1 and 2"),
        ("--top 3", "The profile is of 2 bottom and 2 top layers, not of 2 and 3"),
        ("--set share=false", "uniform has no knob 'share'"),
        ("--text wikipedai", "'wikipedai' is neither a text nor a file"),
        ("--keep 0", "above 0 and up to 1, not 0"),
    ],
)
def test_a_profile_of_another_kind_is_refused(world, here, profiles, more, why):
    line = asked(f"compress M -o O {more}", world, here / "out")
    assert why in refused(here, *line, "--profile", profiles / "uniform")


def test_a_profile_of_another_model_is_refused(world, here, profiles):
    said = refused(here, "compress", world / "other-model", "-o", here / "out", "--profile", profiles / "crash")
    assert "The profile is of another model" in said


def test_a_truncated_profile_is_refused(world, here, profiles):
    spoilt = shutil.copytree(profiles / "crash", here / "spoilt")
    part = spoilt / "model.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    said = refused(here, "compress", world / "model", "-o", here / "out", "--profile", spoilt)
    assert "'model.safetensors' is truncated or altered" in said


def test_an_output_stays_apart_from_the_profile(world, here, profiles):
    own = shutil.copytree(profiles / "uniform", here / "own")
    for out in (own, own / "em"):
        said = refused(here, "compress", world / "model", "-o", out, "--profile", own, "--force")
        assert "overlap; name an output apart from it" in said


def test_alpha_and_beta_plan_anew_from_one_profile(world, here, profiles):
    stored = {}
    for alpha, beta in ((0.0, 1.0), (0.25, 0.8), (0.5, 0.2)):
        line = asked(f"compress M -o O --json --force --alpha {alpha} --beta {beta}", world, here / "em")
        stored[alpha] = command(*line, "--profile", profiles / "scaleot").json["keep"]
        places = json.loads((here / "em-receipt" / "receipt.json").read_text())["blueprint"]
        assert sum("harmonizer" in place for place in places) == round(4 * alpha)
        assert any("ranks" in place for place in places) == (beta == 0.2)  # the others are stored dense
    assert stored[0.0] == 1.0
    assert stored[0.25] > stored[0.5]


class TestChains:
    def test_are_named_by_their_methods_or_by_their_profiles(self, world, here, profiles):
        own = [word for name in ("scaleot", "gradot") for word in ("--profile", profiles / name)]
        line = asked("compress M -o O --json --keep 0.4 --beta 1", world, here / "planned")
        planned = command(*line, *own).json
        assert planned["method"] == "scaleot+gradot"
        assert planned["keep"] == pytest.approx(0.4, abs=0.05)
        line = asked("compress M -o O --json --keep 0.4 --beta 1 --method scaleot+gradot --text T --seed 3 "
                     "--set steps=4 --set rank=4", world, here / "learnt")  # fmt: skip
        assert command(*line).json["digest"] == planned["digest"]
        assert names(here) == ["learnt", "learnt-receipt", "planned", "planned-receipt", "thesis"]

    @pytest.mark.parametrize(
        ("more", "why"),
        [
            ("--method scaleot+gradto", "There is no method 'gradto'; did you mean 'gradot'?"),
            ("--method scaleot+", "There is no method ''"),
            ("--method gradot+uniform", "'uniform' drops layers itself"),
            ("--method uniform+src --set bta=1", "None of the methods uniform, src has a knob 'bta'"),
            ("--alpha 0.5", "has no knob 'alpha'"),
            ("--method src --beta 0", "beta is the share of attention's rank"),
        ],
    )
    def test_that_make_no_sense_are_refused(self, world, here, more, why):
        assert why in refused(here, *asked(f"compress M -o O --text T {more}", world, here / "out"))

    def test_that_is_interrupted_goes_on(self, world, here, slow):
        line = asked("compress M -o O --method slow+src --text T", world, here / "out")
        slow.stop = 4
        assert command(*line).code == 130
        assert names(here) == [".out.profiling-slow", "thesis"]
        slow.stop = None
        assert command(*line).code == 0
        assert slow.learnt == [2, 3, 4, 5]
        assert names(here) == ["out", "out-receipt", "thesis"]


class TestInterrupted:
    @pytest.mark.parametrize(
        "words", ["profile M -o O --method slow", "compress M -o O --method slow --text T"]
    )
    def test_the_same_command_goes_on(self, world, here, slow, words):
        line = asked(words + (f" {SMALL}" if "profile" in words else ""), world, here / "out")
        slow.stop = 4
        ran = command(*line)
        assert ran.code == 130
        assert "Interrupted, with nothing half-written left" in ran.err
        assert names(here) == [".out.profiling", "thesis"]
        assert slow.learnt == [2, 3]
        slow.stop = None
        assert command(*line).code == 0
        assert slow.learnt == [2, 3, 4, 5]
        assert ".out.profiling" not in names(here)
        whole = listing(here)
        shutil.rmtree(here / "out")
        shutil.rmtree(here / "out-receipt", ignore_errors=True)
        assert command(*line).code == 0
        again = listing(here)
        same = {
            name for name in whole if not name.endswith(("profile.json", "receipt.json"))
        }  # those are dated
        assert {name: whole[name] for name in same} == {name: again[name] for name in same}
        assert whole.keys() == again.keys()

    def test_nothing_is_left_of_one_that_had_learnt_nothing_yet(self, world, here, slow):
        slow.stop = 2
        refused(here, *asked(f"profile M -o O --method slow {SMALL}", world, here / "deep" / "out"), code=130)

    def test_what_was_learnt_outlives_a_mistake(self, world, here, slow):
        line = asked(f"profile M -o O --method slow {SMALL}", world, here / "out")
        slow.stop = 4
        assert command(*line).code == 130
        refused(here, *line, "--set", "scale=much")
        refused(here, *line, "--blocks", "99999")
        slow.stop = None
        assert command(*line).code == 0
        assert slow.learnt == [2, 3, 4, 5]

    def test_what_was_learnt_for_an_emulator_is_kept_while_that_is_distilled(
        self, world, here, slow, monkeypatch
    ):
        line = asked("compress M -o O --method slow --text T --distill 2", world, here / "out")

        def stopped(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("offsite.owner.distill.align", stopped)
        assert command(*line).code == 130
        assert names(here) == [".out.profiling", "thesis"]
        monkeypatch.undo()
        monkeypatch.setitem(METHODS, "slow", Slow)
        slow.learnt.clear()
        assert command(*line).code == 0
        assert slow.learnt == []
        assert names(here) == ["out", "out-receipt", "thesis"]

    def test_a_folder_of_the_users_in_the_place_of_what_is_kept_stays(self, world, here, slow):
        (here / ".out.profiling").mkdir()
        (here / ".out.profiling" / "model.safetensors").write_text("mine")
        said = refused(here, *asked(f"profile M -o O --method slow {SMALL}", world, here / "out"))
        assert ".out.profiling' holds other things" in said


def test_help_names_every_method_and_the_default():
    assert SAID == methods.DEFAULT
    for name in ("profile", "compress"):
        shown = command(name, "--help").out
        assert all(method in shown for method in METHODS)


def test_an_adapter_of_an_emulator_made_in_python_is_plugged_beside_other_receipts(world, here):
    other = asked("compress M -o O --method uniform --keep 0.25", world, here / "other")
    assert command(*other).code == 0
    model, tokenizer = offsite.load(str(world / "model"))
    offsite.compress(model, tokenizer, "uniform", keep=0.5).save(here / "made")
    data = ("--data", world / "data.jsonl", "--steps", "4", "--batch-size", "4", "--max-length", "32")
    assert command("tune", here / "made", "-o", here / "adapter", *data).code == 0
    ran = command("plug", world / "model", here / "adapter", "-o", here / "tuned")
    assert ran.code == 0, ran
    shutil.rmtree(here / "made-receipt")
    again = command("plug", world / "model", here / "adapter", "-o", here / "again")
    assert again.code == 2
    assert "never" in again.err
