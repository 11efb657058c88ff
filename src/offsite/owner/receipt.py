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
    path: Path | str,
    emulator: Emulator,
    blueprint: Blueprint,
    *,
    kept: float,
    asked: float | None = None,
    seed: int = 0,
) -> None:
    """Write `path`/receipt.json for a saved `emulator`.

    `kept` is its `keep` (`keep_of`), and `asked` the one that was wanted, if another. By its receipt `plug`
    recognises the emulator that an adapter was tuned on.
    """
    receipt = {
        "emulator": emulator.digest,
        "parent": emulator.origin.parent,
        "method": emulator.method,
        "split": asdict(emulator.split),
        "keep": {"asked": kept if asked is None else asked, "kept": kept},
        "blueprint": [place.describe() for place in blueprint],
        "record": record(seed),
    }
    with staged(Path(path)) as folder:
        write_json(folder / _FILE, receipt)


def sent(folders: Iterable[Path], parent: str) -> frozenset[str]:
    """Return the digests of the emulators that were made from the model `parent`, by the receipts in `folders`.

    Each folder is a receipt, or holds receipts called NAME-receipt. A UserError for a receipt that is unsound.
    """
    found = [(folder / _FILE, *sorted(folder.glob(f"*-receipt/{_FILE}"))) for folder in folders]
    receipts = [read_object(file) for files in found for file in files if file.is_file()]
    return frozenset(
        str(receipt["emulator"])
        for receipt in receipts
        if receipt.get("parent") == parent and "emulator" in receipt  # a data owner's has neither
    )


def is_recorded(adapter: Adapter, folders: Sequence[Path]) -> bool:
    """Return whether a receipt in `folders` names the emulator that `adapter` was tuned on.

    False where no receipt is of its model; a UserError where receipts are, but none is of that emulator.
    """
    known = sent(folders, adapter.origin.parent)
    if known and adapter.emulator not in known:
        names, where = (", ".join(words) for words in (sorted(one[:12] for one in known), map(str, folders)))
        raise UserError(
            f"The adapter was tuned on the emulator {adapter.emulator[:12] or 'of no bundle'}, which was never "
            f"sent by the receipts in {where} (they name {brief(names)}); ask the sender which one it was, or "
            "name the folder of its receipt with --receipts (`offsite.write_receipt` writes one in Python)."
        )
    return bool(known)
