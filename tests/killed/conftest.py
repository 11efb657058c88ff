"""The tiny world of the commands' tests, and one warm process."""

from __future__ import annotations

import pytest

from tests.cli.conftest import _own_environment, world  # noqa: F401 - fixtures
from tests.killed.harness import Forks


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    forks = Forks(tmp_path_factory.mktemp("logs"))
    yield forks
    forks.close()
