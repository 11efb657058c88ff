"""The fuzzer judges outcomes, and finds nothing wrong in a few cases."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.fuzz.judge import complaints

ROOT = Path(__file__).parents[2]
REFUSED = {
    "code": 2, "err": "offsite: It is no bundle.\n", "out": "", "left": [], "events": [], "seconds": 0.1,
    "clock": 0.1, "mb": 1.0,
    "changed": False, "canary": False, "command": "tune", "sender": "owner", "differs": True,
}  # fmt: skip


def test_a_refusal_in_one_sentence_is_fine():
    assert not list(complaints(REFUSED, 10.0))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("code 1", {"code": 1}),
        ("code -6", {"code": -6}),
        ("no sentence", {"err": "offsite: \n"}),
        ("left behind", {"left": ["out"]}),
        ("steers the terminal", {"err": "offsite: \x1b[2J.\n"}),
        ("leaks", {"err": "Traceback (most recent call last):\noffsite: No.\n"}),
        ("did more", {"events": ["os.system ls"]}),
        ("slow", {"seconds": 31.0}),
        ("large", {"mb": 171.0}),
        ("changed", {"changed": True}),
        ("altered", {"code": 0}),
    ],
)
def test_what_is_wrong_is_named(kind, change):
    assert [each.partition(":")[0] for each in complaints(REFUSED | change, 10.0)] == [kind]


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="a peak of memory is read from /proc")
def test_a_few_cases_are_clean_refusals_and_successes(tmp_path):
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--cases", "48", "--seconds", "0", "--jobs", "2"]
    ran = subprocess.run([*command, "--keep", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    alone = re.search(r"^48 cases in .*, (\d+) of them in a fork of their own", ran.stdout, re.MULTILINE)
    assert alone, ran.stdout
    assert int(alone[1]) < 24  # a busy machine has some; 46 where each batch ends after its first case
