"""The emulator: a causal LM with the adapter layers at its ends and a poorer middle, as a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from offsite import bundle, checkpoint
from offsite.decoder import Decoder, blank, config_from, fill, skeleton
from offsite.errors import UserError
from offsite.folders import staged
from offsite.split import Split

_PLAIN = "model.safetensors"  # transformers opens this one by itself
_NATIVE = "emulator.safetensors"  # and must not open this one: it would fill the rest with noise
_TOKENIZER = frozenset(
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "spiece.model",
    ]
)
_FILES = _TOKENIZER | {"config.json", "generation_config.json", _PLAIN, _NATIVE}


class EmulatorCard(bundle.Card):
    """The card of an emulator; which layers of the model stand in it is deliberately not there."""

    kind: ClassVar[str] = "offsite-emulator/1"
    method: str
    same_as: dict[str, str]
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

    @property
    def split(self) -> Split:
        """Where its stack is cut."""
        return self.origin.split

    @property
    def plain(self) -> bool:
        """Whether transformers alone opens the bundle: no tensor stands in two places but by its own tying."""
        return _aliases(self.model) == _aliases(skeleton(self.model.config))

    def save(self, path: Path | str) -> str:
        """Write the bundle and return its digest."""
        same_as = _aliases(self.model)
        card = EmulatorCard(
            format=EmulatorCard.kind,
            origin=self.origin,
            method=self.method,
            same_as=same_as,
            versions=bundle.versions(),
        )
        weights = _PLAIN if self.plain else _NATIVE

        def fill_folder(folder: Path) -> None:
            tensors = {k: v for k, v in self.model.state_dict().items() if k not in same_as}
            bundle.save_tensors(tensors, folder / weights)
            checkpoint.write_description(folder, self.model, self.tokenizer)

        self.digest = bundle.write(Path(path), card, fill_folder)
        return self.digest

    def export(self, path: Path | str) -> None:
        """Write a plain transformers checkpoint: every place in full, shared or not."""
        same_as = {} if not self.plain else _aliases(self.model)
        tensors = {k: v.clone() for k, v in self.model.state_dict().items() if k not in same_as}
        with staged(Path(path)) as folder:
            checkpoint.write(folder, self.model, self.tokenizer, tensors)

    @classmethod
    def load(cls, path: Path | str) -> Emulator:
        """Open the bundle at `path`; a UserError for whatever is not as an honest one would be."""
        path = Path(path)
        card, digest = bundle.read(path, EmulatorCard)
        _check_files(path, card)
        config = _config(path)
        weights = path / (_PLAIN if _PLAIN in card.files else _NATIVE)
        _check_weights(weights, config, card.same_as)
        model = blank(config)
        fill(model, bundle.load_tensors(weights), card.same_as)
        tokenizer = _tokenizer(path) if "tokenizer_config.json" in card.files else None
        if bundle.tokenizer_digest(tokenizer) != card.origin.tokenizer:
            raise UserError(f"{path}: the tokenizer is not the one that the card names.")
        card.origin.split.middle(len(Decoder.of(model)))
        return cls(model, card.origin, card.method, tokenizer, digest)


def is_emulator(path: Path | str) -> bool:
    """Whether `path` is the folder of an emulator bundle (rather than of a model)."""
    card = Path(path) / bundle.CARD
    return card.is_file() and EmulatorCard.kind in card.read_text(encoding="utf-8", errors="replace")


def _aliases(model: PreTrainedModel) -> dict[str, str]:
    """Every name whose tensor already stands under an earlier one."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: first[id(t)] for name, t in state.items() if first.setdefault(id(t), name) != name}


def _check_files(path: Path, card: EmulatorCard) -> None:
    for name in card.files:
        if name not in _FILES:
            raise UserError(f"{path}: an emulator has no business with a file named {name!r}.")
    if (_PLAIN in card.files) == (_NATIVE in card.files) or "config.json" not in card.files:
        raise UserError(f"{path}: an emulator needs config.json and one of {_PLAIN} and {_NATIVE}.")


def _config(path: Path) -> PretrainedConfig:
    try:
        data: Any = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path / 'config.json'} is not sound JSON ({error}).") from error
    if not isinstance(data, dict) or {"auto_map", "quantization_config"} & set(data):
        raise UserError(f"{path / 'config.json'} asks for remote code or quantised weights; it is refused.")
    return config_from(data)


def _check_weights(file: Path, config: PretrainedConfig, same_as: Mapping[str, str]) -> None:
    """Names and shapes against what the config alone would build, before any memory is taken."""
    declared = bundle.shapes(file)
    stored = len(declared) + len(same_as)
    if not 0 < config.num_hidden_layers <= stored:
        raise UserError(f"{file}: {stored} tensors cannot be {config.num_hidden_layers} layers.")
    expected: dict[str, Tensor] = skeleton(config).state_dict()
    bundle.check_names(file, declared.keys() | same_as.keys(), expected)
    for name, tensor in expected.items():
        source = same_as.get(name, name)
        if declared.get(source) != tuple(tensor.shape) or (name in same_as and name in declared):
            raise UserError(f"{file}: {name!r} is stored as {declared.get(source)}, not {tuple(tensor.shape)}.")


def _tokenizer(path: Path) -> PreTrainedTokenizerBase:
    config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    if "auto_map" in config:
        raise UserError(f"{path / 'tokenizer_config.json'} asks for remote code; it is refused.")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return tokenizer
