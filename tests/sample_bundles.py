"""Altering a bundle as a careless or hostile sender would, and signing it again."""

from __future__ import annotations

import hashlib
import json
import time

import pytest
from safetensors.torch import load_file, save_file

from offsite.errors import UserError

MOST_SECONDS = 30.0  # far from a hang; the first model of a family costs an import


def edit_card(folder, **changes):
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | changes))


def sign(folder):
    """Make the card tell the truth of the files as they are now."""
    files = {
        file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "size": file.stat().st_size}
        for file in sorted(folder.iterdir())
        if file.name != "card.json"
    }
    edit_card(folder, files=files)


def put(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    sign(folder)


def edit_json(folder, name, **changes):
    put(folder, name, json.dumps(json.loads((folder / name).read_text()) | changes))


def edit_tensors(folder, change):
    """Let `change` alter the dict of tensors; the file is written and signed again."""
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    sign(folder)


def is_sentence(said):
    """Whether `said` is one sentence on one line, of a length to be read."""
    return "\n" not in said and len(said) < 600 and said.endswith((".", "?")) and not said.endswith("..")


def refusal(load, folder):
    """What `load` says of a `folder` that it refuses: one sentence, at once."""
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        load(folder)
    assert time.monotonic() - start < MOST_SECONDS
    said = str(caught.value)
    assert is_sentence(said), said
    return said
