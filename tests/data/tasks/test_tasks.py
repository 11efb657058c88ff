"""Tasks and texts by name or file."""

from __future__ import annotations

import json

import pytest

from offsite.data import tasks
from offsite.data.examples import Question
from offsite.errors import UserError

ROW = {"prompt": "Which?", "choices": ["this", "that"], "answer": 1}


def _write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_users_questions_stand_wherever_a_task_does(tmp_path):
    word = _write(tmp_path / "my_test.jsonl", ROW, ROW)
    for split in ("train", "test"):
        task = tasks.load(word, split)
        assert task.questions == (Question("Which?", ("this", "that"), 1),) * 2
        assert (task.name, task.scoring, task.source) == ("my_test", "multiple_choice", "file: my_test.jsonl")
    (first, _) = tasks.examples(word)
    assert first == task.questions[0].example()


def test_examples_take_any_kind_of_row_where_a_task_takes_questions_only(tmp_path):
    word = _write(tmp_path / "private.jsonl", {"prompt": "p", "completion": "c"}, {"text": "t"})
    assert [example.text for example in tasks.examples(word)] == ["pc", "t"]
    with pytest.raises(UserError, match=r"private\.jsonl, line 1: expected \"choices\""):
        tasks.load(word, "test")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("arc_esay", "'arc_esay' is neither a task nor a file; did you mean 'arc_easy'?"),
        ("zzz", "'zzz' is neither a task nor a file; known are arc_challenge, "),
        ("gone.jsonl", "There is no such file: 'gone.jsonl'."),
        ("some/gone", "There is no such file: 'some/gone'."),
    ],
)
def test_an_unknown_word_is_refused(word, said):
    for ask in (lambda: tasks.load(word, "test"), lambda: tasks.examples(word)):
        with pytest.raises(UserError) as refused:
            ask()
        assert str(refused.value).startswith(said)


def test_an_unknown_text_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="'wikipdia' is neither a text nor a file; did you mean 'wikipedia'"):
        tasks.texts("wikipdia")
    with pytest.raises(UserError, match="'arc_esay', which mixture is to leave out, is no task; did you mean"):
        tasks.check_text("wikipedia,mixture:-arc_esay")
    with pytest.raises(UserError, match="a blank word in the text"):
        tasks.check_text("wikipedia,")


def test_a_text_file_is_one_text_and_a_data_file_one_per_row(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo größe\n", "utf-8")
    assert tasks.texts(str(tmp_path / "a.txt")).texts == ("one\n\ntwo größe\n",)
    rows = {"text": "t"}, {"prompt": "p ", "completion": "c"}
    assert [row.text for row in tasks.texts(_write(tmp_path / "a.jsonl", *rows)).rows] == ["t", "p c"]
    (tmp_path / "b.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"b\.txt holds no text"):
        tasks.texts(str(tmp_path / "b.txt"))


def test_the_names_are_those_of_the_field():
    assert set(tasks.names()) >= {"openbookqa", "piqa", "arc_easy", "arc_challenge", "hellaswag", "sciq"}


COUNTS = {
    "arc_easy": (2251, 2376),
    "arc_challenge": (1119, 1172),
    "openbookqa": (4957, 500),
    "piqa": (16113, 1838),
    "hellaswag": (39905, 10042),
    "sciq": (700, 300),
    "mmlu_medicine": (1184, 600),
    "mmlu_finance": (861, 600),
}
# questions that the published splits themselves have on both sides
SHARED = {"arc_easy": 2, "piqa": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_the_real_splits_have_their_published_sizes_and_do_not_overlap(name):
    train, test = tasks.load(name, "train"), tasks.load(name, "test")
    assert (len(train.questions), len(test.questions)) == COUNTS[name]
    assert len(set(train.questions) & set(test.questions)) == SHARED.get(name, 0)
    for question in train.questions + test.questions:
        assert 0 <= question.answer < len(question.choices)
        assert question.prompt.strip()
    assert len(tasks.examples(name)) == COUNTS[name][0]


@pytest.mark.slow
def test_the_real_wikipedia_is_passages_each_once():
    found = tasks.texts("wikipedia").texts
    assert len(found) == len(set(found)) == 7929
    assert not any("\nQuestion: " in text for text in found)
    assert sum(map(len, found)) > 4_000_000
