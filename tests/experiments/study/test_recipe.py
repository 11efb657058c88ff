"""A recipe is refused in one sentence, with the line and the way out, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from offsite.errors import UserError
from offsite.experiments.study import Recipe, read
from tests.sample_bundles import is_sentence

GOOD = "model: hub/tiny\nmethods: [gradot]\ntasks: arc_easy\n"
BARE = "model: hub/tiny\ntasks: arc_easy\n"

WRONG = {
    "": "holds no recipe",
    "- a list": "holds no recipe",
    "model: [tiny": "line 1: not well-formed YAML",
    GOOD + "a: b: c": "line 4: not well-formed YAML",
    GOOD + "stepps: 3": "line 4: there is no 'stepps' in a recipe; did you mean 'steps'?",
    GOOD + "steps: many": "line 4: steps: ",
    GOOD + "steps: 0": "line 4: steps must be above zero, not 0.",
    GOOD + "lr: -1": "lr must be above zero",
    GOOD + "lora_rank: 9999": "lora_rank must be from 1 to 4096",
    GOOD + "limit: 0": "line 4: limit: ",
    GOOD + "seeds: [0, 0]": "line 4: 0 is named twice",
    GOOD + "seeds: [-1]": "line 4: seeds: ",
    GOOD + "keeps: [0.5, 1.5]": "line 4: keep is the share of the middle that stays, above 0 and up to 1, not",
    GOOD + "keeps: []": "line 4: keeps: ",
    GOOD + "bottom: 0": "0 bottom and 2 top",
    GOOD + "model: other": "line 4: 'model' stands there twice",
    GOOD + "text: wikitxt2": "'wikitxt2' is neither a text nor a file; did you mean 'wikitext2'?",
    GOOD + "train: arc_esy": "line 4: 'arc_esy' is neither a task nor a file; did you mean 'arc_easy'?",
    "model: hub/tiny\nmethods: [gradot]\n": "the recipe lacks 'tasks'",
    "model: hub/tiny\nmetods: [gradot]\ntasks: arc_easy": "did you mean 'methods'?",
    "model: smolm2-135m\nmethods: [gradot]\ntasks: arc_easy": "line 1: 'smolm2-135m' is neither a folder",
    BARE + "methods: gradto": "line 3: There is no method 'gradto'; did you mean 'gradot'?",
    BARE + "methods: ['gradot:evnely=1']": "no knob 'evnely'; did you mean 'evenly'?",
    BARE + "methods: ['gradot:form=paper']": "form=paper is the method gradot-paper",
    BARE + "methods: [{method: scaleot+gradot, form: paper}]": "form=paper is the method gradot-paper",
    BARE + "methods: [{method: scaleot, alhpa: 1}]": "no knob 'alhpa'; did you mean 'alpha'?",
    BARE + "methods: [{method: scaleot, alpha: 3}]": "alpha is the share of layers",
    BARE + "methods: [{method: scaleot+gradot, betta: 1}]": "has a knob 'betta'",
    BARE + "methods: [{name: scaleot}]": "is no method; write",
    BARE + "methods: [uniform~many]": "asks to distill for 'many' steps",
    "model: hub/tiny\nmethods: [gradot]\ntasks: [arc_easy, arc_esy]": "line 3: 'arc_esy' is neither a task",
    "model: hub/tiny\nmethods: [gradot]\ntasks: wikipedia": "'wikipedia' is neither a task nor a file",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read(tmp_path / "r.yaml")
    assert WRONG[text] in str(error.value)
    assert str(error.value).startswith("r.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("over", "why"),
    [("steps", "set as key=value"), ("stepps=3", "did you mean 'steps'?"), ("keeps=[", "not well-formed YAML")],
)
def test_what_is_set_wrongly(tmp_path, over, why):
    (tmp_path / "r.yaml").write_text(GOOD)
    with pytest.raises(UserError) as error:
        read(tmp_path / "r.yaml", [over])
    assert why in str(error.value)
    assert is_sentence(str(error.value))


def test_what_is_set_goes_over_the_file(tmp_path):
    (tmp_path / "r.yaml").write_text(GOOD + "steps: 7\n")
    recipe = read(tmp_path / "r.yaml", ["steps=3", "lr=1e-4", "seeds=[1, 2]", "tasks=sciq"])
    assert (recipe.steps, recipe.lr, recipe.seeds, recipe.tasks) == (3, 1e-4, (1, 2), ("sciq",))


def test_texts_are_listed_and_a_mixture_leaves_each_cells_own_task_out():
    asked = {"model": "hub/tiny", "methods": ["gradot", "uniform"], "tasks": ["arc_easy", "sciq", "race"]}
    recipe = Recipe.model_validate(asked)
    assert recipe.texts == ["mixture:-arc_easy", "mixture:-sciq", "mixture"]
    listed = Recipe.model_validate(asked | {"text": ["wikipedia", "mixture"], "train": "piqa"})
    assert listed.texts == ["wikipedia,mixture:-arc_easy:-piqa:-sciq"]
    assert Recipe.model_validate(asked | {"methods": "uniform"}).texts == []


def test_methods_are_words_mappings_chains_and_distilled():
    methods = [
        "gradot-paper",
        {"method": "scaleot", "alpha": 0.25},
        {"method": "uniform", "distill": 9},
        {"method": "scaleot+gradot-paper", "alpha": 0.25},
        {"method": "crash", "share": False},
    ]
    recipe = Recipe.model_validate(
        {"model": "hub/tiny", "methods": methods, "tasks": "arc_easy", "keeps": [0.5, 0.7]}
    )
    assert recipe.methods == (
        "gradot-paper", "scaleot:alpha=0.25", "uniform~9", "scaleot:alpha=0.25+gradot-paper",
        "crash:share=false",
    )  # fmt: skip
    assert [chain.budgeted for chain in recipe.chains] == [True, False, True, True, True]
    # what fixes its own size is one cell, the others one for each keep, and one is the model itself
    assert len(list(recipe.cells())) == 1 + 4 * 2 + 1


@pytest.mark.parametrize("name", ["gradot-pieces", "papers-table1", "smollm2", "suite", "suite-gemma3"])
def test_the_ready_recipes_are_sound(name):
    recipe = read(Path(__file__).parents[3] / "recipes" / f"{name}.yaml")
    if name == "papers-table1":
        assert len(recipe.tasks) == 9
        assert any(chain.distill for chain in recipe.chains)
    if name.startswith("suite"):
        assert set(recipe.texts) == {
            "mixture",
            *(f"mixture:-{task}" for task in recipe.tasks if not task.startswith("mmlu")),
        }


def test_both_suites_ask_the_same_but_for_the_model_and_its_seeds():
    folder = Path(__file__).parents[3] / "recipes"
    small, other = (read(folder / name).model_dump() for name in ("suite.yaml", "suite-gemma3.yaml"))
    assert {name for name in small if small[name] != other[name]} == {"model", "seeds"}
