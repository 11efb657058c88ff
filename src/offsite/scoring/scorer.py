"""The log-likelihood of answers, without the work that cancels out.

A prompt runs through the model once, however many answers follow it: what they share stays in the key-value
cache. The head, often the costliest matrix, is computed only where answers stand.

Prompts of a batch are cut to the shortest, and what is left of the others goes with their answers: so the
first pass has no padding. In the second it is on the right, where causal attention cannot look. No masks,
then, and every token in its plain place: exact for rotary, learned and ALiBi positions and sliding windows.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from offsite.progress import Advance

_T = TypeVar("_T")
Tokens = Sequence[int]

_PROMPT_TOKENS = 2048  # in a batch of prompts
_WASTED_TOKENS = 128  # run for nothing in a batch: about what starting another one costs
_CACHED_TOKENS = 8192  # in the cache of a batch of answers, copied for each of them
_LOGITS = 2**26  # numbers in a batch of answers' logits: 256 MB in float32


class Likelihood(NamedTuple):
    """Of an answer: the sum of its tokens' log-likelihoods in nats, and whether greedy decoding gives it."""

    loglik: float
    greedy: bool


class _Row(NamedTuple):
    """An answer on its way through the model."""

    place: int  # in the caller's order
    prompt: Tokens
    answer: Tokens


def answer_likelihoods(
    model: PreTrainedModel, pairs: Sequence[tuple[Tokens, Tokens]], advance: Advance
) -> list[Likelihood]:
    """Score each answer after its prompt, in the model's own precision and the softmax in float32.

    Args:
        model: a causal language model, in evaluation mode.
        pairs: token ids of prompt and answer, neither empty, together at most one more than the model reads.
        advance: called with the number of answers done.

    Returns:
        one `Likelihood` per pair, in the order of the pairs.
    """
    prompts: dict[Tokens, list[_Row]] = {}
    for place, (prompt, answer) in enumerate(pairs):
        prompts.setdefault(tuple(prompt), []).append(_Row(place, prompt, answer))
    scores = [Likelihood(0.0, False)] * len(pairs)
    with torch.no_grad():
        for batch in _runs(sorted(prompts.values(), key=_prompt_length, reverse=True), _prompts_fit):
            for place, score in _score_batch(model, batch, advance):
                scores[place] = score
    return scores


def _prompt_length(rows: Sequence[_Row]) -> int:
    return len(rows[0].prompt)


def _prompts_fit(batch: Sequence[Sequence[_Row]]) -> bool:
    longest, shortest = _prompt_length(batch[0]), _prompt_length(batch[-1])
    # What a prompt has beyond the shortest runs once per answer.
    repeated = sum((_prompt_length(rows) - shortest) * (len(rows) - 1) for rows in batch)
    return len(batch) * longest <= _PROMPT_TOKENS and repeated <= _WASTED_TOKENS


def _score_batch(
    model: PreTrainedModel, batch: Sequence[Sequence[_Row]], advance: Advance
) -> Iterator[tuple[int, Likelihood]]:
    shared = _prompt_length(batch[-1]) - 1  # the last prompt token predicts the first of the answer
    cache = _read_prompts(model, [rows[0].prompt[:shared] for rows in batch]) if shared else None
    shared = shared if cache else 0
    behind = {row.place: number for number, rows in enumerate(batch) for row in rows}

    def length(row: _Row) -> int:
        return len(row.prompt) + len(row.answer) - shared - 1

    def answers_fit(run: Sequence[_Row]) -> bool:
        new, vocabulary = len(run) * length(run[0]), model.config.get_text_config().vocab_size
        padding = new - sum(map(length, run))
        small = new * vocabulary <= _LOGITS and new + len(run) * shared <= _CACHED_TOKENS
        return small and padding <= _WASTED_TOKENS

    for run in _runs(sorted((row for rows in batch for row in rows), key=length, reverse=True), answers_fit):
        past = _rows_of(cache, [behind[row.place] for row in run], model.device) if cache else None
        scores = _score_answers(model, run, shared, past)
        yield from zip((row.place for row in run), scores, strict=True)
        advance(len(run), "")


def _read_prompts(model: PreTrainedModel, prompts: Sequence[Tokens]) -> Cache | None:
    """Fill a cache with prompts of one length; None if the model keeps one that cannot be shared out."""
    ids = torch.tensor(prompts, device=model.device)  # (prompts, tokens)
    cache = model(input_ids=ids, use_cache=True, **_last_logits(model, 1)).past_key_values
    layers = getattr(cache, "layers", None) or [None]
    return cache if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers) else None


def _rows_of(cache: Cache, rows: Sequence[int], device: torch.device) -> Cache:
    """Another cache of these rows; `cache` stays as it is: its layers replace tensors, not what is in them."""
    picked = copy.copy(cache)
    picked.layers = [copy.copy(layer) for layer in cache.layers]
    picked.batch_select_indices(torch.tensor(rows, device=device))
    return picked


def _score_answers(
    model: PreTrainedModel, run: Sequence[_Row], shared: int, past: Cache | None
) -> list[Likelihood]:
    inputs = [torch.tensor([*row.prompt[shared:], *row.answer[:-1]]) for row in run]
    ids = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True).to(model.device)  # (answers, tokens)
    first = min(len(row.prompt) for row in run) - shared - 1
    kept = ids.shape[1] - first
    output = model(input_ids=ids, past_key_values=past, use_cache=past is not None, **_last_logits(model, kept))
    lengths = [len(row.answer) for row in run]
    rows = torch.arange(len(run)).repeat_interleave(torch.tensor(lengths))
    starts = [len(row.prompt) - shared - 1 - first for row in run]
    columns = torch.cat([torch.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
    logits = output.logits[:, -kept:][
        rows.to(ids.device), columns.to(ids.device)
    ].float()  # (answer tokens, vocabulary)
    answers = torch.tensor([token for row in run for token in row.answer], device=ids.device)
    logliks = -functional.cross_entropy(logits, answers, reduction="none")
    greedy = logits.argmax(-1) == answers
    return [
        Likelihood(float(loglik.double().sum()), bool(same.all()))
        for loglik, same in zip(
            torch.split(logliks.cpu(), lengths), torch.split(greedy.cpu(), lengths), strict=True
        )
    ]


def _last_logits(model: PreTrainedModel, number: int) -> dict[str, Any]:
    """The argument that restricts the head to the last positions, where the model's forward pass has it."""
    base = getattr(model, "get_base_model", lambda: model)()  # peft hides the signature
    known = "logits_to_keep" in inspect.signature(base.forward).parameters
    return {"logits_to_keep": number} if known else {}


def _runs(items: Iterable[_T], fit: Callable[[Sequence[_T]], bool]) -> Iterator[list[_T]]:
    """Cut `items` into runs that fit, each as long as it can be; a single item always fits."""
    run: list[_T] = []
    for item in items:
        if run and not fit([*run, item]):
            yield run
            run = []
        run.append(item)
    if run:
        yield run
