"""What is refused of a stranger's patterns and templates, and that no honest one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from offsite.errors import UserError
from offsite.template import check_template
from offsite.vocabulary import _check_pattern

FILE = Path("tokenizer.json")

HONEST_PATTERNS = [  # of gpt2, llama 3, qwen 2, o200k, deepseek v3, bloom, t5, clip
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?:'[sS]|'[tT])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|"
    r"'m|'ll|'d)?|\p{N}{1,3}",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r" {2,}",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
]  # fmt: skip
ENDLESS_PATTERNS = [
    "(a+)+$", "(a|aa)+$", "(?:a*)*b", "((a+)b?)+c", r"(.*)\1", "(?i:a|b|ab)*c", "(a?){30}", "(?<x>a)\\k<x>",
    "x" * 6000, "[" * 1_000_000, "([a-z]+)*!", "(a{2,})*b",
]  # fmt: skip
HONEST_TEMPLATES = [
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "}}{% endfor %}",
    "{%- set ns = namespace(multi=true, last=messages|length - 1) %}{%- for m in messages[::-1] "
    "%}{%- set index = "
    "(messages|length - 1) - loop.index0 %}{%- if m.role == 'user' %}{%- set ns.last = index %}{% "
    "break %}{%- endif %}"
    "{%- endfor %}",
    "{% if (messages[0]['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}",
    "{%- if date is not defined %}{%- set date = strftime_now('%d %b %Y') %}{%- endif %}{{ tools | "
    "tojson(indent=4) }}",
    "{% generation %}{{ messages[0].content | trim }}{% endgeneration %}",
    "{%- macro show(spec, deep) %}{% if spec.items %}{{ show(spec['items'], deep + 1) }}{% endif "
    "%}{%- endmacro %}",
    "{%- set _ = ns.update({'a': 1}) %}{{ '%s' | format(messages[0].content) }}{{ "
    "messages[0].content.split('</think>')[-1] }}",
    "{% for i in range(0, messages | length, 2) %}{{ messages[i].content ~ eos_token }}{% endfor %}",
]  # fmt: skip
UNFIT_TEMPLATES = {
    "{{ ''.__class__ }}": "'__class__'",
    "{{ ''['__class__'] }}": "'__class__'",
    "{{ messages._x }}": "'_x'",
    "{{ x | attr('y') }}": "'attr'",
    "{{ lipsum() }}": "'lipsum'",
    "{{ 'x' * n }}": "multiplies",
    "{{ 2 ** 99 }}": "multiplies",
    "{{ x.center(10000000) }}": "number above",
    "{{ '%99999d' % 1 }}": "as wide as",
    "{% set x = x ~ x %}": "doubles",
    "{% set x = x + x %}": "doubles",
    "{% for i in range(2000) %}{% endfor %}": "range above",
    "{% for i in range(900) %}{% for j in range(900) %}{% endfor %}{% endfor %}": "range within",
    "{% include 'x' %}": "other files",
    "{% extends 'x' %}": "other files",
    "{% for": "cannot be read",
}


@pytest.mark.parametrize("pattern", HONEST_PATTERNS)
def test_no_honest_pattern_is_refused(pattern):
    _check_pattern(FILE, pattern)


@pytest.mark.parametrize("pattern", ENDLESS_PATTERNS)
def test_a_pattern_without_end_is_refused(pattern):
    with pytest.raises(UserError, match="may take for ever"):
        _check_pattern(FILE, pattern)


@pytest.mark.parametrize("template", HONEST_TEMPLATES)
def test_no_honest_template_is_refused(template):
    check_template(FILE, template)


@pytest.mark.parametrize("template", UNFIT_TEMPLATES)
def test_an_unfit_template_is_refused(template):
    with pytest.raises(UserError, match=UNFIT_TEMPLATES[template]):
        check_template(FILE, template)
