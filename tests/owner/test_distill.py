"""Distilling aligns the middle, and touches nothing else."""

from __future__ import annotations

import torch

from offsite.bundles.emulator import Emulator
from offsite.data_owner.tune import TuneConfig, tune
from offsite.model.decoder import Decoder, longest
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from offsite.owner.distill import DistillConfig, align, distill
from offsite.owner.states import hidden_states
from tests.families import FAMILIES, tiny_model
from tests.test_laws import EXAMPLES, same, state

SPLIT = Split(2, 2)
TOKENS = torch.randint(3, 120, (32, 16), generator=torch.Generator().manual_seed(0))
CONFIG = DistillConfig(steps=40, batch_size=8, lr=3e-3)


def apart(emulator, model):
    """How far the states after the two middles are from each other."""
    ends = [SPLIT.middle(len(Decoder.of(m))).stop for m in (emulator.model, model)]
    pair = [next(hidden_states(m, TOKENS, ""))[e] for m, e in zip((emulator.model, model), ends, strict=True)]
    return float((pair[0] - pair[1]).pow(2).mean() / pair[1].pow(2).mean())


def test_distilling_brings_the_middles_together_and_changes_the_middle_alone(tmp_path, tokenizer):
    model = tiny_model("llama")
    whole = state(model)
    emulator = build(model, SPLIT, (Place(2), Place(4)), tokenizer=tokenizer)
    before, distance = state(emulator.model), apart(emulator, model)
    distill(emulator, model, TOKENS, CONFIG, work=tmp_path / "work")
    assert apart(emulator, model) < distance / 2
    assert same(state(model), whole)
    changed = {
        name for name, tensor in emulator.model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    inner = Decoder.of(emulator.model)
    assert changed == {inner.name(i, name) for i in (2, 3) for name in inner.tensors(i)}


def test_a_distilled_emulator_is_saved_plain_and_tunes(tmp_path, tokenizer):
    model = tiny_model("gpt2")
    emulator = build(model, SPLIT, (Place(2), Place(4)), tokenizer=tokenizer)
    distill(emulator, model, TOKENS, DistillConfig(steps=2, batch_size=8), work=tmp_path / "work")
    emulator.save(tmp_path / "emulator")
    again = Emulator.load(tmp_path / "emulator")
    assert again.plain
    assert same(state(again.model), state(emulator.model))
    assert tune(again, EXAMPLES, TuneConfig(steps=1, max_length=32)).tensors


def test_a_shared_middle_in_half_precision_is_distilled_once_and_comes_back_in_half(tmp_path, tokenizer):
    model = tiny_model("llama").bfloat16()
    model.config.dtype = torch.bfloat16
    emulator = build(model, SPLIT, (Place(2), Place(2), Place(4)), tokenizer=tokenizer)
    before = state(emulator.model)
    distill(emulator, model, TOKENS, DistillConfig(steps=2, batch_size=8, lr=3e-3), work=tmp_path / "work")
    after = emulator.model.state_dict()
    name = "model.layers.{}.mlp.up_proj.weight"
    assert not torch.equal(after[name.format(2)], before[name.format(2)])
    assert torch.equal(after[name.format(2)], after[name.format(3)])
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


def test_a_model_that_reads_little_is_aligned_on_shorter_blocks(tmp_path, tokenizer, monkeypatch):
    usual = FAMILIES["gpt2"]()
    usual.n_positions = 64
    monkeypatch.setitem(FAMILIES, "gpt2", lambda: usual)
    model = tiny_model("gpt2")
    assert longest(model) < DistillConfig.length
    emulator = build(model, SPLIT, (Place(2), Place(4)), tokenizer=tokenizer)
    before = state(emulator.model)
    align(emulator, model, ["w7 w9 " * 3000], steps=2, seed=0, work=tmp_path / "work")
    assert not same(state(emulator.model), before)
