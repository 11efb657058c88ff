"""Whether a folder holds one plain model whose weights fit its config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offsite.errors import UserError, brief

if TYPE_CHECKING:
    import torch


def refuse_bundle(word: str, where: str) -> None:
    """Refuse a bundle, which is no plain model."""
    # Opened as a plain model, a bundle would pass by all that its receiver checks.
    if os.path.lexists(Path(where) / "card.json"):
        raise UserError(
            f"{word!r} holds a card.json, as bundles do, and is no plain model; `offsite inspect` says what it "
            "is, and `offsite export` makes a plain model of an emulator."
        )


def refuse_lora(word: str, folder: Path) -> None:
    """Refuse a LoRA, alone or beside a full model."""
    # transformers would merge it in without a word.
    if not (folder / "adapter_config.json").exists():
        return
    if (folder / "config.json").exists():
        raise UserError(
            f"{word!r} holds a full model (config.json) and a LoRA (adapter_config.json), so it can be read in "
            "two ways; move one of them to another folder."
        )
    raise UserError(
        f"{word!r} holds a LoRA (adapter_config.json) and no model; merge it into its base model with peft's "
        "merge_and_unload, save that, and name its folder."
    )


def refuse_unreadable(word: str, folder: Path) -> None:
    """Refuse files that we have no right to read; transformers takes them for missing."""
    for file in sorted(folder.glob("*.safetensors")):
        if file.exists() and not os.access(file, os.R_OK):
            raise UserError(f"{file.name} in {word!r} may not be read; change its rights or ask its owner.")


def refuse_misfit(word: str, found: Mapping[str, Any]) -> None:
    """Refuse weights that are missing or of another shape."""
    # transformers fills these tensors with random numbers and only warns; tied ones it does not list.
    wrong = sorted(found["missing_keys"]) + sorted(str(key[0]) for key in found["mismatched_keys"])
    if wrong:
        raise UserError(
            f"The weights of {word!r} do not fit its config.json: {len(wrong)} tensors are missing or of "
            f"another shape, {wrong[0]} the first; take both from the same model."
        )


def refuse_surplus(word: str, found: Mapping[str, Any]) -> None:
    """Refuse weights that the config has no place for."""
    # transformers drops these and only warns; those that it ignores for the family it does not list.
    if surplus := sorted(found["unexpected_keys"]):
        raise UserError(
            f"The weights of {word!r} do not fit its config.json: {len(surplus)} tensors have no place in the "
            f"model that it describes, {brief(', '.join(surplus))}; take both from the same model."
        )


def is_usable(dtype: torch.dtype | str) -> bool:
    """Return whether bundles hold this type and processors compute in it; float64 and float8 are cast."""
    import torch

    return dtype in (torch.float32, torch.bfloat16, torch.float16)
