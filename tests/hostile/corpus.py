"""The corpus of attacks on bundles: each alters an honest one as a hostile sender could, digests and all.

An attack is a small function of a bundle's folder, registered under its own name for the kinds of bundle that
it is made on. `why` is a pattern that the refusal must hold: the file or key in question.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.sample_bundles import put, sign

CANARY = "canary"


@dataclass(frozen=True)
class Attack:
    """One alteration of an honest bundle of the `kind`."""

    name: str
    kind: str
    why: str
    alter: Callable[[Path], None]


ATTACKS: list[Attack] = []


def attack(kinds: str, why: str):
    """Register a function of a bundle's folder as an attack on each of the `kinds`, parted by blanks."""

    def register(alter):
        for kind in kinds.split():
            name = f"{kind}: {alter.__name__.replace('_', ' ')}"
            assert name not in {known.name for known in ATTACKS}, name
            ATTACKS.append(Attack(name, kind, why, alter))
        return alter

    return register


def weights(folder: Path) -> Path:
    """The bundle's one safetensors file."""
    return next(folder.glob("*.safetensors"))


def read_json(file: Path):
    return json.loads(file.read_text())


def card(folder: Path, change) -> None:
    """Let `change` alter the card's data."""
    data = read_json(folder / "card.json")
    change(data)
    (folder / "card.json").write_text(json.dumps(data))


def card_text(folder: Path, change) -> None:
    file = folder / "card.json"
    file.write_bytes(change(file.read_bytes()))


def header(folder: Path, change) -> None:
    """Let `change` alter the data of the safetensors header; the tensors' bytes stay."""
    raw = weights(folder).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    data = json.loads(raw[8 : 8 + size])
    change(data)
    header_text(folder, json.dumps(data).encode(), raw[8 + size :])


def header_text(folder: Path, text: bytes, rest: bytes | None = None, said: int | None = None) -> None:
    """Put `text` in the place of the header, and say that it is `said` bytes long."""
    if rest is None:
        raw = weights(folder).read_bytes()
        rest = raw[8 + struct.unpack("<Q", raw[:8])[0] :]
    put(folder, weights(folder).name, struct.pack("<Q", len(text) if said is None else said) + text + rest)


def first(data: dict) -> dict:
    """The entry of the first tensor in a header's data."""
    return data[min(name for name in data if name != "__metadata__")]


def swap_file(folder: Path, name: str) -> Path:
    """Take a file away and return where it was."""
    (folder / name).unlink()
    return folder / name


def pickled() -> bytes:
    """A pickle that leaves a canary when it is opened, as torch.load and pickle would."""
    import pickle

    return pickle.dumps(_Payload())


class _Payload:
    def __reduce__(self):
        return os.system, (f"touch {os.environ.get('CANARY', CANARY)}",)


__all__ = ["ATTACKS", "attack", "put", "sign"]
