"""The one training loop, around transformers' Trainer: bf16 where it pays, resumable, one bar."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from offsite.errors import UserError
from offsite.files.atomic import empty
from offsite.model.decoder import base_of, output_at
from offsite.model.precision import attention_for, bf16_pays, cast_once
from offsite.progress import Advance, bar
from offsite.training.trackers import check_trackers, keep_logs

_TRAINED = "trained.safetensors"
_STATE = "trainer_state.json"  # the last file of a checkpoint: where it stands, the checkpoint is whole
_CHECK_EVERY = 10  # steps, at the least: a check costs about as much as two of them
_POOL = 50  # batches among which examples are sorted by length

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to train."""

    steps: int = 150
    """Optimizer steps, at the most: early stopping may end sooner."""
    batch_size: int = 8
    """Examples in one step."""
    lr: float = 2e-4
    """Peak learning rate of AdamW; warmed up over a twentieth of the steps, then a cosine down to zero."""
    seed: int = 0
    """Of the order of the examples, dropout and fresh LoRA weights."""
    checks: int = 5
    """How often, over the run, the held-out loss is taken and a checkpoint is written."""
    patience: int = 2
    """Stop after so many checks in a row without a better held-out loss."""
    report_to: tuple[str, ...] = ()
    """Trackers, by transformers' names (tensorboard, mlflow, trackio, wandb); none: local files only.

    Tensorboard's files go to ./runs, or where TENSORBOARD_LOGGING_DIR says; the others have their own settings.
    """

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "checks", "patience"):
            if not 0 < getattr(self, name) < inf:
                raise UserError(f"{name} must be above zero, not {getattr(self, name)}.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be from 0 to {2**32 - 1}, not {self.seed}.")
        check_trackers(self.report_to)


class Point(NamedTuple):
    """One point of a training curve; losses in nats a token."""

    step: int
    loss: float | None
    heldout: float | None


def fit(
    model: nn.Module,
    train: Sequence[Mapping[str, Any]],
    heldout: Sequence[Mapping[str, Any]],
    config: TrainConfig,
    *,
    loss: Loss,
    collate: Callable[[list[Any]], Batch],
    work: Path,
    mark: str,
    resume: bool,
    what: str,
) -> list[Point]:
    """Train what requires gradients in `model`, in place, and return the curve.

    `train` and `heldout` are rows with `input_ids`; `work` keeps the checkpoints, which only `resume` reads,
    and only where `mark`, which stands for all that the result hangs on, is the same. The weights with the
    best held-out loss stay, where `heldout` is not empty.
    """
    last = _last_checkpoint(work) if resume and mark_of(work) == mark else None
    if last is None:
        empty(work)
    lengths = [len(row["input_ids"]) for row in train]
    ordered = sorted(heldout, key=lambda row: len(row["input_ids"]))
    arguments = _arguments(config, work, bool(heldout), half=base_of(model).dtype != torch.float32)
    arguments.max_steps = _over_at(last) or config.steps
    order = schedule(lengths, config)[: arguments.max_steps * config.batch_size]
    cast = cast_once(model) if arguments.bf16 else nullcontext()
    with attention_for(base_of(model), max(lengths)), cast, bar(what, config.steps) as advance:
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=[train[i] for i in order],
            eval_dataset=ordered or None,
            data_collator=collate,
            callbacks=[_Bar(advance), *([EarlyStoppingCallback(config.patience)] if heldout else [])],
        )
        trainer.loss, trainer.mark = loss, mark
        trainer.remove_callback(PrinterCallback)
        keep_logs(trainer)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    return _curve(trainer.state.log_history)


@contextmanager
def only(model: nn.Module, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Within, just those of the `tensors` that are parameters require gradients, in float32.

    AdamW's small steps vanish in half precision; afterwards each has its type again, and none is trained.
    """
    trained = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
    types = [parameter.dtype for parameter in trained]
    model.requires_grad_(False)
    for parameter in trained:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, dtype in zip(trained, types, strict=True):
            parameter.requires_grad_(False)
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)
        model.train(False)


def answer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the learnt tokens; the head is computed only where one of the batch stands.

    `batch`: input_ids, attention_mask, labels, each (rows, length); labels are -100 where only read.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    targets = batch["labels"][:, 1:]
    columns = (targets != -100).any(dim=0).nonzero().squeeze(1)  # the union over rows, ascending
    logits = output_at(model, columns, **inputs).logits
    return cross_entropy(logits.float().flatten(0, 1), targets[:, columns].flatten(), ignore_index=-100)


def pad(pad_id: int) -> Callable[[list[Any]], Batch]:
    """A collator of rows of `input_ids` and `labels`: padded on the right, to the longest of the batch."""

    def collate(rows: list[Any]) -> Batch:
        length = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, fill: int) -> Tensor:
            return torch.tensor([[*row[key], *[fill] * (length - len(row[key]))] for row in rows])

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = (torch.arange(length) < lengths[:, None]).long()
        return {
            "input_ids": padded("input_ids", pad_id),
            "labels": padded("labels", -100),
            "attention_mask": mask,
        }

    return collate


def schedule(lengths: Sequence[int], config: TrainConfig) -> list[int]:
    """Which example comes when, over the whole run: batches of like length in random order, epoch by epoch.

    From the seed alone, so that a resumed run sees what an undisturbed one would (docs/decisions.md).
    """
    chance = random.Random(config.seed)
    wanted = config.steps * config.batch_size
    order: list[int] = []
    while len(order) < wanted:
        epoch = chance.sample(range(len(lengths)), len(lengths))
        pools = [
            epoch[i : i + _POOL * config.batch_size] for i in range(0, len(epoch), _POOL * config.batch_size)
        ]
        ranked = [i for pool in pools for i in sorted(pool, key=lengths.__getitem__)]
        batches = [ranked[i : i + config.batch_size] for i in range(0, len(ranked), config.batch_size)]
        full = [batch for batch in batches if len(batch) == config.batch_size] or batches
        order += [i for batch in chance.sample(full, len(full)) for i in batch]
    return order[:wanted]


def has_checkpoint(work: Path) -> bool:
    """Whether an interrupted run left something to resume in `work`."""
    return _last_checkpoint(work) is not None


def mark_of(work: Path) -> str | None:
    """The `mark` of the interrupted run that can be resumed in `work`; None where there is none."""
    last = _last_checkpoint(work)
    if last is None:
        return None
    with safe_open(last / _TRAINED, framework="pt") as trained:
        return (trained.metadata() or {}).get("mark")


class _Trainer(Trainer):
    """Our loss, and checkpoints that hold what is trained instead of the whole model."""

    loss: Loss
    mark: str

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        loss = self.loss(model, inputs)
        return (loss, {}) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        assert self.model is not None
        state = state_dict if state_dict is not None else self.model.state_dict()
        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        kept = {k: v.detach().contiguous() for k, v in state.items() if k in trained}
        save_file(kept, folder / _TRAINED, metadata={"mark": self.mark})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / _TRAINED)
        target = model or self.model
        assert target is not None
        own = dict(target.named_parameters())
        with torch.no_grad():
            for name, tensor in saved.items():
                own[name].copy_(tensor)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint:
            # By its name: a resumed run may see the folder from elsewhere.
            best = Path(str(self.args.output_dir)) / Path(self.state.best_model_checkpoint).name
            self._load_from_checkpoint(str(best))


class _Bar(TrainerCallback):
    """Drives our bar from the Trainer's events."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.note, self.shown = advance, "", 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(state.global_step - self.shown, self.note)
        self.shown = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.note = f"loss {float(logs['loss']):.2f}"


def _arguments(config: TrainConfig, work: Path, check: bool, half: bool) -> TrainingArguments:
    every = max(_CHECK_EVERY, ceil(config.steps / config.checks))
    logged = max(1, config.steps // 30)
    while every % logged:  # a loss is a mean since the one before, of which a resumed run knows nothing
        logged -= 1
    arguments = TrainingArguments(
        output_dir=str(work.resolve()),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=config.lr,
        warmup_steps=config.steps // 20,
        lr_scheduler_type="cosine",
        seed=config.seed,
        bf16=half or bf16_pays(),  # float32 adapters in a model of half precision need autocast
        use_cpu=not torch.accelerator.is_available(),
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
        report_to=list(config.report_to) or "none",
        disable_tqdm=True,
        logging_steps=logged,
        eval_strategy="steps" if check else "no",
        eval_steps=every,
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=check,
        restore_callback_states_from_checkpoint=True,
        prediction_loss_only=True,
        log_level="error",
    )
    # Several would make one step of a batch for each, of the schedule of one.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _last_checkpoint(work: Path) -> Path | None:
    """The newest whole checkpoint; one cut short by a kill has no trainer state."""
    whole = [state.parent for state in work.glob(f"checkpoint-*/{_STATE}") if _sound(state)]
    return max(whole, key=lambda folder: int(folder.name.rsplit("-", 1)[1]), default=None)


def _over_at(checkpoint: Path | None) -> int | None:
    """The step at which a run was over, perhaps early; the Trainer, resumed, would take one more."""
    if checkpoint is None:
        return None
    state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    over = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    return int(state["global_step"]) if over else None


def _sound(state: Path) -> bool:
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _curve(history: Sequence[Mapping[str, float]]) -> list[Point]:
    points: dict[int, Point] = {}
    for entry in history:
        step = int(entry["step"])
        old = points.get(step, Point(step, None, None))
        points[step] = Point(step, entry.get("loss", old.loss), entry.get("eval_loss", old.heldout))
    return [points[step] for step in sorted(points) if points[step][1:] != (None, None)]
