"""Several public texts in turn, and the mixture: its formats, its parts, and what it leaves out."""

from __future__ import annotations

import json

import pytest

from offsite.data import DEFAULT_TEXT, tasks
from offsite.data.blocks import Mixed, Rows, Running, blocks
from offsite.data.examples import Question
from offsite.data.tasks import cache as shelf
from offsite.data.tasks import definition
from offsite.data.tasks.sources import Asked
from tests.families import tiny_tokenizer

MIXTURE = definition.mixtures()["mixture"]
TASKS = sorted(set(MIXTURE.turns) & set(definition.questions()))


@pytest.fixture
def shelved(cache):
    """What the mixture is made of, ten rows each, marked with their names."""
    for name in set(MIXTURE.turns):
        if name in definition.texts():
            rows = [{"text": f"{name} {number}"} for number in range(10)]
            shelf.put(definition.texts()[name], "train", "wheel: here", "", rows)
        else:
            for split in ("train", "test"):
                rows = [
                    {"prompt": f"Question: {name} {split} {n}?\nAnswer:", "choices": ["no", "yes"], "answer": 1}
                    for n in range(40)
                ]
                shelf.put(definition.questions()[name], split, "wheel: here", "", rows)
    return cache


def test_the_mixture_is_the_default_and_made_of_texts_and_train_rows_alone(shelved):
    assert DEFAULT_TEXT == "mixture"
    found = tasks.texts("mixture")
    assert [part.name for part in found.turns] == list(MIXTURE.turns)
    asked = {part.name: [row.text for row in part.rows] for part in found.turns if isinstance(part, Rows)}
    assert sorted(asked) == TASKS
    assert all(f"{name} train" in row and "test" not in row for name, rows in asked.items() for row in rows)
    assert tasks.at_hand("mixture")
    assert not tasks.at_hand("mixture,race")


def test_a_mixture_leaves_tasks_out(shelved):
    found = tasks.texts("mixture:-arc_easy:-sciq")
    assert {part.name for part in found.turns} == set(MIXTURE.turns) - {"arc_easy", "sciq"}
    assert tasks.without("mixture", ["arc_easy", "race", "own.jsonl"]) == "mixture:-arc_easy"
    assert tasks.without("own.txt,mixture:-sciq", ["arc_easy"]) == "own.txt,mixture:-arc_easy:-sciq"
    assert tasks.without("wikipedia", ["arc_easy"]) == "wikipedia"
    assert tasks.left_out(["mixture", "wikipedia"]) == []
    (note,) = tasks.left_out(["mixture:-sciq", "mixture", "a.txt,mixture:-arc_easy"])
    assert note.endswith("scored or trained on: mixture:-arc_easy, mixture:-sciq.")


def test_every_row_has_one_format_the_same_each_time_and_all_come_up(shelved):
    questions = tuple(
        Question(f"Question: Is it {n}?\nAnswer:", ("no", "yes", "maybe"), n % 3) for n in range(99)
    )
    rows = list(Asked(questions, MIXTURE.formats))
    assert rows == list(Asked(questions, MIXTURE.formats))
    assert (
        list(Asked(questions[50:], MIXTURE.formats))
        == rows[50:]
        == list(Asked(questions, MIXTURE.formats)[50:])
    )
    shapes = {row.text.replace(f"{number}?", "?") for number, row in enumerate(rows)}
    assert sum(row.is_chat for row in rows) == pytest.approx(33, abs=15)
    assert len({text.split("Is it")[0] for text in shapes}) >= 5
    for question, row in zip(questions, rows, strict=True):
        answer = question.choices[question.answer]
        assert answer in row.pieces[1].text or row.pieces[1].text == f" {'ABC'[question.answer]}"
        assert row.text.count("Question:") <= 1
        assert row.text.count("Answer:") <= 1


def test_what_a_question_says_beside_the_question_stays():
    shown = definition.Format(prompt="<{{ question }}>", answer="{{ letter }} {{ answer }}")
    passage = Question("It was.\nQuestion: Who?\nAnswer:", (" a ", "b"), 0)
    assert [piece.text for piece in shown.example(passage).pieces] == ["<It was.\nWho?>", "A a"]
    assert shown.example(Question("The sun is", ("x", "hot"), 1)).text == "<The sun is>B hot"


def test_a_task_is_read_as_it_is_trained_on(shelved):
    found = tasks.texts("arc_easy")
    assert isinstance(found, Rows)
    assert [row.text for row in found.rows] == [example.text for example in tasks.examples("arc_easy")]
    assert found.rows[0].text == "Question: arc_easy train 0?\nAnswer: yes"


def test_several_words_take_turns_in_the_order_told(shelved, tmp_path):
    (tmp_path / "a.txt").write_text("w10 " * 99)
    chat = {"messages": [{"role": "user", "content": "w20"}, {"role": "assistant", "content": "w21"}]}
    (tmp_path / "b.jsonl").write_text((json.dumps(chat) + "\n") * 9)
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "w30 " * 99}) + "\n")
    files = [str(tmp_path / name) for name in ("a.txt", "b.jsonl", "c.jsonl")]
    found = tasks.texts(files)
    assert found == tasks.texts(", ".join(files))
    assert isinstance(found, Mixed)
    assert list(map(type, found.turns)) == [Running, Rows, Running]
    assert (found.name, tasks.label(files)) == ("a.txt,b.jsonl,c.jsonl",) * 2
    read = blocks(found, tiny_tokenizer(), 5, 6)
    assert [10 in block for block in read.tolist()] == [True, False, False] * 2
    assert [30 in block for block in read.tolist()] == [False, False, True] * 2
    assert 21 in read[1]
