"""What reaches a layer through a mixed stack is its vector-Jacobian product, and harmonizers learn from it."""

from __future__ import annotations

import pytest
import torch

from offsite.model.decoder import Decoder, StandIns
from offsite.model.harmonizers import Harmonizer
from offsite.model.modes import frozen
from offsite.model.split import Split
from offsite.owner.methods.scaleot import ScaleOT
from offsite.owner.sobolev import entering, gradients_apart, pulled_back, twice_differentiable
from tests.test_laws import same, state

SPLIT = Split(1, 1)
LAYERS = list(range(1, 8))  # the middle's, and where it ends
TOKENS = torch.randint(3, 120, (64, 16), generator=torch.Generator().manual_seed(0))
ALONE = {
    "steps": 14,
    "batch_size": 2,
    "rank": 32,
    "candidates": 2,
    "regressed": 0,
    "alone": 0,
    "align": 0.0,
    "sobolev": 1.0,
    "lr": 2e-2,
}


@pytest.fixture
def harmonizer():
    torch.manual_seed(1)
    made = Harmonizer(32, 8, torch.float64)
    torch.nn.init.normal_(made.up.weight, std=0.3)
    return made


def test_a_gradient_is_pulled_back_through_what_stands_there(llama, harmonizer):
    """By central differences (norms compute in float32) in a stack where a harmonizer stands for layer 3."""
    llama.double()
    decoder, tokens = Decoder.of(llama), TOKENS[:2]
    with frozen(llama), StandIns(llama).within({3: harmonizer}):
        with entering(decoder, LAYERS) as states:
            llama(tokens, use_cache=False)
        gradient = torch.randn(states[-1].shape, generator=torch.Generator().manual_seed(2)).double()
        found = pulled_back(states, gradient)

        def ends(place, shift):
            """Where the middle ends, in the direction of the gradient, with a layer's input shifted."""
            handle = decoder.layers[LAYERS[place]].register_forward_pre_hook(
                lambda _, args: (args[0] + shift, *args[1:])
            )
            with torch.no_grad(), entering(decoder, LAYERS) as moved:
                llama(tokens, use_cache=False)
            handle.remove()
            return float((moved[-1] * gradient).sum())

        for place in (0, 2, 5):
            along = torch.randn(states[place].shape, generator=torch.Generator().manual_seed(place)).double()
            wanted = (ends(place, 3e-3 * along) - ends(place, -3e-3 * along)) / 6e-3
            assert float((found[place] * along).sum().detach()) == pytest.approx(wanted, rel=5e-3)


def test_the_distance_is_relative_and_nothing_where_nothing_is_replaced(llama):
    decoder, tokens = Decoder.of(llama), TOKENS[:2]
    with frozen(llama), twice_differentiable(), entering(decoder, LAYERS) as states:
        llama(tokens, use_cache=False)
    gradient = torch.ones_like(states[-1])
    aims = [each.detach() for each in pulled_back(states, gradient)]
    assert float(gradients_apart(states, [*aims, gradient]).detach()) == pytest.approx(0, abs=1e-9)
    halves = [each / 2 for each in aims]
    assert float(gradients_apart(states, [*halves, gradient]).detach()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "bloom"])
def test_a_step_is_taken_in_every_kind_of_attention(model):
    before = state(model)
    found = ScaleOT(**ALONE | {"steps": 2}).profile(model, SPLIT, TOKENS).tensors
    assert found["harmonizers/curve.loss"].isfinite().all()
    assert any(found[f"harmonizers/{layer}.factors.up"].any() for layer in LAYERS[:-1])
    assert same(state(model), before)


def test_harmonizers_learn_from_it_alone(llama):
    """On a text that can be learnt: one word, again and again."""
    found = ScaleOT(**ALONE).profile(llama, SPLIT, torch.full_like(TOKENS[:, :8], 7)).tensors
    loss = found["harmonizers/curve.loss"]
    assert loss[-5:].mean() < 0.85 * loss[:5].median()
