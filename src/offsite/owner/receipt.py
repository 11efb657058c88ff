"""The owner's private record of an emulator: what was kept, from which model, by which call."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from offsite.emulator import Emulator
from offsite.folders import staged
from offsite.owner.blueprint import Blueprint
from offsite.record import record


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
        (folder / "receipt.json").write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
