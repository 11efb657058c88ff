"""What an emulator bundle holds, computed from its card, its config and the shapes in its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from offsite.bundles import bundle
from offsite.bundles.emulator import Emulator, EmulatorCard, check_listed
from offsite.model.decoder import Decoder
from offsite.model.harmonizers import harmonizer_tensors, is_harmonizer
from offsite.model.linears import LowRank
from offsite.model.split import Split
from offsite.untrusted.config import config_and_skeleton
from offsite.untrusted.files import read_object

_WEIGHTS = ".safetensors"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sent:
    """Parameters of an emulator by what became of them; tensors that share a name are counted once."""

    method: str
    digest: str
    split: Split
    around: int
    """Embeddings, head, last norm: as they are in the model."""
    adapter: int
    """The adapter layers, likewise."""
    full: int
    """Of the middle, tensors in their full size."""
    thin: int
    """Of the middle, tensors in two factors or with fewer channels."""
    stands_for: int
    """Parameters of the model that `thin` stands for; dropped channels are not among them."""
    harmonizers: int
    layer: int
    """Parameters of one layer of the model's middle."""
    ranks: Mapping[str, int]
    """The full rank of each linear of attention."""
    width: int | None
    """Channels of the model's feed-forward; None where it has no plain one."""
    states: int
    """The width of the hidden states."""

    @property
    def middle(self) -> int:
        """All that is stored of the middle."""
        return self.full + self.thin + self.harmonizers

    @property
    def unchanged(self) -> int:
        """What stands as it does in the model, or at least in full size."""
        return self.around + self.adapter + self.full


@dataclass(frozen=True)
class Parameters:
    """How many parameters and saved buffers an emulator has, each counted once."""

    all: int
    trainable: int
    """In the adapter layers, which a tuning of whole layers changes."""
    middle: int
    """Stored in the middle, harmonizers included."""
    factored: int
    """Of those, sent as two factors in place of a matrix."""


def parameters(emulator: Emulator) -> Parameters:
    """Count the parameters of an `emulator`."""
    decoder = Decoder.of(emulator.model)
    middle, ends = emulator.split.middle(len(decoder)), emulator.split.adapter(len(decoder)).values()
    factors = {
        id(tensor): tensor.numel()
        for index in middle
        for module in decoder.layers[index].modules()
        if isinstance(module, LowRank)
        for tensor in (module.up.weight, module.down.weight)
    }
    return Parameters(
        all=sum(parameter.numel() for parameter in emulator.model.parameters()),
        trainable=decoder.stored(list(ends)),
        middle=decoder.stored(middle)
        + sum(tensor.numel() for tensor in harmonizer_tensors(emulator.model).values()),
        factored=sum(factors.values()),
    )


def sent(folder: Path) -> Sent:
    """Describe the bundle in `folder`, its files checked against its card; UserErrors as `bundle.read`."""
    check_listed(folder)
    card, digest = bundle.read(folder, EmulatorCard)
    file = next(folder / name for name in sorted(card.files) if name.endswith(_WEIGHTS))
    declared = bundle.headers(file)
    shapes = {name: shape for name, (_, shape) in declared.items()}
    stored = sum(prod(shape) * dtype.itemsize for dtype, shape in declared.values())
    config = read_object(folder / "config.json")
    _, bare = config_and_skeleton(config, len(shapes) + len(card.same_as), stored)
    decoder, split = Decoder.of(bare), card.origin.split
    middle = split.middle(len(decoder))
    places = [_place(decoder, slot, shapes) for slot in middle]
    full, thin, stands_for = (sum(column) for column in zip(*places, strict=True))
    first = middle.start
    return Sent(
        method=card.method,
        digest=digest,
        split=split,
        around=sum(prod(shapes[name]) for name in decoder.rest() if name in shapes),
        adapter=sum(_size(decoder, slot, shapes) for slot in split.adapter(len(decoder)).values()),
        full=full,
        thin=thin,
        stands_for=stands_for,
        harmonizers=sum(prod(shape) for name, shape in shapes.items() if is_harmonizer(name)),
        layer=sum(tensor.numel() for tensor in decoder.tensors(first).values()),
        ranks={name: min(decoder.matrix(first, name).shape) for name in decoder.attention(first)},
        width=_width(decoder, first),
        states=bare.config.hidden_size,
    )


def _size(decoder: Decoder, slot: int, shapes: Shapes) -> int:
    names = (decoder.name(slot, name) for name in decoder.tensors(slot))
    return sum(prod(shapes[name]) for name in names if name in shapes)


def _place(decoder: Decoder, slot: int, shapes: Shapes) -> tuple[int, int, int]:
    """Of one place: stored in full size, stored thinner, and what that stands for; nothing if stored before."""
    full = thin = stands_for = 0
    for inside, whole in decoder.tensors(slot).items():
        shape = shapes.get(decoder.name(slot, inside))
        if shape == tuple(whole.shape):
            full += prod(shape)
        elif shape is not None:
            thin += prod(shape)
            stands_for += prod(shape)
    for name in decoder.linears(slot):
        up, down = (shapes.get(f"{decoder.name(slot, name)}.{part}.weight") for part in ("up", "down"))
        if up and down:
            thin += prod(up) + prod(down)
            stands_for += up[0] * down[-1]
        bias = shapes.get(f"{decoder.name(slot, name)}.up.bias")
        full += prod(bias) if bias else 0
    return full, thin, stands_for


def _width(decoder: Decoder, index: int) -> int | None:
    names = [name for name in decoder.linears(index) if name not in set(decoder.attention(index))]
    return int(decoder.matrix(index, names[-1]).shape[1]) if names else None
