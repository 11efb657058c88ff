"""A weight as a sum of singular components, in its own norm or in that of the Fisher information."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.components import root
from offsite.owner.curvature import Curvature, curvature
from offsite.owner.findings import Findings
from offsite.progress import track

_ROOM = 2 << 30  # bytes of sums at once; more layers than fit are watched in further passes


def factorise(model: PreTrainedModel, split: Split, findings: Findings, tokens: Tensor | None = None) -> None:
    """Put, for each layer of the middle, `LINEAR.up` (out, k) and `LINEAR.down` (k, in) of its attention.

    The best components come first: in the Fisher norm over `tokens` (blocks, length), or without them in the
    weight's own.
    """
    decoder = Decoder.of(model)
    missing = findings.lacking(split.middle(len(decoder)))
    watched = {layer: decoder.attention(layer) for layer in missing}
    for group in groups(decoder, watched):
        seen = {} if tokens is None else curvature(model, group, tokens)
        for layer in track(group, "Factorising", len(group)):
            found: dict[str, Tensor] = {}
            for name in group[layer]:
                weight = decoder.matrix(layer, name).float()
                told = fisher_ranks(weight, evened(seen[layer][name])) if seen else plain_ranks(weight)
                found |= {f"{name}.{part}": told[part] for part in ("up", "down")}
            seen.pop(layer, None)
            findings.put(str(layer), found)


def plain_ranks(weight: Tensor) -> dict[str, Tensor]:
    """The singular components of `weight` (out, in), the largest first; `score` is their values."""
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    return {"up": u * s, "down": vt, "score": s}


def evened(seen: Curvature, evenly: float = 1.0) -> Curvature:
    """With so many times its mean energy added to every direction of G."""
    outputs = seen.outputs.clone()
    outputs.diagonal().add_(evenly * outputs.diagonal().mean())
    return replace(seen, outputs=outputs)


def fisher_ranks(weight: Tensor, seen: Curvature) -> dict[str, Tensor]:
    """The components of `weight` (out, in) in the Fisher norm, the most that the loss feels first.

    With G = L LT and A = R RT, dT H d over a change d is the squared Frobenius norm of LT d R; so the singular
    value decomposition of LT W R truncates best, and its squared singular values are losses.
    """
    left, right = (root(moment).float() for moment in (seen.outputs, seen.inputs))
    u, s, vt = torch.linalg.svd(left.T @ weight @ right, full_matrices=False)
    up = torch.linalg.solve_triangular(left.T, u * s, upper=True)  # (out, k)
    down = torch.linalg.solve_triangular(right, vt, upper=False, left=False)  # (k, in)
    return {"up": up, "down": down, "score": s.square(), "slope": removed(up, down, seen.slope)}


def removed(up: Tensor, down: Tensor, slope: Tensor) -> Tensor:
    """dl/dW . d for each component d = -up_k down_k."""
    return -((slope @ down.T) * up).sum(0)


def groups(decoder: Decoder, watched: Mapping[int, Sequence[str]]) -> list[dict[int, Sequence[str]]]:
    """The layers in runs whose sums fit into memory together."""
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
