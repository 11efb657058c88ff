"""With the model and the data at hand, no command reaches for the network."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import urllib.request

import pytest

from offsite.cli import app, demo
from offsite.cli.shell import run
from tests.privacy.tell import watched

LOCAL = re.compile(r"AF_UNIX|AF_NETLINK|bind\(.*(127\.0\.0\.1|\"::1\")|sendto\(\d+, .*, NULL, 0\)")
"""Calls that stay in the machine; urllib3, once imported, binds to the loopback to see if there is IPv6."""


@pytest.mark.long
def test_every_command_is_in_the_story(story):
    """A new command is first to be given a line there."""
    ran = {each["line"][0] for each in story.told} | {line[0] for line in demo.story(story.home, quick=True)}
    assert ran == {command.name for command in app.registered_commands}


@pytest.mark.long
def test_no_command_reaches_outwards_or_starts_another_program(story):
    assert {each["line"][0]: each["tried"] for each in story.told if each["tried"]} == {}


@pytest.mark.long
def test_nor_does_the_system_see_any_of_it(story):
    """Whatever the language: strace sees the libraries in C and Rust as well."""
    if story.calls is None:
        pytest.skip("no strace here, or no right to it")
    assert [call for call in story.calls if "AF_" in call and not LOCAL.search(call)] == []


def test_the_libraries_are_told_not_to_tell(monkeypatch):
    """All of what sends telemetry unasked asks one of these first."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    run(app, ["doctor", "--json"])
    assert (os.environ["HF_HUB_DISABLE_TELEMETRY"], os.environ["DO_NOT_TRACK"]) == ("1", "1")


def test_nothing_is_tracked_unless_it_is_asked_for():
    """accelerate starts the trackers that it is given by name, and no others."""
    from offsite.training.config import TrainConfig
    from offsite.training.trackers import tracking

    with tracking(TrainConfig().report_to, {}) as accelerator:
        assert accelerator.trackers == []


def _datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"", ("127.0.0.1", 9))


@pytest.mark.parametrize("reach", [
    lambda: urllib.request.urlopen("http://127.0.0.1:9"),
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: socket.getaddrinfo("localhost", 80),
    _datagram,
    lambda: subprocess.run([sys.executable, "--version"], capture_output=True, check=True),
], ids=["http", "connection", "name", "datagram", "program"])  # fmt: skip
def test_a_command_that_reached_outwards_would_be_caught(reach):
    refusals = (OSError, AssertionError)  # of the watch, and of the suite's own guard
    with watched() as tried, contextlib.suppress(*refusals):
        reach()
    assert tried
