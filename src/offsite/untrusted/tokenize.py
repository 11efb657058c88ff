"""Tokenise texts: in this process with the user's own tokenizer, in the worker with an untrusted one."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from weakref import WeakKeyDictionary

from offsite.errors import UserError, brief
from offsite.untrusted.sandbox import MEMORY, Sandbox

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PATIENCE = 20  # seconds for whatever is honest
_PATIENCE_WITH_ONE = 5  # seconds for one text, once a batch took too much
_CHARACTERS_A_SECOND = 20_000  # honest tokenizers read a million
_FILE_A_SECOND = 1_000_000  # characters of a tokenizer.json; opened at ten times that
_BATCH_TEXTS, _BATCH_CHARACTERS = 4096, 1 << 18
_OUTPUT, _TOKENS_A_CHARACTER = 1 << 20, 64  # bytes; tokens of a letter that a normalizer writes out
_MARK = "_offsite_untrusted"
_workers: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Sandbox, int]] = WeakKeyDictionary()


class Tokens(NamedTuple):
    """One text as tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    """Where each begins and ends in the text, in characters; (0, 0) for what the tokenizer adds."""


def mark_untrusted(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have whatever `tokenizer` and its copies read read in the worker."""
    setattr(tokenizer, _MARK, True)


def encode_batch(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    special: bool = True,
    where: str | Sequence[str] = "A text",
) -> list[Tokens]:
    """Tokenise each text, with what the tokenizer adds itself if `special`; many in one call are faster.

    `where` the texts stand, together or each, is for messages.

    Raises:
        UserError: the tokenizer fails, is one of Python alone, which knows no offsets, or takes too much.
    """
    if not tokenizer.is_fast:
        place = where if isinstance(where, str) else next(iter(where), "A text")
        raise UserError(
            f"{place}: the model's tokenizer does not say where its tokens stand; take its fast version."
        )
    return _encoded(tokenizer, texts, special, where, offsets=True)


def token_ids(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    special: bool = True,
    where: str | Sequence[str] = "A text",
) -> list[list[int]]:
    """Return the ids of each text; as `encode_batch`, and with tokenizers of Python as well."""
    return [ids for ids, _ in _encoded(tokenizer, texts, special, where, offsets=False)]


@contextmanager
def refused(where: str = "A text") -> Iterator[None]:
    """Within, a tokenizer that fails on a text is a UserError."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the tokenizers library panics with what is no Exception
        raise _failure(where, str(error)) from error


def _encoded(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    special: bool,
    where: str | Sequence[str],
    offsets: bool,
) -> list[Tokens]:
    places = [where] * len(texts) if isinstance(where, str) else list(where)
    found: list[Tokens] = []
    if getattr(tokenizer, _MARK, False) and tokenizer.is_fast:
        asked = {"special": special, "offsets": offsets, "split": bool(tokenizer.split_special_tokens)}
        for begin, end in _batches(texts):
            found += _in_worker(tokenizer, list(texts[begin:end]), places[begin:end], asked)
    elif texts:
        with refused(places[0]):
            found = _here(tokenizer, list(texts), special, offsets)
    return found


def _here(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool, offsets: bool) -> list[Tokens]:
    found: Any = tokenizer(
        texts,
        add_special_tokens=special,
        return_offsets_mapping=offsets,
        return_attention_mask=False,
        verbose=False,
    )
    return list(map(Tokens, found["input_ids"], found["offset_mapping"] if offsets else [[]] * len(texts)))


# --- in the worker ----------------------------------------------------------------------------------------


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Begin and end of each batch."""
    begin = size = 0
    for number, text in enumerate(texts):
        full = number - begin == _BATCH_TEXTS or size + len(text) > _BATCH_CHARACTERS
        if full and number > begin:
            yield begin, number
            begin, size = number, 0
        size += len(text)
    if texts:
        yield begin, len(texts)


def _in_worker(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], places: list[str], asked: dict[str, Any]
) -> list[Tokens]:
    worker = _worker(tokenizer, places[0], _PATIENCE)
    answer = _ask(worker, texts, asked)
    if answer is not None and answer.startswith(b"T"):
        return _unpacked(answer, len(texts), asked["offsets"])
    if len(texts) == 1:
        _refuse(worker, answer, places[0])
    return _one_by_one(tokenizer, texts, places, asked)


def _one_by_one(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], places: list[str], asked: dict[str, Any]
) -> list[Tokens]:
    """Find the text that a batch failed on; return the tokens where none alone takes too much."""
    found = []
    for text, place in zip(texts, places, strict=True):
        worker = _worker(tokenizer, place, _PATIENCE_WITH_ONE)
        answer = _ask(worker, [text], asked)
        if answer is None or not answer.startswith(b"T"):
            _refuse(worker, answer, place)
        found += _unpacked(answer, 1, asked["offsets"])
    return found


def _ask(worker: Sandbox, texts: list[str], asked: dict[str, Any]) -> bytes | None:
    size = sum(map(len, texts)) + 8 * len(texts)
    worker.seconds += size / _CHARACTERS_A_SECOND
    return worker.ask(asked | {"texts": texts}, _OUTPUT + 12 * _TOKENS_A_CHARACTER * size)


def _worker(tokenizer: PreTrainedTokenizerBase, where: str, seconds: float) -> Sandbox:
    """The worker of a tokenizer, started anew where it has ended or the tokenizer has grown."""
    worker, size = _workers.get(tokenizer, (None, 0))
    if worker and worker.alive and size == len(tokenizer):
        return worker
    backend: Any = tokenizer
    data = backend.backend_tokenizer.to_str()
    worker = Sandbox(seconds + len(data) / _FILE_A_SECOND)
    answer = worker.ask({"tokenizer": data}, _OUTPUT)
    if answer != b"{}":
        _refuse(worker, answer, where)
    _workers[tokenizer] = worker, len(tokenizer)
    return worker


def _unpacked(answer: bytes, count: int, offsets: bool) -> list[Tokens]:
    numbers = array("I", answer[1:])
    lengths, total = numbers[:count], sum(numbers[:count])
    ids = numbers[count : count + total].tolist()
    ends = iter(numbers[count + total :])
    pairs = list(zip(ends, ends, strict=True))
    found, at = [], 0
    for length in lengths:
        found.append(Tokens(ids[at : at + length], pairs[at : at + length] if offsets else []))
        at += length
    return found


def _refuse(worker: Sandbox, answer: bytes | None, where: str) -> NoReturn:
    if answer is not None and "refused" in (reply := json.loads(answer)):
        raise _failure(where, reply["refused"])
    most = f"{int(worker.seconds)} seconds" if worker.late else f"{MEMORY >> 20} MiB"
    raise UserError(
        f"{where}: this emulator's tokenizer needs more than {most} for it; ask its sender for a sound one."
    )


def _failure(where: str, why: str) -> UserError:
    return UserError(
        f"{where}: the model's tokenizer fails on it ({brief(why)}); ask its sender for a sound one."
    )
