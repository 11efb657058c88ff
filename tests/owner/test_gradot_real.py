"""GradOT on the real model: at an equal budget its emulator is the truer one."""

from __future__ import annotations

import pytest

from offsite.data import tasks
from offsite.data.blocks import blocks
from offsite.model import loading
from offsite.model.split import Split
from offsite.owner.build import build, keep_of
from offsite.owner.fidelity import fidelity, held_out
from offsite.owner.methods import METHODS


@pytest.mark.slow
def test_it_keeps_gradients_and_loss_better_than_dropping_layers_or_small_weights():
    model, tokenizer = loading.load("smollm2-135m")
    split, texts = Split(), tasks.texts("wikipedia")
    held = held_out(texts, tokenizer, 128, 8)
    found = {}
    for name in ("gradot", "uniform", "svd"):
        method = METHODS[name]()
        tokens = blocks(texts, tokenizer, 256, 8) if method.calibration else None
        emulator = build(model, split, method.plan(method.profile(model, split, tokens), 0.7))
        assert keep_of(emulator, model) == pytest.approx(0.7, abs=0.01)
        found[name] = fidelity(emulator, model, held)
    for name in ("uniform", "svd"):
        assert found["gradot"].loss_gap < found[name].loss_gap / 2
        assert found["gradot"].relative_error < found[name].relative_error
        assert found["gradot"].cosine > found[name].cosine
