"""An emulator does not say which of the model's layers stand in it, nor how many there were."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors import safe_open

from offsite.model.decoder import Decoder, restack
from offsite.model.linears import Weight
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from tests.cli.conftest import listing

SPLIT = Split(2, 2)
OTHER = [0, 1, 3, 4, 2, 4, 2, 5, 6, 7]
"""The order of the layers in another, deeper model, of the same two layers of interest elsewhere."""
HERE, THERE = (3, 5), (2, 7)


def whole(model, first, second):
    """Two layers as they are, one of them in two places."""
    return (Place(first), Place(first), Place(second))


def changed(model, first, second):
    """The first with one linear as factors, the second with few channels, a harmonizer between them."""
    chance = torch.Generator().manual_seed(0)
    wide = torch.randn(3, 32, generator=chance)
    decoder = Decoder.of(model)
    name = decoder.attention(first)[0]
    up = decoder.matrix(first, name)[:, :3]
    stand_in = Weight((torch.randn(32, 3, generator=chance), wide))
    return (
        Place(first, weights={name: Weight((up, 2 * wide))}),
        Place(4, harmonizer=stand_in),
        Place(second, (0, 5, 9)),
    )


@pytest.mark.parametrize("made", [whole, changed])
def test_the_bundle_is_the_same_wherever_its_layers_stood(model, tmp_path, made):
    """Bit for bit: names, config, order and all; but for the digest by which its owner knows the model."""
    deeper = restack(model, OTHER)
    for name, source, layers in (("a", model, HERE), ("b", deeper, THERE)):
        build(source, SPLIT, made(source, *layers), method="any").save(tmp_path / name)
    ones, others = listing(tmp_path / "a"), listing(tmp_path / "b")
    cards = [json.loads(each.pop("card.json")) for each in (ones, others)]
    parents = [card["origin"].pop("parent") for card in cards]
    assert parents[0] != parents[1]
    assert cards[0] == cards[1]
    assert ones == others


@pytest.mark.long
def test_layers_are_numbered_as_they_stand_in_the_emulator(story):
    """In every bundle of the commands: from the first to the last, harmonizers after one of them."""
    for folder in story.emulators:
        config = json.loads((folder / "config.json").read_text())
        depth, names = config["num_hidden_layers"], _names(folder)
        assert {int(n) for name in names for n in re.findall(r"^model\.layers\.(\d+)\.", name)} == set(
            range(depth)
        )
        assert {int(n) for name in names for n in re.findall(r"^harmonizers\.(\d+)\.", name)} <= set(
            range(depth)
        )
        lengths = [len(value) for value in config.values() if isinstance(value, list)]
        assert set(lengths) <= {1, depth}, config  # one name of an architecture; a value for each layer


def _names(folder):
    """Of all tensors: stored ones, and those that the card says are the same as others."""
    (file,) = folder.glob("*.safetensors")
    card = json.loads((folder / "card.json").read_text())
    with safe_open(file, "pt") as tensors:
        assert tensors.metadata() == {"format": "pt"}
        return {*tensors.keys(), *card["same_as"]}
