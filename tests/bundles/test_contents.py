"""What an emulator contains: counted from its shapes or from what is opened, the same."""

from __future__ import annotations

import pytest

from offsite.bundles.contents import parameters, sent
from offsite.bundles.emulator import Emulator
from offsite.model.split import Split
from offsite.owner.build import build
from tests.test_laws import harmonized, thin

SPLIT = Split(2, 2)


@pytest.mark.parametrize("made", ["thin", "harmonized"])
def test_the_page_and_the_audit_count_alike(model, tmp_path, made):
    """Buffers that are saved are counted in the adapter and the middle, where a family has some."""
    blueprint = thin(model) if made == "thin" else harmonized()
    build(model, SPLIT, blueprint).save(tmp_path / "e")
    page, opened = sent(tmp_path / "e"), parameters(Emulator.load(tmp_path / "e"))
    assert (page.adapter, page.middle) == (opened.trainable, opened.middle)
    assert page.unchanged + page.thin + page.harmonizers == page.around + page.adapter + page.middle
    assert opened.all <= page.around + page.adapter + page.middle
    assert (opened.factored > 0) is (made == "thin")
