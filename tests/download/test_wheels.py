"""Wheels come through the real pip, from a folder in place of an index."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from offsite.download import wheels
from offsite.errors import UserError


def build_wheel(folder, package, files, version="1.0"):
    """A wheel as small as pip accepts."""
    stem = f"{package.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(
            f"{stem}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nRequires-Dist: no-such-package\n",
        )
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The folder that pip finds wheels in; it reaches nothing else."""
    folder = tmp_path / "shop"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where temporary folders go, to see that none is left."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"OFFSITE_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/offsite"),
        ({"HOME": "/c"}, "/c/.cache/offsite"),
        ({"OFFSITE_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/offsite"),
        ({"OFFSITE_CACHE": "~/mine", "HOME": "/c"}, "/c/mine"),
    ],
)
def test_the_cache_is_where_the_environment_says(monkeypatch, settings, expected):
    for name in ("OFFSITE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert wheels.cache_dir() == Path(expected)


@pytest.mark.parametrize("megabytes", [None, 3])
def test_a_wheel_is_read_without_being_installed_and_nothing_stays(shop, scratch, capfd, megabytes):
    path = build_wheel(shop, "tiny-thing", {"tiny_thing/data.txt": "hello"})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with wheels.opened("tiny-thing", "1.0", digest, megabytes) as archive:
        assert archive.read("tiny_thing/data.txt") == b"hello"
        assert list(scratch.iterdir())
    assert not list(scratch.iterdir())
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ("downloading tiny-thing==1.0" + (" (3 MB)" if megabytes else "") + "\n")
    assert "tiny_thing" not in sys.modules


def test_an_altered_wheel_is_refused(shop, scratch):
    build_wheel(shop, "tiny-thing", {"tiny_thing/data.txt": "hello"})
    with (
        pytest.raises(UserError, match=r"tiny-thing==1\.0 has the sha256"),
        wheels.opened("tiny-thing", "1.0", "0" * 64),
    ):
        pytest.fail("the block must not run")
    assert not list(scratch.iterdir())


def test_a_package_that_is_not_there_is_one_sentence_with_the_way_out(shop, scratch):
    with (
        pytest.raises(UserError, match=r"^tiny-thing==.* could not .*PIP_FIND_LINKS") as caught,
        wheels.opened("tiny-thing", "1.0", None),
    ):
        pytest.fail("the block must not run")
    assert "\n" not in str(caught.value)
    assert not list(scratch.iterdir())


def test_a_source_distribution_is_never_run(shop, scratch):
    import tarfile

    source = shop / "tiny-thing-1.0"
    source.mkdir()
    ran = shop / "ran"
    (source / "theirs.py").write_text(f"open({str(ran)!r}, 'w').close()")
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "theirs"\nbackend-path = ["."]\n'
    )
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
    with tarfile.open(shop / "tiny-thing-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, arcname=source.name)
    with pytest.raises(UserError, match="tiny-thing"), wheels.opened("tiny-thing", "1.0", None):
        pytest.fail("the block must not run")
    assert not ran.exists()


def test_a_full_disk_is_said_as_such():
    with pytest.raises(OSError, match="tiny") as caught:
        wheels._explain("tiny", "ERROR: Could not install: [Errno 28] No space left on device\n")
    assert caught.value.errno == errno.ENOSPC


def test_without_pip_the_refusal_says_how_to_get_it(tmp_path):
    # An interpreter that sees our packages but no pip: -S leaves site-packages out.
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from offsite import errors\nfrom offsite.download import wheels\n"
        "try:\n"
        "    with wheels.opened('tiny-thing', '1.0', None): pass\n"
        "except errors.UserError as error:\n"
        "    sys.exit(str(error))\n"
    )
    import platformdirs
    import rich

    for needed in (rich, platformdirs):  # what wheels needs besides the standard library
        here = Path(needed.__file__).parent
        (tmp_path / here.name).symlink_to(here)
    source = str(Path(wheels.__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, source, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("Downloading tiny-thing==1.0 needs pip")
    assert "ensurepip" in run.stderr
    assert "\n" not in run.stderr.strip()


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_ctrl_c_ends_pip_and_leaves_nothing(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        index = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        settings = {"TMPDIR": str(scratch), "PIP_INDEX_URL": index, "PIP_NO_CACHE_DIR": "1"}
        # Left alone, pip would wait far longer than we do below.
        settings |= {"PIP_CONFIG_FILE": os.devnull, "NO_PROXY": "*", "PIP_TIMEOUT": "300"}
        script = "from offsite.download import wheels\nwith wheels.opened('a-b', '1', None): pass"
        user = subprocess.Popen(
            [sys.executable, "-c", script],
            env={k: v for k, v in os.environ.items() if not k.startswith("PIP_")} | settings,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the signal below reaches our process alone
        )
        connection, _ = server.accept()  # pip is running and waits for an answer that never comes
        with connection:
            connection.settimeout(20)
            user.send_signal(signal.SIGINT)
            _, err = user.communicate(timeout=20)
            while connection.recv(4096):  # ends only when pip, the other side, is gone
                time.sleep(0)
    assert user.returncode != 0
    assert b"KeyboardInterrupt" in err
    assert b"downloading a-b==1" in err
    assert not list(scratch.iterdir())
