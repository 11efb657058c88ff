"""The trackers of transformers' Trainer: which there are, and where their files go."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import Trainer
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    default_logdir,
    get_available_reporting_integrations,
)

from offsite.errors import UserError, did_you_mean


def check_trackers(names: Sequence[str]) -> None:
    """Refuse the name of a tracker that is not installed."""
    known = get_available_reporting_integrations() if names else []  # type: ignore[no-untyped-call]
    for name in names:
        if name not in known:
            way = did_you_mean(name, known) if known else "install it first."
            raise UserError(f"There is no tracker {name!r} here; {way}")


def keep_logs(trainer: Trainer) -> None:
    """Send tensorboard's files to ./runs, or where TENSORBOARD_LOGGING_DIR says.

    By default they would lie among the checkpoints, which are deleted.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = default_logdir()
