"""What a kill leaves of writing beside is swept by who next writes there."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from offsite.errors import UserError
from offsite.files.atomic import alone_in_work, empty, held, mend, remove, staged, write_text
from tests.files.test_atomic import posix, tree


def killed(act):
    """A process of its own is killed in the midst of `act`, which says when by calling what it is given."""
    child = os.fork()
    if not child:
        try:
            act(lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@posix
class TestKilled:
    """What a kill leaves is swept by who next writes there; tests/killed does this to whole commands."""

    @pytest.mark.parametrize("left", ["folder", "file"])
    @pytest.mark.parametrize("next_one", ["folder", "file"])
    def test_the_next_writer_sweeps(self, tmp_path, left, next_one):
        def act(now):
            if left == "folder":
                with staged(tmp_path / "out") as fresh:
                    (fresh / "half").write_text("ha")
                    now()
            Path.replace = now
            write_text(tmp_path / "out", "half")

        killed(act)
        assert [path.name[:13] for path in tmp_path.iterdir()] == [".out.partial-"]
        if next_one == "folder":
            with staged(tmp_path / "out") as fresh:
                (fresh / "new").write_text("new")
            assert tree(tmp_path) == {"out": None, "out/new": "new"}
        else:
            write_text(tmp_path / "out", "new")
            assert tree(tmp_path) == {"out": "new"}

    def test_between_the_two_renames_the_old_output_is_not_lost(self, tmp_path):
        out = tmp_path / "out"
        write_text(out / "old", "old")

        def act(now):
            real = Path.rename

            def rename(path, to):
                real(path, to)
                if path == out:
                    now()

            Path.rename = rename
            with staged(out) as fresh:
                (fresh / "new").write_text("new")

        killed(act)
        assert not out.exists()
        mend(out)
        assert tree(tmp_path) == {"out": None, "out/old": "old"}

    def test_once_the_new_one_stands_the_old_one_goes(self, tmp_path):
        out = tmp_path / "out"
        write_text(out / "old", "old")

        def act(now):
            shutil.rmtree = now
            with staged(out) as fresh:
                (fresh / "new").write_text("new")

        killed(act)
        mend(out)
        assert tree(tmp_path) == {"out": None, "out/new": "new"}

    def test_only_what_is_of_that_name_and_ours_is_swept(self, tmp_path):
        names = (
            ".out.partial-mine",
            ".other.partial-0123456789ab",
            ".out.partial-0123456789ab.mine",
            "out.old",
        )
        for name in names:
            (tmp_path / name).touch()
        (tmp_path / ".out.partial-0123456789ab").mkdir()
        mend(tmp_path / "out")
        assert {path.name for path in tmp_path.iterdir()} == set(names)

    def test_what_is_being_written_is_not_swept(self, tmp_path):
        with staged(tmp_path / "out") as fresh:
            mend(tmp_path / "out")
            write_text(fresh / "new", "new")
            mend(tmp_path / "out")
        assert tree(tmp_path) == {"out": None, "out/new": "new"}

    def test_a_folder_is_held_by_one_and_by_none_that_was_killed(self, tmp_path):
        work = tmp_path / "work"

        def act(now):
            with held(work):
                now()

        killed(act)
        with held(work):
            with (
                pytest.raises(UserError, match=r"Another offsite is at work in '.*work'; wait for it"),
                held(work),
            ):
                pytest.fail("held twice")
            (work / "some").mkdir()
            empty(work)
            with pytest.raises(UserError, match="Another"), held(work):
                pytest.fail("held twice")
            remove(work)
            with held(work):
                assert work.is_dir()
        assert tree(tmp_path) == {"work": None}

    def test_a_function_holds_its_work_unless_its_caller_does(self, tmp_path):
        @alone_in_work
        def kept(what, work=None):
            if work is not None:
                (work / what).touch()
            return what

        def refused():
            with pytest.raises(UserError, match="Another"):
                kept("c", work=tmp_path / "new" / "work")

        assert kept("a", work=tmp_path / "new" / "work") == kept("a") == "a"
        with held(tmp_path / "new" / "work"), ThreadPoolExecutor(1) as others:
            others.submit(refused).result()
            assert kept("b", tmp_path / "new" / "work") == "b"
        with pytest.raises(FileNotFoundError):
            kept("no/folder", work=tmp_path / "empty")
        assert tree(tmp_path) == {"new": None, "new/work": None, "new/work/a": "", "new/work/b": ""}

    def test_a_disk_without_locks_sweeps_nothing_and_works(self, tmp_path, monkeypatch):
        import fcntl

        def none(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        (tmp_path / ".out.partial-0123456789ab").mkdir()
        monkeypatch.setattr(fcntl, "flock", none)
        for text in ("one", "two"):
            with held(tmp_path / "work"), staged(tmp_path / "out") as fresh:
                (fresh / "new").write_text(text)
        assert tree(tmp_path) == {
            ".out.partial-0123456789ab": None, "out": None, "out/new": "two", "work": None
        }  # fmt: skip
