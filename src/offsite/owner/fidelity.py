"""Fidelity of an emulator: the adapter's gradients through it and its loss, against the full model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.bundles import bundle
from offsite.bundles.adapter import adapter_tensors
from offsite.bundles.emulator import Emulator
from offsite.data.blocks import Source, blocks
from offsite.errors import UserError
from offsite.model.decoder import Decoder, check_length
from offsite.model.modes import evaluating
from offsite.model.precision import autocast
from offsite.model.split import Split
from offsite.owner.build import check_parent
from offsite.progress import Advance, bar

_BATCH = 4  # blocks at once; bounds the states held for the backward pass


@dataclass(frozen=True)
class Fidelity:
    """The two quantities that GradOT (arXiv 2507.04455) argues from, on one text."""

    cosine: float
    """Between the adapter's gradient through the emulator and through the full model; 1: the same direction."""
    relative_error: float
    """|g_emulator - g_full| / |g_full|; 0: the same gradient."""
    loss: float
    """The emulator's language-modelling loss, nats a token."""
    full_loss: float
    """The full model's."""

    @property
    def loss_gap(self) -> float:
        """By how much the emulator's loss is the greater, nats a token."""
        return self.loss - self.full_loss


class Gradient(NamedTuple):
    """Of the mean next-token cross-entropy on some text, at the adapter layers' parameters."""

    loss: float
    """Nats a token."""
    tensors: Sequence[Tensor]
    """In float32, in the order of the places."""


def gradient(model: PreTrainedModel, split: Split, tokens: Tensor) -> Gradient:
    """Compute the gradient that every emulator of a `model` is compared with, on `tokens` (blocks, length).

    The model is not changed. Beside it, it takes one gradient and, in half precision, one copy, both of the
    adapter's size. Raises UserError for blocks of less than two tokens or more than the model reads.
    """
    _check_tokens(model, tokens)
    with bar("Computing gradients", len(tokens)) as advance:
        return _gradient(model, split, tokens, advance)


def fidelity(
    emulator: Emulator, model: PreTrainedModel, tokens: Tensor, full: Gradient | None = None
) -> Fidelity:
    """Compare the untuned `emulator` with the `model` it was made from, on `tokens` (blocks, length).

    `full` is the model's `gradient` on them, where it is known. Raises UserError as `gradient`, and for an
    emulator of another model or one that was tuned since.
    """
    _check_same(emulator, model)
    full_loss, theirs = full or gradient(model, emulator.split, tokens)
    loss, ours = gradient(emulator.model, emulator.split, tokens)
    norms = sqrt(_dot(ours, ours)), sqrt(_dot(theirs, theirs))
    if not all(norm > 0 and isfinite(norm) for norm in norms):
        raise UserError(
            "The gradient on this text is zero or beyond all numbers, so there is nothing to compare."
        )
    cosine = _dot(ours, theirs) / (norms[0] * norms[1])
    for mine, other in zip(ours, theirs, strict=True):
        mine.sub_(other.to(mine.device))
    return Fidelity(min(cosine, 1.0), sqrt(_dot(ours, ours)) / norms[1], loss, full_loss)


def held_out(
    texts: Source | Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, count: int
) -> Tensor:
    """Return the last `count` blocks of `texts`, (count, length): methods are calibrated on the first ones.

    Raises:
        UserError: as `blocks`.
    """
    if min(count, length) < 1:
        raise UserError(f"There are no {count} blocks of {length} tokens; ask for one or more of each.")
    return blocks(texts, tokenizer, length, count, last=True)


def _check_tokens(model: PreTrainedModel, tokens: Tensor) -> None:
    count, length = tokens.shape
    if count == 0 or length < 2:
        raise UserError(
            f"{count} blocks of {length} tokens hold nothing to predict; give 1 or more of 2 or more."
        )
    check_length(model, length)


def _check_same(emulator: Emulator, model: PreTrainedModel) -> None:
    here = check_parent(emulator, model)
    if here.start != bundle.digest(adapter_tensors(emulator.model, emulator.split)):
        raise UserError(
            "The emulator's adapter layers are not the model's any more, so their gradients differ for more "
            "reasons than its middle; give the emulator and the model as they were before tuning."
        )


def _gradient(model: PreTrainedModel, split: Split, tokens: Tensor, advance: Advance) -> Gradient:
    """Sum gradients at float32 copies of the adapter's parameters; the model's get none."""
    adapter = _adapter(model, split)
    leaves = [tensor.detach().float().requires_grad_() for tensor in adapter.values()]
    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    for leaf, each in zip(leaves, gradients, strict=True):
        leaf.grad = each  # the backward passes add to it, tensor by tensor
    total = 0.0
    with torch.enable_grad(), evaluating(model):
        for batch in torch.split(tokens, _BATCH):
            pairs = zip(adapter.items(), leaves, strict=True)
            placed = {name: leaf.to(old.dtype) for (name, old), leaf in pairs}
            loss = _loss(model, placed, batch.to(model.device))
            torch.autograd.backward(loss, inputs=leaves)
            total += loss.item()
            advance(len(batch), "")
    count = len(tokens) * (tokens.shape[1] - 1)
    return Gradient(total / count, [each.div_(count) for each in gradients])


def _adapter(model: PreTrainedModel, split: Split) -> dict[str, Tensor]:
    """Return the adapter layers' parameters by their full names, in the order of the places."""
    decoder = Decoder.of(model)
    return {
        decoder.name(index, name): tensor
        for index in split.adapter(len(decoder)).values()
        for name, tensor in decoder.tensors(index).items()
        if isinstance(tensor, nn.Parameter)
    }


def _loss(model: PreTrainedModel, placed: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Sum the cross-entropy of next tokens: in half precision a mean's small gradients would vanish."""
    with autocast(model):
        logits = functional_call(model, placed, (ids,), {"use_cache": False}).logits[:, :-1]
    return cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def _dot(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Compute the inner product of two gradients, in float64, one tensor at a time."""
    pairs = zip(ours, theirs, strict=True)
    return sum(float(torch.dot(a.flatten().cpu().double(), b.flatten().cpu().double())) for a, b in pairs)
