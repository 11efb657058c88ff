"""The one builder: any blueprint becomes an emulator, and no method is known here."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite import bundle
from offsite.adapter import adapter_tensors
from offsite.decoder import Decoder, own, restack
from offsite.emulator import Emulator
from offsite.owner.blueprint import Blueprint, check, everything
from offsite.split import Split


def build(
    model: PreTrainedModel,
    split: Split,
    blueprint: Blueprint,
    *,
    method: str = "custom",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Emulator:
    """The emulator that `blueprint` describes; `model` is never changed.

    It has its own copy of the adapter layers and shares the storage of all the rest with `model`, so that it
    costs little memory beside it.
    """
    decoder = Decoder.of(model)
    check(blueprint, split, len(decoder))
    middle = split.middle(len(decoder))
    ends = range(middle.start), range(middle.stop, len(decoder))
    emulated = restack(model, [*ends[0], *(place.layer for place in blueprint), *ends[1]])
    inner = Decoder.of(emulated)
    places = split.adapter(len(inner)).values()
    own(emulated, [inner.name(i, name) for i in places for name in inner.tensors(i)])
    return Emulator(emulated, origin(model, split, tokenizer), method, tokenizer)


def lossless(
    model: PreTrainedModel, split: Split, tokenizer: PreTrainedTokenizerBase | None = None
) -> Emulator:
    """The emulator that leaves nothing out; tuning it is fine-tuning the adapter in the full model."""
    blueprint = everything(split, len(Decoder.of(model)))
    return build(model, split, blueprint, method="lossless", tokenizer=tokenizer)


def origin(
    model: PreTrainedModel, split: Split, tokenizer: PreTrainedTokenizerBase | None = None
) -> bundle.Origin:
    """What identifies `model` to its owner: digests of its frozen part and of its adapter layers."""
    decoder = Decoder.of(model)
    frozen = decoder.rest() | {
        decoder.name(i, name): tensor
        for i in split.middle(len(decoder))
        for name, tensor in decoder.tensors(i).items()
    }
    start = bundle.digest(adapter_tensors(model, split))
    return bundle.Origin(split, bundle.digest(frozen), start, bundle.tokenizer_digest(tokenizer))


def keep_of(emulator: Emulator, model: PreTrainedModel) -> float:
    """`keep` as it came out: parameters stored in the emulator's middle over those of `model`'s middle."""
    return _stored(emulator.model, emulator.split) / _stored(model, emulator.split)


def _stored(model: PreTrainedModel, split: Split) -> int:
    decoder = Decoder.of(model)
    tensors = [t for i in split.middle(len(decoder)) for t in decoder.tensors(i).values()]
    return sum(tensor.numel() for tensor in {id(t): t for t in tensors}.values())
