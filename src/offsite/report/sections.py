"""What a folder holds that a page can show, and that page."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from offsite.bundles.emulator import check_listed, is_emulator
from offsite.errors import UserError, brief
from offsite.files.atomic import CARD
from offsite.report.comparison import comparison
from offsite.report.emulator import emulator
from offsite.report.fidelity import fidelity
from offsite.report.frontier import frontier
from offsite.report.page import render
from offsite.report.part import Part, check_size
from offsite.report.profile import profile
from offsite.report.study import study
from offsite.report.tuning import tuning
from offsite.results.schema import Results

_WANTED = (
    "results.json, frontier.json, fidelity.json, profile.json, receipt.json or an emulator's card.json, in it "
    "or one folder down"
)
_RECEIPT = "-receipt"
Data = dict[str, object]


def page(folder: Path) -> str:
    """The page about all that `folder` holds; a UserError where that is nothing, or is not sound."""
    parts = found(folder)
    whole = folder.resolve().name or "this folder"
    lead = f"What the folder {whole!r} holds, in {len(parts)} parts."
    return render(parts, parts[0].title if len(parts) == 1 else _title(parts, whole), lead)


def _title(parts: list[Part], name: str) -> str:
    return f"{len(parts)} results of offsite tuning, in {name}"


def found(folder: Path) -> list[Part]:
    """The parts of the page about `folder`: of what it holds itself and of what its folders hold."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {str(folder)!r}; give one that holds {_WANTED}.")
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for home in (folder, *inner):
        if os.path.lexists(home / CARD):  # a bundle, checked before anything else in it is read
            check_listed(home)
    homes = [home for home in (folder, *inner) if _holds(home)]
    if not homes:
        raise UserError(f"There is nothing in {str(folder)!r} to report; it looks for {_WANTED}.")
    return _parts(homes)


def _parts(homes: list[Path]) -> list[Part]:
    """Results first, then what was made on the way; an emulator and its receipt are one part."""
    results: list[Part] = []
    compared: list[Results] = []
    for home in homes:
        if data := _results(home):
            results.append(study(data) if _is_study(data) else comparison(data))
            compared += [] if _is_study(data) else [Results.read(data)]
    results += [frontier(data) for home in homes if (data := _read(home / "frontier.json"))]
    results += [fidelity(data) for home in homes if (data := _fidelity(home))]
    results += _emulators(homes, compared)
    results += [profile(_name(home), home) for home in homes if _is_profile(home)]
    tuned = [(home, data) for home in homes if (data := _receipt(home)) and "adapter" in data]
    return results + [tuning(_name(home).removesuffix(_RECEIPT), data) for home, data in tuned]


def _emulators(homes: list[Path], compared: list[Results]) -> list[Part]:
    """Each bundle with the receipt that names it, of `homes` or beside, and receipts without a bundle."""
    bundles = [home for home in homes if is_emulator(home)]
    receipts = {home: data for home in homes if (data := _receipt(home)) and "blueprint" in data}
    if len(homes) == 1:  # the other half of it stands beside
        home = homes[0].resolve()
        other = home.with_name(home.name.removesuffix(_RECEIPT) if receipts else home.name + _RECEIPT)
        if bundles and (data := _receipt(other)) and "blueprint" in data:
            receipts[other] = data
        elif receipts and other != home and is_emulator(other):
            bundles.append(other)
    parts = []
    for bundle in bundles:
        mine = [home for home, data in receipts.items() if data.get("emulator") == _digest(bundle)]
        receipt = receipts.pop(mine[0]) if mine else None
        parts.append(emulator(_name(bundle), bundle, receipt, compared))
    alone = [emulator(_name(home).removesuffix(_RECEIPT), None, data) for home, data in receipts.items()]
    return parts + alone


def _holds(folder: Path) -> bool:
    """Whether a page can tell of what stands in `folder` itself."""
    data = (_results(folder), _read(folder / "frontier.json"), _fidelity(folder), _receipt(folder))
    return any(data) or is_emulator(folder) or _is_profile(folder)


def _results(folder: Path) -> Data:
    data = _read(folder / "results.json")
    return data if "rows" in data or _is_study(data) else {}


def _is_study(data: Mapping[str, object]) -> bool:
    return data.get("kind") == "study" or "runs" in data


def _fidelity(folder: Path) -> Data:
    data = _read(folder / "fidelity.json")
    return data if "points" in data or "fidelity" in data else {}


def _receipt(folder: Path) -> Data:
    data = _read(folder / "receipt.json")
    ours = "blueprint" in data and "emulator" in data
    return data if ours or ("adapter" in data and "curve" in data) else {}


def _is_profile(folder: Path) -> bool:
    return str(_read(folder / "profile.json").get("format", "")).startswith("offsite-profile/")


def _digest(bundle: Path) -> str:
    return hashlib.sha256((bundle / "card.json").read_bytes()).hexdigest()


def _name(folder: Path) -> str:
    return folder.resolve().name


def _read(file: Path) -> Data:
    """The object in a JSON file, or nothing where there is no such file."""
    if not file.is_file():
        return {}
    check_size(file)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{str(file)!r} is no JSON that can be read ({brief(error)}); write it anew."
        ) from error
    return data if isinstance(data, dict) else {}
