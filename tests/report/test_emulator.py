"""An emulator's page: what was sent adds up, and the stack is the blueprint's."""

from __future__ import annotations

import json
import re

import pytest
import torch

from offsite.bundles.contents import Sent, sent
from offsite.bundles.emulator import Emulator
from offsite.errors import UserError
from offsite.model.linears import Weight
from offsite.model.split import Split
from offsite.owner.blueprint import Place, everything
from offsite.owner.build import build, keep_of
from offsite.owner.receipt import write_receipt
from offsite.report.emulator import emulator
from offsite.report.stack import PlaceRecord, floors, in_words
from tests.families import tiny_model
from tests.report.pages import blueprint_receipt

SPLIT = Split(2, 2)
HARMONIZER = Weight((torch.zeros(32, 3), torch.zeros(3, 32)))


def factors(rank, outputs=32):
    return Weight((torch.ones(outputs, rank), torch.ones(rank, 32)))


BLUEPRINTS = {
    "all": everything(SPLIT, 8),
    "dropped": (Place(3), Place(5)),
    "shared": (Place(2), Place(2), Place(5), Place(5)),
    "thinned": (
        Place(2, tuple(range(16)), {"self_attn.q_proj": factors(4)}),
        Place(3, harmonizer=HARMONIZER),
        Place(4),
        Place(5, tuple(range(48))),
    ),
}


@pytest.fixture(params=BLUEPRINTS)
def made(request, tmp_path, tokenizer):
    """An emulator's folder, its receipt, and the model."""
    model, blueprint = tiny_model("llama"), BLUEPRINTS[request.param]
    built = build(model, SPLIT, blueprint, method="gradot", tokenizer=tokenizer)
    built.save(tmp_path / "e")
    kept = keep_of(built, model)
    write_receipt(tmp_path / "e-receipt", built, blueprint, asked=0.5, kept=kept, seed=0)
    receipt = json.loads((tmp_path / "e-receipt" / "receipt.json").read_text())
    return request.param, tmp_path / "e", receipt, model


def count(tensors):
    return sum(tensor.numel() for tensor in {id(t): t for t in tensors}.values())


def test_what_was_sent_adds_up(made):
    _, folder, receipt, _ = made
    found = sent(folder)
    opened = Emulator.load(folder)
    assert found.unchanged + found.thin + found.harmonizers == count(
        opened.model.state_dict(keep_vars=True).values()
    )
    assert found.digest == receipt["emulator"]
    assert (found.width, found.states, found.split) == (64, 32, SPLIT)


def test_shares_are_of_the_models_parameters(made):
    name, folder, receipt, model = made
    (bar,) = (s.figure for s in emulator("e", folder, receipt).chapters[0].figures)
    shares = {trace["meta"]: trace["x"][0] for trace in bar["data"]}
    assert sum(shares.values()) == pytest.approx(100)
    whole, layer = count(model.parameters()), count(model.model.layers[2].parameters())
    gone = {"all": 0, "dropped": 2 * layer, "shared": 2 * layer}
    if name in gone:
        assert shares["not at all"] == pytest.approx(100 * gone[name] / whole, abs=1e-6)
        assert shares["lossy"] == 0
    else:  # a layer, and 48 + 16 of 64 channels of three matrices of 32
        assert shares["not at all"] == pytest.approx(100 * (layer + 64 * 3 * 32) / whole, abs=1e-6)
        assert shares["lossy"] == pytest.approx(100 * (32 * 32 + 64 * 3 * 32) / whole, abs=1e-6)


KINDS = {
    "all": ["kept whole"] * 4,
    "dropped": ["not sent", "kept whole", "not sent", "kept whole"],
    "shared": ["kept whole", "shared", "shared", "kept whole"],
    "thinned": ["thinned", "harmonizer", "kept whole", "thinned"],
}


def test_factors_of_the_feed_forward_narrow_its_bar():
    told = Sent("svd-llm", "d", SPLIT, 1, 1, 1, 1, 1, 0, 1, {"query": 32, "value": 16}, 64, 32)
    ranks = {"query": 8, "up": 8, "down": 16}
    (_, _, factored, *_), (_, _, whole, *_) = (
        floors([PlaceRecord(layer=2, ranks=each)], SPLIT, told, 1) for each in (ranks, {"query": 8})
    )
    assert (factored.attention, factored.feed) == ((8 / 32 + 1) / 2, (8 / 32 + 16 / 32) / 2)
    assert (whole.attention, whole.feed) == ((8 / 32 + 1) / 2, 1.0)


def test_the_stack_is_the_blueprints(made):
    name, folder, receipt, _ = made
    stack = floors([PlaceRecord(**place) for place in receipt["blueprint"]], SPLIT, sent(folder), 4)
    assert [floor.layer for floor in stack] == list(range(8))
    assert [floor.kind for floor in stack] == ["adapter"] * 2 + KINDS[name] + ["adapter"] * 2
    if name == "thinned":
        assert stack[2].feed == 16 / 64
        assert stack[2].attention == pytest.approx((4 / 32 + 3) / 4)
        assert (stack[3].attention, stack[5].feed) == (3 / 32, 48 / 64)
    drawn = emulator("e", folder, receipt).chapters[-1].figures[0].figure
    bars = sorted((y, trace["meta"]) for t in [drawn["data"]] for trace in t for y in trace["y"])
    assert bars == sorted(2 * [(floor.layer, floor.kind) for floor in stack])


def test_a_bundle_alone_shows_no_layer(made):
    _, folder, _, _ = made
    part = emulator("e", folder, None)
    assert part.private is None
    assert [chapter.title for chapter in part.chapters] == ["What it reveals"]


def test_a_receipt_makes_the_page_private(made):
    _, folder, receipt, _ = made
    for home in (folder, None):
        assert re.search("which layers of the model were kept", emulator("e", home, receipt).private)


def test_told_counts_every_layer():
    places = [PlaceRecord(layer=2), PlaceRecord(layer=3, harmonizer=2), PlaceRecord(layer=5, channels=[1])]
    assert in_words(floors(places, SPLIT, None)) == (
        "Of the middle’s 4 layers, 1 stand whole, 1 are thinned, 1 are harmonizers and 1 are not there at all."
    )


@pytest.mark.parametrize(
    "spoil", [{"blueprint": []}, {"split": {"bottom": 0, "top": 2}}, {"keep": {"asked": 1, "kept": 0}}]
)
def test_an_odd_receipt_is_refused(spoil):
    with pytest.raises(UserError, match=next(iter(spoil))):
        emulator("e", None, blueprint_receipt([{"layer": 2}]) | spoil)
