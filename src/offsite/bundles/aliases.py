"""Which tensors of an emulator may stand under several names.

A sender who could store an adapter tensor as an alias of the embeddings would have the embeddings trained, and
the rows that moved would name the tokens of the private text.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from offsite.errors import UserError
from offsite.model.decoder import Decoder
from offsite.model.harmonizers import is_harmonizer
from offsite.model.split import Split


def aliases(model: PreTrainedModel) -> dict[str, str]:
    """Map every name whose tensor already stands under an earlier name to that name."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: first[id(t)] for name, t in state.items() if first.setdefault(id(t), name) != name}


def permitted(model: PreTrainedModel, split: Split, bare: PreTrainedModel) -> dict[str, str]:
    """Return those aliases of `model` that a card may name; `bare` is what its config alone builds."""
    rules = _Rules(bare, split)
    return {name: source for name, source in aliases(model).items() if not rules.objection(name, source)}


def check_harmonizers(whose: object, same_as: Mapping[str, str]) -> None:
    """Refuse harmonizers that share a matrix: no blueprint leads to them, and names alone could make many."""
    for name, source in same_as.items():
        if is_harmonizer(name) or is_harmonizer(source):
            raise _refusal(whose, name, source, "no harmonizer shares its matrices")


def check_card(whose: object, same_as: Mapping[str, str], bare: PreTrainedModel, split: Split) -> None:
    """Refuse aliases that neither the config ties nor middle layers share at the same inner name."""
    rules = _Rules(bare, split)
    for name, source in same_as.items():
        if why := rules.objection(name, source):
            raise _refusal(whose, name, source, why)


def check_adapter(model: PreTrainedModel, split: Split) -> None:
    """Refuse a model whose adapter layers share a tensor with anything else, or look anything up by number."""
    decoder = Decoder.of(model)
    slots = set(split.adapter(len(decoder)).values())
    for name, source in aliases(model).items():
        if not slots.isdisjoint({_slot(decoder, name), _slot(decoder, source)}) and (
            _slot(decoder, name) != _slot(decoder, source)
        ):
            raise UserError(
                f"In this {model.config.model_type!r} model {name!r} and {source!r} are one tensor, so tuning "
                "the adapter would change what is not part of it; it cannot be split there."
            )
    for slot in sorted(slots):
        for inside, module in decoder.layers[slot].named_modules():
            if isinstance(module, nn.Embedding):
                raise UserError(
                    f"In this {model.config.model_type!r} model {decoder.name(slot, inside)!r} is a table of "
                    "embeddings; trained, its rows would tell which tokens the text has, so it cannot be tuned."
                )


class _Rules:
    """What a pair of names is, in the stack that a config builds."""

    def __init__(self, bare: PreTrainedModel, split: Split) -> None:
        self._tied = aliases(bare)
        self._decoder = Decoder.of(bare)
        self._middle = split.middle(len(self._decoder))

    def objection(self, name: str, source: str) -> str:
        """Say why the tensor `name` may not be stored as `source`; empty where it may."""
        slots = _slot(self._decoder, name), _slot(self._decoder, source)
        if all(slot in self._middle for slot in slots):
            same = self._inside(name, slots[0]) == self._inside(source, slots[1])
            return "" if same else "layers share only tensors of the same name"
        return "" if self._tied.get(name) == source else "the config does not tie them"

    def _inside(self, name: str, slot: int | None) -> str:
        assert slot is not None
        return name.removeprefix(self._decoder.name(slot, ""))


def _refusal(whose: object, name: str, source: str, why: str) -> UserError:
    return UserError(f"{whose}: {name!r:.80} is said to be the same as {source!r:.80}, but {why}.")


def _slot(decoder: Decoder, name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to; None for one outside the stack."""
    head, _, rest = name.removeprefix(decoder.path + ".").partition(".")
    inside = name.startswith(decoder.path + ".") and rest and head.isdecimal() and len(head) < 7
    return int(head) if inside else None
