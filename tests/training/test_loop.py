"""The training loop: what is learnt, what is padded, and how an interrupted run ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from offsite.bundles.adapter import adapter_tensors
from offsite.data_owner.tune import TuneConfig, tune
from offsite.errors import UserError
from offsite.model.precision import cast_once
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from offsite.training.batches import answer_loss, pad, schedule
from offsite.training.checkpoint import has_checkpoint, last_step
from offsite.training.config import TrainConfig
from offsite.training.trackers import check_trackers
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
    """Cut after a checkpoint, with a later one torn beside it."""

    def emulator():
        return build(tiny_model("gpt2"), Split(2, 2), (Place(3),), tokenizer=tokenizer)

    config = TuneConfig(steps=30, batch_size=4, lr=1e-2, max_length=32, lora_rank=rank)
    whole = tune(emulator(), EXAMPLES, config, work=tmp_path / "work")
    work = tmp_path / "work"
    kept = sorted(folder.name for folder in work.iterdir())
    assert len(kept) == 2  # the best one and the last one
    assert kept[-1] == "checkpoint-30"
    assert has_checkpoint(work)
    [torn] = (work / "checkpoint-30").iterdir()
    torn.write_bytes(torn.read_bytes()[:100])
    assert last_step(work) in (10, 20)
    resumed = tune(emulator(), EXAMPLES, config, work=work, resume=True)
    assert same(dict(resumed.tensors), dict(whole.tensors))
    assert resumed.curve == whole.curve


def test_without_resume_a_run_starts_over(tmp_path, tokenizer):
    emulator = build(tiny_model("llama"), Split(2, 2), (Place(3),), tokenizer=tokenizer)
    stale = tmp_path / "work" / "checkpoint-10"
    stale.mkdir(parents=True)
    (stale / "training.safetensors").write_bytes(b"not ours")
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
    order = schedule(lengths, 16, 8, seed=0)
    assert len(order) == 128
    assert sorted(order[:64]) == sorted(order[64:]) == list(range(64))
    assert order[:64] != order[64:]
    spread = [max(b) - min(b) for b in ([lengths[i] for i in order[k : k + 8]] for k in range(0, 128, 8))]
    assert max(spread) <= 4
    assert order == schedule(lengths, 16, 8, seed=0)
    assert order != schedule(lengths, 16, 8, seed=1)


LAUNCHED = {
    "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "29500",
    "OMPI_COMM_WORLD_SIZE": "2", "PMI_SIZE": "2", "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": "fp8",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
}  # fmt: skip
TUNING = """
import os, sys
def watch(name, args):
    assert not name.startswith("socket."), (name, args)
sys.addaudithook(watch)
from offsite.data_owner.tune import TuneConfig, tune
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from tests.families import tiny_model, tiny_tokenizer
from tests.test_laws import EXAMPLES
emulator = build(tiny_model("llama"), Split(2, 2), (Place(3),), tokenizer=tiny_tokenizer())
before = dict(os.environ)
print(tune(emulator, EXAMPLES, TuneConfig(steps=2, batch_size=4, max_length=32)).digest)
assert dict(os.environ) == before, "the environment is as it was"
"""


def test_a_launcher_s_variables_start_no_other_process(tmp_path, tokenizer):
    """Left in the environment, they would have accelerate wait on a socket, or ask for deepspeed."""
    root = Path(__file__).parents[2]
    launched = os.environ | {"PYTHONPATH": f"{root / 'src'}:{root}", "OMP_NUM_THREADS": "1"} | LAUNCHED
    ran = subprocess.run(
        [sys.executable, "-c", TUNING],
        env=launched, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    emulator = build(tiny_model("llama"), Split(2, 2), (Place(3),), tokenizer=tokenizer)
    plain = tune(emulator, EXAMPLES, TuneConfig(steps=2, batch_size=4, max_length=32))
    assert ran.stdout.strip() == plain.digest


def test_a_loss_that_runs_away_ends_the_training_at_once(tmp_path, tokenizer):
    emulator = build(tiny_model("llama"), Split(2, 2), (Place(3),), tokenizer=tokenizer)
    config = TuneConfig(steps=300, batch_size=4, lr=1e30, max_length=32)
    with pytest.raises(UserError, match=r"by step (10|20); take an lr lower than 1e\+30"):
        tune(emulator, EXAMPLES, config, work=tmp_path)


def step(model, batch):
    """The loss and the gradient of a step under autocast, with a tensor of the bottom layer trained."""
    trained = next(iter(adapter_tensors(model, Split(2, 2)).values()))
    model.requires_grad_(False)
    trained.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = answer_loss(model, batch)
    loss.backward()
    found = loss.item(), trained.grad.clone()
    trained.grad = None
    return found


def test_weights_cast_once_give_the_same_numbers_and_come_back(model):
    batch = pad(0)(ROWS)
    loss, grad = step(model, batch)
    before = dict(model.named_parameters(remove_duplicate=False))

    def cut_short():
        with cast_once(model):
            assert any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
            assert model.get_input_embeddings().weight.dtype == torch.float32
            again, same_grad = step(model, batch)
            assert again == loss
            assert torch.equal(same_grad, grad)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_short()
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())


def test_shared_layers_are_cast_once(llama):
    shared = build(llama, Split(2, 2), (Place(2), Place(2))).model
    with cast_once(shared):
        weights = [shared.model.layers[i].mlp.up_proj.weight for i in (2, 3)]
        assert weights[0].dtype == torch.bfloat16
        assert weights[0] is weights[1]


# --- trackers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [None, "elsewhere"])
def test_tensorboard_s_files_hold_the_curve_and_outlive_the_checkpoints(
    tmp_path, llama, tokenizer, monkeypatch, place
):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    if place:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", place)
    emulator = build(llama, Split(2, 2), (Place(3),), tokenizer=tokenizer)
    config = TuneConfig(steps=2, batch_size=4, max_length=32, report_to=("tensorboard",))
    curve = tune(emulator, EXAMPLES, config).curve
    assert [path.name for path in tmp_path.iterdir()] == [place or "runs"]
    files = list(tmp_path.rglob("events.out.tfevents.*"))
    [logged] = (
        found for file in files if (found := events.EventAccumulator(str(file)).Reload()).Tags()["scalars"]
    )
    losses = {event.step: event.value for event in logged.Scalars("train/loss")}
    assert losses == pytest.approx({p.step: p.loss for p in curve if p.loss is not None}, rel=1e-4)
    raw = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"batch_size" in raw
    assert not any(piece.text.strip().encode() in raw for example in EXAMPLES for piece in example.pieces)


def test_no_tracker_runs_unasked(tmp_path, llama, tokenizer, monkeypatch):
    """Whatever trackers the environment is set up for: nothing but the checkpoints is written."""
    monkeypatch.chdir(tmp_path)
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "TRACKIO_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_PROJECT", "p")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    seen = []
    real = Accelerator.log
    monkeypatch.setattr(Accelerator, "log", lambda self, *a, **k: (seen.append(self), real(self, *a, **k)))
    emulator = build(llama, Split(2, 2), (Place(3),), tokenizer=tokenizer)
    tune(emulator, EXAMPLES, TuneConfig(steps=1, max_length=32))
    assert not list(tmp_path.iterdir())
    assert seen
    assert all(not accelerator.trackers for accelerator in seen)


def test_a_tracker_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="no tracker 'tensorbord' here"):
        check_trackers(["tensorbord"])
