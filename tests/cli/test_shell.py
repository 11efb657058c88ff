"""What every command line shares, on commands made for the purpose."""

from __future__ import annotations

import errno
import io
import os
import re
import sys

import pytest
import typer

from offsite import launchers
from offsite.cli import app, shell
from offsite.errors import UserError
from tests.cli.conftest import command
from tests.sample_bundles import is_sentence

COMMANDS = [each.name for each in app.registered_commands]


def said_of(error, capsys):
    """Exit code and sentence of a command that ends with `error`."""
    made = typer.Typer()

    @made.command()
    def only():
        raise error

    code = shell.run(made, [])
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    sentence = lines[-1].removeprefix("offsite: ")
    assert is_sentence(sentence), sentence
    return code, sentence, lines


ERRORS = {
    "the user's": (UserError("No 'x'\n here."), 2, "No 'x' here."),
    "Ctrl-C": (KeyboardInterrupt(), 130, "Interrupted, with nothing half-written left;"),
    "no rights": (
        PermissionError(errno.EACCES, "Permission denied", "/x"),
        2,
        "Permission denied: '/x'; check",
    ),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), 2, "No space is left on the disk"),
    "a full disk, by safetensors": (
        RuntimeError("No space left on device (os error 28)"),
        2,
        "No space is left",
    ),
    "a full disk, by torch": (
        RuntimeError("PytorchStreamWriter failed writing file data/0"),
        2,
        "No space is left",
    ),
    "a spent quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "No space is left on the disk"),
    "an OSError of a library": (OSError("could not be had."), 2, "could not be had."),
    "no memory": (MemoryError(), 2, "There is not enough memory"),
    "no memory, by torch": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: x"),
        2,
        "There is not enough",
    ),
    "no memory, on a GPU": (RuntimeError("CUDA out of memory. Tried to"), 2, "There is not enough memory"),
    "a tracker's own": (
        type("Odd", (Exception,), {"__module__": "mlflow.exceptions"})("no store"),
        2,
        "The tracker mlflow refuses (no store); correct",
    ),
    "ours": (KeyError("oops"), 1, "This is a bug in offsite (KeyError: 'oops'); please report it"),
    "ours, at length": (AssertionError("x" * 10**6), 1, "This is a bug in offsite (AssertionError: xxx"),
    "a file that ends": (
        EOFError("Compressed file ended"),
        1,
        "This is a bug in offsite (EOFError: Compressed",
    ),
    "an abort": (typer.Abort(), 130, "Interrupted."),
}


@pytest.mark.parametrize("case", ERRORS)
def test_each_error_has_its_code_and_one_sentence(capsys, case):
    error, code, begins = ERRORS[case]
    got, sentence, lines = said_of(error, capsys)
    assert got == code
    assert sentence.startswith(begins)
    assert [line for line in lines if line] == [f"offsite: {sentence}"]


def test_a_bug_shows_its_traceback_when_asked(capsys, monkeypatch):
    monkeypatch.setenv("OFFSITE_DEBUG", "1")
    code, _, lines = said_of(KeyError("oops"), capsys)
    assert code == 1
    assert lines[0].startswith("Traceback")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_and_every_option(name):
    ran = command(name, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Example: offsite {name} " in " ".join(ran.out.split())
    assert "`" not in ran.out


def test_help_lists_every_command():
    ran = command("--help")
    assert ran.code == 0
    assert all(f" {name} " in ran.out for name in COMMANDS)


def test_no_words_at_all_show_the_help():
    ran = command()
    assert ran.code in (0, 2)
    assert "Usage" in ran.out + ran.err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_one_sentence(name):
    ran = command(name, "--no-such-option")
    assert (ran.code, ran.out) == (2, "")
    (line,) = ran.err.splitlines()
    assert "--no-such-option" in line
    assert f"`offsite {name} --help` shows how." in line


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"doctor", "demo", "methods"}))
def test_a_missing_argument_is_one_sentence(name):
    ran = command(name)
    assert (ran.code, ran.out) == (2, "")
    (line,) = ran.err.splitlines()
    assert "Missing" in line
    assert is_sentence(line)


def test_it_says_its_version():
    ran = command("--version")
    assert ran.code == 0
    assert re.fullmatch(r"offsite \d+\.\d+\.\d+\n", ran.out)


def ran(do, args=()):
    made = typer.Typer()
    made.command()(do)
    return shell.run(made, list(args))


def test_a_home_folder_after_an_equals_sign_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = []

    def command(output: str = "") -> None:
        seen.append(output)

    assert ran(command, args=["--output=~/out"]) == 0
    assert seen == [str(tmp_path / "out")]


def test_a_launchers_variables_are_dropped(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.setenv(name, "2")
    assert ran(lambda: None) == 0
    assert launchers.left() == []
    assert "WORLD_SIZE" not in os.environ


def test_an_ascii_terminal_shows_a_mark_for_what_it_lacks(monkeypatch):
    kept = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(kept, encoding="ascii"))
    assert ran(lambda: print("50.0 \u00b1 1.0")) == 0  # noqa: T201
    sys.stdout.flush()
    assert kept.getvalue() == b"50.0 ? 1.0\n"


def test_a_mount_point_is_refused_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setattr("pathlib.Path.is_mount", lambda path: path == tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    with pytest.raises(UserError, match="is a mount point"):
        shell.output(tmp_path / "disk", force=False)
