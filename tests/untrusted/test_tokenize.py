"""A tokenizer that fails on a text is refused in one sentence, whatever its library shouts."""

from __future__ import annotations

import json
import os
import sys
import tempfile

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from offsite.data.encoding import blocks, encode
from offsite.errors import UserError
from offsite.untrusted.tokenize import hushed
from tests.data.test_examples import _pair, _tokenizer


def _failing(kind):
    """A tokenizer that opens and fails on texts: the first panics, the second raises."""
    made = _tokenizer()
    data = json.loads(made.backend_tokenizer.to_str())
    if kind == "panic":
        data["post_processor"] = {
            "type": "TemplateProcessing", "pair": [], "special_tokens": {},
            "single": [{"SpecialToken": {"id": "none", "type_id": 0}}],
        }  # fmt: skip
    else:
        data["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "none"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)), eos_token="</s>")


@pytest.mark.parametrize("kind", ["panic", "exception"])
@pytest.mark.parametrize("use", [
    lambda failing: encode([_pair("p", " c")], failing, 100),
    lambda failing: blocks(["some text"], failing, 8, None),
], ids=["encode", "blocks"])  # fmt: skip
def test_a_tokenizer_that_fails_on_a_text_is_refused_in_silence(kind, use, capfd):
    failing = _failing(kind)
    with pytest.raises(UserError, match=r"the model's tokenizer fails on it \(.*\); ask its sender") as caught:
        use(failing)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_python_may_speak_while_libraries_are_hushed(capfd):
    with capfd.disabled(), tempfile.TemporaryFile() as screen:
        kept = os.dup(2)
        os.dup2(screen.fileno(), 2)
        shown, sys.stderr = sys.stderr, os.fdopen(2, "w", closefd=False)
        try:
            with hushed():
                sys.stderr.write("a bar")
                os.write(2, b"a panic")
            sys.stderr.write(" and on")
            sys.stderr.flush()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            sys.stderr = shown
        screen.seek(0)
        assert screen.read() == b"a bar and on"
