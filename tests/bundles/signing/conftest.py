"""Keys, and bundles to sign."""

from __future__ import annotations

import shutil

import pytest

from offsite.bundles import keys, signing
from offsite.bundles.adapter import Adapter
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from tests.families import tiny_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The owner's and a stranger's keys, and a bundle of each kind, not signed."""
    made = tmp_path_factory.mktemp("made")
    model = tiny_model("llama")
    emulator = build(model, Split(1, 1), (Place(3),))
    emulator.save(made / "emulator")
    Adapter.of(model, emulator.origin).save(made / "adapter")
    for name in ("owner", "stranger"):
        keys.keygen(made / name)
    return made


@pytest.fixture
def owner(made):
    return made / "owner.key", made / "owner.pub"


@pytest.fixture
def folder(made, owner, tmp_path):
    """A signed adapter, under a name that tells of the user."""
    folder = shutil.copytree(made / "adapter", tmp_path / "clinic-of-dr-miller")
    signing.sign(folder, owner[0])
    return folder
