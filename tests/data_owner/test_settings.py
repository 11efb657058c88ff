"""The settings of a tuning: its length, the rows it is judged on, and how a step is computed."""

from __future__ import annotations

import pytest
import torch

from offsite.bundles.adapter import Adapter, adapter_tensors
from offsite.data.examples import Example, Piece
from offsite.data_owner.plan import plan
from offsite.data_owner.tune import TuneConfig, training_rows, tune
from offsite.docstrings import field_docs
from offsite.errors import UserError
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from offsite.training import loop
from tests.families import tiny_model
from tests.test_laws import EXAMPLES, same

UNEQUAL = [
    Example((Piece(f"w{10 + i}", False), Piece("".join(f" w{50 + i + k}" for k in range(1 + i % 4)), True)))
    for i in range(16)
]
ONCE = {"max_length": 32, "heldout": 0}


@pytest.fixture
def emulator(tokenizer):
    """`emulator()` is a fresh one, always the same."""
    return lambda: build(tiny_model("llama"), Split(2, 2), (Place(3),), tokenizer=tokenizer)


def tensors(of):
    return {name: tensor.detach().clone() for name, tensor in adapter_tensors(of.model, of.split).items()}


def apart(one, other, start):
    """How far two adapters are from each other, as a share of how far they moved."""
    far = sum((one[name] - other[name]).norm() for name in start)
    return float(far / sum((one[name] - start[name]).norm() for name in start))


def test_every_setting_is_documented():
    assert [each.name for each in field_docs(TuneConfig) if not each.meaning] == []


# --- length -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "rows", "steps"),
    [
        ({}, 2219, 833),
        ({}, 3, 2),
        ({}, 6_000, 2_000),
        ({}, 100_000, 12_500),
        ({"epochs": 3}, 6_000, 2_250),
        ({"epochs": 0.5}, 100, 7),
        ({"steps": 150}, 100_000, 150),
        ({"accumulate": 4}, 2219, 209),
    ],
)
def test_the_length_follows_the_rows_unless_steps_are_asked(asked, rows, steps):
    assert TuneConfig(**asked).steps_for(rows) == steps


def test_epochs_and_steps_exclude_each_other():
    with pytest.raises(UserError, match="give one of them"):
        TuneConfig(epochs=1, steps=1)


def test_the_plan_is_what_then_happens_and_leaves_no_trace(emulator):
    here, config = emulator(), TuneConfig(epochs=2, batch_size=4, max_length=32, lr=1e-3)
    before = tensors(here)
    found = plan(here, training_rows(here, EXAMPLES, config), config)
    assert (found.rows, found.heldout, found.steps) == (22, 2, 11)
    assert found.times == 2
    assert found.seconds > 0
    assert same(tensors(here), before)
    assert not any(parameter.requires_grad for parameter in here.model.parameters())
    tuned = tune(here, EXAMPLES, config)
    assert tuned.curve[-1].step == tuned.config.steps == found.steps
    assert same(dict(tuned.tensors), dict(tune(emulator(), EXAMPLES, config).tensors))


# --- rows held out ------------------------------------------------------------------------------------------


def test_a_tuning_that_only_harms_ends_where_it_began(emulator):
    here = emulator()
    before = dict(Adapter.of(here.model, here.origin).tensors)
    before = {name: tensor.clone() for name, tensor in before.items()}
    words = here.model.get_output_embeddings().weight[10:100]
    opposite = 10 + int((words @ words[0]).argmin())
    rows, others = (
        [Example((Piece(f"w{20 + i}", False), Piece(f" w{answer}", True)), closed=False) for i in range(8)]
        for answer in (10, opposite)
    )
    tuned = tune(here, rows, TuneConfig(steps=10, lr=1e-2, max_length=32), heldout=others)
    heldout = {point.step: point.heldout for point in tuned.curve if point.heldout is not None}
    assert heldout[10] > heldout[0]
    assert same(dict(tuned.tensors), before)


def test_rows_of_ones_own_are_held_out_and_all_others_trained_on(emulator):
    config = TuneConfig(steps=10, lr=1e-2, max_length=32)
    judged = tune(emulator(), EXAMPLES, config, heldout=UNEQUAL)
    every = tune(emulator(), EXAMPLES, TuneConfig(**{**vars(config), "heldout": 0}))
    losses = {point.step: point.loss for point in judged.curve if point.loss is not None}
    assert losses == {point.step: point.loss for point in every.curve}
    assert [point.step for point in judged.curve if point.heldout is not None] == [0, 10]
    assert all(point.heldout is None for point in every.curve)


# --- how a step is computed ---------------------------------------------------------------------------------


def test_accumulated_passes_are_one_large_batch(emulator, monkeypatch):
    """Answers differ in length, so a mean of the passes' means would be another adapter."""
    monkeypatch.setattr(loop, "bf16_pays", lambda: False)
    start = tensors(emulator())
    large, small, other = (
        dict(tune(emulator(), UNEQUAL, TuneConfig(steps=3, lr=1e-3, **sizes, **ONCE)).tensors)
        for sizes in ({"batch_size": 8}, {"batch_size": 2, "accumulate": 4}, {"batch_size": 2})
    )
    assert apart(large, small, start) < 1e-3 < apart(large, other, start)


@pytest.mark.parametrize("rank", [None, 2], ids=["whole", "lora"])
def test_gradient_checkpointing_keeps_less_and_changes_nothing(emulator, rank):
    kept = []

    def adapter(recompute):
        saved = 0

        def pack(tensor):
            nonlocal saved
            saved += tensor.numel()
            return tensor

        config = TuneConfig(steps=2, lr=1e-3, lora_rank=rank, gradient_checkpointing=recompute, **ONCE)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            here = emulator()
            tuned = tune(here, EXAMPLES, config)
        kept.append(saved)
        return dict(tuned.tensors)

    plain, recomputed = adapter(False), adapter(True)
    assert same(plain, recomputed)
    assert kept[1] < kept[0] / 2


def test_weight_decay_is_adamw_s(emulator):
    start, decay, lr = tensors(emulator()), 0.5, 1e-2
    plain, decayed = (
        dict(tune(emulator(), EXAMPLES, TuneConfig(steps=1, lr=lr, weight_decay=each, **ONCE)).tensors)
        for each in (0.0, decay)
    )
    for name, tensor in start.items():
        torch.testing.assert_close(decayed[name], plain[name] - lr * decay * tensor, atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match="weight_decay must be zero or above"):
        TuneConfig(weight_decay=-1)
