"""What the rows of a data file are, and how they become token ids of which some are learnt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from offsite.errors import UserError, brief
from offsite.progress import track
from offsite.rows import Row, read_rows

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
    return [
        _cut(_encoded(example, tokenizer), tokenizer, max_length, example.where)
        for example in track(examples, "Tokenising", len(examples))
    ]


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


def _encoded(example: Example, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    pieces = _written(example, tokenizer) if example.is_chat else example.pieces
    ids, ends = _tokens(pieces, tokenizer, chat=example.is_chat)
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
    pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerBase, *, chat: bool
) -> tuple[list[int], list[int]]:
    """The ids of the whole text, and where the tokens of each piece end in them."""
    texts, whole = [], ""
    for piece, after in zip(pieces, [*pieces[1:], None], strict=True):
        whole += piece.text
        # the spaces between prompt and answer go with the answer's first word; a chat template's do not
        moves = after is not None and after.learnt and not chat
        texts.append(whole.rstrip() if moves else whole)
    *heads, ids = _ids(texts, tokenizer, special=not chat)
    return ids, [min(len(head), len(ids)) for head in heads] + [len(ids)]


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, *, special: bool) -> list[list[int]]:
    """Ids of `texts` that begin alike, with the BOS that the tokenizer adds but without an EOS it adds."""
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    special = special and not (bos and texts[-1].startswith(bos))
    found = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    ends = [bool(ids) and ids[-1] == tokenizer.eos_token_id and len(ids) > 1 for ids in found]
    return [
        ids[:-1] if end and special and not text.endswith(str(eos)) else ids
        for ids, end, text in zip(found, ends, texts, strict=True)
    ]


def _written(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[Piece, ...]:
    """A chat as the tokenizer's template writes it, the assistant's turns learnt."""
    if not tokenizer.chat_template:
        raise UserError(
            f"{example.where}: the model's tokenizer has no chat template; give prompt and completion "
            "in place of messages."
        )
    pieces, done = [], ""
    for number, turn in enumerate(example.pieces):
        if turn.learnt:
            before, after = _around(example, number, tokenizer)
            if not before.startswith(done):
                raise _rewritten(example)
            pieces += [Piece(before[len(done) :], False), Piece(after[len(before) :], True)]
            done = after
    rest = _render(example, len(example.pieces), tokenizer)
    if not rest.startswith(done):
        raise _rewritten(example)
    return (*pieces, Piece(rest[len(done) :], False))


def _around(example: Example, number: int, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The chat before and after an assistant's turn; its header is read where the template allows."""
    after = _render(example, number + 1, tokenizer)
    for asked in (True, False):
        before = _render(example, number, tokenizer, asked=asked) if number else ""
        if after.startswith(before):
            return before, after
    raise _rewritten(example)


def _rewritten(example: Example) -> UserError:
    return UserError(
        f"{example.where}: the model's chat template writes earlier turns anew as a chat goes on; "
        "give one row per turn of the assistant."
    )


def _render(example: Example, turns: int, tokenizer: PreTrainedTokenizerBase, *, asked: bool = False) -> str:
    messages = [{"role": turn.role, "content": turn.text} for turn in example.pieces[:turns]]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked))
    except Exception as error:  # a template can be made to raise whatever there is
        raise UserError(f"{example.where}: the model's chat template refuses it: {brief(error)}.") from error


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
    first = list(tokenizer("", verbose=False)["input_ids"][:1])
    return first if first == [tokenizer.bos_token_id] else []


def _stream(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> list[int]:
    """The texts' ids with an EOS after each; no further than `wanted` of them."""
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    for text in track(texts, "Tokenising", len(texts)):
        if wanted is not None and len(ids) >= wanted:
            break
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + eos
    return ids
