"""The training loop: step, log, evaluate, save; killed anywhere and run again, it ends with the same result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from offsite.errors import UserError
from offsite.files.atomic import empty
from offsite.model.decoder import base_of
from offsite.model.precision import attention_for, bf16_pays, cast_once
from offsite.progress import bar
from offsite.training import checkpoint
from offsite.training.batches import Batch, batches, learnt, schedule
from offsite.training.config import TrainConfig
from offsite.training.trackers import tracking

_CHECK_EVERY = 10  # steps, at the least: a check costs about as much as two of them
_JUDGES = 4  # held-out rows, at the least, by which the weights before the first step may win: two are chance
_LARGEST = 1.0  # norm of a step's gradient; a larger one is scaled down

Loss = Callable[[nn.Module, Batch], Tensor]


class RunawayError(UserError):
    """The loss went to NaN or infinity."""


class Point(NamedTuple):
    """One point of a training curve; losses in nats a token."""

    step: int
    loss: float | None
    heldout: float | None


class Training(Protocol):
    """Something to train in steps, which can save where it stands."""

    done: int
    """Steps taken."""
    over: bool
    """Whether to stop early."""

    def step(self) -> str:
        """Take a step; returns the note that the progress bar shows."""

    def check(self) -> None:
        """Evaluate and save."""


@dataclass(frozen=True)
class TrainingData:
    """Rows with `input_ids`, to train on and held out, and what a batch of them is and loses."""

    train: Sequence[Mapping[str, Any]]
    heldout: Sequence[Mapping[str, Any]]
    loss: Loss
    collate: Callable[[list[Any]], Batch]


def run(training: Training, steps: int, *, every: int, what: str) -> None:
    """Train until `steps` are done or it is over, with a check at every so many steps and after the last."""
    with bar(what, steps) as advance:
        advance(training.done, "")
        while training.done < steps and not training.over:
            note = training.step()
            if training.done % every == 0 or training.done == steps:
                training.check()
            advance(1, note)


def fit(
    model: nn.Module,
    data: TrainingData,
    config: TrainConfig,
    *,
    work: Path | None,
    mark: str = "",
    resume: bool = False,
    notes: Mapping[str, Any] | None = None,
    what: str,
) -> list[Point]:
    """Train what requires gradients in `model`, in place, and return the curve.

    Checkpoints go to `work`, with `notes` (JSON); `resume` reads them if they have the same `mark`, a
    fingerprint of all that decides the result. If there are rows held out, the weights with the best loss on
    them stay, with four or more be they those before the first step. Without `work` the last weights stay, and
    nothing is written.
    """
    every = max(_CHECK_EVERY, math.ceil(config.steps / config.checks))
    if work and not (resume and checkpoint.mark_of(work) == mark):
        empty(work)
    torch.manual_seed(config.seed)
    with (
        tracking(config.report_to, asdict(config)) as accelerator,
        prepared(model, data.train, config.gradient_checkpointing) as fast,
    ):
        kept = (work, {"mark": mark, "notes": dict(notes or {})})
        training = _Fit(model, data, config, accelerator, fast, *kept, every)
        try:
            training.look_before()
            run(training, config.steps, every=every, what=what)
            training.take_best()
        finally:
            accelerator.unwrap_model(training.model, keep_fp32_wrapper=False)
    return training.curve


class _Fit:
    """Training on rows: AdamW, warmed up and then on a cosine, with early stopping on held-out rows."""

    def __init__(
        self,
        model: nn.Module,
        data: TrainingData,
        config: TrainConfig,
        accelerator: Accelerator,
        fast: bool,
        work: Path | None,
        about: Mapping[str, Any],
        every: int,
    ) -> None:
        self.config, self.accelerator, self.fast = config, accelerator, fast
        self.data, self.work, self.about = data, work, about
        size = config.examples_a_step
        order = schedule([len(row["input_ids"]) for row in data.train], config.steps, size, config.seed)
        self.batches = batches([data.train[i] for i in order], size)
        self.heldout = batches(sorted(data.heldout, key=lambda row: len(row["input_ids"])), size)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # what a tuning that only does harm goes back to
        back = self.parameters if work and len(data.heldout) >= _JUDGES else {}
        self.before = {name: p.detach().to("cpu", copy=True) for name, p in back.items()}
        optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.model, self.optimizer = accelerator.prepare(model.train(), optimizer)
        # a logged loss is a mean since the one before, of which a resumed run knows nothing
        self.logged = max(n for n in range(1, max(1, config.steps // 30) + 1) if every % n == 0)
        self.summed = torch.zeros((), device=accelerator.device)
        self.done, self.over, self.note = 0, False, ""
        self.best, self.waited = math.inf, 0
        self.best_step: int | None = None
        self.points: dict[int, Point] = {}
        self.restore()

    @property
    def curve(self) -> list[Point]:
        """The losses logged so far, by step."""
        return [self.points[step] for step in sorted(self.points)]

    def step(self) -> str:
        """Take a step on the next batch."""
        rate = self.config.lr * _rate(self.done, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for loss in self._losses(self.batches[self.done]):
            self.accelerator.backward(loss)
            self.summed += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), _LARGEST)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        if self.done % self.logged == 0:
            self._log({"learning_rate": rate, "grad_norm": float(norm)})
        return self.note

    def look_before(self) -> None:
        """Evaluate before the first step: what a tuning has to better."""
        if self.before and not self.done:
            self._evaluate()
            self.waited, self.over = 0, False

    def check(self) -> None:
        """Evaluate on the held-out rows, if there are any, and save a checkpoint."""
        if self.heldout:
            self._evaluate()
        self._save()

    def _losses(self, rows: list[Any]) -> Iterator[Tensor]:
        """The loss of a step's rows in parts, one a pass, each weighted by the tokens that are learnt in it."""
        passes = [self.data.collate(part) for part in batches(rows, self.config.batch_size)]
        counts = [learnt(batch) for batch in passes]
        device = self.accelerator.device
        for batch, count in zip(passes, counts, strict=True):
            there = {name: tensor.to(device) for name, tensor in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=self.fast):
                part = self.data.loss(self.model, there)
            yield part * (count / sum(counts))

    def _log(self, more: dict[str, float]) -> None:
        loss = self.summed.item() / self.logged
        self.summed.zero_()
        if not math.isfinite(loss):
            raise RunawayError(
                f"The training ran away to NaN or infinity by step {self.done}; take an lr lower than "
                f"{self.config.lr:g}."
            )
        self.note = f"loss {loss:.2f}"
        self.points[self.done] = Point(self.done, loss, None)
        values = {f"train/{name}": value for name, value in ({"loss": loss} | more).items()}
        self.accelerator.log(values, step=self.done)

    @torch.no_grad()
    def _evaluate(self) -> None:
        self.model.eval()
        losses = [torch.stack(list(self._losses(rows))).sum().expand(len(rows)) for rows in self.heldout]
        self.model.train()
        mean = float(torch.cat(losses).cpu().numpy().mean())
        logged = self.points.get(self.done)
        self.points[self.done] = Point(self.done, logged and logged.loss, mean)
        self.accelerator.log({"eval/loss": mean}, step=self.done)
        if mean < self.best:
            self.best, self.best_step, self.waited = mean, self.done, 0
        else:
            self.waited += 1
        self.over = self.waited >= self.config.patience

    def _save(self) -> None:
        if self.work is None:
            return
        tensors = checkpoint.optimizer_state(self.parameters, self.optimizer) | _random_state(self.accelerator)
        facts = {
            **self.about, "done": self.done, "over": self.over, "waited": self.waited,
            "best": self.best, "best_step": self.best_step, "curve": self.curve,
        }  # fmt: skip
        checkpoint.write(self.work, self.done, tensors, facts, best=self.best_step)

    def restore(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        step = checkpoint.last_step(self.work) if self.work else None
        if self.work is None or step is None:
            return
        tensors, facts = checkpoint.read(self.work, step)
        checkpoint.restore_optimizer(self.parameters, self.optimizer, tensors)
        _set_random_state(self.accelerator, tensors)
        self.done, self.over, self.waited = facts["done"], facts["over"], facts["waited"]
        self.best, self.best_step = facts["best"], facts["best_step"]
        self.points = {point[0]: Point(*point) for point in facts["curve"]}

    @torch.no_grad()
    def take_best(self) -> None:
        """Set the weights to those with the best held-out loss, if they are not there already."""
        if self.work and self.best_step not in (None, self.done):
            tensors = self.before if self.best_step == 0 else checkpoint.read(self.work, self.best_step)[0]
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])


@contextmanager
def prepared(model: nn.Module, rows: Sequence[Mapping[str, Any]], checkpointing: bool) -> Iterator[bool]:
    """Within, passes over `rows` are as fast as this machine makes them; yields whether to autocast."""
    base = base_of(model)
    longest = max(len(row["input_ids"]) for row in rows)
    half = base.dtype != torch.float32  # float32 adapters in a model of half precision need autocast
    fast = half or bf16_pays()
    with (
        attention_for(base, longest),
        cast_once(model) if fast else nullcontext(),
        _recomputing(base) if checkpointing else nullcontext(),
    ):
        yield fast


@contextmanager
def _recomputing(model: PreTrainedModel) -> Iterator[None]:
    """Within, a layer's activations are computed again for its gradients."""
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"A model of type {model.config.model_type!r} has no gradient checkpointing; leave it away, and "
            "take a smaller batch size with accumulate in its place."
        )
    untyped: Any = model
    untyped.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        untyped.activation_checkpointing_disable()


@contextmanager
def trainable(model: nn.Module, tensors: Iterable[Tensor]) -> Iterator[None]:
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


def _rate(done: int, steps: int) -> float:
    """The share of the peak learning rate: up over a twentieth of the steps, then a cosine down to zero."""
    warm = steps // 20
    if done < warm:
        return done / warm
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((done - warm) / max(1, steps - warm)))))


def _random_state(accelerator: Accelerator) -> dict[str, Tensor]:
    """What dropout draws from, on the CPU and on the device."""
    states = {"random.cpu": torch.get_rng_state()}
    if accelerator.device.type != "cpu":
        states["random.device"] = torch.get_device_module(accelerator.device).get_rng_state()
    return states


def _set_random_state(accelerator: Accelerator, states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["random.cpu"])
    if "random.device" in states and accelerator.device.type != "cpu":
        torch.get_device_module(accelerator.device).set_rng_state(states["random.device"])
