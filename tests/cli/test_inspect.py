"""What inspect tells of an emulator with harmonizers."""

from __future__ import annotations

import torch

from offsite.model.linears import Weight
from offsite.model.loading import load
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from tests.cli.conftest import command
from tests.cli.test_commands import revealed
from tests.test_laws import SPLIT, harmonized


def test_inspect_says_which_layers_became_harmonizers(world, here):
    model, tokenizer = load(str(world / "model"))
    build(model, SPLIT, harmonized(), tokenizer=tokenizer).save(here / "em")
    told = command("inspect", here / "em", "--json").json
    assert told["places"] == [{}, {}]
    assert told["harmonizers"] == [{"after": after, "rank": 3} for after in (0, 1, 1, 2)]
    assert revealed(told) == (
        "a middle of 2 places; 4 more of the model's layers are replaced by harmonizers of rank 3, and where "
        "they stood is seen"
    )
    whole, sizes = sum(p.numel() for p in model.model.layers[0].parameters()), told["parameters"]
    assert sizes["middle"] == 2 * whole + 4 * 2 * 3 * 32
    assert sizes["all"] - sizes["adapter"] - sizes["middle"] == 128 * 32 + 32
    assert "opens       with offsite alone" in command("inspect", here / "em").out
    assert command("inspect", world / "emulator", "--json").json["harmonizers"] == []


def test_inspect_tells_of_thin_places_beside_harmonizers_of_several_ranks(world, here):
    model, tokenizer = load(str(world / "model"))
    ranks = tuple(Place(4, harmonizer=Weight((torch.ones(32, r), torch.ones(r, 32)))) for r in (2, 8))
    build(model, SPLIT, (Place(2, (0, 1)), *ranks), tokenizer=tokenizer).save(here / "em")
    told = command("inspect", here / "em", "--json").json
    assert told["places"] == [{"channels": 2}]
    assert told["harmonizers"] == [{"after": 1, "rank": 2}, {"after": 1, "rank": 8}]
    assert "channels of 1 places (2); 2 more of the model's layers" in revealed(told)
    assert "harmonizers of rank 2 to 8" in revealed(told)
