"""Laws of writing beside: whole or not at all, and what stood there stays until then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from offsite.errors import UserError
from offsite.files.atomic import empty, mend, remove, staged, write_json, write_text
from offsite.files.places import check, check_parent, check_removable


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_text() if p.is_file() else None for p in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("before", ["absent", "empty", "full"])
class TestStaged:
    def prepare(self, path, before):
        if before != "absent":
            path.mkdir()
        if before == "full":
            (path / "old").write_text("old")
            (path / "deep").mkdir()
            (path / "deep" / "older").write_text("older")

    def test_success_replaces_all_that_stood_there(self, tmp_path, before):
        path = tmp_path / "out"
        self.prepare(path, before)
        with staged(path) as fresh:
            assert fresh.parent == path.parent
            assert not list(fresh.iterdir())
            (fresh / "new").write_text("new")
        assert tree(tmp_path) == {"out": None, "out/new": "new"}

    @pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt, SystemExit, OSError])
    def test_an_exception_leaves_everything_as_it_was(self, tmp_path, before, raised):
        path = tmp_path / "out"
        self.prepare(path, before)
        was = tree(tmp_path)

        def fail():
            with staged(path) as fresh:
                (fresh / "new").write_text("new")
                raise raised

        with pytest.raises(raised):
            fail()
        assert tree(tmp_path) == was

    def test_the_old_stays_readable_until_the_end(self, tmp_path, before):
        path = tmp_path / "out"
        self.prepare(path, before)
        was = tree(path) if path.exists() else None
        with staged(path) as fresh:
            (fresh / "new").write_text("new")
            assert (tree(path) if path.exists() else None) == was


def test_staged_makes_the_folders_above(tmp_path):
    with staged(tmp_path / "a" / "b") as fresh:
        (fresh / "new").write_text("new")
    assert (tmp_path / "a" / "b" / "new").read_text() == "new"


def test_staged_follows_a_link_and_keeps_it(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("old")
    link = tmp_path / "link"
    link.symlink_to(target)
    with staged(link) as fresh:
        (fresh / "new").write_text("new")
    assert link.is_symlink()
    assert tree(target) == {"new": "new"}


def test_staged_takes_a_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with staged(Path("out")) as fresh:
        (fresh / "new").write_text("new")
    assert tree(tmp_path) == {"out": None, "out/new": "new"}


def test_staged_refuses_a_file(tmp_path):
    path = tmp_path / "out"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"out' is a file"), staged(path):
        pytest.fail("the block must not run")
    assert tree(tmp_path) == {"out": "mine"}


@pytest.mark.parametrize("up", [".", ".."])
def test_staged_refuses_a_folder_around_the_working_folder(tmp_path, monkeypatch, up):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.raises(UserError, match="name a new folder"), staged(Path(up)):
        pytest.fail("the block must not run")
    assert tree(tmp_path) == {"mine": None}


def test_staged_refuses_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(UserError, match="name a new folder"), staged(tmp_path / "home"):
        pytest.fail("the block must not run")


def test_two_at_once_leave_one_whole_folder(tmp_path):
    path = tmp_path / "out"
    meet = threading.Barrier(2)

    def write(who):
        with staged(path) as fresh:
            meet.wait()
            (fresh / "a").write_text(who)
            (fresh / "b").write_text(who)
            meet.wait()

    threads = [threading.Thread(target=write, args=(str(i),)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (path / "a").read_text() == (path / "b").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_write_text_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "card.json"
    write_text(path, "one")
    write_text(path, "zwei ü")
    assert tree(tmp_path) == {"deep": None, "deep/card.json": "zwei ü"}


def test_write_text_that_fails_keeps_the_old(tmp_path):
    path = tmp_path / "card.json"
    write_text(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half\udcff")
    assert tree(tmp_path) == {"card.json": "one"}


def test_what_takes_a_name_is_on_the_disk_before(tmp_path, monkeypatch):
    settled, real, replace = [], os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda opened: settled.append(os.fstat(opened).st_ino) or real(opened))
    known = []
    monkeypatch.setattr(Path, "rename", lambda one, to: known.extend(settled) or replace(one, to))
    with staged(tmp_path / "out") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text("a")
    every = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert {path.stat().st_ino for path in every} <= set(known)
    write_json(tmp_path / "b.json", {})
    assert (tmp_path / "b.json").stat().st_ino in settled


def test_what_json_cannot_say_is_null(tmp_path):
    write_json(tmp_path / "a.json", {"a": [float("nan"), -float("inf"), 0.5], "b": tmp_path})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=None) == {"a": [None, None, 0.5], "b": str(tmp_path)}
    assert "NaN" not in text
    assert "Infinity" not in text


posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="locks, limits and forks are POSIX")


@posix
def test_write_text_on_a_disk_that_fills_keeps_the_old(tmp_path):
    code = """
import resource, signal, sys
from pathlib import Path
from offsite.files.atomic import write_text
path = Path(sys.argv[1])
write_text(path, "one")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text(path, "x" * 100_000)
except OSError:
    sys.exit(7)
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "card.json")], check=False)
    assert run.returncode == 7
    assert tree(tmp_path) == {"card.json": "one"}


@pytest.mark.parametrize("raised", [OSError, KeyboardInterrupt])
def test_what_fails_leaves_no_folders_above_either(tmp_path, raised):
    (tmp_path / "there").mkdir()

    def fail():
        with staged(tmp_path / "there" / "deep" / "down" / "out"):
            raise raised

    with pytest.raises(raised):
        fail()
    assert tree(tmp_path) == {"there": None}


def test_folders_above_stay_where_something_else_came_into_them(tmp_path):
    def fail():
        with staged(tmp_path / "deep" / "out"):
            (tmp_path / "deep" / "other").write_text("of someone else")
            raise OSError

    with pytest.raises(OSError):
        fail()
    assert tree(tmp_path) == {"deep": None, "deep/other": "of someone else"}


def test_a_name_that_is_too_long_while_it_is_written_is_refused_beforehand(tmp_path):
    with pytest.raises(UserError, match="name a shorter one"):
        check(tmp_path / ("n" * 240))
    longest = tmp_path / ("n" * 229)
    check(longest)
    for _ in range(2):  # the second time it replaces the first
        with staged(longest) as folder:
            (folder / "a").touch()
    assert list(tmp_path.iterdir()) == [longest]


def test_a_folder_that_takes_no_file_is_refused_beforehand(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"may not be written to \(Operation not permitted\)"):
        check_parent(tmp_path / "out")


def test_trying_a_folder_leaves_nothing_in_it(tmp_path):
    check(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_may_not_be_removed_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "out" / "inner").mkdir(parents=True)
    check_removable(tmp_path / "out")
    real = os.access
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "inner" and real(path, mode))
    with pytest.raises(UserError, match=r"inner' may not be removed, perhaps because it is another user's"):
        check_removable(tmp_path / "out")


def test_check_says_beforehand_what_staged_would_refuse(tmp_path):
    check(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "out", Path.cwd()):
        with pytest.raises(UserError, match=str(path)):
            check(path)


def test_files_are_as_open_as_other_files_of_the_user(tmp_path):
    """Whoever wrote them: safetensors would let nobody else read them."""
    (tmp_path / "usual").write_text("x")
    with staged(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        for file in (folder / "a.safetensors", folder / "inner" / "b"):
            file.write_text("x")
            file.chmod(0o600)
    modes = {file.stat().st_mode for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert modes == {(tmp_path / "usual").stat().st_mode}


def test_staged_within_staged_is_the_same_folder(tmp_path):
    with staged(tmp_path / "out") as outer:
        with staged(outer) as inner:
            (inner / "new").write_text("new")
        assert inner == outer
        assert not (tmp_path / "out").exists()
    assert tree(tmp_path) == {"out": None, "out/new": "new"}


def test_to_remove_and_to_empty_are_no_errors_where_nothing_is(tmp_path):
    remove(tmp_path / "a")
    empty(tmp_path / "a")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "c").touch()
    empty(tmp_path / "a")
    assert tree(tmp_path) == {"a": None}
    remove(tmp_path / "a")
    assert tree(tmp_path) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes in folders")
def test_a_pipe_named_like_a_partial_output_hangs_no_writer_and_goes(tmp_path):
    pipe = tmp_path / ".out.partial-0123456789ab"
    os.mkfifo(pipe)
    program = (
        "import sys; from pathlib import Path; from offsite.files.atomic import write_text\n"
        "write_text(Path(sys.argv[1]), 'whole')"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], timeout=60, check=True)
    assert (tmp_path / "out").read_text() == "whole"
    os.mkfifo(pipe)
    mend(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
