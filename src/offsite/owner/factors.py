"""A weight as a sum of singular components, in the Frobenius norm or that of the Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.components import root
from offsite.owner.curvature import Curvature, curvature
from offsite.owner.parts import Parts
from offsite.owner.records import Factors, RankScores
from offsite.progress import track

_WHITE = 1e-6  # of each input's energy, added: directions that are never read need an inverse too
_ROOM = 2 << 30  # bytes of sums at once; more layers than fit are watched in further passes

Seen = TypeVar("Seen")


def factorise(model: PreTrainedModel, split: Split, parts: Parts, tokens: Tensor | None = None) -> None:
    """Put the `Factors` of the attention of each layer of the middle into `parts`, where they lack.

    The best components come first: in the Fisher norm over `tokens` (blocks, length), or without them in the
    Frobenius norm.
    """
    decoder = Decoder.of(model)
    for layer, seen in watched(model, split, parts, tokens, decoder.attention, curvature):
        found: dict[str, Tensor] = {}
        for name in decoder.attention(layer):
            weight = decoder.matrix(layer, name).float()
            ranks = fisher_ranks(weight, evened(seen[name])) if seen else plain_ranks(weight)
            found |= ranks[0].tensors(name)
        parts.put(str(layer), found)


def watched(
    model: PreTrainedModel,
    split: Split,
    parts: Parts,
    tokens: Tensor | None,
    linears: Callable[[int], Sequence[str]],
    read: Callable[[PreTrainedModel, Mapping[int, Sequence[str]], Tensor], dict[int, dict[str, Seen]]],
) -> Iterator[tuple[int, dict[str, Seen]]]:
    """Yield each layer of the middle that has no part yet, with what `read` sees of its `linears`.

    The `tokens` are read once for as many layers as fit into memory together; without `tokens` nothing is seen.
    """
    decoder = Decoder.of(model)
    wanted = {layer: linears(layer) for layer in parts.missing(split.middle(len(decoder)))}
    for group in groups(decoder, wanted):
        seen = {} if tokens is None else read(model, group, tokens)
        for layer in track(group, "Factorising", len(group)):
            yield layer, seen.pop(layer, {})


def plain_ranks(weight: Tensor) -> tuple[Factors, RankScores]:
    """Return the singular components of `weight` (out, in), the largest first, scored by their values."""
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    return Factors(u * s, vt), RankScores(s, rank_cost(weight))


def rank_cost(weight: Tensor) -> Tensor:
    """Return the parameters of one component of `weight`, and of the whole."""
    return torch.tensor([sum(weight.shape), weight.numel()])


def evened(seen: Curvature, evenly: float = 1.0) -> Curvature:
    """Add `evenly` times G's mean energy to every direction of G."""
    outputs = seen.outputs.clone()
    outputs.diagonal().add_(evenly * outputs.diagonal().mean())
    return replace(seen, outputs=outputs)


def fisher_ranks(weight: Tensor, seen: Curvature) -> tuple[Factors, RankScores]:
    """Return the components of `weight` (out, in) in the Fisher norm, the most that the loss feels first.

    With G = L LT and A = R RT, dT H d over a change d is the squared Frobenius norm of LT d R; so the singular
    value decomposition of LT W R truncates best, and its squared singular values are losses.
    """
    left, right = (root(moment).float() for moment in (seen.outputs, seen.inputs))
    turned, down, score = _components(left.T @ weight, right)
    up = torch.linalg.solve_triangular(left.T, turned, upper=True)  # (out, k)
    return Factors(up, down), RankScores(score, rank_cost(weight), removed(up, down, seen.slope))


def whitened_ranks(weight: Tensor, moment: Tensor) -> tuple[Factors, RankScores]:
    """Return the components of `weight` (out, in) by what they add to its output, the greatest first.

    `moment` is E[x xT] of what it reads, R RT: E|d x|^2 over a change d is the squared Frobenius norm of d R;
    so the singular value decomposition of W R truncates best (SVD-LLM, arXiv 2403.07378, section 3.1).
    """
    up, down, score = _components(weight, root(moment, _WHITE).float())
    return Factors(up, down), RankScores(score, rank_cost(weight))


def _components(weight: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return up (out, k) and down (k, in), singular components of `weight` R, and their squared values."""
    u, s, vt = torch.linalg.svd(weight @ right, full_matrices=False)
    down = torch.linalg.solve_triangular(right, vt, upper=False, left=False)
    return u * s, down, s.square()


def felt(factors: Factors, seen: Curvature) -> Tensor:
    """Return dT H d = (upT G up) (down A downT) for each component d = -up down."""
    up, down = factors.up, factors.down.T
    return ((seen.outputs @ up) * up).sum(0) * ((seen.inputs @ down) * down).sum(0)


def felt_in_1_norm(factors: Factors, seen: Curvature) -> Tensor:
    """Return ||H d||_1 = |G up|_1 |A down|_1 for each component d = -up down."""
    return (seen.outputs @ factors.up).abs().sum(0) * (seen.inputs @ factors.down.T).abs().sum(0)


def removed(up: Tensor, down: Tensor, slope: Tensor) -> Tensor:
    """Return dl/dW . d for each component d = -up_k down_k."""
    return -((slope @ down.T) * up).sum(0)


def groups(decoder: Decoder, watched: Mapping[int, Sequence[str]]) -> list[dict[int, Sequence[str]]]:
    """Divide the layers into runs whose sums fit into memory together."""
    groups: list[dict[int, Sequence[str]]] = []
    free = 0
    for layer, names in watched.items():
        sizes = [decoder.matrix(layer, name).shape for name in names]
        need = 4 * sum(rows * rows + columns * columns + rows * columns for rows, columns in sizes)
        if need > free:
            groups.append({})
            free = _ROOM
        groups[-1][layer] = names
        free -= need
    return groups
