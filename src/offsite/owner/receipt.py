"""The owner's private record of an emulator: what was kept, from which model, by which call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from offsite.bundles.adapter import Adapter
from offsite.bundles.emulator import Emulator
from offsite.errors import UserError, brief
from offsite.files.atomic import staged, write_json
from offsite.owner.blueprint import Blueprint
from offsite.provenance import record
from offsite.untrusted.files import read_object

_FILE = "receipt.json"


def write_receipt(
    path: Path, emulator: Emulator, blueprint: Blueprint, *, asked: float, kept: float, seed: int
) -> None:
    """Write `path`/receipt.json; `asked` and `kept` are the budget `keep` as wanted and as it came out."""
    receipt = {
        "emulator": emulator.digest,
        "parent": emulator.origin.parent,
        "method": emulator.method,
        "split": asdict(emulator.split),
        "keep": {"asked": asked, "kept": kept},
        "blueprint": [place.describe() for place in blueprint],
        "record": record(seed),
    }
    with staged(path) as folder:
        write_json(folder / _FILE, receipt)


def sent(folders: Iterable[Path], parent: str) -> frozenset[str]:
    """Digests of the emulators made of the model of digest `parent`, by the receipts in `folders`.

    Each folder is a receipt's own, or holds such as NAME-receipt. A UserError for a receipt that is unsound.
    """
    found = [(folder / _FILE, *sorted(folder.glob(f"*-receipt/{_FILE}"))) for folder in folders]
    receipts = [read_object(file) for files in found for file in files if file.is_file()]
    return frozenset(
        str(receipt["emulator"])
        for receipt in receipts
        if receipt.get("parent") == parent and "emulator" in receipt  # a data owner's has neither
    )


def vouched(adapter: Adapter, folders: Sequence[Path]) -> bool:
    """Whether receipts in `folders` tell that the emulator was sent which `adapter` was tuned on.

    False where there is no receipt of its model at all; a UserError where there is, but none of that emulator.
    """
    known = sent(folders, adapter.origin.parent)
    if known and adapter.emulator not in known:
        names, where = (", ".join(words) for words in (sorted(one[:12] for one in known), map(str, folders)))
        raise UserError(
            f"The adapter was tuned on the emulator {adapter.emulator[:12] or 'of no bundle'}, which was never "
            f"sent by the receipts in {where} (they name {brief(names)}); ask the sender which one it was, or "
            "name the folder of its receipt with --receipts."
        )
    return bool(known)
