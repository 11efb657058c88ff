"""Chat templates that look fit: the bundle opens, and the first chats end it in one sentence, soon."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from offsite.bundles.emulator import Emulator
from offsite.data.encoding import encode
from offsite.data.examples import Example, Piece
from offsite.errors import UserError
from offsite.untrusted import chat_renderer
from tests.hostile.runner import honest, memory
from tests.sample_bundles import is_sentence, put
from tests.untrusted.test_chat_renderer import HOGS

CHAT = Example(
    (Piece("w5 w6", False, "user"), Piece("w7", True, "assistant")), closed=False, where="a.jsonl, line 3"
)
MOST_MEGABYTES = 64

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a peak of memory is read from /proc")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    honest(folder := tmp_path_factory.mktemp("chats"))
    return folder / "emulator"


def test_an_honest_template_writes(bundle):
    put(bundle, "chat_template.jinja", "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}")
    assert len(encode([CHAT], Emulator.load(bundle).tokenizer, 100)[0].input_ids) == 5


@pytest.mark.parametrize("name", HOGS)
def test_a_template_that_takes_too_much_is_ended(bundle, name, monkeypatch):
    monkeypatch.setattr(chat_renderer, "_PATIENCE", 1)
    put(bundle, "chat_template.jinja", HOGS[name])
    tokenizer = Emulator.load(bundle).tokenizer
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    before, start = memory("VmRSS"), time.monotonic()
    with pytest.raises(UserError) as caught:
        encode([CHAT] * 5, tokenizer, 100)
    assert time.monotonic() - start < 10
    assert (memory("VmHWM") - before) / 1024 < MOST_MEGABYTES
    said = str(caught.value)
    assert is_sentence(said), said
    assert said.startswith("a.jsonl, line 3: the model's chat template")
