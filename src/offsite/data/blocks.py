"""Public text cut into blocks of one length: running text anywhere, questions and chats kept whole.

Several sources take turns, a block of each, so that a large one has no more of a say than a small one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, TypeAlias

from offsite.data.examples import DATE, Example
from offsite.errors import UserError
from offsite.progress import track
from offsite.untrusted.chat_renderer import Write, writer
from offsite.untrusted.tokenize import token_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 64  # rows that are tokenised together
_AHEAD = 256  # rows among which those are sought that fill a block
_TURNS = 10**6  # that a chat template, which is one's own, has time for
_NAMES = {"user": "User", "assistant": "Assistant", "system": "System"}  # where there is no chat template

Ids: TypeAlias = list[int]


@dataclass(frozen=True)
class Running:
    """Text that may be cut anywhere."""

    name: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """Examples, each kept whole in a block unless it is longer."""

    name: str
    rows: Sequence[Example]


@dataclass(frozen=True)
class Mixed:
    """Sources that take turns in this order; one that stands there twice has two turns in a round."""

    name: str
    turns: tuple[Source, ...]


Source: TypeAlias = Running | Rows | Mixed


def blocks(
    texts: Source | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int | None,
    *,
    last: bool = False,
    fewer: bool = False,
) -> torch.Tensor:
    """Cut the `texts` into `count` equal blocks (all there are for None): (count, length).

    Texts and rows end in EOS; each block begins with the BOS that the tokenizer would put there, if it puts
    any. With `last` the blocks come from the end. With `fewer` there may be less of them than wanted.

    Raises:
        UserError: fewer blocks in the texts than wanted, or none.
    """
    import torch

    source = texts if isinstance(texts, Running | Rows | Mixed) else Running("The text", tuple(texts))
    start = _bos(tokenizer)
    if length <= len(start):
        raise UserError(f"A block of {length} tokens has no room for text; make it longer.")
    with _Writer(tokenizer) as write:
        cutter = _Cutter(tokenizer, write, length - len(start), last, None if count is None else count * length)
        cut = islice(cutter.of(source), count)
        found = list(cut if count is None else track(cut, "Tokenising", count))
    if len(found) < (1 if count is None or fewer else count):
        raise UserError(
            f"The text makes {len(found)} blocks of {length} tokens where {count or 1} are wanted; "
            "give more text, or ask for fewer or shorter blocks."
        )
    if last:
        found.reverse()
    return torch.tensor([start + block for block in found], dtype=torch.long)  # (count, length)


@dataclass(frozen=True)
class _Cutter:
    """Cuts sources into bodies of blocks, one at a time."""

    tokenizer: PreTrainedTokenizerBase
    write: _Writer
    body: int
    """Tokens of a block behind the BOS."""
    last: bool
    """From the end backwards."""
    most: int | None
    """Tokens that are read of running text from its end, at the most; None: all."""

    def of(self, source: Source) -> Iterator[Ids]:
        """Yield the bodies of blocks of a source."""
        if isinstance(source, Running):
            return self._running(source.texts)
        if isinstance(source, Rows):
            return _packed(self._ids(source.rows), self.body)
        return self._in_turn(source)

    def _running(self, texts: Sequence[str]) -> Iterator[Ids]:
        if not self.last:
            yield from self._stream(texts)
        else:  # a text is a token or more
            yield from reversed(list(self._stream(texts if self.most is None else texts[-self.most :])))

    def _stream(self, texts: Sequence[str]) -> Iterator[Ids]:
        ids: Ids = []
        for text in texts:
            ids += token_ids(self.tokenizer, [text], special=False)[0] + self._eos
            whole = len(ids) - len(ids) % self.body
            yield from (ids[start : start + self.body] for start in range(0, whole, self.body))
            ids = ids[whole:]

    def _in_turn(self, source: Mixed) -> Iterator[Ids]:
        """Yield a block of each in turn; one that ends begins again until all have ended."""
        live = {part.name: self.of(part) for part in source.turns}
        going = set(live)
        for part in cycle(source.turns):
            block = next(live[part.name], None)
            if block is None:
                going.discard(part.name)
                if not going:
                    return
                live[part.name] = self.of(part)
                block = next(live[part.name], None)
            if block is None:
                raise UserError(
                    f"{part.name} makes no block of {self.body} tokens by itself; give more of it, leave it "
                    "out, or ask for shorter blocks."
                )
            yield block

    def _ids(self, rows: Sequence[Example]) -> Iterator[Ids]:
        """Yield the tokens of each row with its EOS, no more of them than a block holds."""
        order = reversed(rows) if self.last else iter(rows)
        while some := list(islice(order, _AT_ONCE)):
            written = [self.write(row) for row in some]
            ids = token_ids(self.tokenizer, [text for text, _ in written], special=False)
            for row, (_, ended), found in zip(some, written, ids, strict=True):
                whole = found if ended else found + self._eos
                if _is_plain(row):
                    yield from (whole[at : at + self.body] for at in range(0, len(whole), self.body))
                elif whole:  # the answer stands at the end
                    yield whole[-self.body :]

    @property
    def _eos(self) -> Ids:
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]


def _packed(rows: Iterator[Ids], body: int) -> Iterator[Ids]:
    """Yield blocks of whole rows: of those that wait the first, and others that fill the block with it.

    Where no rows of `_AHEAD` fill it, the beginning of a row does, which still waits for a block of its own.
    """
    waiting: list[Ids] = []
    while True:
        chosen = _filling(waiting, rows, body)
        if not chosen:
            return
        block = [token for number in chosen for token in waiting[number]]
        rest = [row for number, row in enumerate(waiting) if number not in chosen]
        missing = body - len(block)
        if missing and sum(map(len, rest)) < missing:
            return
        yield block + list(islice(chain.from_iterable(rest), missing))
        waiting = rest


def _filling(waiting: list[Ids], rows: Iterator[Ids], body: int) -> tuple[int, ...]:
    """Choose rows, the first and others, whose tokens fill a block or all but do; more come to wait for it."""
    sums: dict[int, tuple[int, ...]] = {}
    for number in range(_AHEAD):
        if number == len(waiting):
            row = next(rows, None)
            if row is None:
                break
            waiting.append(row)
        here = len(waiting[number])
        for total, chosen in list(sums.items()) if number else [(0, ())]:
            if total + here <= body:
                sums.setdefault(total + here, (*chosen, number))
        if body in sums:
            break
    return sums[max(sums)] if sums else ()


class _Writer:
    """Writes rows out as text: chats by the tokenizer's template, where it has one that takes them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._hold = tokenizer, ExitStack()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._hold.close()

    def __call__(self, row: Example) -> tuple[str, bool]:
        """Return the text of a row, and whether it ends by itself, without EOS."""
        if not row.is_chat:
            return row.text, False
        turns = [(piece.role, piece.text, False) for piece in row.pieces]
        if self._template:
            with suppress(UserError):  # it refuses such a chat
                return "".join(text for text, _ in self._template(turns, row.where)), True
        return "\n".join(f"{_NAMES.get(role, role)}: {text}" for role, text, _ in turns), False

    @cached_property
    def _template(self) -> Write | None:
        if not self._tokenizer.chat_template:
            return None
        try:
            template = self._tokenizer.get_chat_template()
        except ValueError:  # several, of which none is the usual one
            return None
        return self._hold.enter_context(writer(template, self._tokenizer.special_tokens_map, _TURNS, DATE))


def _is_plain(row: Example) -> bool:
    return not row.is_chat and all(piece.learnt for piece in row.pieces)


def _bos(tokenizer: PreTrainedTokenizerBase) -> Ids:
    first = token_ids(tokenizer, [""])[0][:1]
    return first if first == [tokenizer.bos_token_id] else []
