"""One file and one line: a method that nothing else names goes through every command, a study and the laws."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch

import offsite
from offsite.model.split import Split
from offsite.owner.compress import compress
from offsite.owner.methods import METHODS
from tests import test_laws as laws
from tests.cli.conftest import command
from tests.families import tiny_model
from tests.owner import test_methods

FILE = '''
from dataclasses import dataclass
from typing import Annotated, ClassVar

from offsite import Method, Place
from offsite.owner.methods.base import layers_to_keep


@dataclass(frozen=True)
class Alternate(Method):
    """Keep the layers whose numbers the step divides, those first that the text names most."""

    name: ClassVar[str] = "alternate"
    paper: ClassVar[str] = "nobody, 2026"
    calibration: ClassVar[tuple[int, int] | None] = (16, 8)
    plan_knobs: ClassVar[frozenset[str]] = frozenset({"step"})
    step: Annotated[int, "layers"] = 2
    """How far apart the kept layers are."""
    scale: Annotated[float, "times the token's number"] = 1.0
    """How much a token counts."""

    def measure(self, model, split, tokens, parts):
        for layer in parts.missing(split.middle(model.config.num_hidden_layers)):
            parts.put(str(layer), {"named": self.scale * (tokens == layer).float().mean()})

    def plan(self, profile, keep):
        scores = {layer: float(profile.tensors[f"{layer}/named"]) for layer in profile.middle}
        order = sorted(profile.middle, key=lambda layer: (layer % self.step > 0, -scores[layer], layer))
        return tuple(map(Place, sorted(order[: layers_to_keep(profile, keep)])))
'''


@pytest.fixture
def alternate(tmp_path, monkeypatch):
    """The method of that file, registered by the one line that a method needs."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "alternate.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setitem(METHODS, "alternate", importlib.import_module("alternate").Alternate)
    yield METHODS["alternate"]
    sys.modules.pop("alternate", None)


def test_it_has_all_that_commands_show(alternate, monkeypatch, tmp_path):
    monkeypatch.setattr(test_methods, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text("| `alternate` | every other layer | |")
    test_methods.test_a_method_has_all_that_commands_and_pages_show("alternate")
    assert (
        "step = 2 (layers)\n        How far apart the kept layers are." in command("methods", "alternate").out
    )
    assert "alternate: Keep the layers whose numbers the step divides" in command("methods").out
    assert "How far apart" in alternate.__doc__


def test_it_keeps_to_its_budget(alternate):
    model = tiny_model("llama")
    tokens = torch.randint(3, 120, (16, 8))
    method = alternate()
    planned = method, method.profile(model, test_methods.SPLIT, tokens)
    for keep in (0.01, 0.5, 1.0):
        test_methods.test_a_plan_fits_the_middle_and_comes_as_near_to_the_budget_as_it_can(planned, model, keep)


def test_commands_take_it(alternate, world, here):
    text = ("--text", world / "text.txt")
    ran = command("profile", world / "model", "-o", here / "pro", "--method", "alternate", *text)
    assert ran.code == 0, ran
    line = ("compress", world / "model", "--keep", "0.5", "--json")
    planned = command(*line, "-o", here / "a", "--profile", here / "pro").json
    whole = command(*line, "-o", here / "b", "--method", "alternate", *text).json
    assert planned["digest"] == whole["digest"]
    assert planned["method"] == "alternate"
    receipt = json.loads((here / "a-receipt" / "receipt.json").read_text())
    assert [place["layer"] for place in receipt["blueprint"]] == [2, 4]
    chained = command(*line, "-o", here / "c", "--method", "alternate+src", "--set", "step=3", *text).json
    assert chained["method"] == "alternate+src"
    assert command("report", here / "pro", "-o", here / "page").code == 0


def test_a_study_has_a_cell_of_it(alternate, world, here):
    recipe = {"model": str(world / "model"), "methods": ["alternate:step=2"], "keeps": 0.5, "seeds": [0],
              "tasks": str(world / "questions.jsonl"), "train": str(world / "data.jsonl"), "steps": 2,
              "batch_size": 4, "limit": 4, "text": str(world / "text.txt")}  # fmt: skip
    (here / "recipe.yaml").write_text(json.dumps(recipe))
    ran = command("compare", here / "recipe.yaml", "-o", here / "study", "--json")
    (cell,) = (run for run in ran.json["runs"] if run["method"])
    assert (cell["method"], cell["stored"]) == ("alternate:step=2", 0.5)
    assert cell["plugged_in"]["n"] == 4


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_the_laws_hold_for_it(alternate, family, tmp_path, tokenizer, tokens, world):
    model, text = tiny_model(family), str(world / "text.txt")

    def planned(keep):
        return compress(model, tokenizer, alternate(), keep, split=Split(2, 2), text=text)

    everything = planned(1.0).emulator.model
    assert torch.equal(laws.logits(everything, tokens), laws.logits(model, tokens))
    blueprint = planned(0.5).blueprint
    assert blueprint == planned(0.5).blueprint == (offsite.Place(2), offsite.Place(4))
    for law in ("bundle", "sent", "road"):
        (tmp_path / law).mkdir()
    laws.test_save_then_load_gives_the_same_logits_and_bundle(model, tokens, tmp_path / "bundle", blueprint)
    laws.test_no_dropped_layer_is_in_a_bundle(model, tmp_path / "sent", blueprint)
    laws.test_the_whole_road(model, tmp_path / "road", tokenizer, blueprint, None)
    laws.test_generation_with_cache_equals_generation_without(model, tokens, blueprint)
