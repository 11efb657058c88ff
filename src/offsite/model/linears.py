"""What transformers lacks: linears of two factors and of fewer channels, and their way into a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from offsite.errors import UserError
from offsite.model.decoder import Decoder, FeedForward
from offsite.model.split import Split

Shape = tuple[int, ...]


class LowRank(nn.Module):
    """A linear module of two factors, y = up(down(x)) + bias: `down` is (rank, in), `up` is (out, rank)."""

    def __init__(self, inputs: int, rank: int, outputs: int, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False, dtype=dtype)
        self.up = nn.Linear(rank, outputs, bias=bias, dtype=dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        outputs: Tensor = self.up(self.down(inputs))
        return outputs


@dataclass(frozen=True, eq=False)
class Weight:
    """What stands for a linear's weight: a matrix (out, in), or factors, up (out, rank) and down (rank, in)."""

    matrices: tuple[Tensor, ...]
    bias: Tensor | None = None
    """(out); None: the linear's own, where it has one."""

    @classmethod
    def of(cls, up: Tensor, down: Tensor, bias: Tensor | None = None) -> Weight:
        """The two factors where they are smaller than their product, else the product."""
        outputs, inputs = len(up), down.shape[1]
        if up.numel() + down.numel() < outputs * inputs:
            return cls((up, down), bias)
        return cls((up @ down,), bias)

    def module(self, like: nn.Module) -> nn.Module:
        """A frozen linear module of this weight, of the kind and type of `like`."""
        outputs, inputs = len(self.matrices[0]), self.matrices[-1].shape[1]
        rank = None if len(self.matrices) == 1 else len(self.matrices[1])
        made = _linear(like, inputs, outputs, rank)
        old = like.get_parameter("weight")
        targets = (made,) if rank is None else (made.get_submodule("up"), made.get_submodule("down"))
        for target, matrix in zip(targets, self.matrices, strict=True):
            kept = matrix.T if isinstance(target, Conv1D) else matrix
            target.weight = nn.Parameter(kept.to(old).contiguous(), requires_grad=False)
        bias = getattr(like, "bias", None) if self.bias is None else self.bias
        if bias is not None:
            targets[0].bias = nn.Parameter(bias.detach().to(old).contiguous(), requires_grad=False)
        return made


def reshape(model: PreTrainedModel, split: Split, shape_of: Callable[[str], Shape | None]) -> bool:
    """Give the middle of `model` linears of the shapes in a file, on no device yet, as `build` would make them.

    `shape_of` a tensor's full name is its shape, or None where the file holds no such tensor. Returns whether
    any linear changed. Raises UserError for shapes that no blueprint leads to.
    """
    decoder, any_changed = Decoder.of(model), False
    for index in split.middle(len(decoder)):
        changed = {}
        for name, turned in decoder.linears(index).items():
            old = decoder.layers[index].get_submodule(name)
            new = _as_stored(old, turned, decoder.name(index, name), shape_of)
            if new is not None:
                changed[name] = new
        if changed:
            any_changed = True
            _check_fit(decoder, index, changed)
            for name, module in changed.items():
                decoder.layers[index].set_submodule(name, module)
    return any_changed


def dense(emulated: PreTrainedModel, full: PreTrainedModel, split: Split) -> Iterator[tuple[str, Tensor]]:
    """Yield the state of `emulated` in the shapes of `full`, of the same config, which may be on no device.

    Factors are multiplied out, one linear at a time; the channels that stand in the emulator come first, zeros
    fill the rest.
    """
    state = dict(emulated.state_dict())
    decoder, wide = Decoder.of(emulated), Decoder.of(full)
    for index in split.middle(len(wide)):
        for name, turned in wide.linears(index).items():
            linear = decoder.layers[index].get_submodule(name)
            matrix, bias = _product(linear, turned)
            if matrix.shape != wide.matrix(index, name).shape:
                matrix, bias = _padded(wide.feed_forward(index), name, matrix, bias)
            whole = {"weight": matrix.T if turned else matrix} | ({} if bias is None else {"bias": bias})
            place = decoder.name(index, name)
            for inner in linear.state_dict():
                del state[f"{place}.{inner}"]
            yield from ((f"{place}.{inner}", tensor) for inner, tensor in whole.items())
    yield from state.items()


def _linear(like: nn.Module, inputs: int, outputs: int, rank: int | None) -> nn.Module:
    """A module on no device: low-rank, or of the kind of `like`; with a bias where that has one."""
    bias, dtype = getattr(like, "bias", None) is not None, like.get_parameter("weight").dtype
    with torch.device("meta"):
        made: nn.Module
        if rank is not None:
            made = LowRank(inputs, rank, outputs, bias=bias, dtype=dtype)
        elif isinstance(like, Conv1D):
            made = Conv1D(outputs, inputs).to(dtype)  # type: ignore[no-untyped-call]  # has a bias always
        else:
            made = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    return made.requires_grad_(False).train(like.training)


def _as_stored(
    old: nn.Module, turned: bool, place: str, shape_of: Callable[[str], Shape | None]
) -> nn.Module | None:
    """The module that the file's shapes call for in the stead of `old`; None where that fits, or nothing."""
    whole, up, down = (shape_of(f"{place}.{part}weight") for part in ("", "up.", "down."))
    if whole is not None and len(whole) == 2 and min(whole) > 0:
        outputs, inputs = reversed(whole) if turned else whole
        return _linear(old, inputs, outputs, None) if (outputs, inputs) != _size(old) else None
    if up is None or down is None:
        return None  # the names will be refused
    if len(up) != 2 or len(down) != 2 or up[1] != down[0] or not 0 < up[1] <= min(up[0], down[1]):
        raise UserError(f"The factors of {place!r:.80}, {up} and {down}, do not make one matrix.")
    return _linear(old, down[1], up[0], up[1])


def _size(linear: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear module of any kind."""
    if isinstance(linear, LowRank):
        return linear.up.out_features, linear.down.in_features
    outputs, inputs = linear.get_parameter("weight").shape
    return (inputs, outputs) if isinstance(linear, Conv1D) else (outputs, inputs)


def _check_fit(decoder: Decoder, index: int, changed: Mapping[str, nn.Module]) -> None:
    """Refuse linears that would not work together: only the number of channels may differ, and in all alike."""
    old = {name: _size(decoder.layers[index].get_submodule(name)) for name in decoder.linears(index)}
    new = old | {name: _size(module) for name, module in changed.items()}
    wanted = dict(old)
    if any(new[name] != old[name] for name in changed):
        feed = decoder.feed_forward(index)
        width = min(new[feed.down][1], feed.width)
        wanted[feed.down] = (old[feed.down][0], width)
        wanted |= {up: (blocks * width, old[up][1]) for up, blocks in feed.ups.items()}
    for name, size in new.items():
        if size != wanted[name]:
            raise UserError(
                f"The matrix {decoder.name(index, name)!r:.80} is {size} where {wanted[name]} would fit the "
                "linears around it."
            )


def _product(linear: nn.Module, turned: bool) -> tuple[Tensor, Tensor | None]:
    """The matrix (out, in) that a linear module stands for, and its bias."""
    if isinstance(linear, LowRank):
        up, down = linear.up.weight.detach(), linear.down.weight.detach()
        return (up.float() @ down.float()).to(up.dtype), linear.up.bias
    weight = linear.get_parameter("weight").detach()
    return (weight.T if turned else weight), getattr(linear, "bias", None)


def _padded(feed: FeedForward, name: str, matrix: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A feed-forward linear with zeros for the channels that it lacks."""
    if name == feed.down:
        return nn.functional.pad(matrix, (0, feed.width - matrix.shape[1])), bias
    blocks = feed.ups[name]

    def longer(rows: Tensor) -> Tensor:
        """(blocks * channels, ...) to (blocks * width, ...)."""
        split = rows.detach().view(blocks, -1, *rows.shape[1:])
        zeros = split.new_zeros(blocks, feed.width - split.shape[1], *split.shape[2:])
        return torch.cat([split, zeros], dim=1).flatten(0, 1)

    return longer(matrix), None if bias is None else longer(bias)
