"""Answer masking: examples as token ids, with labels that say which of them are learnt.

A token belongs to the piece of text in which it ends, by its place in the text; so the token at the boundary of
prompt and answer belongs to the answer. Scoring splits prompts and answers alike (`pieces_of`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise, takewhile
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from offsite.data.chats import Renderer, renderer
from offsite.data.examples import DATE, Example, Piece
from offsite.errors import UserError
from offsite.progress import bar
from offsite.untrusted.tokenize import Tokens, encode_batch, refused, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is only read."""

_AT_ONCE = 512  # examples that are tokenised together
_LETTER = 4  # characters that a letter may be composed of
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
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    date: str = DATE,
    vocabulary: int | None = None,
) -> list[Encoded]:
    """Token ids and labels of the examples, in order; see `prepare`, which also says what was cut."""
    return prepare(examples, tokenizer, max_length, date, vocabulary).rows


def prepare(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    date: str = DATE,
    vocabulary: int | None = None,
) -> Prepared:
    """Tokenise the examples into rows of at most `max_length` tokens; chats are written as on that `date`.

    Plain texts that are too long are split into blocks; other examples lose their leftmost tokens, save a
    leading BOS. Examples of which nothing is learnt are left out and counted. The model reads ids below
    `vocabulary`; None: whatever the tokenizer gives.

    Raises:
        UserError: no example teaches anything; a chat that the tokenizer cannot write, or an answer that it
            does not keep apart from its prompt; a token that the model does not have.
    """
    if max_length < 2:
        raise UserError(f"A length of {max_length} tokens holds nothing to learn; give at least 2.")
    found = Prepared(max_length)
    with bar("Tokenising", len(examples)) as advance, renderer(examples, tokenizer, date) as chats:
        for start in range(0, len(examples), _AT_ONCE):
            drafts = [_draft(example, chats) for example in examples[start : start + _AT_ONCE]]
            for draft, (before, whole) in zip(drafts, _tokens(drafts, tokenizer), strict=True):
                row = _encoded(draft, before, whole, tokenizer)
                _check_ids(row, vocabulary, draft.example.where, tokenizer)
                _add(found, draft.example, row, tokenizer)
                advance(1, "")
    if examples and not found.rows:
        raise UserError(f"{found.untaught[0]}: no token is left to learn; lengthen the answer.")
    return found


def as_text(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """A row's tokens as text again, in stretches that are each learnt or only read."""
    stretches, end, before = [], 0, ""
    with refused("A row"):
        for learnt, run in groupby(label != IGNORED for label in row.labels):
            start, end = end, end + len(list(run))
            # many tokenizers drop a space before the first token, so decode from the beginning
            whole = str(tokenizer.decode(row.input_ids[:end], clean_up_tokenization_spaces=False))
            if not whole.startswith(before):  # half a letter, completed
                whole = before + str(tokenizer.decode(row.input_ids[start:end]))
            stretches.append((whole[len(before) :], learnt))
            before = whole
    return stretches


def pieces_of(tokens: Tokens, bounds: Sequence[int]) -> list[int]:
    """For each token the number of the piece in which it ends; `bounds` are the characters between pieces.

    A token that the tokenizer adds goes with the one before it.
    """
    return [bisect_left(bounds, end) for end in accumulate((end for _, end in tokens.offsets), max)]


def read_bounds(prompt: str) -> list[int]:
    """The `bounds` of a prompt and an answer: spaces between them go with the answer's first word."""
    return [len(prompt.rstrip())]


def text_tokens(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, where: str, *, bos: bool = True
) -> list[Tokens]:
    """Tokens of `texts` that begin alike: with the BOS that the tokenizer adds, without an EOS that it adds."""
    return _read(texts, tokenizer, where, special=bos and _takes_bos(texts[-1], tokenizer))


def _takes_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    return not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))


def text_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, where: str) -> list[list[int]]:
    """The ids alone of `texts` that begin alike; as `text_tokens`, and with tokenizers of Python as well."""
    special = _takes_bos(texts[-1], tokenizer)
    found = token_ids(tokenizer, texts, special=special, where=where)
    return [ids[: _count(ids, text, tokenizer, special)] for ids, text in zip(found, texts, strict=True)]


def _read(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, where: str | Sequence[str], *, special: bool
) -> list[Tokens]:
    """Tokens of `texts`, with the BOS that the tokenizer adds if `special`, without an EOS that it adds."""
    found = encode_batch(tokenizer, texts, special=special, where=where)
    counts = [_count(ids, text, tokenizer, special) for (ids, _), text in zip(found, texts, strict=True)]
    return [Tokens(ids[:n], offsets[:n]) for (ids, offsets), n in zip(found, counts, strict=True)]


def _count(ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase, special: bool) -> int:
    """How many of a text's tokens are not an EOS that the tokenizer adds at its end."""
    added = special and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    return len(ids) - (added and not text.endswith(str(tokenizer.eos_token)))


# --- one example ------------------------------------------------------------------------------------------


class _Draft(NamedTuple):
    """An example as text, before it is tokenised."""

    example: Example
    pieces: Sequence[Piece]
    bounds: list[int]
    """As `_bounds` says."""
    text: str
    head: str
    """What stands before the first learnt piece."""


def _draft(example: Example, chats: Renderer | None) -> _Draft:
    pieces: Sequence[Piece] = example.pieces
    if example.is_chat:
        assert chats
        pieces = chats.pieces(example)
    text = "".join(piece.text for piece in pieces)
    bounds = _bounds(pieces, example.is_chat)
    head = next((end for end, after in zip(bounds, pieces[1:], strict=True) if after.learnt), 0)
    return _Draft(example, pieces, bounds, text, text[:head])


def _tokens(drafts: Sequence[_Draft], tokenizer: PreTrainedTokenizerBase) -> list[list[Tokens]]:
    """Tokens of each draft's head and of its whole text; few calls of the tokenizer, as each takes long."""
    special = [not each.example.is_chat and _takes_bos(each.text, tokenizer) for each in drafts]
    found: list[list[Tokens]] = [[] for _ in drafts]
    for wanted in set(special):
        numbers = [number for number, each in enumerate(special) if each == wanted for _ in range(2)]
        texts = [text for draft, each in zip(drafts, special, strict=True) if each == wanted
                 for text in (draft.head, draft.text)]  # fmt: skip
        places = [drafts[number].example.where for number in numbers]
        for number, tokens in zip(numbers, _read(texts, tokenizer, places, special=wanted), strict=True):
            found[number].append(tokens)
    return found


def _encoded(draft: _Draft, before: Tokens, whole: Tokens, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    example, pieces, bounds, _, head = draft
    learnt = {bound for bound, after in zip(bounds, pieces[1:], strict=True) if after.learnt}
    if _mixes(whole, learnt) or not _begins(whole, before, head):
        raise UserError(
            f"{example.where}: the model's tokenizer reads the prompt otherwise once an answer follows, so "
            "that what is learnt is not the answer; ask its sender for a sound one."
        )
    labels = [
        token if pieces[number].learnt else IGNORED
        for token, number in zip(whole.ids, pieces_of(whole, bounds), strict=True)
    ]
    eos = tokenizer.eos_token_id
    if not example.closed or eos is None or whole.ids[-1:] == [eos]:
        return Encoded(whole.ids, labels)
    return Encoded([*whole.ids, eos], [*labels, eos if pieces[-1].learnt else IGNORED])


def _check_ids(row: Encoded, vocabulary: int | None, where: str, tokenizer: PreTrainedTokenizerBase) -> None:
    last = max(row.input_ids, default=0)
    if vocabulary is not None and last >= vocabulary:
        token = tokenizer.convert_ids_to_tokens(last)
        raise UserError(
            f"{where}: the tokenizer's token {token!r:.80} has the number {last}, but the model knows "
            f"{vocabulary} tokens only; resize its embeddings, or ask the model's sender to."
        )


def _bounds(pieces: Sequence[Piece], chat: bool) -> list[int]:
    """The character at which each piece but the last ends; a chat template's spaces stay where they are."""
    found, whole = [], ""
    for piece, after in pairwise(pieces):
        whole += piece.text
        found += read_bounds(whole) if after.learnt and not chat else [len(whole)]
    return found


def _mixes(whole: Tokens, learnt: Collection[int]) -> bool:
    """Whether more than one token stands across the beginning of what is learnt.

    Several bytes of one letter may. The tokenizer comes from the emulator's sender.
    """
    across = Counter(
        bound
        for start, end in whole.offsets
        if end - start > _LETTER
        for bound in learnt
        if start < bound < end
    )
    return any(count > 1 for count in across.values())


def _begins(whole: Tokens, before: Tokens, head: str) -> bool:
    """Whether the whole's tokens are those of its `head` alone, up to the last word of that.

    The last word may be cut otherwise when text follows without a space.
    """
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(whole.ids, before.ids, strict=False)))
    if same == len(whole.ids):  # all of it was there before, so the answer has no tokens of its own
        return all(end <= len(head) for _, end in whole.offsets)
    word = len(head) - max(_WORD, len(head.split()[-1]) if head.strip() else 0)
    return whole.offsets[same][1] > word


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
