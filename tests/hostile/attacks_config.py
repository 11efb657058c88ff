"""Attacks by an emulator's config: sizes past all memory, orders to run code, other architectures."""

from __future__ import annotations

import json

import transformers as t

from tests.hostile.corpus import attack, pickled, put, read_json
from tests.sample_bundles import edit_json


def config(**changes):
    return lambda folder: edit_json(folder, "config.json", **changes)


def another(new):
    return lambda folder: put(folder, "config.json", new.to_json_string())


def generation(**changes):
    return lambda folder: edit_json(folder, "generation_config.json", **changes)


REMOTE = "remote code"
SMALL = dict(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=2,
             num_key_value_heads=2)  # fmt: skip
for _name, _why, _alter in [
    ("a vocabulary of a billion", r"\(1000000000, 32\)|needs about", config(vocab_size=10**9)),
    ("a vocabulary of less than nothing", "describes no llama", config(vocab_size=-5)),
    ("a million layers", "'num_hidden_layers'", config(num_hidden_layers=10**6)),
    ("ninety thousand layers", "far larger", config(num_hidden_layers=90_000)),
    ("a width of a million", r"where the config says|fit the linears|needs about", config(hidden_size=2**20)),
    ("a feed-forward of a billion", r"where the config says|fit the linears|needs about",
     config(intermediate_size=10**9)),
    ("a width past all numbers", "config", config(hidden_size=2**80)),
    ("a billion labels", "'num_labels'", config(num_labels=10**9)),
    ("ten million labels", "'num_labels'", config(num_labels=10**7)),
    ("heads past all numbers", "config", config(num_attention_heads=2**70)),
    ("layers by another name", "'n_layers'", config(text_config={"n_layers": 10**9})),
    ("an epsilon that is no number", "config.json is not sound JSON .*NaN", config(rms_norm_eps=float("nan"))),
    ("rotations that are no number", "Infinity", config(rope_parameters={"rope_theta": float("inf")})),
    ("rotations of its own", "config", config(rope_parameters={"rope_type": "\x1b[2J", "rope_theta": 1.0})),
    ("remote code", REMOTE, config(auto_map={"AutoConfig": "evil--evil.Evil"})),
    ("remote code deep inside", REMOTE, config(x=[{"y": {"auto_map": {"AutoModel": "e.E"}}}])),
    ("trust in remote code", REMOTE, config(trust_remote_code=True)),
    ("custom code", REMOTE, config(custom_code="evil.py")),
    ("a remote kernel", REMOTE, config(attn_implementation="evil/kernel")),
    ("a remote kernel underneath", REMOTE, config(_attn_implementation_internal="evil/kernel")),
    ("remote experts underneath", REMOTE, config(_experts_implementation_internal="evil/kernel")),
    ("quantised weights", REMOTE, config(quantization_config={"quant_method": "gptq"})),
    ("a method's name", "'to_dict'|config describes", config(to_dict=5)),
    ("a method's name that comes late", "'save_pretrained'", config(save_pretrained="x")),
    ("an activation that steers the terminal", r"\\x1b\[2J", config(hidden_act="\x1b[2J\u202e")),
    ("an activation that is code", "describes no llama", config(hidden_act="__import__('os').system('x')")),
    ("a precision of its own", "config", config(dtype="\x1b[2J")),
    ("a precision of less", "float16", config(dtype="float16")),
    ("a type that steers the terminal", r"\\x1b", config(model_type="\x1b[2J")),
    ("a type that is not known", "'evil'", config(model_type="evil")),
    ("another architecture", "missing|does not belong", another(t.GPT2Config(n_layer=4, n_embd=32, n_head=4))),
    ("an encoder", "no t5 model", another(t.T5Config(num_layers=2))),
    ("no language model", "no vit model", config(model_type="vit")),
    ("a million experts", "far larger|far more|missing|does not",
     another(t.JambaConfig(num_experts=10**6, num_hidden_layers=4))),
    ("positions past all memory", "tables of",
     another(t.GPTJConfig(n_layer=2, n_embd=32, n_head=2, n_positions=10**9, rotary_dim=8))),
    ("positions of two hundred million bytes", "tables of",
     another(t.GPTJConfig(n_layer=2, n_embd=32, n_head=2, n_positions=6_000_000, rotary_dim=8))),
    ("a head as wide as memory", "takes more than",
     another(t.DiffLlamaConfig(**SMALL, head_dim=40_000_000))),
    ("cycles past all memory", "takes more than",
     lambda f: put(f, "config.json", json.dumps(json.loads(t.HrmTextConfig(**SMALL).to_json_string())
                                                | {"H_cycles": 200_000_000}))),
    ("a type that compiles", "no rwkv model", config(model_type="rwkv")),
    ("outputs without names", "'return_dict'", config(return_dict=False)),
    ("dropout below nothing", "'attention_dropout'", config(attention_dropout=-1)),
    ("dropout of a part", "'attn_pdrop'", config(text_config={"attn_pdrop": 2})),
    ("a feed-forward of nothing", "holds nothing|describes no llama", config(intermediate_size=0)),
    ("padding past the embeddings", "describes no llama", config(pad_token_id=128)),
    ("an encoder and a decoder of its own", "no single stack", config(is_encoder_decoder=True)),
    ("a list for a width", "config", config(hidden_size=[32])),
    ("generation by a list", "generation_config.json holds no JSON",
     lambda f: put(f, "generation_config.json", "[]")),
    ("generation by its own method", "'save_pretrained'", generation(save_pretrained=1)),
    ("generation by remote code", REMOTE, generation(custom_generate="evil/repo")),
    ("generation that trusts", REMOTE, generation(trust_remote_code=True)),
    ("generation without sense", "generation_config.json", generation(max_new_tokens="many\x1b[2J")),
    ("generation by a number that is none", "generation_config.json", generation(temperature=float("nan"))),
    ("generation without end", "generation_config.json",
     lambda f: put(f, "generation_config.json", b"[" * 10**6)),
]:  # fmt: skip
    _alter.__name__ = _name.replace("'", "")
    attack("emulator", _why)(_alter)


@attack("emulator", "config.json is not sound JSON")
def a_config_ten_thousand_deep(folder):
    text = json.dumps(read_json(folder / "config.json"))
    put(folder, "config.json", text.replace("{", '{"x":' + "[" * 10_000 + "]" * 10_000 + ",", 1))


@attack("emulator", "config")
def a_config_nine_hundred_deep(folder):
    text = json.dumps(read_json(folder / "config.json"))
    put(folder, "config.json", text.replace("{", '{"x":' + '{"y":' * 900 + "1" + "}" * 900 + ",", 1))


@attack("emulator", "config.json.*stands twice")
def a_key_twice_in_the_config(folder):
    text = (folder / "config.json").read_text()
    put(folder, "config.json", text.replace("{", '{"vocab_size": 5,', 1))


@attack("emulator", "config.json.*more than")
def half_a_million_values_in_the_config(folder):
    edit_json(folder, "config.json", x=[[]] * 500_000)


@attack("emulator", "config.json is not sound JSON")
def a_number_of_ten_thousand_digits_in_the_config(folder):
    text = (folder / "config.json").read_text()
    put(folder, "config.json", text.replace("{", '{"x": 1' + "0" * 10_000 + ",", 1))


@attack("emulator", "'config.json' is a pickle")
def a_pickle_for_a_config(folder):
    put(folder, "config.json", pickled())
