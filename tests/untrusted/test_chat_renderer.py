"""Chats are written out as transformers writes them, and no template takes more than its share."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from offsite.errors import UserError
from offsite.untrusted import chat_renderer, sandbox
from offsite.untrusted.chat_template import check_template
from tests.families import tiny_tokenizer

TURNS = [
    {"role": "system", "content": "  Be brief.\n"},
    {"role": "user", "content": 'Say "größe" & <b>\\ \N{GRINNING FACE}'},
    {"role": "assistant", "content": "<think>\nwell\n</think>\n\ngröße "},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "so"},
]
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""  # noqa: E501
QWEN = """{%- if tools %}
    {{- tools | tojson }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""  # noqa: E501
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
    "'<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = """{{- bos_token }}
{% for message in messages %}
    {% if message['role'] == 'user' or message['role'] == 'system' %}
  [INST] {{ message['content'] }} [/INST]
    {% elif message['role'] == 'assistant' %}
        {% generation %}
            {{ message['content'] ~ eos_token }}
        {% endgeneration %}
    {% else %}
        {{ raise_exception('Only user and assistant roles are supported!') }}
    {% endif %}
{% endfor %}
"""
ODD = """{% macro show(message, deep=0) %}{{ message | tojson(indent=2) }}{{ deep }}{% endmacro -%}
{% set given = dict(a=1, b=[true, none]) %}{{ given | tojson }}{{ '<é&>' | tojson(ensure_ascii=true) }}
{% for message in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ show(message, loop.index) }}
{% endfor %}{{ documents is none }}{{ tools is defined }}{{ unk_token }}{{ pad_token }}{{ nothing }}
{{ messages | map(attribute='role') | join(', ') | upper }}
{{ dict.fromkeys(['x']) }} {{ '%05d' | format(7) }}"""
STYLES = {
    "llama": LLAMA,
    "qwen": QWEN,
    "gemma": GEMMA,
    "chatml": CHATML,
    "smollm": SMOLLM,
    "mistral": MISTRAL,
    "odd": ODD,
}
HOGS = {
    "doubles by a filter": "{% set n = namespace(x='x') %}"
    + "{% set n.x = n.x ~ (n.x|string) %}" * 60
    + "{{ n.x }}",
    "doubles by a list": "{% set n = namespace(x='x') %}"
    + "{% set n.x = [n.x, n.x]|join %}" * 60
    + "{{ n.x }}",
    "replaces": "{% set n = namespace(x='x' ~ 'x') %}"
    + "{% set n.x = n.x.replace('x', n.x) %}" * 8
    + "{{ n.x }}",
    "loops": "{% set r = range(1000)|list %}" + "{% for i in r %}" * 4 + "x" + "{% endfor %}" * 4,
    "loops in silence": "{% set r = range(1000)|list %}" + "{% for i in r %}" * 4 + "{% endfor %}" * 4,
    "formats": "{{ ('{:>' ~ '9999999999' ~ '}').format(1) }}",
    "centres": "{{ 'x'|center(('99999'~'99999')|int) }}",
    "indents": "{{ 'x\ny'|indent(('99999'~'9999')|int) }}",
    "writes": "{% set r = range(1000)|list %}" + "{% for i in r %}" * 3 + "xxxxxxxxxx" + "{% endfor %}" * 3,
    "writes a little too much": "{{ 'x'|center(90000) }}" * 100,
}
"""Templates that look fit and take time or memory without end."""


def _tokenizer(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def _turns(turns, learnt=()):
    return [(turn["role"], turn["content"], number in learnt) for number, turn in enumerate(turns)]


@pytest.mark.parametrize("style", STYLES)
def test_the_text_is_transformers_own(style):
    check_template(Path("x"), STYLES[style])
    tokenizer = _tokenizer(STYLES[style])
    with chat_renderer.writer(STYLES[style], tokenizer.special_tokens_map, 9) as write:
        for first in (0, 1):
            for count in range(1 + first, len(TURNS) + 1):
                turns = TURNS[first:count]
                ((text, learnt),) = write(_turns(turns), "here")
                assert not learnt
                assert text == tokenizer.apply_chat_template(turns, tokenize=False)


@pytest.mark.parametrize("style", ["llama", "gemma", "chatml", "smollm", "mistral"])
def test_what_stands_before_a_learnt_turn_is_the_generation_prompt(style):
    tokenizer = _tokenizer(STYLES[style])
    with chat_renderer.writer(STYLES[style], tokenizer.special_tokens_map, 9) as write:
        pieces = write(_turns(TURNS, learnt=(2, 4)), "here")
    assert [learnt for _, learnt in pieces] == [False, True, False, True, False]
    asked = [
        tokenizer.apply_chat_template(TURNS[:number], tokenize=False, add_generation_prompt=True)
        for number in (2, 4)
    ]
    assert asked == ["".join(text for text, _ in pieces[:count]) for count in (1, 3)]


def test_the_sandbox_is_transformers_own():
    for template, said in {
        "{{ messages.append(1) }}": "unsafe",
        "{% set n = namespace(_x=1) %}": "_x",
        "{% set n = namespace() %}{% set n._x = 1 %}": "_x",
        "{{ raise_exception('no more') }}": "no more",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
        "{% for %}": "Expected",
    }.items():
        with (
            chat_renderer.writer(template, {}, 9) as write,
            pytest.raises(UserError, match=f"here: the model's chat template refuses it: .*{said}"),
        ):
            write(_turns(TURNS), "here")
        with pytest.raises(Exception, match=said):
            _tokenizer(template).apply_chat_template(TURNS, tokenize=False)


@pytest.mark.parametrize("name", HOGS)
def test_a_template_that_takes_too_much_is_ended(name, monkeypatch):
    monkeypatch.setattr(chat_renderer, "_PATIENCE", 1)
    check_template(Path("x"), HOGS[name])  # nothing shows
    start = time.monotonic()
    with (
        chat_renderer.writer(HOGS[name], {}, 9) as write,
        pytest.raises(
            UserError, match=r"here: the model's chat template (takes more than|refuses it: .*range)"
        ),
    ):
        write(_turns(TURNS), "here")
    assert time.monotonic() - start < 10


def test_the_limit_is_for_all_chats_of_a_call(monkeypatch):
    monkeypatch.setattr(chat_renderer, "_PATIENCE", 1)
    slow = "{% set r = range(1000)|list %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}"
    written = []
    with (
        chat_renderer.writer(slow, {}, 9) as write,
        pytest.raises(UserError, match="takes more than 1 seconds"),
    ):
        written += (write(_turns(TURNS), "here") for _ in range(1000))
    assert written


def test_many_chats_may_take_longer(monkeypatch):
    monkeypatch.setattr(chat_renderer, "_PATIENCE", 1)
    with chat_renderer.writer("x", {}, 5000) as write:
        time.sleep(1.5)
        assert write(_turns(TURNS), "here") == [("x", False)]


def test_one_process_writes_all_and_ends_with_the_call(monkeypatch):
    started = []
    real = subprocess.Popen

    def noted(*args, **words):
        started.append(real(*args, **words))
        return started[-1]

    monkeypatch.setattr(sandbox.subprocess, "Popen", noted)
    with chat_renderer.writer(CHATML, {}, 9) as write:
        first, second = write(_turns(TURNS), "a"), write(_turns(TURNS), "b")
    assert first == second
    assert len(started) == 1
    assert started[0].poll() is not None


def test_what_cannot_be_started_is_no_fault_of_the_template(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/true")
    with pytest.raises(UserError, match="'/bin/true' does not start"), chat_renderer.writer(CHATML, {}, 9):
        pass


def test_a_template_reads_the_date_that_is_given():
    dated = "{{ strftime_now('%d %b %Y') }}"
    with chat_renderer.writer(dated, {}, 9, "2024-07-26") as write:
        assert write(_turns(TURNS), "here") == [("26 Jul 2024", False)]
