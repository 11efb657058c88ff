"""How a loss bends in a model's weights: Kronecker factors of the Fisher information, from one pass over text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from offsite.decoder import Decoder
from offsite.progress import track
from offsite.training import autocast, bf16_pays

_BATCH = 8  # blocks at once; bounds the states held in memory
_BLOCK = 384  # of a symmetric matrix: what stands above the diagonal blocks is mirrored, not computed


@dataclass(frozen=True)
class Curvature:
    """What a pass says of one linear, y = W x + b, with g the loss's gradient at y; means over tokens.

    The Fisher information of W is about G (x) A (K-FAC, arXiv 1503.05671, section 3): H d = G d A for a
    change d (out, in) of the weight.
    """

    inputs: Tensor
    """A = E[x xT], (in, in)."""
    outputs: Tensor | None
    """G = E[g gT], (out, out); None where it was not asked for."""
    slope: Tensor
    """E[g xT], (out, in): the mean gradient of W."""
    mean: Tensor
    """E[x], (in)."""


class Moment:
    """A running sum of x xT, in float32; in bfloat16 products where those are fast."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.total = torch.zeros(width, width, device=device)
        self.first = torch.zeros(width, device=device)

    def add(self, states: Tensor) -> None:
        """Add the rows of `states` (tokens, width)."""
        self.first += states.sum(0, dtype=torch.float32)
        turned = states.T.contiguous()
        for start in range(0, len(turned), _BLOCK):
            stop = min(start + _BLOCK, len(turned))
            self.total[start:stop, :stop] += turned[start:stop] @ states[:, :stop]

    def matrix(self) -> Tensor:
        """The sum, symmetric; `add` no more."""
        lower = self.total.tril_()
        return lower + lower.tril(-1).T


class _Watch:
    """The sums of one linear while the pass runs."""

    def __init__(self, linear: nn.Module, size: tuple[int, int], inputs: Moment, *, outputs: bool) -> None:
        device = linear.get_parameter("weight").device
        self.inputs = inputs
        self.outputs = Moment(size[0], device) if outputs else None
        self.slope = torch.zeros(size, device=device)

    def result(self, tokens: int, inputs: Tensor) -> Curvature:
        outputs = None if self.outputs is None else self.outputs.matrix().div_(tokens)
        return Curvature(inputs, outputs, self.slope.div_(tokens), self.inputs.first / tokens)
