"""A launcher's variables in the environment: libraries that see them wait on a socket for other processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NAMES = (
    "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "FORK_LAUNCHED",
)  # fmt: skip


def left() -> list[str]:
    """Return the names of the variables that a launcher set."""
    return [name for name in os.environ if name in _NAMES or name.startswith("ACCELERATE_")]


def drop() -> dict[str, str]:
    """Take a launcher's variables out of the environment, and return them."""
    return {name: os.environ.pop(name) for name in left()}


@contextmanager
def dropped() -> Iterator[None]:
    """Within, the environment has no launcher's variables."""
    before = drop()
    try:
        yield
    finally:
        os.environ.update(before)
