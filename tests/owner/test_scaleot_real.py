"""ScaleOT on the real model: a minute's training makes stand-ins that are better than nothing there."""

from __future__ import annotations

import pytest
import torch

from offsite.bundles.emulator import Emulator
from offsite.data import tasks
from offsite.data.blocks import blocks
from offsite.model import loading
from offsite.model.split import Split
from offsite.owner.blueprint import raw
from offsite.owner.build import build
from offsite.owner.fidelity import fidelity, held_out
from offsite.owner.methods.scaleot import ScaleOT


@pytest.mark.slow
def test_harmonizers_are_truer_than_dropped_layers_and_generate_with_a_cache(tmp_path):
    model, tokenizer = loading.load("smollm2-135m")
    split, texts = Split(), tasks.texts("wikipedia")
    method = ScaleOT(steps=4, regressed=64, alpha=0.25, norm="plain", beta=1.0)
    plan = method.plan(method.profile(model, split, blocks(texts, tokenizer, 128, 128)), 0.7)
    emulator, dropped = (build(model, split, one, tokenizer=tokenizer) for one in (plan, raw(plan)))
    held = held_out(texts, tokenizer, 128, 8)
    ours, theirs = (fidelity(one, model, held) for one in (emulator, dropped))
    assert ours.loss_gap < theirs.loss_gap
    assert ours.relative_error < theirs.relative_error
    assert ours.cosine > theirs.cosine

    emulator.save(tmp_path / "emulator")
    opened = Emulator.load(tmp_path / "emulator").model
    asked = tokenizer("The liver is", return_tensors="pt")
    told = [
        one.generate(**asked, max_new_tokens=8, do_sample=False, use_cache=cache)
        for one in (emulator.model, opened)
        for cache in (True, False)
    ]
    assert all(torch.equal(told[0], other) for other in told)
