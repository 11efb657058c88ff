"""What linears read, from one pass forwards: the mean and the second moment of their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from offsite.model.decoder import Decoder, output_at
from offsite.model.precision import autocast
from offsite.owner.curvature import Moment, batches, check_numbers, flat
from offsite.progress import track


@dataclass(frozen=True)
class Inputs:
    """What one linear reads; means over tokens."""

    mean: Tensor
    """E[x], (in)."""
    moment: Tensor
    """E[x xT], (in, in)."""

    @property
    def covariance(self) -> Tensor:
        """E[x xT] - E[x] E[x]T, (in, in)."""
        return self.moment - self.mean.outer(self.mean)


class _Sums:
    """The sums of what one linear reads, or of several that read the same."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.total = torch.zeros(width, device=device)
        self.moment = Moment(width, device)

    def add(self, states: Tensor) -> None:
        self.total += states.sum(0, dtype=torch.float32)
        self.moment.add(states)

    def result(self, tokens: int) -> Inputs:
        return Inputs(self.total / tokens, self.moment.matrix() / tokens)


@torch.no_grad()
def inputs(
    model: PreTrainedModel, wanted: Mapping[int, Sequence[str]], tokens: Tensor
) -> dict[int, dict[str, Inputs]]:
    """Read what the `wanted` linears of each layer of `model`, by name, read over `tokens` (blocks, length).

    Raises UserError where the pass meets what is no number.
    """
    decoder, parts = Decoder.of(model), batches(tokens)
    with ExitStack() as hooks:
        watched = {layer: _watch(decoder, layer, names, hooks) for layer, names in wanted.items()}
        for batch in track(parts, "Reading the text", len(parts)):
            with autocast(model):
                output_at(model, input_ids=batch.to(model.device))
    results = {layer: _results(sums, tokens.numel()) for layer, sums in watched.items()}
    for layer, found in results.items():
        check_numbers(layer, found)
    return results


def _watch(decoder: Decoder, layer: int, names: Sequence[str], hooks: ExitStack) -> dict[str, _Sums]:
    """Let what flows into the linears of a layer be summed, once for all that read the same."""
    sums: dict[str, _Sums] = {}
    last: list[tuple[Tensor, _Sums]] = []  # what was read last, and where it was summed

    def hook(name: str) -> Any:
        def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if last and last[0][0] is args[0]:
                sums[name] = last[0][1]
                return
            if name not in sums:
                sums[name] = _Sums(args[0].shape[-1], args[0].device)
            sums[name].add(flat(args[0]))
            last[:] = [(args[0], sums[name])]

        return before

    for name in names:
        linear = decoder.layers[layer].get_submodule(name)
        hooks.callback(linear.register_forward_pre_hook(hook(name)).remove)
    return sums


def _results(sums: Mapping[str, _Sums], tokens: int) -> dict[str, Inputs]:
    found = {id(each): each.result(tokens) for each in {id(s): s for s in sums.values()}.values()}
    return {name: found[id(each)] for name, each in sums.items()}
