"""What is refused of an untrusted tokenizer, and that what our own bundles hold is not."""

from __future__ import annotations

import json
import sys

import pytest
import transformers as t
from tokenizers import Tokenizer, models

from offsite.bundles.bundle import tokenizer_digest
from offsite.bundles.emulator import Emulator
from offsite.errors import UserError
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from offsite.untrusted import tokenize
from offsite.untrusted import tokenizer as tokenizer_module
from offsite.untrusted.tokenize import token_ids
from offsite.untrusted.tokenizer import VOCABULARY, open_tokenizer
from tests.families import tiny_model, tiny_tokenizer

WORDS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "ab": 6, "<|endoftext|>": 7}
BERT = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5}
HONEST = {
    "fast": tiny_tokenizer,
    "gpt2": lambda: t.GPT2Tokenizer(vocab=WORDS, merges=[("a", "b")]),
    "llama": lambda: t.LlamaTokenizer(vocab=WORDS, merges=[("a", "b")]),
    "gemma": lambda: t.GemmaTokenizer(vocab=WORDS, merges=[("a", "b")]),
    "qwen2": lambda: t.Qwen2Tokenizer(vocab=WORDS, merges=[("a", "b")]),
    "gpt_neox": lambda: t.GPTNeoXTokenizer(vocab=WORDS, merges=[("a", "b")]),
    "bert": lambda: t.BertTokenizer(vocab=BERT),
}


def _saved(folder, tokenizer):
    tokenizer.save_pretrained(folder)
    return folder


def _settings(folder, **changes):
    file = _saved(folder, tiny_tokenizer()) / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize("kind", HONEST)
def test_what_transformers_writes_is_taken(tmp_path, kind):
    tokenizer = HONEST[kind]()
    tokenizer.add_tokens(["<extra>"])
    _saved(tmp_path, tokenizer)
    assert {file.name for file in tmp_path.iterdir()} <= VOCABULARY
    assert tokenizer_digest(open_tokenizer(tmp_path, len(tokenizer))) == tokenizer_digest(tokenizer)


def test_one_written_in_python_is_refused_on_both_sides(tmp_path):
    """It would read the data owner's texts in the data owner's process, without limits."""
    tokenizer = t.ByT5Tokenizer()
    _saved(tmp_path / "theirs", tokenizer)
    with pytest.raises(
        UserError, match=r"theirs: ByT5Tokenizer is written in Python .* needs a tokenizer\.json"
    ):
        open_tokenizer(tmp_path / "theirs", len(tokenizer))
    emulator = build(tiny_model("llama"), Split(1, 1), (Place(3),), tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"The model: ByT5Tokenizer is written in Python"):
        emulator.save(tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_bundle_of_each_family_opens_with_its_tokenizer(tmp_path, family):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    build(tiny_model(family), Split(1, 1), (Place(3), Place(4)), tokenizer=tokenizer).save(tmp_path / "sent")
    assert "special_tokens_map.json" not in {file.name for file in (tmp_path / "sent").iterdir()}
    opened = Emulator.load(tmp_path / "sent").tokenizer
    assert opened.chat_template == tokenizer.chat_template
    assert opened.special_tokens_map == tokenizer.special_tokens_map


@pytest.mark.parametrize("as_text", [True, False])
def test_as_many_merges_as_large_honest_ones_have_are_taken(tmp_path, as_text):
    """Two a word, as of Llama 3, o200k and Gemma, and several marks each."""
    letters = [chr(0x4E00 + number) for number in range(25)]
    pairs = [(one, two) for one in letters for two in letters]
    merges = [*pairs, *((one + two, three) for one, two in pairs for three in letters)]
    merges += [(one, two + three) for one, two in pairs for three in letters]
    words = {word: number for number, word in enumerate([*letters, *dict.fromkeys(map("".join, merges))])}
    _saved(tmp_path, t.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(words, merges))))
    file = tmp_path / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"]["merges"] = [" ".join(pair) if as_text else pair for pair in merges]
    file.write_text(json.dumps(data))
    assert len(open_tokenizer(tmp_path, len(words))) == len(words)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "vocab.json"])
def test_values_without_end_are_refused_whatever_file_they_stand_in(tmp_path, name):
    _saved(tmp_path, tiny_tokenizer())
    (tmp_path / name).write_text('{"x": [' + "[]," * 12_000 + "0]}")
    with pytest.raises(UserError, match=rf"{name} holds more than 22048 values, too many for 128 words"):
        open_tokenizer(tmp_path, 128)


def test_lines_without_end_are_refused(tmp_path):
    _saved(tmp_path, tiny_tokenizer())
    (tmp_path / "vocab.txt").write_text("\n".join(map(str, range(30_000))))
    with pytest.raises(UserError, match=r"vocab.txt holds more than"):
        open_tokenizer(tmp_path, 128)


@pytest.mark.parametrize(
    "settings",
    [
        {"fast_tokenizer_files": ["../x.json"]},
        {"vocab": "/etc/passwd"},
        {"merges": "/etc/passwd"},
        {"init_inputs": ["/etc/passwd"]},
        {"gguf_file": "/etc/passwd"},
        {"sp_model_kwargs": {"model_file": "/etc/passwd"}},
        {"sudachi_kwargs": {"sudachi_config_path": "x", "sudachi_resource_dir": "y"}},
    ],
    ids=str,
)
def test_settings_that_name_files_are_refused(tmp_path, settings):
    with pytest.raises(UserError, match=r"asks for '.*': code and files from elsewhere are refused"):
        open_tokenizer(_settings(tmp_path, **settings), 128)


def test_a_name_and_tokens_are_no_files(tmp_path):
    open_tokenizer(_settings(tmp_path, name_or_path="x/y", extra_special_tokens=["<a_file>"]), 128)


@pytest.mark.parametrize("said", ["AutoConfig", "Trainer", "AutoModelForCausalLM", "../x.Tokenizer", 5])
def test_the_class_that_a_config_names_is_looked_at_too(tmp_path, said):
    _settings(tmp_path, tokenizer_class=None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "tokenizer_class": said}))
    with pytest.raises(UserError, match=r"config.json names .* for a tokenizer_class"):
        open_tokenizer(tmp_path, 128)


def test_added_tokens_have_numbers(tmp_path):
    _saved(tmp_path, tiny_tokenizer())
    (tmp_path / "added_tokens.json").write_text('{"a": "b"}')
    with pytest.raises(UserError, match=r"added_tokens.json adds a token .* no number"):
        open_tokenizer(tmp_path, 128)


def test_a_template_from_wherever_is_looked_at(tmp_path):
    """special_tokens_map.json, which `Emulator.load` refuses by its name, would replace the one looked at."""
    _saved(tmp_path, tiny_tokenizer())
    (tmp_path / "special_tokens_map.json").write_text('{"chat_template": "{{ lipsum() }}"}')
    with pytest.raises(UserError, match="'lipsum'"):
        open_tokenizer(tmp_path, 128)


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere nothing is opened in a copy of the process first"
)
def test_a_library_that_panics_as_it_opens_is_not_seen(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tokenizer_module, "_check_character_table", lambda *_: None)
    file = _saved(tmp_path, tiny_tokenizer()) / "tokenizer.json"
    table = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": table}))
    with pytest.raises(UserError, match=r"the tokenizer cannot be read \("):
        open_tokenizer(tmp_path, 128)
    assert capfd.readouterr().err == ""


def test_what_is_opened_is_read_in_the_worker(tmp_path):
    opened = open_tokenizer(_saved(tmp_path, tiny_tokenizer()), 128)
    assert token_ids(opened, ["w5 w6"]) == [[5, 6]]
    assert opened in tokenize._workers
