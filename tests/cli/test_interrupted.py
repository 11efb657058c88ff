"""A disk that fills and Ctrl-C: nothing half-written stays, and a run goes on to the same end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from offsite.bundles.adapter import Adapter
from offsite.cli import main
from offsite.training import loop
from tests.cli.conftest import SHORT, command, listing, refused, spoken
from tests.cli.test_bad_input import asked
from tests.killed.harness import small_disk

MANY = ["--steps", "100", "--batch-size", "4", "--max-length", "32"]


@pytest.fixture
def disk(tmp_path):
    """`disk(size)` is a folder on a disk of that size, in mount's words; asked again, it grows."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder) as mount:
        yield mount


FULL = {
    "compress": ("compress M -o O --method uniform", "100k"),
    "compress --distill": ("compress M -o O --method uniform --distill 2 --text T", "100k"),
    "tune, at the weights": ("tune E -o O --data D " + " ".join(SHORT), "100k"),
    "tune, at the optimizer's state": ("tune E -o O --data D " + " ".join(SHORT), "300k"),
    "plug": ("plug M A -o O", "100k"),
    "export": ("export E -o O", "100k"),
}


class TestFullDisk:
    @pytest.mark.parametrize("case", FULL)
    def test_nothing_is_left(self, world, disk, case):
        line, size = FULL[case]
        folder = disk(size)
        said = refused(folder, *asked(line, world, folder / "deep" / "out"))
        assert said == "No space is left on the disk of the output; free some, or write elsewhere."

    def test_an_emulator_that_fits_without_its_receipt_is_not_left_either(self, world, disk):
        pages = sum(-(-path.stat().st_size // 4096) for path in (world / "emulator").iterdir())
        folder = disk(f"{4 * pages}k")
        refused(folder, *asked("compress M -o O --method uniform --keep 0.5", world, folder / "out"))
        folder = disk(f"{4 * pages + 4}k")
        assert command(*asked("compress M -o O --method uniform --keep 0.5", world, folder / "out")).code == 0

    def test_a_tuning_that_is_done_but_not_saved_goes_on_once_there_is_room(self, world, disk):
        folder = disk("600k")
        line = asked("tune E -o O --data D " + " ".join(SHORT), world, folder / "out")
        ran = command(*line)
        assert ran.code == 2
        assert "No space is left" in ran.err
        assert [path.name for path in folder.iterdir()] == [".out.tuning"]
        disk("2m")
        assert command(*line, "--resume").code == 0
        assert sorted(path.name for path in folder.iterdir()) == ["out", "out-receipt"]
        assert Adapter.load(folder / "out").digest == Adapter.load(world / "adapter").digest


class TestCtrlC:
    """At a step that the test chooses; a real signal is sent below."""

    @pytest.fixture
    def at(self, monkeypatch):
        def press(step, what=""):
            @contextmanager
            def bar(title, total):
                done = 0

                def advance(steps, note=""):
                    nonlocal done
                    done += steps
                    if done >= step and title.startswith(what):
                        raise KeyboardInterrupt

                yield advance

            monkeypatch.setattr(loop, "bar", bar)

        return press

    @pytest.mark.parametrize(
        "line",
        ["tune E -o O --data D", "compress M -o O --method uniform --distill 20 --text T"],
        ids=["tune", "distill"],
    )
    def test_before_the_first_checkpoint_nothing_is_left(self, world, here, at, line):
        at(3)
        said = refused(here, *asked(line, world, here / "out"), code=130)
        assert said.startswith("Interrupted, with nothing half-written left;")

    def test_an_earlier_run_can_still_be_resumed_after_a_mistake(self, world, here, at, monkeypatch):
        line = asked("tune E -o O --data D --steps 30", world, here / "out")
        at(25)
        assert command(*line).code == 130
        monkeypatch.undo()
        left = listing(here / ".out.tuning")
        assert left
        refused(here, *line[:-2], "--steps", "0")
        refused(here, *asked("tune E -o O --data nowhere", world, here / "out"))
        refused(here, *asked("tune nowhere -o O --data D", world, here / "out"))
        assert listing(here / ".out.tuning") == left
        assert command(*line, "--resume").code == 0
        assert not (here / ".out.tuning").exists()

    def test_a_distillation_goes_on_to_the_same_end_and_only_with_the_same_words(
        self, world, here, at, monkeypatch
    ):
        line = "compress M -o O --method uniform --distill 11 --text T --keep 0.5 --force --json"
        cut = asked(line, world, here / "cut")
        digests = []
        for seed in ("1", "0"):  # of which only the second fits the run that follows
            at(11)
            assert command(*cut, "--seed", seed).code == 130
            assert (here / ".cut.distilling").exists()
            monkeypatch.undo()
            digests.append(command(*cut).json["digest"])
            assert not (here / ".cut.distilling").exists()
        assert digests[0] == digests[1]

    def test_a_comparison_goes_on(self, world, here, at, monkeypatch):
        """That it ends the same is tests/experiments/test_compare.py's to show."""
        line = asked("compare M E --tasks Q --train D --steps 3 --limit 2 -o O", world, here / "out")
        at(2, "Tuning the emulator")
        assert command(*line).code == 130
        assert list((here / ".out.stages").glob("zero_shot-*.json"))
        monkeypatch.undo()
        assert command(*line).code == 0
        assert sorted(path.name for path in here.iterdir()) == ["out", "thesis"]

    def test_the_demo_stops_with_the_command_that_was_stopped(self, world, here, monkeypatch):
        from offsite.cli import demo

        def interrupted(*_):
            raise KeyboardInterrupt

        story = lambda out, quick: [["inspect", str(world / "adapter")], ["doctor"], ["inspect", "nowhere"]]  # noqa: E731
        monkeypatch.setattr(demo, "story", story)
        monkeypatch.setattr("offsite.cli.doctor._facts", interrupted)
        ran = command("demo", "-o", here / "demo")
        assert ran.code == 130
        assert "nowhere" not in ran.err


def tuning(world, out):
    return asked("tune E -o O --data D --json " + " ".join(MANY), world, out)


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """The digest of the adapter that a run without trouble ends with."""
    return command(*tuning(world, tmp_path_factory.mktemp("undisturbed") / "out")).json["digest"]


def send(how, process, here):
    """Send the signal `how` once the first checkpoint is whole; how the process ended, and its words."""
    deadline = time.monotonic() + 240  # python and torch start first, on whatever machine
    while not list(here.glob(".out.tuning/checkpoint-*/training.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


class TestSignals:
    @pytest.mark.long
    def test_ctrl_c_and_then_resume(self, world, undisturbed, tmp_path):
        """SIGKILL is sent in tests/killed."""
        here = tmp_path / "here"
        process = subprocess.Popen(
            [sys.executable, "-m", "offsite", *tuning(world, here / "out")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        code, out, err = send(signal.SIGINT, process, here)
        assert (code, out) == (130, ""), err
        (said,) = spoken(err)
        assert said.startswith("offsite: Interrupted, with nothing half-written left;")
        assert [path.name for path in here.iterdir()] == [".out.tuning"]
        assert command(*tuning(world, here / "out"), "--resume").json["digest"] == undisturbed
        assert sorted(path.name for path in here.iterdir()) == ["out", "out-receipt"]

    def test_being_asked_to_end_is_as_ctrl_c(self, monkeypatch):
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["offsite", "--help"])
        try:
            with pytest.raises(SystemExit):
                main()
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        finally:
            signal.signal(signal.SIGTERM, before)
