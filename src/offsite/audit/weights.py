"""Weights that stand out from their fellows in the same stack: figures of matrices, and what is odd in them.

The bounds are about twice what SmolLM2-135M and Gemma-3-270M show at the most. Honest models vary that much,
so that only gross things are odd: the few percent that a tuning adds to a matrix are not seen here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from offsite.bundles.emulator import Emulator
from offsite.model.decoder import Decoder
from offsite.model.linears import LowRank
from offsite.progress import track

_SIZE = 8.0  # times the median of the same matrix in the other layers, or of that the inverse (seen: 3.8)
_TAILS = 100.0  # excess kurtosis of a matrix's entries; a normal distribution's is 0 (seen: 41)
_SPIKE = (
    12.0  # from one of the largest singular values to the next (seen: 6.4, between the first and the eighth)
)
_NOISE = 1e-5  # of the largest singular value: rounding, past the rank of what is stored multiplied out
_DEAD = 1e-3  # of the median channel's norm (seen: 0.06)
_ROW = 8.0  # times the median embedding's norm (seen: 2.4)
_LEADING = 8  # singular values that are looked at

Matrices = dict[tuple[str, str], Tensor]
"""By place, as `bottom.0` or `middle.3`, and name in the layer: (out, in)."""


@dataclass(frozen=True)
class Oddity:
    """One figure that is far off what it is elsewhere in the same emulator, or in honest models."""

    where: str
    """The place, as `bottom.0` or `middle.3`, and the matrix in it; or `embeddings`."""
    what: str
    """What is measured, in words."""
    value: float
    bound: float
    """What it passed to be odd, in the same unit."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what} is {self.value:.3g}, past the bound of {self.bound:.3g}"


def leading(matrix: Tensor, count: int = _LEADING) -> Tensor:
    """The largest singular values of `matrix`, by subspace iteration: the first of them to within about 1%."""
    wide = min(count + 8, *matrix.shape)
    whole = matrix.detach().float().cpu()
    peak = float(whole.abs().max()) or 1.0  # a stranger's may be so large that products are infinite
    with torch.random.fork_rng(devices=[]):  # it draws at random, and must not disturb what follows
        torch.manual_seed(0)
        return torch.svd_lowrank(whole / peak, q=wide, niter=4)[1][:count] * peak


def odd(emulator: Emulator) -> tuple[Oddity, ...]:
    """What is odd in the weights of the stack and in the embeddings; no text is read."""
    matrices = _matrices(emulator)
    sizes = {key: float(matrix.square().mean().sqrt()) for key, matrix in matrices.items()}
    found: list[Oddity] = []
    for key, matrix in track(matrices.items(), "Looking at the weights", len(matrices)):
        usual = median(size for other, size in sizes.items() if other[1] == key[1])
        found += _in_matrix(" ".join(key), matrix, sizes[key], usual)
    return (*found, *_doubles(emulator), *_in_embeddings(emulator))


def _matrices(emulator: Emulator) -> Matrices:
    """Each linear of the stack, factors multiplied out."""
    decoder = Decoder.of(emulator.model)
    found: Matrices = {}
    for index, place in enumerate(places(emulator)):
        plain = {name: decoder.matrix(index, name).float() for name in decoder.linears(index)}
        for name in sorted(plain):
            whole = name.removesuffix(".up")
            if whole != name and isinstance(decoder.layers[index].get_submodule(whole), LowRank):
                plain[whole] = plain.pop(f"{whole}.up") @ plain.pop(f"{whole}.down")
        found |= {(place, name): matrix for name, matrix in plain.items()}
    return found


def places(emulator: Emulator) -> list[str]:
    """The names of the places of the stack, in order."""
    count = len(Decoder.of(emulator.model))
    middle = emulator.split.middle(count)
    ends = {index: place for place, index in emulator.split.adapter(count).items()}
    return [ends.get(index, f"middle.{index - middle.start}") for index in range(count)]


def _in_matrix(where: str, matrix: Tensor, size: float, usual: float) -> Iterator[Oddity]:
    if not size or not usual:
        yield Oddity(where, "the share of entries that are zero", float(matrix.eq(0).float().mean()), 0.5)
        return
    if not 1 / _SIZE < size / usual < _SIZE:
        bound = _SIZE if size > usual else 1 / _SIZE
        yield Oddity(where, "its size over the median of the other layers'", size / usual, bound)
    tails = float(((matrix - matrix.mean()) / matrix.std()).pow(4).mean() - 3)
    if tails > _TAILS:
        yield Oddity(where, "the excess kurtosis of its entries", tails, _TAILS)
    for side, channels in (("outputs", matrix), ("inputs", matrix.T)):
        norms = channels.norm(dim=1)
        dead = int(((norms < _DEAD * norms.median()) | (channels.std(dim=1) == 0)).sum())
        if dead:
            yield Oddity(where, f"the number of dead or constant {side}", dead, 0)
    values = leading(matrix)
    some = len(values) == _LEADING
    values = values[values > _NOISE * values[0]]
    steps = values[:-1] / values[1:]
    if some and len(steps) and float(steps.max()) > _SPIKE:
        yield Oddity(where, "a step between its largest singular values", float(steps.max()), _SPIKE)


def _doubles(emulator: Emulator) -> Iterator[Oddity]:
    """Layers that are stored twice: a layer that stands in several places by design is stored once."""
    decoder, seen = Decoder.of(emulator.model), dict[float, int]()
    names = places(emulator)
    for index, place in enumerate(names):
        tensors = decoder.tensors(index)
        key = sum(float(tensor.double().sum()) for tensor in tensors.values())
        first = seen.setdefault(key, index)
        other = decoder.tensors(first)
        stored_apart = first != index and not any(tensors[name] is other.get(name) for name in tensors)
        if stored_apart and _equal(list(tensors.values()), list(other.values())):
            yield Oddity(place, f"the number of differences from {names[first]}", 0, 0)


def _equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def _in_embeddings(emulator: Emulator) -> Iterator[Oddity]:
    embeddings = emulator.model.get_input_embeddings()
    norms = embeddings.get_parameter("weight").detach().float().norm(dim=1)
    most = float(norms.max() / norms.median())
    if most > _ROW:
        token = int(norms.argmax())
        yield Oddity("embeddings", f"the size of token {token}'s row over the median row's", most, _ROW)
