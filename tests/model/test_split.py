"""A split leaves a bottom, a middle and a top, or is refused."""

from __future__ import annotations

import pytest

from offsite.errors import UserError
from offsite.model.split import Split


def test_the_ends_and_the_middle_cover_the_stack_once():
    split = Split(2, 3)
    assert split.middle(10) == range(2, 7)
    assert split.adapter(10) == {"bottom.0": 0, "bottom.1": 1, "top.0": 7, "top.1": 8, "top.2": 9}


@pytest.mark.parametrize(("bottom", "top"), [(0, 2), (2, 0), (-1, 2)])
def test_an_adapter_without_an_end_is_refused(bottom, top):
    with pytest.raises(UserError, match="without an end"):
        Split(bottom, top)


def test_a_stack_without_a_middle_is_refused():
    with pytest.raises(UserError, match="4 layers has no middle"):
        Split(2, 2).middle(4)
