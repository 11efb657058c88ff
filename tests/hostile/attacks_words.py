"""More attacks by an emulator's tokenizer: files and classes from elsewhere, slow patterns, floods."""

from __future__ import annotations

import json
import shutil

import torch
import transformers as t

from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from tests.families import tiny_tokenizer
from tests.hostile.attacks_tokenizer import FILE, backend, settings, split
from tests.hostile.corpus import attack, read_json
from tests.sample_bundles import edit_json, put

MAP = "special_tokens_map.json"
MANY = 150_000  # words, as a large honest model has
ELSEWHERE = "code and files from elsewhere"


def outside(folder, name):
    """Another tokenizer, beside the bundle; what takes it up knows one word fewer."""
    data = read_json(folder / "tokenizer.json")
    del data["model"]["vocab"]["w127"]
    (folder.parent / name).mkdir()
    file = folder.parent / name / "tokenizer.1.0.json"
    file.write_text(json.dumps(data))
    return file


def special(**words):
    return lambda folder: put(folder, MAP, json.dumps(words))


def elsewhere(key, wrap=lambda path: path):
    """Settings that name a file beside the bundle."""
    return lambda folder: edit_json(folder, FILE, **{key: wrap(str(outside(folder, "elsewhere")))})


def config_class(said):
    def alter(folder):
        edit_json(folder, FILE, tokenizer_class=None)
        edit_json(folder, "config.json", tokenizer_class=said)

    return alter


def wide(alter):
    """An attack on a bundle of many words, so that what is bound by their number is not bound by a few."""

    def altered(folder):
        config = t.LlamaConfig(
            vocab_size=MANY, hidden_size=4, intermediate_size=4, num_hidden_layers=4, num_attention_heads=1,
            tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(0)
        model = t.AutoModelForCausalLM.from_config(config)
        shutil.rmtree(folder)
        build(model, Split(1, 1), (Place(1),), tokenizer=tiny_tokenizer()).save(folder)
        alter(folder)

    return altered


def flood(name, values, start='{"x": [', end="0]}"):
    """A file of the `values` that this function makes: megabytes, so not before the attack runs."""
    return lambda folder: put(folder, name, start + values() + end)


for _name, _why, _alter in [
    ("a template among the special tokens", MAP, special(chat_template="{{ 1 }}")),
    ("a file from elsewhere among the special tokens", MAP, special(tokenizer_file="/etc/passwd")),
    ("special tokens in a file of their own", MAP, special(pad_token="<pad>")),
    ("a backend of another version", ELSEWHERE, elsewhere("fast_tokenizer_files", lambda path: [path])),
    ("a backend of another version nearby", ELSEWHERE,
     settings(fast_tokenizer_files=["../elsewhere/tokenizer.1.0.json"])),
    ("a vocabulary that is a path", ELSEWHERE, elsewhere("vocab")),
    ("merges that are a path", ELSEWHERE, elsewhere("merges")),
    ("arguments without names", ELSEWHERE, elsewhere("init_inputs", lambda path: [path])),
    ("a file from elsewhere for a library", ELSEWHERE,
     elsewhere("sp_model_kwargs", lambda path: {"model_file": path})),
    ("a class in the config", "config.json.*tokenizer_class", config_class("AutoConfig")),
    ("a trainer in the config", "config.json.*tokenizer_class", config_class("Trainer")),
    ("a path in the config", "config.json.*tokenizer_class", config_class("evil/repo--evil.Evil")),
    ("a pattern of four stars", r"\[\^0\]\*", backend(pre_tokenizer=split("[^0]*[^0]*[^0]*[^0]*0[xy]"))),
    ("a pattern of two stars that fails", r"\[\^0\]\*", backend(pre_tokenizer=split("[^0]*[^0]*0[xy]"))),
    ("a pattern of bounds", "a.0,9999", backend(pre_tokenizer=split("a{0,9999}a{0,9999}b"))),
    ("a pattern of choices", "a.aa", backend(pre_tokenizer=split("(?:a|aa)" * 30 + "b"))),
    ("a pattern of doubts", "a.a.a", backend(pre_tokenizer=split("a?" * 30 + "a" * 30))),
    ("a pattern that repeats a repeat", "a.1,3", backend(pre_tokenizer=split("a{1,3}+$"))),
    ("a normalizer of four stars", r"\[\^0\]\*",
     backend(normalizer={"type": "Replace", "pattern": {"Regex": "[^0]*[^0]*[^0]*0[xy]"}, "content": ""})),
    ("a flood of lists", "tokenizer.json", wide(flood("tokenizer.json", lambda: "[]," * 8_300_000))),
    ("a flood of objects", "tokenizer.json", wide(flood("tokenizer.json", lambda: '{"a":1},' * 3_000_000))),
    ("a flood of lines", "vocab.txt",
     wide(flood("vocab.txt", lambda: "\n".join(map(str, range(3_000_000))), "", ""))),
    ("a flood of words", "vocab.json",
     wide(flood("vocab.json", lambda: ",".join(f'"{n}":0' for n in range(2_500_000)), "{", "}"))),
    ("a token without a number", "added_tokens.json", lambda f: put(f, "added_tokens.json", '{"x": "y"}')),
]:  # fmt: skip
    _alter.__name__ = _name
    attack("emulator", _why)(_alter)
