"""The emulator: a causal LM with the adapter layers at its ends and a poorer middle, as a bundle."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, Field
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from offsite.bundles import bundle
from offsite.bundles.adapter import Adapter, AdapterCard, adapter_tensors, check_files
from offsite.bundles.aliases import aliases, check_adapter, check_card, check_harmonizers, permitted
from offsite.bundles.memory import Memory, memory
from offsite.errors import UserError, brief
from offsite.files.atomic import staged
from offsite.model import checkpoint
from offsite.model.decoder import Decoder, blank, fill, skeleton
from offsite.model.fit import is_usable
from offsite.model.harmonizers import attach_by_shapes, harmonizer_tensors
from offsite.model.linears import dense, reshape
from offsite.model.split import Split
from offsite.untrusted.config import config_and_skeleton, refuse_methods, refuse_orders
from offsite.untrusted.files import read_object
from offsite.untrusted.tokenizer import VOCABULARY, check_fast, open_tokenizer

_PLAIN = "model.safetensors"  # transformers opens this one by itself
_NATIVE = "emulator.safetensors"  # and must not open this one: it would fill the rest with noise
_GENERATION = "generation_config.json"
_FILES = VOCABULARY | {"config.json", _GENERATION, _PLAIN, _NATIVE}


_KIND, _ADAPTER = "offsite-emulator/", AdapterCard.kind.partition("/")[0]
_ShapeOf = Callable[[str], tuple[int, ...] | None]


def _names(value: object) -> object:
    """Refuse anything but a dict of strings; pydantic would list every fault, in much memory."""
    if isinstance(value, dict) and all(isinstance(name, str) for name in value.values()):
        return value
    raise ValueError("it names something that is no tensor")


class EmulatorCard(bundle.Card):
    """The card of an emulator; which layers of the model stand in it is deliberately not there."""

    kind: ClassVar[str] = f"{_KIND}1"
    method: str = Field(pattern=r"^[A-Za-z0-9_ .+-]{1,60}$")
    same_as: Annotated[dict[str, str], BeforeValidator(_names)]
    """Tensors stored once under another name: tied embeddings, and layers that stand in several places."""


@dataclass
class Emulator:
    """What the data owner tunes: `model` holds the adapter layers, ready to train, around the middle."""

    model: PreTrainedModel
    origin: bundle.Origin
    method: str
    tokenizer: PreTrainedTokenizerBase | None = None
    digest: str = field(default="", compare=False)
    """Of the card it was saved under or loaded from; an adapter names it."""
    memory: Memory | None = field(default=None, compare=False)
    """What it needs; None for one that was never a bundle."""

    @property
    def split(self) -> Split:
        """Where its stack is cut."""
        return self.origin.split

    @property
    def vocabulary(self) -> int:
        """How many token ids the model has embeddings for."""
        embeddings: Any = self.model.get_input_embeddings()
        return len(embeddings.get_parameter("weight"))

    @property
    def padding(self) -> int:
        """An id to pad rows with: the tokenizer's, where the model has it; padding is masked."""
        padding = self.tokenizer.pad_token_id if self.tokenizer else None
        return padding if isinstance(padding, int) and 0 <= padding < self.vocabulary else 0

    @property
    def plain(self) -> bool:
        """Whether transformers alone opens the bundle: shapes and shared tensors are those of the config."""
        bare = skeleton(self.model.config)
        same_as = permitted(self.model, self.split, bare)
        return same_as == aliases(bare) and _shapes(self.model) == _shapes(bare)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return the adapter's parameters by place and name; a training loop asks them for gradients."""
        tensors = adapter_tensors(self.model, self.split)
        return {name: each for name, each in tensors.items() if isinstance(each, nn.Parameter)}

    def adapter(self) -> Adapter:
        """Return a copy of the adapter as it is now, to be saved and sent back."""
        return replace(Adapter.of(self.model, self.origin), emulator=self.digest)

    def save(self, path: Path | str) -> str:
        """Write the bundle and return its digest."""
        check_types(self.model)
        check_adapter(self.model, self.split)
        if self.tokenizer is not None:
            check_fast("The model", self.tokenizer)
        same_as = permitted(self.model, self.split, skeleton(self.model.config))
        card = EmulatorCard(
            format=EmulatorCard.kind,
            origin=self.origin,
            method=self.method,
            same_as=same_as,
            versions=bundle.versions(),
        )
        weights = _PLAIN if self.plain else _NATIVE

        def fill_folder(folder: Path) -> None:
            again = aliases(self.model)  # what the card may not name is stored once more
            tensors = {
                name: tensor.clone() if name in again else tensor
                for name, tensor in self.model.state_dict().items()
                if name not in same_as
            }
            bundle.save_tensors(tensors, folder / weights)
            checkpoint.write_description(folder, self.model, self.tokenizer)
            _check_files("The model", [file.name for file in folder.iterdir()])

        self.digest = bundle.write(Path(path), card, fill_folder)
        return self.digest

    def export(self, path: Path | str) -> None:
        """Write a plain transformers checkpoint: every place in full, shared or factored as it may be.

        Raises UserError for an emulator with harmonizers, which no transformers model has.
        """
        if harmonizer_tensors(self.model):
            raise UserError(
                "The emulator has harmonizers, which no plain transformers checkpoint can hold; "
                "it opens with offsite.Emulator.load."
            )
        bare = skeleton(self.model.config)
        stored, shared = self.model.state_dict(), aliases(self.model)
        tied = {name for name, source in aliases(bare).items() if shared.get(name) == source}
        tensors = ((name, each) for name, each in dense(self.model, bare, self.split) if name not in tied)
        with staged(Path(path)) as folder:
            if checkpoint.stores_as_named(bare):
                declared = {
                    name: like.to(stored[name].dtype) if name in stored else like
                    for name, like in bare.state_dict().items()
                    if name not in tied
                }
                checkpoint.write_one_by_one(folder, self.model, self.tokenizer, declared, tensors)
            else:  # safetensors takes no shared tensors: a place that shares its layer gets a copy
                copies = {name: each.clone() if name in shared else each for name, each in tensors}
                checkpoint.write(folder, self.model, self.tokenizer, copies)

    @classmethod
    def load(cls, path: Path | str, *, allow_large: bool = False) -> Emulator:
        """Open the bundle at `path`; a UserError for whatever is not as an honest one would be.

        No tensor is read until the card, the config and every header are found sound. A bundle that needs far
        more memory than it stores is refused, unless `allow_large`.
        """
        path = Path(path)
        card, digest = bundle.read(path, EmulatorCard)
        _check_files(str(path), card.files)
        weights = path / (_PLAIN if _PLAIN in card.files else _NATIVE)
        declared = bundle.headers(weights)
        stored = sum(math.prod(shape) * dtype.itemsize for dtype, shape in declared.values())
        config, bare = config_and_skeleton(
            read_object(path / "config.json"), len(declared) + len(card.same_as), stored
        )
        split, shape_of = card.origin.split, _shape_of(declared, card.same_as)
        split.middle(len(Decoder.of(bare)))
        check_adapter(bare, split)
        needed = memory(bare, split, stored)
        if not allow_large:
            needed.check(path)
        check_harmonizers(weights, card.same_as)
        plain = not _altered(bare, split, shape_of) and card.same_as == aliases(bare)
        _check_weights(weights, declared, bare, card.same_as)
        check_card(weights, card.same_as, bare, split)
        if plain != (weights.name == _PLAIN):
            raise UserError(f"{weights} has the wrong name: transformers would open it and fill in noise.")
        generation = _generation(path) if _GENERATION in card.files else None
        tokenizer = _tokenizer(path, bare) if "tokenizer_config.json" in card.files else None
        if bundle.tokenizer_digest(tokenizer) != card.origin.tokenizer:
            raise UserError(f"{path}: the tokenizer is not the one that the card names.")
        tensors = bundle.load_tensors(weights)
        model = blank(config)
        _altered(model, split, shape_of)
        fill(model, tensors, card.same_as)
        model.generation_config = generation or model.generation_config
        return cls(model, card.origin, card.method, tokenizer, digest, needed)


def check_listed(path: Path) -> None:
    """Refuse a bundle's folder that holds what its kind may not hold; nothing but its card is read."""
    if bundle.declared_format(path).startswith(_ADAPTER):
        check_files(path, bundle.check_listed(path, AdapterCard))
    else:
        _check_files(str(path), bundle.check_listed(path, EmulatorCard).files)


def is_emulator(path: Path | str) -> bool:
    """Whether `path` is the folder of an emulator bundle (rather than of a model)."""
    return bundle.declared_format(Path(path)).startswith(_KIND)


def check_types(model: PreTrainedModel) -> None:
    """Refuse a model with a tensor of a type that no receiver takes, or of another than the rest."""
    for name, tensor in model.state_dict().items():
        if tensor.dtype not in _types(model, model.dtype) or not is_usable(tensor.dtype):
            raise UserError(
                f"The model's {name!r} is {tensor.dtype} and its type {model.dtype}, where a bundle holds "
                "one of float32, bfloat16 and float16; convert it first, as with `model.to(torch.float32)`."
            )


def _types(model: PreTrainedModel, usual: torch.dtype) -> set[torch.dtype]:
    """Return the types that tensors of a model may have whose config says `usual`."""
    mixed = model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict
    return {usual, torch.float32} if mixed else {usual}


def _altered(model: PreTrainedModel, split: Split, shape_of: _ShapeOf) -> bool:
    """Give `model` the modules that the stored shapes need; return whether transformers lacks any of them."""
    thinner, harmonized = reshape(model, split, shape_of), attach_by_shapes(model, split, shape_of)
    return thinner or harmonized


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _shape_of(declared: Mapping[str, bundle.Header], same_as: Mapping[str, str]) -> _ShapeOf:
    def shape(name: str) -> tuple[int, ...] | None:
        header = declared.get(same_as.get(name, name))
        return header and header[1]

    return shape


def _check_files(whose: str, names: Collection[str]) -> None:
    for name in names:
        if name not in _FILES:
            raise UserError(f"{whose} brings a file {name!r:.80}, which no emulator may hold.")
    if (_PLAIN in names) == (_NATIVE in names) or "config.json" not in names:
        raise UserError(f"{whose} lacks a file: an emulator has config.json and {_PLAIN} or {_NATIVE}.")


def _check_weights(
    file: Path, declared: Mapping[str, bundle.Header], bare: PreTrainedModel, same_as: Mapping[str, str]
) -> None:
    """Names, types and shapes against what the config alone would build, before any memory is taken."""
    expected = bare.state_dict()
    bundle.check_names(file, declared.keys() | same_as.keys(), expected)
    for name, tensor in expected.items():
        source = same_as.get(name, name)
        if source not in declared or (name in same_as and name in declared):
            raise UserError(f"{file}: {name!r} is said to be the same as {source!r:.80}, which is not there.")
        dtype, shape = declared[source]
        if shape != tuple(tensor.shape) or dtype not in _types(bare, tensor.dtype):
            raise UserError(
                f"{file}: {name!r} is stored as {dtype} {shape} where the config says {tensor.dtype} "
                f"{tuple(tensor.shape)}."
            )


def _generation(path: Path) -> GenerationConfig:
    file = path / _GENERATION
    data = read_object(file)
    refuse_orders(str(file), data)
    refuse_methods(str(file), data, GenerationConfig)
    try:
        return GenerationConfig.from_dict(data)
    except Exception as error:  # a config can be made to raise whatever there is
        raise UserError(f"{file} is not a sound one ({brief(error)}).") from error


def _tokenizer(path: Path, bare: PreTrainedModel) -> PreTrainedTokenizerBase:
    embeddings = bare.get_input_embeddings()
    return open_tokenizer(path, len(embeddings.get_parameter("weight")))
