"""Texts as tasks: each split on its own shelf, whole when it is predicted, in stretches when it is learnt."""

from __future__ import annotations

import pytest

from offsite.data import tasks
from offsite.data.tasks import cache as shelf
from offsite.data.tasks import definition
from offsite.errors import UserError


@pytest.fixture
def shelved(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFSITE_CACHE", str(tmp_path))
    one = definition.texts()["wikitext2"]
    long = "".join(f" line {n} {'x' * 90}\n" for n in range(40))
    shelf.put(one, "test", "hub: there", "", [{"text": " = A = \n"}, {"text": " = B = \n"}])
    assert not tasks.at_hand("wikitext2")
    shelf.put(one, "train", "hub: here", "", [{"text": long}, {"text": "short\n"}])
    return long


def test_wikitext_is_predicted_on_its_test_split_and_learnt_on_its_train_split(shelved):
    assert tasks.at_hand("wikitext2")
    tasks.check("wikitext2")
    task = tasks.load("wikitext2", "test")
    assert (task.scoring, task.questions, task.texts) == ("perplexity", (), (" = A = \n", " = B = \n"))
    assert task.source == "hub: there"
    assert task.first(1).texts == (" = A = \n",)
    assert tasks.texts("wikitext2").texts == (shelved, "short\n")
    learnt = tasks.examples("wikitext2")
    assert "".join(example.text for example in learnt) == shelved + "short\n"
    assert all(len(example.text) <= 1500 and example.text.endswith("\n") for example in learnt)
    assert len(learnt) == 4
    assert all(piece.learnt for example in learnt for piece in example.pieces)
    assert not any(example.closed for example in learnt)


def test_a_text_file_is_both_splits(tmp_path):
    (tmp_path / "prose.txt").write_text("one\ntwo\n")
    word = str(tmp_path / "prose.txt")
    assert tasks.load(word, "test").texts == ("one\ntwo\n",)
    assert [example.text for example in tasks.examples(word)] == ["one\ntwo\n"]
    assert tasks.at_hand(word)


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("wikitxt2", "did you mean 'wikitext2'"),
        ("a.jsonl", "no such file"),
        ("wikipedia", "neither a task nor a file"),
    ],
)
def test_what_is_no_task_is_refused_without_a_look_at_the_data(word, why):
    with pytest.raises(UserError, match=why):
        tasks.check(word)
