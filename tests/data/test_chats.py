"""A chat template may frame what is learnt; it cannot choose it, and what it leaves out is said."""

from __future__ import annotations

import pytest

from offsite.data.encoding import DATE, as_text, encode
from offsite.data.examples import read_examples
from offsite.errors import UserError
from tests.data.test_examples import CHATML, TURNS, _file, _tokenizer
from tests.untrusted.test_chat_renderer import GEMMA, LLAMA, QWEN, SMOLLM

HEADER = "{% for m in messages %}<|im|>{{ m.role }}\n"
HOSTILE = {
    "prints the user's turn where the assistant's begins": (
        HEADER + "{% if m.role == 'assistant' %}{{ messages[loop.index0 - 1].content }} {% endif %}"
        "{{ m.content }}<|end|>\n{% endfor %}",
        "writes another turn's words",
    ),
    "drops the answer": (
        HEADER + "{% if m.role != 'assistant' %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}",
        "does not write the turn's words once",
    ),
    "says the question in its place": (
        HEADER + "{{ messages[0].content if m.role == 'assistant' else m.content }}<|end|>\n{% endfor %}",
        "writes another turn's words",
    ),
    "says it twice": (HEADER + "{{ m.content }}{{ m.content }}<|end|>\n{% endfor %}", "does not write .* once"),
    "shortens it": (HEADER + "{{ m.content[:1] }}<|end|>\n{% endfor %}", "does not write .* once"),
    "knows a mark from a word": (
        HEADER + "{% if m.role == 'assistant' and 'Zq' not in m.content %}{{ messages[0].content }}{% else %}"
        "{{ m.content }}{% endif %}<|end|>\n{% endfor %}",
        "writes '.*' for 'hi'",
    ),
    "writes more where the answer is short": (
        HEADER + "{{ m.content }}{% if m.content == 'hi' %}{{ messages[0].content }}{% endif %}<|end|>\n"
        "{% endfor %}",
        "writes '.*' for 'hi'",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_chooses_what_is_learnt_is_refused_with_the_row(tmp_path, name):
    template, why = HOSTILE[name]
    rows = read_examples(_file(tmp_path, {"messages": TURNS[1:3]}))
    with pytest.raises(
        UserError, match=rf"^private\.jsonl, line 1: message 2: the model's chat template {why}"
    ):
        encode(rows, _tokenizer(template=template), 1000)


@pytest.mark.parametrize("template", [CHATML, LLAMA, GEMMA, SMOLLM, QWEN])
def test_honest_templates_write_what_stands_in_the_row(tmp_path, template):
    rows = [TURNS[1:3], TURNS[1:], [TURNS[1], {"role": "assistant", "content": "  hi \n there "}]]
    rows += [[TURNS[1], {"role": "assistant", "content": "Zq1Zq, a mark"}]]
    rows = rows[:1] + rows[2:] if template is QWEN else rows  # it writes earlier turns anew
    bpe = _tokenizer(template=template)
    encoded = encode(read_examples(_file(tmp_path, *({"messages": row} for row in rows))), bpe, 1000)
    for row, made in zip(rows, encoded, strict=True):
        learnt = "".join(text for text, taught in as_text(made, bpe) if taught)
        for turn in row:
            words = turn["content"].strip()
            assert (words in learnt) == (turn["role"] == "assistant")


STRIPS = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1].strip() }}")
THOUGHT = [TURNS[1], {"role": "assistant", "content": "<think>\nwell\n</think>\n\nhi"}]


def test_a_template_that_strips_the_reasoning_is_refused_where_there_is_some(tmp_path):
    bpe = _tokenizer(template=STRIPS)
    assert encode(read_examples(_file(tmp_path, {"messages": TURNS})), bpe, 1000)
    rows = read_examples(_file(tmp_path, {"messages": TURNS}, {"messages": THOUGHT}))
    with pytest.raises(UserError, match=r"line 2: message 2: .* leaves out what stands before '</think>'"):
        encode(rows, bpe, 1000)


IN_THE_LAST = STRIPS.replace("strip() }}", "strip() if not loop.last else m.content }}")
ANEW = HEADER + (
    "{% if m.role == 'assistant' and loop.last %}{% set parts = m.content.split('</think>') %}<think>\n"
    "{{ parts[0].split('<think>')[-1].strip() if parts|length > 1 }}\n</think>\n\n"
    "{{ parts[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
)


def test_reasoning_that_the_template_keeps_is_learnt(tmp_path):
    for template in (CHATML, IN_THE_LAST, ANEW):
        bpe = _tokenizer(template=template)
        [made] = encode(read_examples(_file(tmp_path, {"messages": THOUGHT})), bpe, 1000)
        assert "well" in "".join(text for text, learnt in as_text(made, bpe) if learnt)


def test_a_template_prints_the_date_of_the_run_and_not_the_clocks(tmp_path):
    bpe = _tokenizer(template="{{ strftime_now('%Y-%m-%d') }}\n" + CHATML)
    rows = read_examples(_file(tmp_path, {"messages": TURNS[1:3]}))
    for date in (DATE, "1999-12-31"):
        [made] = encode(rows, bpe, 1000, date)
        assert bpe.decode(made.input_ids).startswith(date)
    assert encode(rows, bpe, 1000) == encode(rows, bpe, 1000, DATE)


# --- keys of a row that mean something ----------------------------------------------------------------------


@pytest.mark.parametrize("switch", [{"weight": 0}, {"train": False}, {"weight": 0.0}])
def test_a_turn_that_is_not_to_be_learnt_is_only_read(tmp_path, switch):
    turns = [*TURNS[:2], TURNS[2] | switch, TURNS[3], TURNS[4] | {"weight": 1, "train": True}]
    bpe = _tokenizer(template=CHATML)
    [made] = encode(read_examples(_file(tmp_path, {"messages": turns})), bpe, 1000)
    assert [text for text, learnt in as_text(made, bpe) if learnt] == ["so<|end|>\n"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [TURNS[1] | {"weight": 1}, TURNS[2]]}, "message 1 has a weight of 1 and the role 'user'"),
        ({"messages": [TURNS[1], TURNS[2] | {"weight": 0.5}]}, "message 2 has a weight of 0.5"),
        ({"messages": [TURNS[1], TURNS[2] | {"train": "no"}]}, "message 2 has a train of 'no'"),
        ({"messages": [TURNS[1], TURNS[2] | {"reasoning_content": "x"}]}, 'message 2 has "reasoning_content"'),
        ({"messages": [TURNS[1], TURNS[2] | {"tool_calls": [{}]}]}, 'message 2 has "tool_calls"'),
        ({"messages": TURNS, "tools": [{"name": "f"}]}, 'has "tools" beside "messages"'),
        ({"messages": TURNS, "prompt": "p"}, 'has "prompt" beside "messages"'),
        ({"prompt": "p", "completion": "c", "system": "s"}, 'has "system" beside "completion"'),
        ({"prompt": "p", "completion": "c", "weight": 0}, 'has "weight" beside "completion"'),
        ({"prompt": "p", "text": "t"}, 'has "prompt" beside "text"'),
        ({"prompt": "p", "completion": "c", "text": "t"}, 'has "completion", "text", which are rows of'),
        ({"prompt": "p", "choices": ["a", "b"], "answer": 0, "context": "x"}, 'has "context" beside "choices"'),
    ],
)
def test_what_would_be_lost_is_refused_by_its_name(tmp_path, row, said):
    with pytest.raises(UserError, match=rf"^private\.jsonl, line 2: .*{said}.*\.$"):
        read_examples(_file(tmp_path, {"text": "fine"}, row))


def test_keys_that_say_nothing_are_none(tmp_path):
    rows = [
        {"messages": TURNS[1:3], "tools": [], "prompt": "", "id": 3},
        {"prompt": "p", "completion": "c", "system": " ", "source": "x", "tools": None},
        {"messages": [TURNS[1], TURNS[2] | {"reasoning_content": "", "tool_calls": None, "id": "m"}]},
    ]
    assert len(read_examples(_file(tmp_path, *rows))) == 3
