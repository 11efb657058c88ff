"""The tokens of questions and texts, split and cut as lm-evaluation-harness does, so that scores compare."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from offsite.data.encoding import pieces_of, read_bounds, text_ids, text_tokens
from offsite.data.examples import Question
from offsite.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WINDOW = 512  # tokens that are predicted at once, as in Offsite-Tuning's figures
_UNSAID = 2048  # tokens that a model reads if neither its config nor its tokenizer says
_UNLIMITED = int(1e30)  # what tokenizers have as their length when none is set

Pair = tuple[list[int], list[int]]
"""The token ids of what is read, and of what is predicted after it."""


def answer_pairs(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, longest: int
) -> list[list[Pair]]:
    """For each question a pair for each choice, one space after the prompt; long prompts lose their beginning.

    Raises:
        UserError: a prompt or an answer without tokens, an answer longer than `longest`.
    """
    found, cut = [], 0
    for question in questions:
        pairs = _pairs(question, tokenizer)
        for choice, (prompt, answer) in zip(question.choices, pairs, strict=True):
            _check(question.prompt, prompt, choice, answer, longest)
        # the model predicts one token more than it reads
        shown = [(prompt[-(longest + 1 - len(answer)) :], answer) for prompt, answer in pairs]
        cut += sum(one != other for one, other in zip(shown, pairs, strict=True))
        found.append(shown)
    if cut:
        warnings.warn(
            f"{cut} answers follow a prompt cut at its beginning: the model reads {longest} tokens.",
            stacklevel=3,
        )
    return found


def windows(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, longest: int) -> list[list[Pair]]:
    """For each text pairs that predict each of its tokens once.

    The first follows the BOS, or EOS, alone; a later one as many tokens as fit beside those that it predicts.
    """
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    found = [text_ids([text], tokenizer, "A text")[0] for text in texts]
    return [list(_windows([prefix, *ids], min(_WINDOW, longest))) for ids in found]


def reads(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the model reads at the most: by its config, else its tokenizer, else 2048."""
    config = model.config.get_text_config()
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if (length := getattr(config, name, None)) is not None:
            return int(length)
    length = tokenizer.model_max_length
    return _UNSAID if length >= _UNLIMITED else int(length)


def _pairs(question: Question, tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """Split each choice from the prompt as training does (`data/encoding.py`)."""
    where = f"The question {question.prompt!r:.60}"
    wholes = [f"{question.prompt} {choice}" for choice in question.choices]
    if not tokenizer.is_fast:  # it does not say where its tokens stand
        prompt, *found = text_ids([question.prompt.rstrip(), *wholes], tokenizer, where)
        return [(prompt, ids[len(prompt) :]) for ids in found]
    bounds = read_bounds(question.prompt)
    tokens = text_tokens(wholes, tokenizer, where)
    known = [pieces_of(one, bounds).count(0) for one in tokens]
    return [(one.ids[:count], one.ids[count:]) for one, count in zip(tokens, known, strict=True)]


def _check(prompt: str, head: Sequence[int], choice: str, answer: Sequence[int], longest: int) -> None:
    if not head:
        raise UserError(f"The prompt {prompt!r:.60} has no tokens; give the answers something to follow.")
    if not answer:
        raise UserError(f"The answer {choice!r:.60} has no tokens after its prompt; give it some words.")
    if len(answer) > longest:
        raise UserError(
            f"The answer {choice!r:.60} has {len(answer)} tokens, the model reads {longest}; shorten it."
        )


def _windows(ids: list[int], longest: int) -> Iterator[Pair]:
    """`ids`, prefix first, in windows of `longest` predictions; the last one looks back to fill its window."""
    begin = 1
    while begin < len(ids):
        end = min(begin + longest, len(ids))
        yield ids[max(0, end - 1 - longest) : begin], ids[begin:end]
        begin = end
