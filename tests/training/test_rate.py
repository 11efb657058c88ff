"""The learning rate: what a width bears, what a trial finds, and that a trial leaves no trace."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch

from offsite.data.examples import Example, Piece
from offsite.data_owner.tune import TuneConfig, learning_rate, tune
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from offsite.training import loop, rate
from offsite.training.config import TrainConfig
from offsite.training.loop import Point, TrainingData
from offsite.training.rate import Rate, by_width, trial_steps
from tests.families import tiny_model
from tests.test_laws import same, state

ROWS = [
    Example((Piece(f"w{10 + i % 40} w{20 + i % 7}", False), Piece(f" w{60 + i % 40}", True)))
    for i in range(160)
]
CONFIG = TuneConfig(steps=20, batch_size=4, max_length=16)


@pytest.fixture
def emulator(tokenizer):
    """`emulator()` is a fresh one, always the same."""
    return lambda: build(tiny_model("llama"), Split(2, 2), (Place(3),), tokenizer=tokenizer)


@pytest.fixture
def short_trials(monkeypatch):
    monkeypatch.setattr(rate, "_LEAST_STEPS", 10)
    monkeypatch.setattr(rate, "_FEWEST", 3)


@pytest.fixture
def stop_at(monkeypatch):
    """`with stop_at(step, title)`: Ctrl-C at a step of the bar whose title begins so."""

    @contextmanager
    def within(step, title):
        @contextmanager
        def bar(what, total):
            done = 0

            def advance(steps, note=""):
                nonlocal done
                done += steps
                if what.startswith(title) and done >= step:
                    raise KeyboardInterrupt

            yield advance

        with monkeypatch.context() as patched:
            patched.setattr(loop, "bar", bar)
            with pytest.raises(KeyboardInterrupt):
                yield

    return within


def test_the_wider_the_model_the_lower_the_rate():
    assert by_width(576) == 2e-4
    assert by_width(896) < 1.2e-4
    assert 2e-5 <= by_width(2048) <= 5e-5, "what the papers take at 1.3B"
    assert by_width(32) == by_width(64) == 1e-3
    assert by_width(2048, lora=True) == 10 * by_width(2048)


def test_a_trial_costs_about_a_tenth_and_needs_rows_and_steps():
    for steps in (400, 833, 12_500):
        assert 0 < 3 * trial_steps(steps, 32) <= 0.1 * steps
    assert trial_steps(150, 32) * 3 <= 24
    assert trial_steps(99, 32) == trial_steps(833, 15) == 0


def test_too_few_rows_take_the_rate_of_the_width(emulator):
    found = learning_rate(emulator(), ROWS[:30], CONFIG)
    assert found == Rate(by_width(emulator().model.config.hidden_size), "width")
    assert learning_rate(emulator(), ROWS[:30], TuneConfig(lr=0.5)) == Rate(0.5, "given")


@pytest.mark.parametrize("rank", [None, 2], ids=["whole", "lora"])
def test_a_trial_leaves_no_trace_and_its_rate_is_that_of_the_run(emulator, short_trials, rank):
    """Tuned by a trial and tuned with the rate that it found: the same, bit for bit."""
    config = TuneConfig(**{**vars(CONFIG), "lora_rank": rank})
    tuned = tune(emulator(), ROWS, config)
    assert tuned.rate.how == "trial"
    assert [lr / tuned.rate.tried[0][0] for lr, _ in tuned.rate.tried] == pytest.approx([1, 1 / 3, 1 / 10])
    given = tune(emulator(), ROWS, TuneConfig(**{**vars(config), "lr": tuned.rate.lr}))
    assert same(dict(given.tensors), dict(tuned.tensors))
    assert given.curve == tuned.curve
    assert given.rate == Rate(tuned.rate.lr, "given")
    assert tuned.config == given.config


def test_a_rate_that_runs_away_is_not_taken(emulator, short_trials, monkeypatch):
    monkeypatch.setattr(rate, "by_width", lambda width, lora: 1e30)
    monkeypatch.setattr(rate, "_SHARES", (1.0, 1e-33))
    whole = emulator()
    before = state(whole.model)
    found = learning_rate(whole, ROWS, CONFIG)
    assert same(state(whole.model), before)
    assert found.lr == pytest.approx(1e-3)
    assert dict(found.tried)[1e30] is None
    assert "held-out loss none at 1e+30" in str(found)


@pytest.mark.parametrize(
    ("losses", "best"), [((3.2, 2.9, 3.0), 1), ((2.1, 2.9, 3.0), 0), ((9.0, math.nan, 3.0), 2)]
)
def test_the_best_by_held_out_loss_is_taken(monkeypatch, losses, best):
    model, after = torch.nn.Linear(2, 2), list(losses)
    weight = model.weight.detach().clone()

    def fit(model, data, config, **_):
        assert torch.equal(model.weight, weight), "each trial starts from the same weights"
        model.weight.data.mul_(2)
        return [Point(config.steps, None, after.pop(0))]

    monkeypatch.setattr(rate, "fit", fit)
    asked = TrainConfig(steps=400, lr=2e-4)
    found = rate.choose(model, TrainingData([], [{}] * 32, loss=None, collate=None), asked)
    assert found.lr == pytest.approx(2e-4 * (1, 1 / 3, 1 / 10)[best])
    assert torch.equal(model.weight, weight)
    assert Rate.of(json.loads(json.dumps(asdict(found)))) == found


@pytest.mark.parametrize(("step", "title"), [(2, "Trying"), (15, "Tuning")])
def test_stopped_within_or_after_the_trial_and_run_again_it_ends_the_same(
    emulator, short_trials, stop_at, tmp_path, monkeypatch, step, title
):
    undisturbed = tune(emulator(), ROWS, CONFIG)
    with stop_at(step, title):
        tune(emulator(), ROWS, CONFIG, work=tmp_path)
    if title == "Tuning":  # a checkpoint has the rate, and no trial runs again
        monkeypatch.setattr(rate, "choose", None)
    again = tune(emulator(), ROWS, CONFIG, work=tmp_path, resume=True)
    assert same(dict(again.tensors), dict(undisturbed.tensors))
    assert (again.rate, again.curve) == (undisturbed.rate, undisturbed.curve)
