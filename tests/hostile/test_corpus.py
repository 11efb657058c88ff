"""Every attack of the corpus is refused in one sentence, early, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from tests.hostile.all import ATTACKS
from tests.sample_bundles import is_sentence

MOST_MEGABYTES = 64  # over what the bundle's files have
LONGEST = 400


def complaints(told):
    """What is wrong with how one attack ended."""
    said = told["said"]
    if told["error"] != "UserError":
        yield f"ended in {told['error'] or 'success'}: {said[:200]!r}"
    elif not (is_sentence(said) and said.isprintable() and len(said) <= LONGEST):
        yield f"is refused, but in no plain sentence: {said!r}"
    elif not re.search(told["why"], said):
        yield f"is refused for something else than {told['why']!r}: {said!r}"
    for way in ("", "cli_"):
        if told.get(f"{way}mb", 0) > told["declared"] + MOST_MEGABYTES:
            yield f"took {told[f'{way}mb']} MB for a bundle of {told['declared']}"
        if told.get(f"{way}leaked"):
            yield f"let something through to the screen: {told[f'{way}leaked']!r}"
        if told.get(f"{way}events"):
            yield f"had something done: {told[f'{way}events']}"
    if told["changed"] or told["canary"]:
        yield f"left something behind: {told['changed'][:5]}"
    if told.get("code", 2) != 2 or told.get("out"):
        yield f"ended the command with {told['code']}: {told['out']!r} {told['err']!r}"
    elif "err" in told and not told["err"].removesuffix("\n").isprintable():
        yield f"reached the terminal: {told['err']!r}"


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="a process's peak of memory is read from /proc")
def test_every_attack_is_refused_in_one_sentence_early_and_leaves_nothing(tmp_path):
    free = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment = free | {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path), "RUST_BACKTRACE": "0"}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.hostile.runner", str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [each["name"] for each in told] == [each.name for each in ATTACKS]
    wrong = [f"{each['name']} {what}" for each in told for what in complaints(each)]
    assert not wrong, "\n".join(wrong)


def test_the_corpus_is_as_large_as_promised():
    kinds = Counter(each.kind for each in ATTACKS)
    assert kinds["emulator"] >= 60
    assert kinds["adapter"] + kinds["lora"] >= 60
