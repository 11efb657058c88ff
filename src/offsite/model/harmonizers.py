"""Harmonizers: small networks that replace layers of the stack, each attached to the layer before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from offsite.errors import UserError
from offsite.model.decoder import Decoder
from offsite.model.split import Split

_HOME = "harmonizers"  # the model's submodule that holds them: HOME.SLOT.NUMBER.up.weight
_EPSILON = 1e-6


class Harmonizer(nn.Module):
    """A layer's stand-in (ScaleOT, arXiv 2412.09812): x + up(relu(down(x / rms(x)))).

    `down` is (rank, width), `up` is (width, rank), no biases; with `up` at zero it is the identity. It reads
    what a layer's own first norm would: the stream's direction, whatever its size.
    """

    def __init__(self, width: int, rank: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False, dtype=dtype)
        self.up = nn.Linear(rank, width, bias=False, dtype=dtype)
        nn.init.zeros_(self.up.weight)

    def forward(self, states: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        inputs = normed(states).to(self.down.weight.dtype)  # trained in float32, whatever the model's type
        added: Tensor = self.up(torch.relu(self.down(inputs)))
        return states + added.to(states.dtype)

    @classmethod
    def of(cls, up: Tensor, down: Tensor) -> Harmonizer:
        """The frozen one of the matrices `up` (width, rank) and `down` (rank, width)."""
        with torch.device("meta"):
            made = cls(len(up), len(down), up.dtype)
        made.up.weight, made.down.weight = (
            nn.Parameter(matrix.detach().contiguous(), requires_grad=False) for matrix in (up, down)
        )
        return made


def normed(states: Tensor) -> Tensor:
    """The states (..., width) over their root mean square."""
    size = states.float().square().mean(-1, keepdim=True).add(_EPSILON).sqrt()
    return (states / size).to(states.dtype)


class _Following:
    """Pass a layer's output through the harmonizers attached to it; its KV cache stays as it is."""

    def __init__(self, chain: nn.Sequential) -> None:
        self.chain = chain

    def __call__(self, layer: nn.Module, inputs: object, output: object) -> object:
        if isinstance(output, tuple):
            return self.chain(output[0]), *output[1:]
        return self.chain(output)


def attach(model: PreTrainedModel, after: Mapping[int, Sequence[Harmonizer]]) -> None:
    """Attach chains of harmonizers to layers of `model`, by the layers' index; once for a model."""
    if not after:
        return
    chains = {str(slot): nn.Sequential(*chain) for slot, chain in sorted(after.items())}
    model.add_module(_HOME, nn.ModuleDict(chains).train(model.training))
    decoder = Decoder.of(model)
    for slot, chain in chains.items():
        decoder.layers[int(slot)].register_forward_hook(_Following(chain))


def harmonizer_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters of the harmonizers of `model`, by their full names."""
    return {k: v for k, v in model.state_dict(keep_vars=True).items() if is_harmonizer(k)}


def is_harmonizer(name: str) -> bool:
    """Whether a tensor of that full name is a harmonizer's."""
    return name.startswith(f"{_HOME}.")


def attach_by_shapes(
    model: PreTrainedModel, split: Split, shape_of: Callable[[str], tuple[int, ...] | None]
) -> bool:
    """Attach the harmonizers that a file's shapes describe, on no device yet; return whether there are any.

    `shape_of` a tensor's full name is its shape, or None where the file holds no such tensor. Raises UserError
    for shapes that make no harmonizer of this model's width.
    """
    middle, width = split.middle(len(Decoder.of(model))), model.config.hidden_size
    after: dict[int, list[Harmonizer]] = {}
    for slot in range(middle.start - 1, middle.stop):
        while up := shape_of(f"{_HOME}.{slot}.{len(after.get(slot, ()))}.up.weight"):
            place = f"{_HOME}.{slot}.{len(after.get(slot, ()))}"
            if len(up) != 2 or up[0] != width or not 0 < up[1] <= width:
                raise UserError(f"{place!r} of the shape {up} makes no harmonizer of a width of {width}.")
            with torch.device("meta"):
                made = Harmonizer(width, up[1], model.dtype).requires_grad_(False)
            after.setdefault(slot, []).append(made)
    attach(model, after)
    return bool(after)
