"""Experiment trackers, and the accelerator that logs to them: always of this one process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration

from offsite import launchers
from offsite.errors import UserError, did_you_mean


def check_trackers(names: Sequence[str]) -> None:
    """Refuse the name of a tracker that is not installed."""
    known = [str(tracker) for tracker in get_available_trackers()] if names else []
    for name in names:
        if name not in known:
            way = did_you_mean(name, known) if known else "install it first."
            raise UserError(f"There is no tracker {name!r} here; {way}")


@contextmanager
def tracking(names: Sequence[str], settings: Mapping[str, object]) -> Iterator[Accelerator]:
    """Yield an accelerator that logs to the trackers `names`; they are closed afterwards.

    Tensorboard's files go to ./runs, or where TENSORBOARD_LOGGING_DIR says.
    """
    folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or str(Path("runs", time.strftime("%Y%m%d-%H%M%S")))
    with launchers.dropped():  # always of this one process
        accelerator = Accelerator(
            log_with=list(names) or None, project_config=ProjectConfiguration(logging_dir=folder)
        )
    if names:
        accelerator.init_trackers(os.environ.get("WANDB_PROJECT", "offsite"), _plain(settings))
    try:
        yield accelerator
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def _plain(settings: Mapping[str, object]) -> dict[str, object]:
    """Numbers and words, which is all that every tracker takes."""
    return {
        name: value if isinstance(value, (int, float, str)) else str(value) for name, value in settings.items()
    }
