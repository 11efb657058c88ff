"""How a loss bends in a model's weights: the Fisher information's Kronecker factors, from one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from offsite.errors import UserError
from offsite.model.decoder import Decoder
from offsite.model.modes import frozen
from offsite.model.precision import autocast, bf16_pays
from offsite.progress import track

_BATCH = 2048  # tokens at once; bounds the states held in memory
_BLOCK = 192  # of a symmetric matrix: what stands above the diagonal blocks is mirrored, not computed


@dataclass(frozen=True)
class Curvature:
    """What a pass says of one linear, y = W x + b, with g the loss's gradient at y; means over tokens.

    The Fisher information of W is about G (x) A (K-FAC, arXiv 1503.05671, section 3): H d = G d A for a
    change d (out, in) of the weight.
    """

    inputs: Tensor
    """A = E[x xT], (in, in)."""
    outputs: Tensor
    """G = E[g gT], (out, out)."""
    slope: Tensor
    """E[g xT], (out, in): the mean gradient of W."""


class Moment:
    """A running sum of x xT, in float32; in bfloat16 products where those are fast."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.total = torch.zeros(width, width, device=device)

    def add(self, states: Tensor) -> None:
        """Add the rows of `states` (tokens, width)."""
        for start in range(0, states.shape[1], _BLOCK):
            stop = min(start + _BLOCK, states.shape[1])
            self.total[start:stop, :stop] += states[:, start:stop].T @ states[:, :stop]

    def matrix(self) -> Tensor:
        """Return the sum, made symmetric; nothing may be added afterwards."""
        below = self.total.tril(-1)
        return self.total.tril_().add_(below.T)


class _Watch:
    """The sums of one linear while the pass runs."""

    def __init__(self, size: tuple[int, int], inputs: Moment, device: torch.device) -> None:
        self.inputs = inputs
        self.outputs = Moment(size[0], device)
        self.slope = torch.zeros(size, device=device)

    def result(self, tokens: int, inputs: Tensor) -> Curvature:
        return Curvature(inputs, self.outputs.matrix().div_(tokens), self.slope.div_(tokens))


def curvature(
    model: PreTrainedModel,
    wanted: Mapping[int, Sequence[str]],
    tokens: Tensor,
    *,
    sampled: int | None = None,
) -> dict[int, dict[str, Curvature]]:
    """The `wanted` linears of each layer of `model`, by name, from one pass over `tokens` (blocks, length).

    The loss is the sum over tokens of the cross-entropy with the next token: the text's own, or, with a seed
    in `sampled`, one drawn from the model, which makes it the Fisher information proper and not the empirical
    one. Raises UserError where the pass meets what is no number.
    """
    decoder = Decoder.of(model)
    chance = None if sampled is None else torch.Generator(model.device).manual_seed(sampled)
    with frozen(model), _watching(decoder, wanted) as watched:
        parts = batches(tokens)
        for batch in track(parts, "Reading the text", len(parts)):
            torch.autograd.backward(_loss(model, batch.to(model.device), chance))
    results = {layer: _results(watched[layer], tokens.numel()) for layer in wanted}
    for layer, curvatures in results.items():
        check_numbers(layer, curvatures)
    return results


def batches(tokens: Tensor) -> Sequence[Tensor]:
    """Return the blocks of a pass, about _BATCH tokens at once."""
    return torch.split(tokens, max(1, _BATCH // tokens.shape[1]))


def check_numbers(layer: int, seen: Mapping[str, object]) -> None:
    """Refuse what a pass saw of a layer's linears, each a dataclass of tensors, where it is no number."""
    for name, each in seen.items():
        if not all(part.sum().isfinite() for part in vars(each).values()):
            raise UserError(
                f"What the text makes of layer {layer}'s {name} is not a number; look whether the model's "
                "weights are sound."
            )


def _loss(model: PreTrainedModel, batch: Tensor, chance: torch.Generator | None) -> Tensor:
    with autocast(model):
        logits = model(batch, use_cache=False).logits[:, :-1].flatten(0, 1)  # (tokens, vocabulary)
    labels = batch[:, 1:].flatten()
    if chance is not None:
        labels = torch.multinomial(logits.detach().float().softmax(1), 1, generator=chance).squeeze(1)
    return cross_entropy(logits.float(), labels, reduction="sum")


def _results(watched: Mapping[str, _Watch], tokens: int) -> dict[str, Curvature]:
    """Return the means; linears that read the same states share one A."""
    moments = {id(watch.inputs): watch.inputs for watch in watched.values()}
    inputs = {key: moment.matrix().div_(tokens) for key, moment in moments.items()}
    return {name: watch.result(tokens, inputs[id(watch.inputs)]) for name, watch in watched.items()}


@contextmanager
def _watching(decoder: Decoder, wanted: Mapping[int, Sequence[str]]) -> Iterator[dict[int, dict[str, _Watch]]]:
    """Within, what flows through the `wanted` linears is summed; gradients begin below their first layer."""
    with ExitStack() as hooks:

        def begin(_: nn.Module, args: tuple[Any, ...]) -> None:
            args[0].requires_grad_(True)

        hooks.callback(decoder.layers[min(wanted)].register_forward_pre_hook(begin).remove)
        yield {layer: _watch_layer(decoder, layer, names, hooks) for layer, names in wanted.items()}


def _watch_layer(decoder: Decoder, layer: int, names: Sequence[str], hooks: ExitStack) -> dict[str, _Watch]:
    watched: dict[str, _Watch] = {}
    read: list[tuple[object, Tensor, Moment]] = []  # what was read last, as rows, and where it was summed

    def summed(name: str, width: int, given: Tensor) -> tuple[Tensor, Moment]:
        """Return the rows of `given` and their sum: one for all linears that read the same."""
        if not read or read[-1][0] is not given:
            mine = watched[name].inputs if name in watched else Moment(width, given.device)
            rows = flat(given)
            mine.add(rows)
            read[:] = [(given, rows, mine)]
        return read[-1][1:]

    def hook(name: str) -> Any:
        outputs, inputs = decoder.matrix(layer, name).shape

        def forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            states, mine = summed(name, inputs, args[0])
            if name not in watched:
                watched[name] = _Watch((outputs, inputs), mine, states.device)
            watch = watched[name]

            def backward(gradient: Tensor) -> None:
                slopes = flat(gradient)
                watch.slope += slopes.T @ states
                watch.outputs.add(slopes)

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward

    for name in names:
        linear = decoder.layers[layer].get_submodule(name)
        hooks.callback(linear.register_forward_hook(hook(name)).remove)
    return watched


def flat(states: Tensor) -> Tensor:
    """Return states (..., width) as rows (tokens, width), in the type in which products are fast here."""
    return states.detach().flatten(0, -2).to(torch.bfloat16 if bf16_pays() else torch.float32)
