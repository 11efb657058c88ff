"""The model owner's look at an adapter that came back: how far it moved, and what it does to public text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median

import torch
from torch import Tensor
from transformers import PreTrainedModel

from offsite.audit.weights import leading
from offsite.bundles.adapter import Adapter, adapter_tensors, swap
from offsite.errors import UserError
from offsite.model.precision import autocast
from offsite.progress import track
from offsite.training.batches import answer_loss

_MARGIN = 2.0  # times what a trusted adapter moved
_USUAL = 0.5  # of its own size (seen: 0.04 after 48 steps at 3e-4 on SmolLM2-135M)
_APART = 8.0  # times the median of the matrices (seen: 2.5)
_WORSE = 1.0  # nats a token on public text (seen: 0.02)
_BATCH = 4  # blocks at once


@dataclass(frozen=True)
class Moved:
    """How far one tensor of the adapter moved from the model's own."""

    tensor: str
    """By place and name, as `top.1.mlp.up_proj.weight`."""
    shift: float
    """Frobenius norm of the change over that of the tensor: 0 where nothing moved, 1 where as much was added as
    was there. A tensor that was all zero counts as having the layer's root mean square."""
    spectral: float | None
    """Largest singular value of the change over the tensor's own; None for what is no matrix."""
    stable_rank: float | None
    """Squared Frobenius over squared spectral norm of the change: about 1 where it is one spike. None as above,
    and where nothing moved."""
    bound: float | None = None
    """Twice the most that a trusted adapter moved it, or its median tensor; None where none is trusted."""

    @property
    def exceeds(self) -> bool:
        """Whether it moved further than trusted adapters would let one expect."""
        return self.bound is not None and self.shift > self.bound


@dataclass(frozen=True)
class Losses:
    """Cross-entropy on one public text, nats a token."""

    before: float
    after: float


@dataclass(frozen=True)
class AdapterAudit:
    """What the owner sees before a plugged-in model leaves; its own affair, like the receipt."""

    moved: tuple[Moved, ...]
    """Every tensor of the adapter layers, the furthest first."""
    loss: Losses | None
    """On public text, before and after plugging; None where there was none."""

    @property
    def median(self) -> float:
        """Of the shifts."""
        return median(one.shift for one in self.moved)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for each thing that an honest tuning would hardly do; none is proof."""
        return tuple(warning for warning in (self._further(), self._spike(), self._worse()) if warning)

    def check(self, most: float) -> None:
        """Refuse an adapter of which any tensor moved by more than `most` of its own size."""
        first = self.moved[0]
        if first.shift > most:
            raise UserError(
                f"The adapter's {first.tensor!r} moved by {first.shift:.3g} of its own size where at most "
                f"{most:g} is allowed; ask the data owner how it was tuned, or allow more if that explains it."
            )

    def _further(self) -> str | None:
        past = [one for one in self.moved if one.exceeds]
        if past:
            first = max(past, key=lambda one: one.shift / (one.bound or 1))
            return (
                f"{len(past)} of the adapter's {len(self.moved)} tensors moved more than twice as far as the "
                f"trusted ones moved them: {first.tensor} by {first.shift:.3g} of its size, past "
                f"{first.bound:.3g}."
            )
        first = self.moved[0]
        if first.bound is None and first.shift > _USUAL:
            return (
                f"The adapter's {first.tensor} moved by {first.shift:.3g} of its own size, where tunings "
                f"usually stay below {_USUAL:g}."
            )
        return None

    def _spike(self) -> str | None:
        """A matrix whose largest singular value moved out of all proportion to the others'."""
        matrices = [one for one in self.moved if one.spectral is not None]
        usual = median([one.spectral or 0.0 for one in matrices] or [0.0])
        first = max(matrices, key=lambda one: one.spectral or 0.0, default=None)
        if first is None or not usual or (first.spectral or 0.0) <= _APART * usual:
            return None
        return (
            f"The change of the adapter's {first.tensor} stands out: its largest singular value is "
            f"{first.spectral:.3g} of the tensor's own, where the median of the others is {usual:.3g}."
        )

    def _worse(self) -> str | None:
        if self.loss is None or self.loss.after - self.loss.before <= _WORSE:
            return None
        return (
            f"On public text the plugged-in model's loss is {self.loss.after:.2f} nats a token, before it was "
            f"{self.loss.before:.2f}: it forgot much of what it knew."
        )


def adapter(
    model: PreTrainedModel,
    displaced: Adapter,
    *,
    trusted: Sequence[Adapter] = (),
    tokens: Tensor | None = None,
) -> AdapterAudit:
    """Audit the adapter that stands plugged into `model`, against the layers that it `displaced`.

    `trusted` are adapters of the same model that the owner tuned itself, say on public text: they give the
    bounds. `tokens` (blocks, length) are public text. For the time of the call other layers stand in `model`;
    afterwards it is as it was, bit for bit. Takes memory of twice the adapter's size. Raises UserError for
    trusted adapters of another model.
    """
    for other in trusted:
        _check_same(other, displaced)
    now = Adapter.of(model, displaced.origin)
    after = None if tokens is None else block_loss(model, tokens)
    swap(model, displaced)
    try:
        before = None if tokens is None else block_loss(model, tokens)
        bounds = _bounds(model, displaced, trusted)
    finally:
        swap(model, now)
    moved = _all_moved(displaced, now, bounds)
    loss = None if before is None or after is None else Losses(before, after)
    return AdapterAudit(tuple(sorted(moved, key=lambda one: -one.shift)), loss)


def block_loss(model: PreTrainedModel, tokens: Tensor) -> float:
    """The mean cross-entropy of each next token of `tokens` (blocks, length), nats a token."""
    total = 0.0
    with torch.no_grad(), autocast(model):
        for part in torch.split(tokens.to(model.device), _BATCH):
            batch = {"input_ids": part, "attention_mask": torch.ones_like(part), "labels": part}
            total += float(answer_loss(model, batch)) * len(part)
    return total / len(tokens)


def _check_same(other: Adapter, displaced: Adapter) -> None:
    if other.origin.parent != displaced.origin.parent or other.split != displaced.split:
        raise UserError(
            f"The trusted adapter {other.digest[:12] or 'that was given'} is of another model or split than "
            "the one to be judged; give one that was tuned on an emulator of this model."
        )


def _bounds(model: PreTrainedModel, base: Adapter, trusted: Sequence[Adapter]) -> dict[str, float]:
    """By tensor, the most that it may move; `base` stands in `model`, also afterwards."""
    most: dict[str, float] = {}
    sizes = _stand_ins(base)
    for other in trusted:
        displaced = swap(model, other)
        try:
            own = adapter_tensors(model, base.split)
            shifts = {name: _shift(old, own[name], sizes[name]) for name, old in base.tensors.items()}
        finally:
            swap(model, displaced)
        usual = median(shifts.values())
        most = {name: max(most.get(name, 0.0), shift, usual) for name, shift in shifts.items()}
    return {name: _MARGIN * shift for name, shift in most.items()}


def _all_moved(base: Adapter, now: Adapter, bounds: Mapping[str, float]) -> list[Moved]:
    sizes = _stand_ins(base)
    named = track(base.tensors.items(), "Comparing tensors", len(base.tensors))
    return [_moved(name, old, now.tensors[name], sizes[name], bounds) for name, old in named]


def _moved(name: str, old: Tensor, new: Tensor, size: float, bounds: Mapping[str, float]) -> Moved:
    shift, bound = _shift(old, new, size), bounds.get(name)
    if old.dim() != 2 or not shift:
        return Moved(name, shift, None if old.dim() != 2 else 0.0, None, bound)
    change = new.float() - old.float()
    largest, own = float(leading(change, 1)[0]), float(leading(old, 1)[0])
    return Moved(name, shift, largest / (own or size), float(change.norm()) ** 2 / largest**2, bound)


def _shift(old: Tensor, new: Tensor, size: float) -> float:
    old = old.detach().float()
    return float((new.detach().to(old) - old).norm()) / (float(old.norm()) or size)


def _stand_ins(base: Adapter) -> dict[str, float]:
    """The norms that all-zero tensors count as having: their layer's root mean square in every entry."""
    squares: dict[str, list[float]] = {}
    for name, tensor in base.tensors.items():
        total = squares.setdefault(_place(name), [0.0, 0.0])
        total[0] += float(tensor.float().square().sum())
        total[1] += tensor.numel()
    mean = {place: total / count for place, (total, count) in squares.items()}
    return {name: sqrt(mean[_place(name)] * tensor.numel()) or 1.0 for name, tensor in base.tensors.items()}


def _place(name: str) -> str:
    return ".".join(name.split(".")[:2])
