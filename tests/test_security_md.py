"""Each promise of SECURITY.md names the test that keeps it, and there is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
CHAPTERS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
PROMISES = [
    " ".join(promise.split())
    for title, chapter in CHAPTERS.items()
    if title.endswith("promised") and "not" not in title.split()
    for promise in re.findall(r"^- (.+?)(?=^- |\Z)", chapter, re.MULTILINE | re.DOTALL)
]


def test_there_are_promises_to_each_and_to_both():
    assert sum(title.endswith("promised") for title in CHAPTERS) == 4
    assert len(PROMISES) >= 12


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: " ".join(promise.split()[:6]))
def test_each_promise_names_tests_that_there_are(promise):
    named = re.findall(r"`(tests/[^`]*)`", promise)
    assert named
    for name in named:
        file, _, test = name.partition("::")
        assert re.search(rf"^ *def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), name


def test_a_file_alone_names_no_test():
    with pytest.raises(AssertionError):
        test_each_promise_names_tests_that_there_are("Promised: `tests/test_security_md.py`.")


def test_every_test_of_privacy_keeps_a_promise():
    written = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests/privacy").glob("test_*.py")}
    assert written <= set(re.findall(r"tests/[\w/]+\.py", " ".join(PROMISES)))


def test_it_is_short_enough_to_be_read_and_names_nobody():
    assert len(TEXT.splitlines()) < 120
    assert not re.search(r"\S@\S+\.\w|https?://", TEXT)


def test_the_options_and_commands_it_names_exist():
    from offsite.cli import app

    known = {command.name for command in app.registered_commands}
    assert set(re.findall(r"`offsite (\w+)", TEXT)) <= known
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/offsite/cli").glob("*.py"))
    for option in re.findall(r"`(?:offsite \w+ )?--([\w-]+)`", TEXT):
        assert f"--{option}" in sources or f" {option.replace('-', '_')}: Annotated" in sources, option
