"""What an emulator bundle must be: plain or not, whole, and harmless to the one who opens it."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
import transformers as t

from offsite.bundles.emulator import Emulator, is_emulator
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from tests.families import tiny_model, tiny_tokenizer
from tests.sample_bundles import edit_card, edit_json, edit_tensors, put, refusal, sign

SPLIT = Split(1, 1)
DROP = tuple(map(Place, (2, 4)))
SHARE = tuple(map(Place, (2, 2, 4)))
UP = "model.layers.1.mlp.up_proj.weight"


def emulator(blueprint=DROP, tokenizer=None):
    return build(tiny_model("llama"), SPLIT, blueprint, tokenizer=tokenizer or tiny_tokenizer())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulators")
    emulator(DROP).save(folder / "plain")
    emulator(SHARE).save(folder / "native")
    return folder


@pytest.fixture
def plain(saved, tmp_path):
    return shutil.copytree(saved / "plain", tmp_path / "emulator")


@pytest.fixture
def native(saved, tmp_path):
    return shutil.copytree(saved / "native", tmp_path / "emulator")


def edit(name, make):
    def change(tensors):
        tensors[name] = make(tensors[name])

    return lambda folder: edit_tensors(folder, change)


def rename(old, new):
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({new: tensors.pop(old)}))


def spoilt(value):
    def make(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return edit(UP, make)


def config(**changes):
    return lambda folder: edit_json(folder, "config.json", **changes)


def another_config(new):
    return lambda folder: put(folder, "config.json", new.to_json_string())


def tokenizer_config(**changes):
    return lambda folder: edit_json(folder, "tokenizer_config.json", **changes)


def tokenizer(**changes):
    return lambda folder: edit_json(folder, "tokenizer.json", **changes)


def another_vocabulary(folder):
    data = json.loads((folder / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    vocab["w10"], vocab["w11"] = vocab["w11"], vocab["w10"]
    put(folder, "tokenizer.json", json.dumps(data))


def gone(name):
    def alter(folder):
        (folder / name).unlink()
        sign(folder)

    return alter


def cut(folder):
    file = folder / "model.safetensors"
    put(folder, file.name, file.read_bytes()[:-4])


def alias(**names):
    return lambda folder: edit_card(folder, same_as=names)


WEIGHTS = {
    "NaN": (spoilt(float("nan")), f"'{UP}' holds NaN or infinity"),
    "infinity": (spoilt(float("inf")), f"'{UP}' holds NaN or infinity"),
    "whole numbers": (edit(UP, lambda x: x.to(torch.int32)), "is of type I32"),
    "double precision": (edit(UP, lambda x: x.double()), "is of type F64"),
    "another precision than the rest": (
        edit(UP, lambda x: x.bfloat16()),
        "torch.bfloat16 .* says torch.float32",
    ),
    "a shape turned round": (edit(UP, lambda x: x.T.contiguous()), "would fit the linears around it"),
    "a row too many": (edit(UP, lambda x: torch.cat([x, x[:1]])), r"\(65, 32\)"),
    "a tensor less": (lambda f: edit_tensors(f, lambda x: x.pop(UP)), f"'{UP}' is missing"),
    "a tensor more": (
        lambda f: edit_tensors(f, lambda x: x.update(extra=torch.ones(1))),
        "'extra' does not belong",
    ),
    "a tensor renamed": (
        rename(UP, UP.replace("up", "upp")),
        "'.*upp?_proj.weight' (is missing|does not belong)",
    ),
    "an endless name": (rename(UP, "x" * 10**5), "does not belong|is missing"),
    "a safetensors file cut short": (cut, "not a readable safetensors file"),
    "no safetensors file": (lambda f: put(f, "model.safetensors", "PK\x03\x04 no tensors"), "not a readable"),
    "an endless header": (
        lambda f: put(f, "model.safetensors", b"\xff" * 64),
        "not a readable safetensors file",
    ),
    "both kinds of weights": (
        lambda f: shutil.copy(f / "model.safetensors", f / "emulator.safetensors") and sign(f),
        "has config.json and",
    ),
    "no weights": (gone("model.safetensors"), "an emulator has config.json and"),
    "a pickle": (lambda f: put(f, "pytorch_model.bin", b"\x80\x04."), "'pytorch_model.bin' is a pickle"),
    "code": (lambda f: put(f, "modeling_evil.py", "import os"), "'modeling_evil.py', which no emulator"),
}
ALIASES = {
    "of a tensor that is not there": (alias(**{"lm_head.weight": "nowhere"}), "the same as 'nowhere'"),
    "in a ring": (alias(**{"lm_head.weight": "a", "a": "lm_head.weight"}), "'a' does not belong|the same as"),
    "of itself": (alias(**{"lm_head.weight": "lm_head.weight"}), "the same as 'lm_head.weight'"),
    "of another shape": (alias(**{"lm_head.weight": UP}), r"\(64, 32\) where the config says .* \(128, 32\)"),
    "of a name the model lacks": (alias(extra=UP, **{"lm_head.weight": UP}), "'extra' does not belong"),
    "beside the tensor itself": (
        alias(**{"lm_head.weight": "model.embed_tokens.weight", UP: "model.layers.2.mlp.up_proj.weight"}),
        f"'{UP}' is said to be the same",
    ),
    "left out": (alias(), "'lm_head.weight' is missing"),
}
CONFIGS = {
    "a billion layers": (config(num_hidden_layers=10**9), "'num_hidden_layers' is above 100000"),
    "layers past all numbers": (config(num_hidden_layers=10**400), "'num_hidden_layers' is above 100000"),
    "ten thousand layers": (config(num_hidden_layers=10**4), "far larger than the weights beside it"),
    "one layer more": (config(num_hidden_layers=5), "'model.layers.4.input_layernorm.weight' is missing"),
    "one layer less": (config(num_hidden_layers=3), "'model.layers.3.input_layernorm.weight' does not belong"),
    "no layer": (config(num_hidden_layers=0), "has no middle"),
    "fewer layers than none": (config(num_hidden_layers=-1), "no single stack of decoder layers"),
    "half a layer": (config(num_hidden_layers=2.5), "describes no llama model"),
    "a billion layers, counted one by one": (
        lambda f: put(f, "config.json", '{"model_type": "qwen2", "num_hidden_layers": 1000000000}'),
        "is above 100000",
    ),
    "a billion layers inside": (config(text_config={"n_layers": 10**9}), "'n_layers' is above 100000"),
    "a million experts": (
        another_config(t.JambaConfig(num_experts=10**6, num_hidden_layers=4)),
        "far more than honest ones do",
    ),
    "a vocabulary past all memory": (
        config(vocab_size=10**13),
        "far more than honest ones do",
    ),
    "positions past all memory": (
        another_config(t.GPTJConfig(n_layer=2, n_embd=32, n_head=2, n_positions=10**9, rotary_dim=8)),
        "tables of",
    ),
    "a type that is not known": (config(model_type="evil"), "does not know the model type 'evil'"),
    "a type that is no string": (config(model_type=["llama"]), "does not know the model type"),
    "a type that is no language model": (config(model_type="vit"), "describes no vit model"),
    "an encoder and a decoder": (another_config(t.T5Config(num_layers=2)), "describes no t5 model"),
    "another family": (
        another_config(t.GPT2Config(n_layer=4, n_embd=32, n_head=4)),
        "is missing|does not belong",
    ),
    "heads that do not divide": (config(num_attention_heads=3), "describes no llama model"),
    "no heads": (config(num_attention_heads=0), "describes no llama model"),
    "a function of its own": (config(hidden_act="__import__('os')"), "describes no llama model"),
    "a precision of its own": (config(dtype="load"), "describes no llama model"),
    "a method's name": (config(to_dict=5), "'to_dict', which is a method and no setting"),
    "remote code": (config(auto_map={"AutoConfig": "evil.Evil"}), "asks for 'auto_map': remote code"),
    "remote code deep inside": (config(x=[{"y": {"auto_map": {}}}]), "asks for 'auto_map': remote code"),
    "a remote kernel": (config(attn_implementation="evil/kernel"), "'attn_implementation': remote code"),
    "a remote kernel underneath": (
        config(_attn_implementation="evil/kernel"),
        "'_attn_implementation': remote",
    ),
    "quantised weights": (
        config(quantization_config={"quant_method": "gptq"}),
        "'quantization_config': remote",
    ),
    "lists without end": (lambda f: put(f, "config.json", '{"a":' + "[" * 10**6), "not sound JSON"),
    "a key twice": (lambda f: put(f, "config.json", '{"model_type": "x", "model_type": "y"}'), "stands twice"),
    "a list": (lambda f: put(f, "config.json", "[]"), "holds no JSON object"),
    "no JSON": (lambda f: put(f, "config.json", "import os"), "not sound JSON"),
    "20 MB": (lambda f: put(f, "config.json", b" " * (20 << 20)), "larger than any honest one"),
    "none": (gone("config.json"), "an emulator has config.json and"),
    "generation by a list": (lambda f: put(f, "generation_config.json", "[]"), "holds no JSON object"),
    "generation without sense": (
        lambda f: edit_json(f, "generation_config.json", max_new_tokens="many"),
        "not a sound one",
    ),
    "a split past its layers": (lambda f: edit_origin(f, split={"bottom": 3, "top": 1}), "has no middle"),
    "a name that steers the terminal": (lambda f: edit_card(f, method="\x1b[2J"), "method"),
}


TOKENIZERS = {
    "remote code": (tokenizer_config(auto_map={"AutoTokenizer": ["evil.E", None]}), "asks for 'auto_map'"),
    "a file from elsewhere": (tokenizer_config(tokenizer_file="/etc/passwd"), "asks for 'tokenizer_file'"),
    "a vocabulary from elsewhere": (tokenizer_config(vocab_file="/etc/passwd"), "asks for 'vocab_file'"),
    "a class that is no name": (tokenizer_config(tokenizer_class=5), "none of transformers' own"),
    "a token that is no text": (tokenizer_config(pad_token=5), "cannot be read"),
    "a config that is a list": (lambda f: put(f, "tokenizer_config.json", "[]"), "holds no JSON object"),
    "no JSON": (lambda f: put(f, "tokenizer.json", "{"), "not sound JSON"),
    "another kind of model": (tokenizer(model={"type": "Evil"}), "cannot be read"),
    "a bad pattern": (
        tokenizer(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
        ),
        "cannot be read",
    ),
    "what makes the library panic": (
        tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "table of characters that is cut short|cannot be read",
    ),
    "words exchanged": (another_vocabulary, "not the one that the card names"),
    "none, where one was sent": (gone("tokenizer_config.json"), "not the one that the card names"),
    "none of its words": (gone("tokenizer.json"), "cannot be read|not the one that the card names"),
}


def edit_origin(folder, **changes):
    card = json.loads((folder / "card.json").read_text())
    edit_card(folder, origin=card["origin"] | changes)


def check(folder, case, cases):
    alter, why = cases[case]
    alter(folder)
    said = refusal(Emulator.load, folder)
    assert re.search(why, said), said


@pytest.mark.parametrize("case", WEIGHTS)
def test_odd_weights_are_refused_though_signed(plain, case):
    check(plain, case, WEIGHTS)


@pytest.mark.parametrize("case", ALIASES)
def test_odd_aliases_are_refused(plain, case):
    check(plain, case, ALIASES)


@pytest.mark.parametrize("case", CONFIGS)
def test_odd_configs_are_refused_though_signed(plain, case):
    check(plain, case, CONFIGS)


@pytest.mark.parametrize("case", TOKENIZERS)
def test_odd_tokenizers_are_refused_though_signed(plain, case):
    check(plain, case, TOKENIZERS)


def test_a_shared_layer_that_is_not_shared_any_more_is_refused(native):
    shared = next(
        name for name in json.loads((native / "card.json").read_text())["same_as"] if "layers" in name
    )
    edit_tensors(native, lambda tensors: tensors.update({shared: torch.ones(1)}))
    assert f"'{shared}' is said to be the same" in refusal(Emulator.load, native)


def test_aliases_may_cross_layers_but_not_form_chains(native):
    card = json.loads((native / "card.json").read_text())
    names = [name for name in card["same_as"] if "layers" in name]
    edit_card(native, same_as=card["same_as"] | {names[0]: names[1]})
    assert "which is not there" in refusal(Emulator.load, native)


class TestHonest:
    def test_the_plain_one_is_plain_and_the_native_one_is_not(self, plain, saved):
        assert Emulator.load(plain).plain
        assert not Emulator.load(saved / "native").plain

    @pytest.mark.parametrize("kind", ["plain", "native"])
    def test_it_is_known_by_its_card(self, saved, kind):
        assert is_emulator(saved / kind)
        assert not is_emulator(saved)

    def test_it_is_known_whatever_its_version(self, plain):
        edit_card(plain, format="offsite-emulator/2")
        assert is_emulator(plain)

    @pytest.mark.parametrize("kind", ["plain", "native"])
    def test_it_is_known_however_its_card_is_written(self, saved, tmp_path, kind):
        folder = shutil.copytree(saved / kind, tmp_path / "sent")
        card = folder / "card.json"
        card.write_text(card.read_text().replace("offsite-emulator/1", "offsite\\u002demulator\\/1"))
        assert is_emulator(folder)
        assert Emulator.load(folder).tokenizer

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", '{"format": 1}', '{"note": "no offsite-emulator/1"}', "[" * 9999]
    )
    def test_what_only_speaks_of_it_is_none(self, tmp_path, text):
        (tmp_path / "card.json").write_text(text)
        assert not is_emulator(tmp_path)
