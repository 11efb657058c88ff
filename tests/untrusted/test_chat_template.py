"""Which chat templates are refused before they are ever run, and that no honest one is."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from offsite.errors import UserError
from offsite.untrusted.chat_template import check_template

FILE = Path("tokenizer_config.json")

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
    "{{ '{:%{>99999}'.format(1) }}": "as wide as",
    "{{ '" + "x" * (128 << 10) + "' }}": "at most 131072 are read",
    "{% set x = x ~ x %}": "doubles",
    "{% set x = x + x %}": "doubles",
    "{% for i in range(2000) %}{% endfor %}": "range above",
    "{% for i in range(900) %}{% for j in range(900) %}{% endfor %}{% endfor %}": "range within",
    "{% include 'x' %}": "other files",
    "{% extends 'x' %}": "other files",
    "{% for": "cannot be read",
}


@pytest.mark.parametrize("template", HONEST_TEMPLATES)
def test_no_honest_template_is_refused(template):
    check_template(FILE, template)


@pytest.mark.parametrize("letter", ["{", "%", "_", "9", "{9", "{%", "{#", "-", "(", " "])
def test_the_check_takes_time_linear_in_a_template(letter):
    inside = "{{ '" + letter * (120_000 // len(letter)) + "' }}"
    bare = letter * (120_000 // len(letter))
    start = time.process_time()
    for text in (inside, bare):
        with contextlib.suppress(UserError):
            check_template(FILE, text)
    assert time.process_time() - start < 3


@pytest.mark.parametrize("template", UNFIT_TEMPLATES)
def test_an_unfit_template_is_refused(template):
    with pytest.raises(UserError, match=UNFIT_TEMPLATES[template]):
        check_template(FILE, template)
