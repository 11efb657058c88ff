"""The owner's record of what was sent, from the command line or from Python."""

from __future__ import annotations

import pytest

import offsite
from offsite.errors import UserError
from offsite.owner.receipt import is_recorded
from tests.families import tiny_model

SPLIT = offsite.Split(1, 1)


def adapter_of(emulator):
    """An untuned adapter as it comes back, naming its emulator."""
    adapter = offsite.Adapter.of(emulator.model, emulator.origin)
    adapter.emulator = emulator.digest
    return adapter


def made(model, folder, *layers):
    blueprint = tuple(map(offsite.Place, layers))
    emulator = offsite.build(model, SPLIT, blueprint)
    emulator.save(folder)
    return emulator, blueprint


def test_an_emulator_built_in_python_is_recorded_beside_others(tmp_path):
    model = tiny_model("llama")
    first, its = made(model, tmp_path / "first", 2)
    offsite.write_receipt(tmp_path / "first-receipt", first, its, kept=offsite.keep_of(first, model))
    second, others = made(model, tmp_path / "second", 2, 4)
    with pytest.raises(UserError, match=r"which was never sent .*offsite\.write_receipt"):
        is_recorded(adapter_of(second), [tmp_path])
    offsite.write_receipt(str(tmp_path / "second-receipt"), second, others, kept=offsite.keep_of(second, model))
    assert is_recorded(adapter_of(second), [tmp_path])
    assert is_recorded(adapter_of(first), [tmp_path])
    assert not is_recorded(adapter_of(first), [tmp_path / "elsewhere"])
