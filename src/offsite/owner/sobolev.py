"""How near a mixed stack is to the model on the backward pass: in the gradients that reach its layers.

The adapter's bottom learns only through the middle's vector-Jacobian product. Harmonizers may be trained to
match that as well as the states (Sobolev training, Czarnecki et al. 2017, arXiv 1706.04859).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from offsite.model.decoder import Decoder

_NOTHING = 1e-30  # of a gradient's energy, where there is none at all


@contextmanager
def entering(decoder: Decoder, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """Collect the states that enter each of the `layers`, ascending; gradients begin at the first of them."""
    states: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        if not states:
            args[0].requires_grad_(True)
        states.append(args[0])

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(decoder.layers[layer].register_forward_pre_hook(hook).remove)
        yield states


def twice_differentiable() -> AbstractContextManager[Any]:
    """Return a context in which attention's gradients have gradients; the fused kernels' have none."""
    return sdpa_kernel(SDPBackend.MATH)


def pulled_back(states: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    """Return a gradient at the last of `states` pulled back to the others; it can be differentiated itself."""
    return torch.autograd.grad(states[-1], list(states[:-1]), gradient, create_graph=True)


def gradients_apart(states: Sequence[Tensor], aims: Sequence[Tensor]) -> Tensor:
    """Return the squared distance of gradients from those aimed at, relative to these, mean over `states`.

    `aims` are the model's gradients at the states (batch, length, width) that enter its layers, the last of
    them where the middle ends. That one is pulled back from the last of `states` to the others.
    """
    pulled = pulled_back(states, aims[-1])
    pairs = [(one.float(), aim.float()) for one, aim in zip(pulled, aims[:-1], strict=True)]
    return torch.stack(
        [(one - aim).square().sum() / (aim.square().sum() + _NOTHING) for one, aim in pairs]
    ).mean()
