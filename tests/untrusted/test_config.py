"""What an untrusted config may describe, and that what would take too much is refused before it does."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import pytest
import transformers as t

from offsite.errors import UserError
from offsite.untrusted import fork
from offsite.untrusted.config import config_and_skeleton
from tests.families import FAMILIES
from tests.hostile.runner import memory
from tests.sample_bundles import is_sentence

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the limits")
DIFFLLAMA = t.DiffLlamaConfig(
    vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=2,
    num_key_value_heads=2, head_dim=40_000_000,
)  # fmt: skip
HRM = t.HrmTextConfig(
    vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=2,
    num_key_value_heads=2,
)  # fmt: skip
HUGE = {"diffllama": json.loads(DIFFLLAMA.to_json_string()),
        "hrm_text": json.loads(HRM.to_json_string()) | {"H_cycles": 200_000_000}}  # fmt: skip


def _llama(**changes):
    return json.loads(FAMILIES["llama"]().to_json_string()) | changes


@LINUX
@pytest.mark.parametrize("kind", HUGE)
def test_what_takes_too_much_to_build_is_refused_in_a_copy_of_this_process(kind, monkeypatch):
    monkeypatch.setattr(fork, "_SECONDS", 4)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    before, start = memory("VmRSS"), time.monotonic()
    with pytest.raises(UserError) as caught:
        config_and_skeleton(HUGE[kind], 40, 100_000)
    assert f"The {kind} model that the config describes takes more than" in str(caught.value)
    assert is_sentence(str(caught.value)), str(caught.value)
    assert time.monotonic() - start < 15
    assert memory("VmHWM") - before < 64 * 1024


@LINUX
def test_a_process_that_takes_too_much_or_dies_is_refused(monkeypatch):
    monkeypatch.setattr(fork, "_SECONDS", 1)

    def forever():
        while True:
            pass

    for build in (forever, lambda: b"x" * (1 << 30), lambda: os.kill(os.getpid(), 9), lambda: time.sleep(60)):
        with pytest.raises(UserError, match=r"The thing takes more than 1 seconds or 384 MiB to build"):
            fork.try_first(build, "The thing", b"what it is made of")


def test_what_goes_well_leaves_no_process_and_no_setting_behind(monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    fork.try_first(lambda: os.write(1, b"unseen"), "The thing", b"seen by none")
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    with contextlib.suppress(ChildProcessError):  # none at all
        assert os.waitpid(-1, os.WNOHANG) == (0, 0), "none that has ended"


@LINUX
def test_what_went_well_is_not_tried_again_and_what_was_refused_is(monkeypatch):
    forks, fork_once = [], os.fork
    monkeypatch.setattr(os, "fork", lambda: forks.append(1) or fork_once())
    for _ in range(3):
        fork.try_first(lambda: None, "The thing", b"sound")
        with pytest.raises(UserError, match="It cannot be built"):
            fork.try_first(lambda: 1 / 0, "The thing", b"unsound")
    assert len(forks) == 1 + 3


@pytest.mark.parametrize(("changes", "why"), [
    ({"return_dict": False}, "'return_dict' to False, where True is needed"),
    ({"attention_dropout": -1}, "'attention_dropout' to -1, which is not in"),
    ({"attention_dropout": 1.5}, "'attention_dropout' to 1.5, which is not in"),
    ({"intermediate_size": 0}, r"holds nothing"),
    ({"pad_token_id": 128}, r"describes no llama .*[Pp]ad"),
], ids=str)  # fmt: skip
def test_values_with_which_no_model_runs_are_refused(changes, why):
    with pytest.raises(UserError, match=why) as caught:
        config_and_skeleton(_llama(**changes), 40, 100_000)
    assert is_sentence(str(caught.value)), str(caught.value)


def test_honest_values_are_taken(family):
    data = json.loads(FAMILIES[family]().to_json_string())
    assert config_and_skeleton(data, 40, 100_000)[0].model_type == data["model_type"]
