"""What methods find in a layer, as typed records: each knows the names of its tensors in a profile.

A tensor's name is `PART/NAME.KIND.FIELD`, as in `3/self_attn.q_proj.ranks.score`: the part of the profile (a
layer's number), what the record is of (a linear), the record's kind and its field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from torch import Tensor


class Record:
    """A few tensors that belong together; a field that is None is not stored."""

    kind: ClassVar[str]

    def tensors(self, name: str = "") -> dict[str, Tensor]:
        """Return the tensors by their names within a part."""
        values = {field: getattr(self, field) for field in _fields(type(self))}
        return {_key(name, self.kind, field): tensor for field, tensor in values.items() if tensor is not None}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], part: object, name: str = "") -> Self:
        """Read the record back from a profile's tensors, without reading any other."""
        keys = {field: f"{part}/{_key(name, cls.kind, field)}" for field in _fields(cls)}
        return cls(**{field: tensors[key] for field, key in keys.items() if key in tensors})

    @classmethod
    def places(cls, tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
        """Return the parts and names that have such a record, sorted."""
        last = f".{cls.kind}.{_fields(cls)[0]}"
        keys = (key.partition("/") for key in tensors)
        named = ((part, f".{rest}") for part, _, rest in keys)  # one without a name is all kind and field
        return sorted((part, rest.removesuffix(last)[1:]) for part, rest in named if rest.endswith(last))


@dataclass(frozen=True)
class Factors(Record):
    """A matrix as a product, its components in columns and rows: of a linear, or of a harmonizer."""

    kind: ClassVar[str] = "factors"
    up: Tensor
    """(out, k)"""
    down: Tensor
    """(k, in)"""


@dataclass(frozen=True)
class Scores(Record):
    """How much the pieces of something matter, and what they cost."""

    score: Tensor
    """(n): how much each matters; the least goes first."""
    cost: Tensor
    """(2): parameters that one piece stores, and parameters of the whole."""
    slope: Tensor | None = None
    """(n): by how much the loss changes to first order where a piece is taken out."""


@dataclass(frozen=True)
class RankScores(Scores):
    """Of the components of a linear's `Factors`."""

    kind: ClassVar[str] = "ranks"


@dataclass(frozen=True)
class ChannelScores(Scores):
    """Of the channels that the last linear of a feed-forward reads."""

    kind: ClassVar[str] = "channels"


@dataclass(frozen=True)
class Repair(Record):
    """What lets the channels that stay take over from those that go."""

    kind: ClassVar[str] = "repair"
    weight: Tensor
    """(out, n) of the feed-forward's last linear."""
    moment: Tensor
    """(n, n): E[x xT] of what it reads."""


@dataclass(frozen=True)
class Means(Record):
    """What lets a linear's bias take over from the pieces that go: ranks, or channels that it reads."""

    kind: ClassVar[str] = "means"
    added: Tensor
    """(out, n): what each piece adds to the output, mean over tokens."""
    bias: Tensor
    """(out): the linear's own."""
    weight: Tensor | None = None
    """(out, n) of the linear, where the pieces are channels."""

    def without(self, kept: Tensor) -> Tensor:
        """Return the bias (out) that makes up for all but the pieces `kept`."""
        return self.bias + self.added.sum(1) - self.added[:, kept].sum(1)


@dataclass(frozen=True)
class TrainingCurves(Record):
    """How a training of harmonizers and scores went, step by step."""

    kind: ClassVar[str] = "curve"
    loss: Tensor
    """(steps): what the harmonizers were trained on."""
    judged: Tensor
    """(steps): the mean loss of the mixed stacks on text that is not trained on, nats a token."""
    scores: Tensor
    """(steps, layers): the layers' scores after each step."""

    def lists(self) -> dict[str, Any]:
        """Return them as lists, by their names."""
        return {name: getattr(self, name).tolist() for name in _fields(type(self))}


def _fields(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _key(name: str, kind: str, field: str) -> str:
    return f"{name}.{kind}.{field}" if name else f"{kind}.{field}"
