"""What a tokenizer does that cannot read a text: its library panics, which is no Exception, and shouts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from offsite.errors import UserError, brief

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool = True, where: str = "A text"
) -> list[list[int]]:
    """The ids of each text, with what the tokenizer adds itself if `special`; `where` they stand, for messages.

    Raises:
        UserError: the tokenizer fails.
    """
    with refused(where):
        found: list[list[int]] = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    return found


class Tokens(NamedTuple):
    """One text as tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    """Where each begins and ends in the text, in characters; (0, 0) for what the tokenizer adds."""


def encode_batch(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool = True, where: str = "A text"
) -> list[Tokens]:
    """Tokenise each text as `token_ids` does, with the place of each token.

    Raises:
        UserError: the tokenizer fails, or is one of Python alone, which knows no places.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{where}: the model's tokenizer does not say where its tokens stand; take its fast version."
        )
    with refused(where):
        found = tokenizer(texts, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        return list(map(Tokens, found["input_ids"], found["offset_mapping"]))


@contextmanager
def refused(where: str = "A text") -> Iterator[None]:
    """Within, a tokenizer that fails on a text is a UserError."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise UserError(
            f"{where}: the model's tokenizer fails on it ({brief(error)}); ask its sender for a sound one."
        ) from error


@contextmanager
def hushed() -> Iterator[None]:
    """Within, no library in C or Rust writes to the screen; Python's own words still come through."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        with _moved(kept):
            os.dup2(nowhere, 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _moved(screen: int) -> Iterator[None]:
    """Within, Python writes to the file `screen` what would go where libraries in C write."""
    shown = sys.stderr
    if not _is_screen(shown):
        yield
        return
    shown.flush()
    with os.fdopen(screen, "w", 1, encoding=shown.encoding, errors=shown.errors, closefd=False) as sys.stderr:
        try:
            yield
        finally:
            sys.stderr = shown


def _is_screen(stream: object) -> bool:
    """Whether a stream writes where libraries in C do."""
    try:
        return stream.fileno() == 2  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, OSError, ValueError):
        return False
