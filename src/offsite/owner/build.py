"""The one builder: it makes an emulator from any blueprint and knows no method."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.bundles import bundle
from offsite.bundles.adapter import adapter_tensors
from offsite.bundles.aliases import check_adapter
from offsite.bundles.emulator import Emulator
from offsite.errors import UserError
from offsite.model.decoder import Decoder, own, restack
from offsite.model.harmonizers import Harmonizer, attach, harmonizer_tensors
from offsite.model.linears import Weight
from offsite.model.split import Split
from offsite.owner.blueprint import Blueprint, Place, check, everything, raw


def build(
    model: PreTrainedModel,
    split: Split,
    blueprint: Blueprint,
    *,
    method: str = "custom",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Emulator:
    """Build the emulator that `blueprint` describes; `model` is never changed.

    It has a copy of the adapter layers and shares the storage of all that is unchanged with `model`, so
    that it costs little memory beside it.
    """
    decoder = Decoder.of(model)
    check(blueprint, split, len(decoder))
    middle = split.middle(len(decoder))
    ends = range(middle.start), range(middle.stop, len(decoder))
    emulated = restack(model, [*ends[0], *(place.layer for place in raw(blueprint)), *ends[1]])
    inner = Decoder.of(emulated)
    made: dict[object, dict[str, nn.Module]] = {}  # places that are the same share their linears
    for slot, place in zip(split.middle(len(inner)), raw(blueprint), strict=True):
        same = (place.layer, place.channels, frozenset((n, id(weight)) for n, weight in place.weights.items()))
        if same not in made:
            made[same] = _linears(decoder, place)
        for name, module in made[same].items():
            inner.layers[slot].set_submodule(name, module)
    attach(emulated, _chains(blueprint, split.bottom - 1, model))
    places = split.adapter(len(inner)).values()
    check_adapter(emulated, split)
    own(emulated, [inner.name(i, name) for i in places for name in inner.tensors(i)])
    return Emulator(emulated, origin(model, split, tokenizer), method, tokenizer)


def lossless(
    model: PreTrainedModel, split: Split, tokenizer: PreTrainedTokenizerBase | None = None
) -> Emulator:
    """Build the emulator that leaves nothing out; tuning it is fine-tuning the adapter in the full model."""
    blueprint = everything(split, len(Decoder.of(model)))
    return build(model, split, blueprint, method="lossless", tokenizer=tokenizer)


def origin(
    model: PreTrainedModel, split: Split, tokenizer: PreTrainedTokenizerBase | None = None
) -> bundle.Origin:
    """Return what identifies `model` to its owner: digests of its frozen part and of its adapter layers."""
    decoder = Decoder.of(model)
    frozen = decoder.rest() | {
        decoder.name(i, name): tensor
        for i in split.middle(len(decoder))
        for name, tensor in decoder.tensors(i).items()
    }
    start = bundle.digest(adapter_tensors(model, split))
    return bundle.Origin(split, bundle.digest(frozen), start, bundle.tokenizer_digest(tokenizer))


def check_parent(emulator: Emulator, model: PreTrainedModel) -> bundle.Origin:
    """Refuse an emulator of another model than `model`, and return the origin of `model`."""
    here = origin(model, emulator.split, emulator.tokenizer)
    if here.parent != emulator.origin.parent:
        raise UserError("The emulator was made from another model than the one that it is compared with.")
    return here


def keep_of(emulator: Emulator, model: PreTrainedModel) -> float:
    """Return `keep` as it came out: parameters stored in the emulator's middle over those of the model's."""
    decoders = Decoder.of(emulator.model), Decoder.of(model)
    ours, whole = (decoder.stored(emulator.split.middle(len(decoder))) for decoder in decoders)
    return (ours + sum(tensor.numel() for tensor in harmonizer_tensors(emulator.model).values())) / whole


def _chains(blueprint: Blueprint, slot: int, model: PreTrainedModel) -> dict[int, list[Harmonizer]]:
    """Return the harmonizers by the emulator's layer that they follow; the first places follow `slot`."""
    chains: dict[int, list[Harmonizer]] = {}
    for place in blueprint:
        if place.harmonizer is None:
            slot += 1
            continue
        up, down = (matrix.to(model.device, model.dtype) for matrix in place.harmonizer.matrices)
        chains.setdefault(slot, []).append(Harmonizer.of(up, down))
    return chains


def _linears(decoder: Decoder, place: Place) -> dict[str, nn.Module]:
    """Return the linears of a place that differ from its layer's, by their names in the layer."""
    layer = decoder.layers[place.layer]
    changed = _changed(decoder, place)
    return {name: weight.module(layer.get_submodule(name)) for name, weight in changed.items()}


def _changed(decoder: Decoder, place: Place) -> dict[str, Weight]:
    """Return the weights of a place that differ from those of its layer, by the linears' names."""
    changed = dict(place.weights)
    if place.channels is None:
        return changed
    feed, kept = decoder.feed_forward(place.layer), torch.tensor(place.channels)
    linears = decoder.layers[place.layer]
    for name in (*feed.ups, feed.down):
        if name in changed:
            continue
        matrix = decoder.matrix(place.layer, name)
        if name == feed.down:
            changed[name] = Weight((matrix[:, kept],))
            continue
        rows, bias = feed.rows(name, kept), getattr(linears.get_submodule(name), "bias", None)
        changed[name] = Weight((matrix[rows],), None if bias is None else bias[rows])
    return changed
