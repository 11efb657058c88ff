"""Outputs replace nothing of the user's, whatever is forced."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from offsite.bundles.emulator import Emulator
from tests.cli.conftest import SHORT, command, listing, refused
from tests.cli.test_bad_input import asked

WRITING = {
    "compress": "compress M -o O --method uniform --keep 0.5",
    "profile": "profile M -o O --method uniform",
    "tune": "tune E -o O --data D " + " ".join(SHORT),
    "plug": "plug M A -o O",
    "compare": "compare M E --tasks Q --train D --steps 2 --limit 2 -o O",
    "export": "export E -o O",
}
MINE = {
    "notes": {"chapter.tex": "mine"},
    "a model": {"config.json": '{"model_type": "llama"}', "model.safetensors": "mine"},
    "a card": {"card.json": '{"name": "a visiting card"}'},
    "results": {"results.json": '{"seconds": 3}', "report.html": "mine"},
    "a receipt": {"receipt.json": "of the baker"},
    "a deep one": {"offsite.json/note": "mine"},
}


@pytest.fixture(params=WRITING)
def line(request, world, here):
    return asked(WRITING[request.param], world, here / "out")


@pytest.fixture(params=sorted(set(WRITING) - {"compare"}))  # it takes a second, and ends in the same lines
def quick_line(request, world, here):
    return asked(WRITING[request.param], world, here / "out")


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize("mine", MINE)
def test_a_folder_of_the_users_stays(here, line, mine, force):
    for name, content in MINE[mine].items():
        (here / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "out" / name).write_text(content)
    said = refused(here, *line, *force)
    assert "out' is already there; name another output, for it holds other things" in said


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_a_file_in_the_place_of_a_folder_stays(here, line, force):
    (here / "out").write_text("mine")
    assert "out' is a file where a folder is to be written" in refused(here, *line, *force)


def test_an_earlier_output_stays_until_it_is_forced(here, quick_line):
    assert command(*quick_line).code == 0
    before = listing(here)
    assert "or add --force to replace it" in refused(here, *quick_line)
    (here / "out" / "chapter.tex").write_text("mine")
    assert "it holds other things than an earlier output" in refused(here, *quick_line, "--force")
    (here / "out" / "chapter.tex").unlink()
    assert command(*quick_line, "--force").code == 0
    assert listing(here).keys() == before.keys()


def test_an_empty_folder_is_as_good_as_none(here, quick_line):
    (here / "out").mkdir()
    assert command(*quick_line).code == 0


def test_folders_above_are_made(world, here, quick_line):
    words = [word.replace("/out", "/deep/down/out") for word in quick_line]
    assert command(*words).code == 0
    assert any((here / "deep" / "down" / "out").iterdir())


@pytest.mark.parametrize("out", [".", "..", "/", "../here", "thesis/.."])
def test_the_folder_one_stands_in_stays(here, monkeypatch, line, out):
    monkeypatch.chdir(here)
    words = [out if word == str(here / "out") else word for word in line]
    assert f"{out!r} holds the folder" in refused(here, *words, "--force")


def test_what_lies_under_a_file_is_refused_before_any_work(here, line):
    (here / "file").write_text("mine")
    words = [word.replace("/out", "/file/out") for word in line]
    assert "cannot be written" in refused(here, *words)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_refused_before_any_work(here, line):
    here.chmod(0o500)
    try:
        assert "may not be written to" in refused(here, *line)
    finally:
        here.chmod(0o700)


def test_an_output_of_another_user_is_not_forced_away(here, world, monkeypatch):
    line = asked(WRITING["export"], world, here / "out")
    assert command(*line).code == 0
    real = os.access
    theirs = (str(here / "out"), os.W_OK | os.X_OK)
    monkeypatch.setattr("os.access", lambda path, mode: (str(path), mode) != theirs and real(path, mode))
    assert "out' may not be removed" in refused(here, *line, "--force")


@pytest.mark.skipif(os.name == "nt", reason="a folder that is worked in cannot be removed")
def test_a_working_folder_that_was_removed_is_named(here, line, monkeypatch):
    (here / "gone").mkdir()
    monkeypatch.chdir(here / "gone")
    (here / "gone").rmdir()
    words = ["out" if word == str(here / "out") else word for word in line]
    assert "The folder that you work in was removed" in refused(here, *words)


class TestApart:
    """An output neither pollutes nor replaces what the command reads."""

    @pytest.mark.parametrize(
        "words",
        [
            "tune X --data D -o X/adapter",
            "tune X --data D -o X --force",
            "export X -o X --force",
            "export X -o X/dense",
            "evaluate X --tasks Q -o X/scores.json",
            "compare M X --tasks Q -o X/comparison",
        ],
    )
    def test_from_the_emulator(self, world, here, words):
        bundle = shutil.copytree(world / "emulator", here / "bundle")
        line = asked(words, world, here)
        line = [word.replace("X", str(bundle), 1) if word.startswith("X") else word for word in line]
        assert "overlap; name an output apart from it" in refused(here, *line)
        Emulator.load(bundle)

    def test_from_the_model(self, world, here):
        model = here / "tuned"
        assert command("plug", world / "model", world / "adapter", "-o", model).code == 0
        assert "overlap" in refused(here, "compress", model, "-o", model, "--force")
        assert "overlap" in refused(here, "plug", model, world / "adapter", "-o", model, "--force")
        trusted = shutil.copytree(world / "adapter", here / "trusted")
        plugging = ("plug", model, world / "adapter", "--expect", trusted, "-o", trusted, "--force")
        assert "overlap" in refused(here, *plugging)

    def test_from_the_data(self, world, here):
        assert command("export", world / "emulator", "-o", here / "out").code == 0
        shutil.copy(world / "data.jsonl", here / "out")
        line = [
            "tune",
            world / "emulator",
            "--data",
            here / "out" / "data.jsonl",
            "-o",
            here / "out",
            "--force",
        ]
        assert "overlap" in refused(here, *line)

    @pytest.mark.parametrize("receipt", ["em", "em/receipt", "."])
    def test_the_receipt_from_the_emulator(self, world, here, receipt):
        refused(here, "compress", world / "model", "-o", here / "em", "--receipt", here / receipt)

    @pytest.mark.parametrize("words", ["compress M -o O", "tune E --data D -o O"])
    def test_a_receipt_of_the_users_stays(self, world, here, words):
        (here / "out-receipt").mkdir()
        (here / "out-receipt" / "of-the-baker.txt").write_text("mine")
        assert "out-receipt' is already there" in refused(here, *asked(words, world, here / "out"), "--force")


class TestScores:
    def line(self, world, out):
        return asked("evaluate M --tasks Q --limit 2 -o O", world, out)

    @pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
    @pytest.mark.parametrize("name", ["thesis.tex", "scores.json"])
    def test_a_file_of_the_users_stays(self, world, here, name, force):
        (here / name).write_text('{"mine": 1}')
        said = refused(here, *self.line(world, here / name), *force)
        assert f"{name}' is already there; name another output" in said

    @pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
    def test_a_folder_is_refused_before_any_work(self, world, here, force):
        (here / "empty").mkdir()
        said = refused(here, *self.line(world, here / "empty"), *force)
        assert "empty' is a folder where a file is to be written" in said


class TestFetchAndDemo:
    def test_fetch_replaces_only_what_it_brought(self, here, monkeypatch, world):
        cached = here / "cache" / "models" / "smollm2-135m"
        shutil.copytree(world / "model", cached)
        monkeypatch.setenv("OFFSITE_CACHE", str(here / "cache"))
        call = ["fetch", "smollm2-135m", "-o", here / "out", "--json"]
        assert command(*call).json == {"model": "smollm2-135m", "path": str(here / "out")}
        brought = listing(here / "out")
        assert brought.keys() == listing(cached).keys() | {"offsite.json"}
        assert "add --force" in refused(here, *call)
        assert command(*call, "--force").code == 0
        assert command("fetch", "smollm2-135m", "--json").json["path"] == str(cached)

    @pytest.mark.parametrize("mine", MINE)
    def test_a_demo_replaces_only_a_demo(self, here, mine):
        for name, content in MINE[mine].items():
            (here / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (here / "out" / name).write_text(content)
        assert "other things than an earlier output" in refused(here, "demo", "-o", here / "out")

    def test_a_demo_that_was_killed_is_ours(self, here, monkeypatch):
        monkeypatch.setattr("offsite.cli.demo.story", lambda out, quick: [["doctor"]])
        (here / "out" / ".emulator.partial-1f").mkdir(parents=True)
        (here / "out" / "demo.json").write_text('{"made by": "offsite demo"}')
        assert command("demo", "-o", here / "out").code == 0
        assert [path.name for path in (here / "out").iterdir()] == ["demo.json"]

    def test_a_demo_with_something_of_the_users_in_it_stays(self, here):
        (here / "out").mkdir()
        (here / "out" / "demo.json").write_text('{"made by": "offsite demo"}')
        (here / "out" / "chapter.tex").write_text("mine")
        assert "other things than an earlier output" in refused(here, "demo", "-o", here / "out")

    def test_a_demo_does_not_replace_another_output_either(self, world, here):
        assert command("export", world / "emulator", "-o", here / "out").code == 0
        assert "other things than an earlier demo" in refused(here, "demo", "-o", here / "out")


def test_an_output_says_how_it_came_about(world, here):
    command("export", world / "emulator", "-o", here / "dense")
    command("plug", world / "model", world / "adapter", "-o", here / "tuned")
    for name in ("dense", "tuned"):
        told = json.loads((here / name / "offsite.json").read_text())
        assert told["emulator"] == Emulator.load(world / "emulator").digest
        assert told["record"]["versions"]
