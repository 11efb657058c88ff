"""Answer masking: examples as token ids, with labels that say which of them are learnt.

A token belongs to the piece of text in which it ends, by its place in the text; so the token at the boundary of
prompt and answer belongs to the answer. Scoring splits prompts and answers alike (`encode_pair`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from offsite.data.chats import Renderer, renderer
from offsite.data.examples import Example, Piece
from offsite.errors import UserError
from offsite.progress import bar
from offsite.untrusted.tokenize import Tokens, hushed, token_ids, tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is only read."""
DATE = "2025-01-01"
"""What chat templates that print the date print, unless asked otherwise: the same data, the same tokens."""

_WORD = 8  # characters before a boundary that a tokenizer may merge otherwise when the answer follows


class Encoded(NamedTuple):
    """An example as token ids; `labels` are the same ids, or IGNORED where only read."""

    input_ids: list[int]
    labels: list[int]


@dataclass
class Prepared:
    """Examples as they will be trained on, and what of them will not."""

    limit: int
    """Tokens of a row, at the most."""
    rows: list[Encoded] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    """Where each row stands in the data, for messages."""
    cut_rows: int = 0
    """Examples longer than the limit, save plain texts, which are split into blocks."""
    cut_tokens: int = 0
    """Tokens that those lost at their beginning."""
    longest: int = 0
    """Tokens of the longest example that was cut: the limit that would keep them all."""
    untaught: list[str] = field(default_factory=list)
    """Where the examples stand that are left out, for no token of them is learnt."""


def encode(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, date: str = DATE
) -> list[Encoded]:
    """Token ids and labels of the examples, in order; see `prepare`, which also says what was cut."""
    return prepare(examples, tokenizer, max_length, date).rows


def prepare(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, date: str = DATE
) -> Prepared:
    """Tokenise the examples into rows of at most `max_length` tokens; chats are written as on that `date`.

    Plain texts that are too long are split into blocks; other examples lose their leftmost tokens, save a
    leading BOS. Examples of which nothing is learnt are left out and counted.

    Raises:
        UserError: no example teaches anything; a chat that the tokenizer cannot write, or an answer that it
            does not keep apart from its prompt.
    """
    if max_length < 2:
        raise UserError(f"A length of {max_length} tokens holds nothing to learn; give at least 2.")
    found = Prepared(max_length)
    with hushed(), bar("Tokenising", len(examples)) as advance, renderer(examples, tokenizer, date) as chats:
        for example in examples:
            _add(found, example, _encoded(example, tokenizer, chats), tokenizer)
            advance(1, "")
    if examples and not found.rows:
        raise UserError(f"{found.untaught[0]}: no token is left to learn; lengthen the answer.")
    return found


def encode_pair(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The token ids of a prompt and of the answer behind it, split as for training."""
    pieces = (Piece(prompt, learnt=False), Piece(answer, learnt=True))
    ids, labels = _encoded(Example(pieces, closed=False, where="A question"), tokenizer, None)
    known = sum(label == IGNORED for label in labels)
    return ids[:known], ids[known:]


def blocks(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, count: int | None
) -> torch.Tensor:
    """The `texts` joined by EOS and cut into `count` equal blocks (all there are for None): (count, length).

    Each block begins with the BOS that the tokenizer would put there, if it puts any.

    Raises:
        UserError: fewer blocks in the texts than wanted, or none.
    """
    import torch

    start = _bos(tokenizer)
    body = length - len(start)
    if body < 1:
        raise UserError(f"A block of {length} tokens has no room for text; make it longer.")
    wanted = None if count is None else count * body
    ids = _stream(texts, tokenizer, wanted)
    found = len(ids) // body
    if found < (1 if count is None else count):
        raise UserError(
            f"The text makes {found} blocks of {length} tokens where {count or 1} are wanted; "
            "give more text, or ask for fewer or shorter blocks."
        )
    rows = torch.tensor(ids[: (count or found) * body], dtype=torch.long).view(-1, body)  # (count, body)
    return torch.cat([torch.tensor([start], dtype=torch.long).expand(len(rows), -1), rows], dim=1)


# --- one example ------------------------------------------------------------------------------------------


def _encoded(example: Example, tokenizer: PreTrainedTokenizerBase, chats: Renderer | None) -> Encoded:
    pieces: Sequence[Piece] = example.pieces
    if example.is_chat:
        assert chats
        pieces = chats.pieces(example)
    bounds = _bounds(pieces, example.is_chat)
    whole = _tokens("".join(piece.text for piece in pieces), tokenizer, example)
    ids, ends = list(whole.ids), list(accumulate(whole.ends, max))  # an added token goes with the one before
    _check_boundaries(pieces, bounds, whole, tokenizer, example)
    labels = [
        token if pieces[bisect_left(bounds, end)].learnt else IGNORED
        for token, end in zip(ids, ends, strict=True)
    ]
    eos = tokenizer.eos_token_id
    if example.closed and eos is not None and ids[-1:] != [eos]:
        ids.append(eos)
        labels.append(eos if pieces[-1].learnt else IGNORED)
    return Encoded(ids, labels)


def _bounds(pieces: Sequence[Piece], chat: bool) -> list[int]:
    """The character at which each piece but the last ends.

    The spaces between prompt and answer go with the answer's first word; those of a chat template do not.
    """
    found, whole = [], ""
    for piece, after in pairwise(pieces):
        whole += piece.text
        found.append(len(whole.rstrip()) if after.learnt and not chat else len(whole))
    return found


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase, example: Example) -> Tokens:
    """The text's tokens, with the BOS that the tokenizer adds but without an EOS it adds."""
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    special = not example.is_chat and not (bos and text.startswith(bos))
    [found] = tokens(tokenizer, [text], special=special, where=example.where)
    added = special and found.ids[1:] and found.ids[-1] == tokenizer.eos_token_id
    if added and not text.endswith(str(eos)):
        return Tokens(*(column[:-1] for column in found))
    return found


def _check_boundaries(
    pieces: Sequence[Piece],
    bounds: Sequence[int],
    whole: Tokens,
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
) -> None:
    """Refuse a tokenizer, which the emulator's sender made, that mixes what is read into what is learnt.

    At most one token stands across a boundary, and up to the word there the tokens are those of the text
    before it alone.
    """
    text = "".join(piece.text for piece in pieces)
    starts = [end for end, after in zip(bounds, pieces[1:], strict=False) if after.learnt and end]
    for bound in starts:
        across = [
            (start, end)
            for start, end in zip(whole.starts, whole.ends, strict=True)
            if start < bound < end and end - start > 4  # several bytes of one letter may
        ]
        if len(across) > 1:
            raise _mixed(example)
    if not starts:
        return
    head = _tokens(text[: starts[0]], tokenizer, example)
    same = _common(head.ids, whole.ids)
    word = starts[0] - len(text[: starts[0]].split()[-1]) if text[: starts[0]].strip() else 0
    if same < len(whole.ids) and whole.ends[same] <= min(word, starts[0] - _WORD):
        raise _mixed(example)


def _mixed(example: Example) -> UserError:
    return UserError(
        f"{example.where}: the model's tokenizer reads the prompt otherwise once an answer follows, so "
        "that what is learnt is not the answer; ask its sender for a sound one."
    )


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two lists begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


# --- rows of a length -------------------------------------------------------------------------------------


def _add(found: Prepared, example: Example, whole: Encoded, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put an example's rows to those that were found."""
    rows = list(_fitted(whole, example, tokenizer, found.limit))
    taught = [row for row in rows if any(label != IGNORED for label in row.labels[1:])]  # the first: no one
    if not taught:
        found.untaught.append(example.where)
    elif len(rows) == 1 and len(whole.input_ids) > found.limit:
        found.cut_rows += 1
        found.cut_tokens += len(whole.input_ids) - found.limit
        found.longest = max(found.longest, len(whole.input_ids))
    found.rows += taught
    found.where += [example.where] * len(taught)


def _fitted(
    whole: Encoded, example: Example, tokenizer: PreTrainedTokenizerBase, length: int
) -> Iterator[Encoded]:
    ids, labels = whole
    if len(ids) <= length:
        yield whole
        return
    head = 1 if ids[0] == tokenizer.bos_token_id else 0
    if example.is_chat or not all(piece.learnt for piece in example.pieces):
        yield Encoded(ids[:head] + ids[head - length :], labels[:head] + labels[head - length :])
        return
    body = ceil((len(ids) - head) / ceil((len(ids) - head) / (length - head)))  # blocks of like length
    for start in range(head, len(ids), body):
        part = slice(start, start + body)
        yield Encoded(ids[:head] + ids[part], labels[:head] + labels[part])


def _bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    with hushed():
        first = token_ids(tokenizer, [""])[0][:1]
    return first if first == [tokenizer.bos_token_id] else []


def _stream(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> list[int]:
    """The texts' ids with an EOS after each; no further than `wanted` of them."""
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    with hushed(), bar("Tokenising", len(texts)) as advance:
        for text in texts:
            if wanted is not None and len(ids) >= wanted:
                break
            ids += token_ids(tokenizer, [text], special=False)[0] + eos
            advance(1, "")
    return ids
