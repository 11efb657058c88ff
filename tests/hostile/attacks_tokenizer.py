"""Attacks by an emulator's tokenizer: code, classes, patterns, templates and vocabularies."""

from __future__ import annotations

import base64
import json

from tests.hostile.corpus import attack, pickled, put, read_json
from tests.sample_bundles import edit_json, sign


def settings(**changes):
    return lambda folder: edit_json(folder, "tokenizer_config.json", **changes)


def backend(**changes):
    return lambda folder: edit_json(folder, "tokenizer.json", **changes)


def template(text):
    return lambda folder: put(folder, "chat_template.jinja", text)


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(parts):
    return {"type": "Sequence", "pretokenizers": parts}


def replace(pattern, content):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def charsmap(written):
    """A sentencepiece table of characters with an empty trie of one unit, that stands for one long text."""
    return base64.b64encode((4).to_bytes(4, "little") + bytes(4) + written + b"\0").decode()


def token(text, number):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": number, "content": text, **flags}


def twice(folder):
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    backend(post_processor={"type": "TemplateProcessing", "single": [piece, piece], "pair": [],
                            "special_tokens": {}})(folder)  # fmt: skip


def model(**changes):
    return lambda folder: backend(model=read_json(folder / "tokenizer.json")["model"] | changes)(folder)


OS = "cycler.__init__.__globals__.os.system('touch canary')"
FILE = "tokenizer_config.json"
TEMPLATE = "chat template"
for _name, _why, _alter in [
    ("remote code for a tokenizer", "'auto_map'", settings(auto_map={"AutoTokenizer": ["evil.E", None]})),
    ("remote code deep inside its settings", "'auto_map'", settings(x={"auto_map": {"AutoTokenizer": "e.E"}})),
    ("trust in a tokenizer", "'trust_remote_code'", settings(trust_remote_code=True)),
    ("a file from elsewhere", "'tokenizer_file'", settings(tokenizer_file="/etc/passwd")),
    ("a vocabulary from elsewhere", "'vocab_file'", settings(vocab_file="/etc/passwd")),
    ("a class from elsewhere", "tokenizer_class", settings(tokenizer_class="evil/repo--evil.Evil")),
    ("a class that is a model", "tokenizer_class", settings(tokenizer_class="AutoModelForCausalLM")),
    ("a class that is a trainer", "tokenizer_class", settings(tokenizer_class="Trainer")),
    ("a class that is a function", "tokenizer_class", settings(tokenizer_class="pipeline")),
    ("a class that steers the terminal", r"\\x1b.*tokenizer_class", settings(tokenizer_class="\x1b[2J")),
    ("a class that is no name", "tokenizer_class", settings(tokenizer_class=5)),
    ("a method of a tokenizers", "get_vocab", settings(get_vocab=5)),
    ("a token that is no text", "tokenizer", settings(pad_token=5)),
    ("a token that steers the terminal", r"\\x1b\[2J", settings(pad_token="\x1b[2J")),
    ("a token that reads backwards", r"\\u202e", settings(extra_special_tokens=["\u202eabc"])),
    ("settings that are a list", FILE, lambda f: put(f, FILE, "[]")),
    ("settings ten thousand deep", FILE, lambda f: put(f, FILE, '{"x":' + "[" * 10_000 + "]" * 10_000 + "}")),
    ("half a million settings", FILE, settings(x=[[]] * 500_000)),
    ("special tokens ten thousand deep", "special_tokens_map.json|tokenizer",
     lambda f: put(f, "special_tokens_map.json", '{"x":' + "[" * 10_000 + "]" * 10_000 + "}")),
    ("added tokens without end", "added_tokens.json",
     lambda f: put(f, "added_tokens.json", json.dumps({f"x{n}": n for n in range(40_000)}))),
    ("a pickle for a vocabulary", "'tokenizer.model' is a pickle",
     lambda f: put(f, "tokenizer.model", pickled())),
    ("a catastrophic pattern", r"\(a\+\)\+", backend(pre_tokenizer=split("(a+)+$"))),
    ("a catastrophic choice", r"\(a\|aa\)\+", backend(pre_tokenizer=split("(a|aa)+$"))),
    ("a catastrophic pattern inside", r"\\w\*",
     backend(pre_tokenizer={"type": "Sequence", "pretokenizers": [split(r"(?:x|\w*)*y")]})),
    ("a catastrophic normalizer", r"\(a\+\)\+",
     backend(normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""})),
    ("a pattern that looks back", r"\\1", backend(pre_tokenizer=split(r"(.*)\1\1x"))),
    ("a bad pattern", "tokenizer", backend(pre_tokenizer=split("(("))),
    ("a normalizer that doubles fifty times", "normalizer",
     backend(normalizer={"type": "Sequence", "normalizers": [replace("a", "aa")] * 50})),
    ("a normalizer that writes a book", "normalizer", backend(normalizer=replace("a", "b" * 50_000))),
    ("what makes the library panic", "tokenizer",
     backend(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
    ("a table of characters that asks for four gigabytes", "table of characters",
     backend(normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="})),
    ("a table of characters that writes a book", "bytes for one character",
     backend(normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap(b"b" * 100_000)})),
    ("an added token whose setting would be printed", "odd setting",
     backend(added_tokens=[token("zzz", 130) | {"normalized\u202e": True}])),
    ("merges that are dropped at random", "dropout 0.5", model(dropout=0.5)),
    ("a text that is written twice", "writes a text 2 times", twice),
    ("added tokens that are a number", "gives 5 for added_tokens", backend(added_tokens=5)),
    ("added tokens that are numbers", "for added_tokens", backend(added_tokens=[5])),
    ("a model that is a number", "tokenizer", backend(model=5)),
    ("two thousand patterns", "together; at most 20000 are read",
     backend(pre_tokenizer=sequence([sequence([split("((((a))))" * 5)] * 50)] * 40))),
    ("another kind of model", "tokenizer", backend(model={"type": "Evil\x1b[2J"})),
    ("merges of words that are not there", "tokenizer",
     backend(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a b", "x y"]})),
    ("merges without end", "tokenizer.json",
     backend(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"] * 500_000})),
    ("a token of ten million letters", "tokenizer.json", backend(added_tokens=[token("x" * 10_000_000, 1)])),
    ("a token of two hundred thousand letters", "tokenizer", backend(added_tokens=[token("x" * 200_000, 130)])),
    ("a number past the vocabulary", "tokenizer", backend(added_tokens=[token("zzz", 2**32 - 2)])),
    ("half a million words", "tokenizer.json",
     backend(model={"type": "WordLevel", "unk_token": "<unk>", "vocab": {f"w{n}": n for n in range(50_000)}})),
    ("a backend ten thousand deep", "tokenizer",
     lambda f: put(f, "tokenizer.json", '{"x":' + "[" * 10_000 + "]" * 10_000 + "}")),
    ("a backend that is a pickle", "tokenizer", lambda f: put(f, "tokenizer.json", pickled())),
    ("a template that reaches out", TEMPLATE + ".*__", template("{{ " + OS + " }}")),
    ("a template that reaches out by index", TEMPLATE + ".*__", template("{{ ''['__class__']['__mro__'] }}")),
    ("a template that reaches out by filter", TEMPLATE, template("{{ '' | attr('__cla' ~ 'ss__') }}")),
    ("a template that reaches out by a map", TEMPLATE,
     template("{{ [''] | map(attribute='__class__') | list }}")),
    ("a template among the settings", TEMPLATE + ".*__", settings(chat_template="{{ " + OS + " }}")),
    ("a template among several", TEMPLATE + ".*__",
     settings(chat_template=[{"name": n, "template": "{{ " + OS + " }}"} for n in ("default", "tool_use")])),
    ("a template that is a number", TEMPLATE, settings(chat_template=[{"name": "default", "template": 5}])),
    ("a template without end", TEMPLATE + ".*range",
     template("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}")),
    ("a template of a huge range", TEMPLATE + ".*range", template("{{ range(99999) | list }}")),
    ("a template of a huge number", TEMPLATE, template("{{ 9 ** 9 ** 9 }}")),
    ("a template of a huge product", TEMPLATE, template("{{ 'x' * 10000000000 }}")),
    ("a template of a huge product by parts", TEMPLATE, template("{{ 'x' * 9999 * 9999 * 9999 }}")),
    ("a template of a wide format", TEMPLATE, template("{{ '%9999999999d' % 1 }}")),
    ("a template of a wide format method", TEMPLATE, template("{{ '{:>9999999999}'.format(1) }}")),
    ("a template of a wide centre", TEMPLATE, template("{{ 'x' | center(9999999999) }}")),
    ("a template of invented text", TEMPLATE + ".*lipsum", template("{{ lipsum(n=100000) }}")),
    ("a template that calls itself", TEMPLATE,
     template("{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('x') }}")),
    ("a template that doubles", TEMPLATE,
     template("{% set n = namespace(x='x') %}" + "{% set n.x = n.x ~ n.x %}" * 40 + "{{ n.x }}")),
    ("a template that reads a file", TEMPLATE, template("{% include '/etc/passwd' %}")),
    ("a template that imports", TEMPLATE, template("{% import '/etc/passwd' as x %}")),
    ("a template that is none", TEMPLATE, template("{% for %}\x1b[2J")),
    ("a template of a million lines", "chat_template.jinja", template("{{ x }}\n" * 1_000_000)),
    ("a template ten thousand deep", TEMPLATE, template("{{ " + "(" * 10_000 + "x" + ")" * 10_000 + " }}")),
    ("words exchanged", "not the one that the card names", lambda f: exchange(f)),
]:  # fmt: skip
    _alter.__name__ = _name
    attack("emulator", _why)(_alter)


def exchange(folder):
    data = read_json(folder / "tokenizer.json")
    vocab = data["model"]["vocab"]
    vocab["w10"], vocab["w11"] = vocab["w11"], vocab["w10"]
    put(folder, "tokenizer.json", json.dumps(data))


@attack("emulator", "not the one that the card names")
def no_tokenizer_where_one_was_sent(folder):
    (folder / "tokenizer_config.json").unlink()
    sign(folder)
