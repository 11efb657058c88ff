"""What the rows of a data file are, and how they become token ids of which some are learnt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from offsite.data.rows import Row, read_rows
from offsite.errors import UserError, brief
from offsite.progress import bar
from offsite.untrusted.chat_renderer import Write, writer
from offsite.untrusted.tokenize import hushed, token_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is only read."""

_KINDS = '{"prompt", "completion"}, {"messages"}, {"text"} or {"prompt", "choices", "answer"}'


class Piece(NamedTuple):
    """A stretch of an example's text."""

    text: str
    learnt: bool
    """Whether the model learns to say it; otherwise it only reads it."""
    role: str = ""
    """Who speaks, in a chat; none otherwise."""


@dataclass(frozen=True)
class Example:
    """One thing to learn from: text in pieces, each learnt or only read."""

    pieces: tuple[Piece, ...]
    closed: bool = True
    """Whether the model also learns to stop after the last piece (the tokenizer's EOS; not in chats)."""
    where: str = field(default="an example", compare=False)
    """The file and line that it comes from, for messages."""

    @property
    def text(self) -> str:
        """The pieces' text, a chat's turns on lines of their own."""
        return ("\n" if self.is_chat else "").join(piece.text for piece in self.pieces)

    @property
    def is_chat(self) -> bool:
        """Whether the pieces are turns, to be written out by the tokenizer's chat template."""
        return any(piece.role for piece in self.pieces)


@dataclass(frozen=True)
class Question:
    """A question with its possible answers; `answer` is the index of the right one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int

    def example(self, where: str = "a question") -> Example:
        """The question as something to learn: the right choice, one space after the prompt, no EOS.

        That is the very text that lm-evaluation-harness scores.
        """
        right = Piece(" " + self.choices[self.answer], learnt=True)
        return Example((Piece(self.prompt, learnt=False), right), closed=False, where=where)


class Encoded(NamedTuple):
    """An example as token ids; `labels` are the same ids, or IGNORED where only read."""

    input_ids: list[int]
    labels: list[int]


def read_examples(path: Path) -> list[Example]:
    """The examples in a data file (formats: see `rows.read_rows`); the kinds of rows may be mixed.

    `{"prompt", "completion"}` learns the completion, `{"messages": [{"role", "content"}, ...]}` the
    assistant's turns, `{"text"}` everything, `{"prompt", "choices", "answer"}` the right choice.

    Raises:
        UserError: as `read_rows`, or a row of none of these kinds.
    """
    return [_example(row) for row in read_rows(path)]


def read_questions(path: Path) -> list[Question]:
    """The questions in a data file of `{"prompt", "choices", "answer"}` rows; errors as `read_examples`."""
    return [_question(row) for row in read_rows(path)]


def encode(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Encoded]:
    """Token ids and labels of each example, in order, at most `max_length` tokens long.

    Prompt and answer are tokenised as lm-evaluation-harness does (`_encode_pair`), so that what is learnt
    is what is scored. What is too long loses its leftmost tokens, save a leading BOS.

    Raises:
        UserError: an example of which no token is left to learn; a chat that the tokenizer cannot write.
    """
    if max_length < 2:
        raise UserError(f"A length of {max_length} tokens holds nothing to learn; give at least 2.")
    encoded = []
    with hushed(), bar("Tokenising", len(examples)) as advance, _writer(examples, tokenizer) as write:
        for example in examples:
            whole = _encoded(example, tokenizer, write)
            encoded.append(_cut(whole, tokenizer, max_length, example.where))
            advance(1, "")
    return encoded


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


# --- rows to examples -------------------------------------------------------------------------------------


def _example(row: Row) -> Example:
    if "messages" in row.columns:
        return Example(_turns(row), closed=False, where=row.where)
    if "choices" in row.columns:
        return _question(row).example(row.where)
    if "completion" in row.columns:
        read = Piece(row.text("prompt", blank=True), learnt=False)
        return Example((read, Piece(row.text("completion"), learnt=True)), where=row.where)
    if "text" in row.columns:
        return Example((Piece(row.text("text"), learnt=True),), where=row.where)
    raise row.refused(f"expected {_KINDS}, found {_names(row.columns)}")


def _names(columns: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in columns) or "nothing"


def _turns(row: Row) -> tuple[Piece, ...]:
    turns = row.columns["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise row.refused('expected "messages" to be a list of {"role", "content"}')
    pieces = []
    for number, turn in enumerate(turns, 1):
        role = row.checked(turn.get("role"), f"the role of message {number}")
        content = row.checked(turn.get("content"), f"the content of message {number}", blank=True)
        pieces.append(Piece(content, learnt=role == "assistant", role=role))
    if not any(piece.learnt for piece in pieces):
        raise row.refused('expected a message of the role "assistant" to learn')
    return tuple(pieces)


def _question(row: Row) -> Question:
    prompt, choices, answer = row.text("prompt"), row.columns.get("choices"), row.columns.get("answer")
    if not isinstance(choices, list) or len(choices) < 2:
        raise row.refused('expected "choices" to be a list of at least 2 strings')
    texts = tuple(row.checked(choice, f"choice {number}") for number, choice in enumerate(choices))
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(texts):
        last = len(texts) - 1
        raise row.refused(f'expected "answer" to be a number from 0 to {last}, found {answer!r:.40}')
    return Question(prompt, texts, answer)


# --- examples to token ids --------------------------------------------------------------------------------


def _encoded(example: Example, tokenizer: PreTrainedTokenizerBase, write: Write | None) -> Encoded:
    pieces: Sequence[Piece] = example.pieces
    if example.is_chat:
        assert write
        turns = [(piece.role, piece.text, piece.learnt) for piece in example.pieces]
        pieces = [Piece(*piece) for piece in write(turns, example.where)]
    ids, ends = _tokens(pieces, tokenizer, example)
    eos = tokenizer.eos_token_id
    if example.closed and eos is not None and ids[-1:] != [eos]:
        ids.append(eos)
        ends[-1] = len(ids)
    labels = [IGNORED] * len(ids)
    for piece, begin, end in zip(pieces, [0, *ends], ends, strict=False):
        if piece.learnt:
            labels[begin:end] = ids[begin:end]
    return Encoded(ids, labels)


def _tokens(
    pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerBase, example: Example
) -> tuple[list[int], list[int]]:
    """The ids of the whole text, and where the tokens of each piece end in them."""
    texts, whole = [], ""
    for piece, after in zip(pieces, [*pieces[1:], None], strict=True):
        whole += piece.text
        # the spaces between prompt and answer go with the answer's first word; a chat template's do not
        moves = after is not None and after.learnt and not example.is_chat
        texts.append(whole.rstrip() if moves else whole)
    *heads, ids = _ids(texts, tokenizer, example)
    return ids, [min(len(head), len(ids)) for head in heads] + [len(ids)]


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, example: Example) -> list[list[int]]:
    """Ids of `texts` that begin alike, with the BOS that the tokenizer adds but without an EOS it adds."""
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    special = not example.is_chat and not (bos and texts[-1].startswith(bos))
    found = token_ids(tokenizer, texts, special=special, where=example.where)
    ends = [bool(ids) and ids[-1] == tokenizer.eos_token_id and len(ids) > 1 for ids in found]
    return [
        ids[:-1] if end and special and not text.endswith(str(eos)) else ids
        for ids, end, text in zip(found, ends, texts, strict=True)
    ]


@contextmanager
def _writer(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Iterator[Write | None]:
    """What writes out the chats among the examples; None where there are none."""
    chats = [example for example in examples if example.is_chat]
    if not chats:
        yield None
        return
    if not tokenizer.chat_template:
        raise UserError(
            f"{chats[0].where}: the model's tokenizer has no chat template; give prompt and completion "
            "in place of messages."
        )
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several of which none is the usual one
        raise UserError(f"{chats[0].where}: the model's chat template refuses it: {brief(error)}.") from error
    # a chat is written anew for each of its turns that are learnt
    turns = sum(len(chat.pieces) * (1 + sum(piece.learnt for piece in chat.pieces)) for chat in chats)
    with writer(template, tokenizer.special_tokens_map, turns) as write:
        yield write


def _cut(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, length: int, where: str) -> Encoded:
    ids, labels = encoded
    if len(ids) > length:
        head = 1 if ids[0] == tokenizer.bos_token_id else 0
        ids = ids[:head] + ids[head - length :]
        labels = labels[:head] + labels[head - length :]
    if all(label == IGNORED for label in labels[1:]):  # the first token is never predicted
        raise UserError(f"{where}: no token is left to learn; lengthen the answer.")
    return Encoded(ids, labels)


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
