"""The training loop: what is learnt, what is padded, and how an interrupted run ends."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch.nn.functional import cross_entropy

from offsite.data_owner.tune import TuneConfig, tune
from offsite.errors import UserError
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from offsite.split import Split
from offsite.training import TrainConfig, answer_loss, has_checkpoint, pad, schedule
from tests.families import tiny_model
from tests.test_laws import EXAMPLES, same

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]},
    {"input_ids": [11, 12, 13], "labels": [-100, 12, 13]},
]


def test_padding_is_on_the_right_to_the_longest_of_the_batch():
    batch = pad(0)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [11, 12, 13, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 8, 9], [-100, 12, 13, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_the_answer_loss_is_the_mean_over_learnt_tokens_and_padding_changes_nothing(model):
    with torch.no_grad():
        together = answer_loss(model, pad(0)(ROWS))
        alone = []
        for row in ROWS:
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
            alone.append(cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum"))
    assert together == pytest.approx(float(sum(alone)) / 5, abs=1e-4)


@pytest.mark.parametrize("field", ["steps", "batch_size", "lr", "checks", "patience"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_senseless_settings_are_refused(field, value):
    with pytest.raises(UserError, match=f"{field} must be above zero"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("rank", [None, 2], ids=["whole", "lora"])
def test_a_run_cut_short_and_resumed_ends_with_the_same_adapter(tmp_path, tokenizer, rank):
    """Cut after its first checkpoint, with a second one half-written beside."""

    def emulator():
        return build(tiny_model("gpt2"), Split(2, 2), (Place(3),), tokenizer=tokenizer)

    config = TuneConfig(steps=30, batch_size=4, lr=1e-2, max_length=32, lora_rank=rank)
    whole = tune(emulator(), EXAMPLES, config, work=tmp_path / "work")
    work = tmp_path / "work"
    kept = sorted(folder.name for folder in work.iterdir())
    assert len(kept) == 2  # the best one and the last one
    assert kept[-1] == "checkpoint-30"
    assert has_checkpoint(work)
    (work / "checkpoint-30" / "trainer_state.json").write_text('{"cut sho')
    resumed = tune(emulator(), EXAMPLES, config, work=work, resume=True)
    assert same(dict(resumed.tensors), dict(whole.tensors))
    assert resumed.curve == whole.curve


def test_without_resume_a_run_starts_over(tmp_path, tokenizer):
    emulator = build(tiny_model("llama"), Split(2, 2), (Place(3),), tokenizer=tokenizer)
    stale = tmp_path / "work" / "checkpoint-10"
    stale.mkdir(parents=True)
    (stale / "trainer_state.json").write_text(json.dumps({"not": "ours"}))
    tune(emulator, EXAMPLES, TuneConfig(steps=1, max_length=32), work=tmp_path / "work")
    assert not stale.exists()
    shutil.rmtree(tmp_path / "work")


def test_early_stopping_keeps_the_best_weights(tmp_path, tokenizer):
    """A learning rate that wrecks the model: what comes back is not the wreck of the last step."""
    emulator = build(tiny_model("llama"), Split(2, 2), (Place(3),), tokenizer=tokenizer)
    examples = EXAMPLES * 2
    config = TuneConfig(steps=200, checks=20, patience=1, lr=0.05, batch_size=4, max_length=32)
    tuned = tune(emulator, examples, config)
    heldout = {point.step: point.heldout for point in tuned.curve if point.heldout is not None}
    assert max(heldout) < 200
    assert min(heldout, key=heldout.get) < max(heldout)


def test_the_schedule_covers_every_example_each_epoch_in_batches_of_like_length():
    lengths = [5 + i % 17 for i in range(64)]
    order = schedule(lengths, TrainConfig(steps=16, batch_size=8))
    assert len(order) == 128
    assert sorted(order[:64]) == sorted(order[64:]) == list(range(64))
    assert order[:64] != order[64:]
    spread = [max(b) - min(b) for b in ([lengths[i] for i in order[k : k + 8]] for k in range(0, 128, 8))]
    assert max(spread) <= 4
    assert order == schedule(lengths, TrainConfig(steps=16, batch_size=8))
    assert order != schedule(lengths, TrainConfig(steps=16, batch_size=8, seed=1))
