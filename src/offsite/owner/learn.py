"""From the word for a public text to what a method learns from it about a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offsite.model.split import Split
    from offsite.owner.methods.base import Method
    from offsite.owner.profile import Profile


def learn(
    method: Method,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    text: str,
    work: Path | None = None,
    blocks: int | None = None,
    length: int | None = None,
) -> Profile:
    """The profile of `model`, from so many `blocks` of `text`, going on from what is in `work`, if given."""
    from offsite.data import tasks
    from offsite.data.examples import blocks as cut
    from offsite.model.decoder import Decoder, check_length, longest

    split.middle(len(Decoder.of(model)))  # what cannot be cut is refused before any text is read
    if method.calibration is None:
        return method.profile(model, split, work=work)
    count, usual = method.calibration
    length = length or min(usual, longest(model))
    check_length(model, length)
    return method.profile(model, split, cut(tasks.texts(text), tokenizer, length, blocks or count), work)
