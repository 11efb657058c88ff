"""Mutations of a bundle by a hostile sender, who corrects the card afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from transformers import CONFIG_MAPPING

from tests.hostile.corpus import pickled
from tests.hostile.fuzz import pieces
from tests.hostile.fuzz.values import TYPES, alter, config_keys, flipped, text_of, value
from tests.sample_bundles import sign

CARD, SIGNATURE = "card.json", "model.sig"
ADDED = ("added_tokens.json", "special_tokens_map.json", "vocab.txt", "merges.txt", "vocab.json",
    "tokenizer.model",
         "results.json", "receipt.json", "profile.json", "frontier.json", "pytorch_model.bin", "x.py",
         "generation_config.json", "adapter_config.json", "emulator.safetensors", "model.safetensors",
         "\x1b[2J",
         "chat_template.jinja", "additional_chat_templates", ".hidden", "offsite.json")  # fmt: skip
_BROKEN = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    SafetensorError,
    RecursionError,
    struct.error,
)
Mutation = Callable[[Random, Path], None]


def mutate(dice: Random, folder: Path, which: int | None = None) -> list[str]:
    """Alter the bundle by up to three mutations, or by number `which` of these; return the names."""
    emulator = (folder / "config.json").exists()
    card = json.loads((folder / CARD).read_text())
    several = dice.choices(EMULATOR if emulator else ADAPTER, k=dice.choice([1, 1, 2, 3]))
    several.sort(
        key=lambda each: each is no_plain_file
    )  # last, and once: another mutation would wait for a pipe
    drawn = [(each, dice.getrandbits(64)) for each in dict.fromkeys(several)]
    mended = dice.random() < 0.93
    for mutation, seed in drawn if which is None else drawn[which : which + 1]:
        with suppress(*_BROKEN if mutation is not drawn[0][0] else ()):  # by an earlier mutation
            mutation(Random(seed), folder)
            if mended and mutation not in AFTER:
                mend(folder, card)
    return [mutation.__name__ for mutation, _ in drawn]


def mend(folder: Path, card: Any) -> None:
    """Correct the card's digests of files and vocabulary, if it still is a card."""
    try:
        if (folder / "tokenizer.json").is_file():
            card = json.loads((folder / CARD).read_text())
            card["origin"]["tokenizer"] = _vocabulary_digest(folder / "tokenizer.json")
            (folder / CARD).write_text(json.dumps(card))
    except _BROKEN:
        pass
    with suppress(*_BROKEN):  # a pipe, a folder, a card that is none
        if all(path.is_file() for path in folder.iterdir()):
            sign(folder)


def _vocabulary_digest(file: Path) -> str:
    """As `tokenizer_digest`, from the file alone: nothing of it is opened here."""
    data = json.loads(file.read_text())
    vocab = data["model"]["vocab"]
    words = {word: n for n, (word, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    words |= {token["content"]: token["id"] for token in data.get("added_tokens") or ()}
    return hashlib.sha256(json.dumps(sorted(words.items())).encode()).hexdigest()


def _edit(file: Path, change: Callable[[Any], None], dice: Random) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_bytes(text_of(dice, data))


def config_value(dice: Random, folder: Path) -> None:
    """One value of the config, or a key of another family."""
    keys = config_keys() if dice.random() < 0.6 else ()
    _edit(
        folder / "config.json",
        lambda data: [alter(dice, data, keys) for _ in range(dice.choice([1, 1, 3]))],
        dice,
    )


def config_size(dice: Random, folder: Path) -> None:
    """A number of the config is another."""

    def change(data: Any) -> None:
        key = dice.choice([key for key, old in data.items() if type(old) is int] or ["hidden_size"])
        data[key] = value(dice, data.get(key, 1))

    _edit(folder / "config.json", change, dice)


def another_family(dice: Random, folder: Path) -> None:
    """The config is of another model type, with the sizes of the old one."""
    kind = dice.choice([kind for kind in TYPES if kind in CONFIG_MAPPING])

    def change(data: Any) -> None:
        sizes = {key: old for key, old in data.items() if type(old) is int}
        usual = CONFIG_MAPPING[kind]().to_dict() if dice.random() < 0.5 else {}
        data.clear()
        data.update(usual | sizes | {"model_type": kind})
        if dice.random() < 0.5:
            alter(dice, data)

    _edit(folder / "config.json", change, dice)


def settings(dice: Random, folder: Path) -> None:
    """The tokenizer's settings or the generation's."""
    name = dice.choice(["tokenizer_config.json", "generation_config.json"])
    extra = (
        ("tokenizer_class", "LlamaTokenizer"), ("chat_template", pieces.template(dice)), ("pad_token", "[PAD]"),
        ("model_max_length", 10**30), ("add_bos_token", True), ("legacy", False),
        ("clean_up_tokenization_spaces", True),
        ("extra_special_tokens", ["w10", "zzz"]), ("split_special_tokens", True), ("padding_side", "left"),
        ("truncation_side", "left"), ("added_tokens_decoder", {"5": {"content": "w5", "special": True}}),
        ("add_prefix_space", True), ("do_lower_case", True), ("eos_token_id", [2, 3]), ("max_length", 2**40),
        ("mask_token", {"__type": "AddedToken", "content": "w7"}), ("backend", "tokenizers"), ("is_local",
        True),
    )  # fmt: skip
    _edit(folder / name, lambda data: alter(dice, data, extra), dice)


def tokenizer_part(dice: Random, folder: Path) -> None:
    """A part of tokenizer.json is another of the library's."""

    def change(data: Any) -> None:
        part = dice.choice(["normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "model"])
        if part == "model":
            pieces.model(dice, data["model"])
        else:
            data[part] = pieces.step(dice, part)

    _edit(folder / "tokenizer.json", change, dice)


def tokenizer_value(dice: Random, folder: Path) -> None:
    """Any value of tokenizer.json, its added tokens more often."""
    extra = (("truncation", {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}),
             ("padding", {"strategy": {"Fixed": 10**6}, "direction": "Left", "pad_to_multiple_of": None,
             "pad_id": 0,
                          "pad_type_id": 0, "pad_token": "<pad>"}), ("added_tokens", []), ("version",
                          "2.0"))  # fmt: skip

    def change(data: Any) -> None:
        tokens = data.get("added_tokens")
        if dice.random() < 0.4 and tokens:
            token = {"id": dice.choice([0, 5, 127, 128, 500]), "content": dice.choice(pieces.WORDS)}
            token |= {
                flag: dice.random() < 0.5
                for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            tokens.append(token)
        elif dice.random() < 0.5 and tokens:
            alter(dice, tokens)
        else:
            alter(dice, data if dice.random() < 0.2 else {k: v for k, v in data.items() if k != "model"}, extra)

    _edit(folder / "tokenizer.json", change, dice)


def chat_template(dice: Random, folder: Path) -> None:
    """Another chat template, in its file or among the settings."""
    text = pieces.template(dice)
    if dice.random() < 0.8:
        (folder / "chat_template.jinja").write_text(text)
    else:
        _edit(folder / "tokenizer_config.json", lambda data: data.update(chat_template=text), dice)


def _weights(dice: Random, folder: Path) -> Path:
    return dice.choice(sorted(folder.glob("*.safetensors")) or [folder / "adapter.safetensors"])


def tensor_header(dice: Random, folder: Path) -> None:
    """The header of the tensors, not their bytes."""
    file = _weights(dice, folder)
    raw = file.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    data = json.loads(raw[8 : 8 + size])
    alter(dice, data)
    text = text_of(dice, data)
    length = (
        len(text)
        if dice.random() < 0.9
        else dice.choice([0, 1, len(text) - 1, len(raw), 2**40, 2**63, 2**64 - 1])
    )
    file.write_bytes(struct.pack("<Q", length) + text + raw[8 + size :])


def tensor_values(dice: Random, folder: Path) -> None:
    """Odd numbers, types, shapes or names for one or all of the tensors, in a sound file."""
    file = _weights(dice, folder)
    tensors = load(file.read_bytes())
    names = sorted(tensors) if dice.random() < 0.1 else [dice.choice(sorted(tensors))]
    how = dice.choice(["number", "number", "type", "shape", "name", "gone", "more", "scale"])
    odd = dice.choice([float("nan"), float("inf"), 0.0, 1e-40, 3e38, -3e38, 65504.0, 1e4, -1.0])
    dtype = dice.choice([torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool])
    other = dice.choice(sorted(tensors))
    for name in names:
        tensor = tensors.pop(name)
        if how == "number":
            flat = tensor.clone().reshape(-1)
            flat[dice.randrange(len(flat)) :: dice.choice([1, 7, 10**9])] = odd
            tensors[name] = flat.reshape(tensor.shape)
        elif how == "shape":
            tensors[name] = dice.choice([tensor[:1], tensor[None], tensor.reshape(-1),
            tensor.t().contiguous() if
                                         tensor.dim() == 2 else tensor[:0], torch.cat([tensor,
                                         tensor])])  # fmt: skip
        elif how != "gone":
            tensors[name] = tensor.to(dtype) if how == "type" else tensor * odd if how == "scale" else tensor
        if how == "name":
            tensors[
                dice.choice([f"{name}x", name.replace(".2.", ".3."), name.replace(".1.", ".0."), "\x1b[2J"])
            ] = tensors.pop(name)
        elif how == "more":
            tensors[f"{other.rpartition('.')[0]}.{dice.choice(['up', 'down', 'bias', 'extra'])}.weight"] = (
                tensor.clone()
            )
    file.write_bytes(save(tensors, metadata={"format": "pt"}))


def card_value(dice: Random, folder: Path) -> None:
    """Any value of the card."""
    extra = (("same_as", {}), ("files", {}), ("lora", {"rank": 2, "alpha": 4}), ("emulator", "0" * 64),
    ("method", "gradot"),
             ("split", {"bottom": 1, "top": 1}), ("x", 1))  # fmt: skip
    _edit(folder / CARD, lambda data: alter(dice, data, extra), dice)


def alias(dice: Random, folder: Path) -> None:
    """An alias of one tensor to another; the tensor may be stored as well."""
    file = _weights(dice, folder)
    tensors = load(file.read_bytes())
    card = json.loads((folder / CARD).read_text())
    for _ in range(dice.choice([1, 1, 4])):
        name, source = dice.choice(sorted(tensors)), dice.choice(sorted(tensors))
        alike = [
            each for each in sorted(tensors) if each != name and tensors[each].shape == tensors[name].shape
        ]
        card.setdefault("same_as", {})[name] = dice.choice(alike) if alike and dice.random() < 0.8 else source
        if dice.random() < 0.7:
            del tensors[name]
    file.write_bytes(save(tensors, metadata={"format": "pt"}))
    (folder / CARD).write_text(json.dumps(card))


def depth(dice: Random, folder: Path) -> None:
    """More places than the weights have, all the same as the first of the middle."""
    card = json.loads((folder / CARD).read_text())
    names = load(_weights(dice, folder).read_bytes())
    count = dice.choice([1, 10, 100, 1000])
    layers = [name for name in names if ".2." in name]
    for number in range(7, 7 + count):
        card.setdefault("same_as", {}).update({name.replace(".2.", f".{number}."): name for name in layers})
    (folder / CARD).write_text(json.dumps(card))

    def change(data: Any) -> None:
        for key in ("num_hidden_layers", "n_layer"):
            data[key] = data[key] + count if key in data else 0
            data.pop(key) if not data[key] else None
        for key, old in data.items():
            if isinstance(old, list) and len(old) > 4 and dice.random() < 0.8:
                data[key] = old + old[-1:] * count

    _edit(folder / "config.json", change, dice)


def raw_bytes(dice: Random, folder: Path) -> None:
    """A few bytes of any file, or the file cut, doubled or emptied."""
    file = dice.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    raw = file.read_bytes()
    file.write_bytes(
        dice.choice([flipped(dice, raw), raw[: dice.randrange(len(raw) + 1)], raw + raw, b"", raw + b"\n"])
    )


def a_file_more(dice: Random, folder: Path) -> None:
    """A file that is not there yet, with text, JSON, a pickle or an archive in it."""
    odd = [
        b"",
        b"{}",
        b"[]",
        b"[" * 10_000,
        b'{"rows": {"x": 1}, "record": {"call": "a\\nb"}}',
        b"PK\x03\x04",
        b"x y\n",
    ]
    (folder / dice.choice(ADDED)).write_bytes(dice.choice([*odd, pickled(), text_of(dice, value(dice))]))


def a_file_less(dice: Random, folder: Path) -> None:
    """Take a file away."""
    dice.choice(sorted(folder.iterdir())).unlink()


def no_plain_file(dice: Random, folder: Path) -> None:
    """A link, a hard link, a pipe, a folder or a sparse file in the place of one, or beside all."""
    file = dice.choice([*sorted(folder.iterdir()), folder / dice.choice(ADDED)])
    kept = file.read_bytes() if file.is_file() else b"{}"
    file.unlink(missing_ok=True)
    outside = folder.parent / f"outside-{file.name}"
    outside.write_bytes(kept)
    how = dice.choice(["link", "hard", "pipe", "folder", "sparse", "loop", "secret"])
    if how == "hard":
        os.link(outside, file)
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "folder":
        file.mkdir()
    elif how == "sparse":
        file.write_bytes(kept)
        os.truncate(file, dice.choice([10**7, 10**12]))
    else:
        file.symlink_to({"link": outside, "loop": file, "secret": Path("/etc/passwd")}[how])


BOTH: list[Mutation] = [
    tensor_header, tensor_values, tensor_values, card_value, card_value, raw_bytes, a_file_more,
    a_file_less, no_plain_file,
]  # fmt: skip
ADAPTER: list[Mutation] = BOTH
EMULATOR: list[Mutation] = [
    *BOTH, config_value, config_value, config_value, config_size, another_family, settings, settings,
    tokenizer_part,
    tokenizer_part, tokenizer_part, tokenizer_value, chat_template, chat_template, alias, alias, depth,
]  # fmt: skip
AFTER = (card_value, no_plain_file)  # after which the card is not corrected
