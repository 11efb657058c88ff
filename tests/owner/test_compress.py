"""One call makes what the four steps make: the same emulator, with its receipt."""

from __future__ import annotations

import json

import pytest
import torch

import offsite
from offsite.bundles.bundle import digest
from offsite.model.split import Split
from offsite.owner.build import build
from offsite.owner.compress import compress
from offsite.owner.methods.crash import Crash
from offsite.owner.methods.src import SRC
from offsite.owner.methods.uniform import Uniform
from tests.families import tiny_model
from tests.sample_bundles import refusal

SPLIT = Split(1, 1)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(" ".join(f"w{3 + i * i % 120}" for i in range(40_000)))
    return str(file)


def weights(compressed):
    return digest(compressed.emulator.model.state_dict())


def test_it_is_public_and_the_command_has_the_same_default():
    import inspect

    from offsite.cli.compress import command
    from offsite.owner.compress import KEEP

    assert offsite.compress is compress
    assert inspect.signature(command).parameters["keep"].default == KEEP


def test_it_profiles_plans_and_builds(model, tokenizer):
    made = compress(model, tokenizer, "uniform", 0.5, split=SPLIT)
    blueprint = Uniform().plan(Uniform().profile(model, SPLIT), 0.5)
    assert made.blueprint == blueprint
    assert weights(made) == digest(build(model, SPLIT, blueprint).model.state_dict())
    assert (made.asked, made.kept, made.budgeted) == (0.5, pytest.approx(0.5), True)
    assert made.emulator.method == "uniform"


def test_a_chain_takes_a_profile_where_there_is_one_and_else_reads_the_text(model, tokenizer, text):
    src = SRC(beta=0.5)
    tokens = torch.randint(3, 120, (16, 8), generator=torch.Generator().manual_seed(0))
    there = [Crash().profile(model, SPLIT, tokens)]
    made = compress(model, tokenizer, [Crash(), src], 0.5, profiles=there, text=text)
    anew = compress(model, tokenizer, [Crash(), src], 0.5, split=SPLIT, text=text)
    assert made.emulator.method == anew.emulator.method == "crash+src"
    assert made.emulator.split == SPLIT
    assert any(place.weights for place in made.blueprint)
    assert not compress(model, tokenizer, src, split=SPLIT, text=text).budgeted


def test_a_profile_names_its_method_and_split(model, tokenizer):
    there = Uniform().profile(model, SPLIT)
    made = compress(model, tokenizer, keep=0.5, profiles=[there])
    assert (made.emulator.method, made.emulator.split) == ("uniform", SPLIT)


def test_what_does_not_fit_is_refused(model, tokenizer):
    there = Uniform().profile(model, SPLIT)
    for asked, why in (
        ({"profiles": [there, there]}, "Several profiles are of uniform"),
        ({"profiles": [there], "methods": Crash()}, "is of the method 'uniform', not of 'crash'"),
        ({"profiles": [there], "split": Split(2, 2)}, "is of 1 bottom and 1 top layers, not of 2 and 2"),
        ({"methods": "unifrom"}, "did you mean 'uniform'"),
        ({"methods": "uniform", "keep": 0}, "above 0 and up to 1"),
    ):
        assert why in refusal(lambda _, asked=asked: compress(model, tokenizer, **asked), None)
    other = tiny_model("llama", 7)
    assert "of another model" in refusal(lambda _: compress(other, tokenizer, profiles=[there]), None)


def test_saved_it_has_the_receipt_by_which_its_adapters_are_known(model, tokenizer, tmp_path):
    compress(model, tokenizer, "uniform", 0.5, split=SPLIT, seed=3).save(tmp_path / "emulator")
    emulator = offsite.Emulator.load(tmp_path / "emulator")
    receipt = json.loads((tmp_path / "emulator-receipt" / "receipt.json").read_text())
    assert receipt["emulator"] == emulator.digest
    assert receipt["keep"] == {"asked": 0.5, "kept": pytest.approx(0.5)}
    assert receipt["record"]["seed"] == 3
    compress(model, tokenizer, "uniform", 0.5, split=SPLIT).save(tmp_path / "e", tmp_path / "private")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "emulator", "emulator-receipt", "private"]


def test_distilling_changes_the_middle_and_not_the_model(model, tokenizer, text):
    before = digest(model.state_dict())
    plain = compress(model, tokenizer, "uniform", 0.5, split=SPLIT)
    made = compress(model, tokenizer, "uniform", 0.5, split=SPLIT, distill=2, text=text)
    assert weights(made) != weights(plain)
    assert digest(model.state_dict()) == before
