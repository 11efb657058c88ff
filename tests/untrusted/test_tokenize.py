"""An untrusted tokenizer reads as in this process, within limits, and fails in one sentence and in silence."""

from __future__ import annotations

import base64
import copy
import gc
import json
import os
import struct
import subprocess
import sys
import time

import pytest
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from offsite.data.blocks import blocks
from offsite.data.encoding import encode
from offsite.errors import UserError
from offsite.untrusted import sandbox, tokenize
from offsite.untrusted.tokenize import encode_batch, mark_untrusted, token_ids
from tests.data.test_examples import _pair, _tokenizer
from tests.families import tiny_tokenizer
from tests.sample_bundles import is_sentence

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a limit of memory")
TEXTS = ["", "größe \N{GRINNING FACE} ok", "w5 w6\n\n w7", "</s> w8 <s>", " ", "x" * 3000, "w9\x00w9"]


def _bytes_tokenizer():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([str(number) * 3 for number in range(300)], trainer)
    ends = [("<s>", 0), ("</s>", 1)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


HONEST = {"words": tiny_tokenizer, "pieces": _tokenizer, "bytes": _bytes_tokenizer}


def _untrusted(tokenizer, **parts):
    """A tokenizer with some parts of its tokenizer.json replaced, as one that came in a bundle."""
    data = json.loads(tokenizer.backend_tokenizer.to_str()) | parts
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)), eos_token="</s>")
    mark_untrusted(made)
    return made


def _charsmap(growth):
    """A compiled normalizer that writes `growth` letters for each "a": a trie of one key, and its value."""
    words = b"b" * growth + b"\0"
    size = 512
    trie = [0] * size
    root, key = 256, ord("a")
    trie[0] = root << 10  # the offset of the children of the root
    child = root ^ key
    leaf = child ^ 1
    trie[child] = key | (1 << 8) | (1 << 10)  # its label, that it ends a key, and the offset of its value
    trie[leaf] = 1 << 31  # the value: where the replacement begins
    return base64.b64encode(struct.pack("<I", 4 * size) + struct.pack(f"<{size}I", *trie) + words).decode()


@pytest.mark.parametrize("kind", HONEST)
@pytest.mark.parametrize("special", [True, False])
def test_the_worker_tokenises_as_this_process_does(kind, special):
    ours = HONEST[kind]()
    theirs = copy.deepcopy(ours)
    mark_untrusted(theirs)
    for texts in (TEXTS, TEXTS[:1], []):
        assert token_ids(theirs, texts, special=special) == token_ids(ours, texts, special=special)
        assert encode_batch(theirs, texts, special=special) == encode_batch(ours, texts, special=special)
    plain = ours(TEXTS, add_special_tokens=special, return_offsets_mapping=True)
    assert [list(each) for each in zip(*encode_batch(theirs, TEXTS, special=special), strict=True)] == [
        plain["input_ids"], plain["offset_mapping"],
    ]  # fmt: skip


def test_many_texts_are_sent_in_batches_to_one_worker_that_ends_with_its_tokenizer(monkeypatch):
    started = []
    real = subprocess.Popen
    monkeypatch.setattr(
        sandbox.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1]
    )
    monkeypatch.setattr(tokenize, "_BATCH_TEXTS", 7)
    theirs = _untrusted(tiny_tokenizer())
    texts = [f"w{4 + number % 100} w5" for number in range(50)]
    assert token_ids(theirs, texts) == token_ids(tiny_tokenizer(), texts)
    theirs.add_tokens(["<new>"])
    assert token_ids(theirs, ["<new>"]) == [[128]]
    assert len(started) == 2, "one, and one after the tokenizer grew"
    del theirs
    gc.collect()
    assert all(each.poll() is not None for each in started)


def _failing(kind):
    """A tokenizer that opens and fails on texts: the first panics, the second raises."""
    if kind == "panic":
        processor = {
            "type": "TemplateProcessing", "pair": [], "special_tokens": {},
            "single": [{"SpecialToken": {"id": "none", "type_id": 0}}],
        }  # fmt: skip
        return _untrusted(_tokenizer(), post_processor=processor)
    return _untrusted(_tokenizer(), model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "none"})


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


def test_ones_own_tokenizer_that_fails_is_refused_too():
    own = _tokenizer()
    own.backend_tokenizer.model = models.WordLevel({"a": 0}, unk_token="none")
    with pytest.raises(UserError, match=r"A text: the model's tokenizer fails on it"):
        token_ids(own, ["b"])


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
SLOW = {
    "backtracks": (
        {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(?x)(?:a |aa)+ [^a!]"}}}, ("a" * 28 + "!") * 1500
    ),
    "is cubic": ({"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(?:x*x)(?:x*y)"}}}, "x" * 8000),
    "looks up every piece": (
        {"model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "x": 2, "##x": 1}, "unk_token": "[UNK]",
                   "max_input_chars_per_word": 10**9, "continuing_subword_prefix": "##"},
         "pre_tokenizer": None, "normalizer": None}, "x" * 6000),
}  # fmt: skip


@pytest.mark.parametrize("kind", SLOW)
def test_a_row_that_takes_too_long_is_named(kind, monkeypatch):
    """Such patterns are refused when a bundle is opened; here they are met by the limit alone."""
    monkeypatch.setattr(tokenize, "_PATIENCE", 1)
    monkeypatch.setattr(tokenize, "_PATIENCE_WITH_ONE", 1)
    parts, text = SLOW[kind]
    theirs, start = _untrusted(tiny_tokenizer(), **parts), time.monotonic()
    with pytest.raises(
        UserError, match=r"row 2: this emulator's tokenizer needs more than \d seconds for it"
    ) as caught:
        token_ids(theirs, ["", text, ""], where=["row 1", "row 2", "row 3"])
    assert is_sentence(str(caught.value))
    assert time.monotonic() - start < 20


@LINUX
@pytest.mark.parametrize("growth", [100_000, 2_000_000])
def test_a_row_that_takes_too_much_memory_is_named(growth):
    theirs = _untrusted(
        tiny_tokenizer(), normalizer={"type": "Precompiled", "precompiled_charsmap": _charsmap(growth)}
    )
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        token_ids(theirs, ["w5", "a" * 540, "w6"], where=["row 1", "row 2", "row 3"])
    assert str(caught.value).startswith("row 2: this emulator's tokenizer needs more than 512 MiB for it;")
    assert time.monotonic() - start < 20


def test_a_worker_that_died_is_started_anew():
    theirs = _untrusted(tiny_tokenizer())
    first = token_ids(theirs, ["w5"])
    tokenize._workers[theirs][0]._process.kill()
    tokenize._workers[theirs][0]._process.wait()
    assert token_ids(theirs, ["w5"]) == first


def test_nothing_of_the_whole_process_is_changed(capfd):
    """The screen stays where it was while a tokenizer reads."""
    theirs, before = _untrusted(tiny_tokenizer()), os.fstat(2)
    token_ids(theirs, ["w5"])
    assert os.fstat(2) == before


def test_a_tokenizer_of_python_reads_here_and_tells_no_offsets():
    theirs = t.ByT5Tokenizer()
    mark_untrusted(theirs)
    assert token_ids(theirs, ["ab"], special=False) == [[100, 101]]
    with pytest.raises(UserError, match=r"row 1: the model's tokenizer does not say where its tokens stand"):
        encode_batch(theirs, ["ab"], where="row 1")
