"""The log-likelihood of answers, without the work that cancels out.

A prompt runs through the model once, however many answers follow it: what they share stays in the key-value
cache. Its last position gives each answer's first token; the head, often the costliest matrix, is computed
only where answers stand.

Prompts of a batch are padded on the left, as for generation, so that answers of all of them follow together;
answers on the right, where causal attention cannot look. Both are sorted by length and cut where padding
would cost more than another pass.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from offsite.decoder import base_of
from offsite.progress import Advance

_T = TypeVar("_T")
Tokens = Sequence[int]

_POOL_TOKENS = 4096  # of prompts in the cache at once, among whose answers those of like length are found
_PROMPT_TOKENS = 1024  # in a batch of prompts
_WASTED_TOKENS = 24  # of padding in a batch: about what starting another one costs
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


class _Read(NamedTuple):
    """A batch of prompts that the model has read."""

    cache: Cache
    mask: Tensor  # (prompts, tokens): 0 where padding stands, on the left
    logits: Tensor  # (prompts, vocabulary): of what follows each


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
        for pool in _runs(sorted(prompts.values(), key=_prompt_length, reverse=True), _pool_fits):
            for place, score in _score_pool(model, pool, advance):
                scores[place] = score
    return scores


def _prompt_length(rows: Sequence[_Row]) -> int:
    return len(rows[0].prompt)


def _pool_fits(pool: Sequence[Sequence[_Row]]) -> bool:
    return len(pool) * _prompt_length(pool[0]) <= _POOL_TOKENS


def _prompts_fit(batch: Sequence[Tokens]) -> bool:
    tokens = len(batch) * len(batch[0])
    return tokens <= _PROMPT_TOKENS and tokens - sum(map(len, batch)) <= _WASTED_TOKENS


def _score_pool(
    model: PreTrainedModel, pool: Sequence[Sequence[_Row]], advance: Advance
) -> Iterator[tuple[int, Likelihood]]:
    read = _read_prompts(model, [rows[0].prompt for rows in pool])
    behind = {row.place: number for number, rows in enumerate(pool) for row in rows}
    known = read.mask.shape[1] if read else 0

    def length(row: _Row) -> int:
        return len(row.answer) - 1 + (0 if read else len(row.prompt))

    def answers_fit(run: Sequence[_Row]) -> bool:
        new, vocabulary = len(run) * length(run[0]), model.config.get_text_config().vocab_size
        small = new * vocabulary <= _LOGITS and new + len(run) * known <= _CACHED_TOKENS
        return small and new - sum(map(length, run)) <= _WASTED_TOKENS

    for run in _runs(sorted((row for rows in pool for row in rows), key=length, reverse=True), answers_fit):
        numbers = [behind[row.place] for row in run]
        logits = _after(model, run, _rows_of(read, numbers)) if read else _whole(model, run)
        yield from zip((row.place for row in run), _likelihoods(logits, run), strict=True)
        advance(len(run), "")


def _read_prompts(model: PreTrainedModel, prompts: Sequence[Tokens]) -> _Read | None:
    """Read prompts, the longest first; None if the model's cache is one that cannot be shared out."""
    reads = []
    for batch in _runs(prompts, _prompts_fit):
        read = _read_batch(model, batch)
        if read is None:
            return None
        reads.append(read)
    return _joined(reads) if len(reads) > 1 else reads[0]


def _read_batch(model: PreTrainedModel, prompts: Sequence[Tokens]) -> _Read | None:
    longest = len(prompts[0])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    ids = torch.tensor([[*[0] * (longest - len(p)), *p] for p in prompts], device=model.device)
    output = model(input_ids=ids, use_cache=True, **_places(model, mask, longest), **_last_logits(model, 1))
    layers = getattr(output.past_key_values, "layers", None) or [None]
    if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return None
    return _Read(output.past_key_values, mask, output.logits[:, -1])


def _joined(reads: Sequence[_Read]) -> _Read:
    """One batch of what was read in several, padded on the left to the first of them, the longest."""
    joined = copy.copy(reads[0].cache)
    joined.layers = [copy.copy(layer) for layer in reads[0].cache.layers]
    for index, layer in enumerate(joined.layers):
        for part in ("keys", "values"):  # (prompts, heads, tokens, size of a head)
            setattr(layer, part, _stacked([getattr(read.cache.layers[index], part) for read in reads], dim=-2))
    mask = _stacked([read.mask for read in reads], dim=-1)
    return _Read(joined, mask, torch.cat([read.logits for read in reads]))


def _stacked(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """The tensors below each other, with zeros on the left of the shorter ones' tokens, which `dim` counts."""
    longest = max(tensor.shape[dim] for tensor in tensors)
    before = (0, 0) * (-dim - 1)
    return torch.cat([functional.pad(t, (*before, longest - t.shape[dim], 0)) for t in tensors])


def _rows_of(read: _Read, numbers: Sequence[int]) -> _Read:
    """What was read of these prompts; `read` stays: cache layers replace tensors, not what is in them."""
    rows = torch.tensor(numbers, device=read.mask.device)
    picked = copy.copy(read.cache)
    picked.layers = [copy.copy(layer) for layer in read.cache.layers]
    picked.batch_select_indices(rows)
    return _Read(picked, read.mask[rows], read.logits[rows])


def _after(model: PreTrainedModel, run: Sequence[_Row], read: _Read) -> Tensor:
    """The logits of the answers' tokens, (answer tokens, vocabulary), behind prompts that were read."""
    lengths = [len(row.answer) for row in run]
    if max(lengths) == 1:
        return read.logits
    ids = _padded([row.answer[:-1] for row in run], model.device)  # (answers, tokens)
    mask = torch.cat([read.mask, torch.ones_like(ids)], dim=1)
    output = model(
        input_ids=ids, past_key_values=read.cache, use_cache=True, **_places(model, mask, ids.shape[1])
    )
    parts = [
        (first[None], rest[: n - 1]) for first, rest, n in zip(read.logits, output.logits, lengths, strict=True)
    ]
    return torch.cat([part for both in parts for part in both])


def _whole(model: PreTrainedModel, run: Sequence[_Row]) -> Tensor:
    """As `_after`, prompts and all, for a model whose cache cannot be shared out."""
    ids = _padded([[*row.prompt, *row.answer[:-1]] for row in run], model.device)
    kept = ids.shape[1] + 1 - min(len(row.prompt) for row in run)
    logits = model(input_ids=ids, use_cache=False, **_last_logits(model, kept)).logits[:, -kept:]
    starts = [len(row.prompt) - 1 - (ids.shape[1] - kept) for row in run]
    return torch.cat([own[i : i + len(row.answer)] for own, i, row in zip(logits, starts, run, strict=True)])


def _likelihoods(logits: Tensor, run: Sequence[_Row]) -> list[Likelihood]:
    """`logits`: (answer tokens, vocabulary), of all answers of the run in order."""
    lengths = [len(row.answer) for row in run]
    answers = torch.tensor([token for row in run for token in row.answer], device=logits.device)
    logliks = -functional.cross_entropy(logits.float(), answers, reduction="none")
    greedy = logits.argmax(-1) == answers
    return [
        Likelihood(float(loglik.double().sum()), bool(same.all()))
        for loglik, same in zip(
            torch.split(logliks.cpu(), lengths), torch.split(greedy.cpu(), lengths), strict=True
        )
    ]


def _padded(rows: Sequence[Tokens], device: torch.device) -> Tensor:
    """(rows, tokens), padded on the right."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(device)


def _places(model: PreTrainedModel, mask: Tensor, number: int) -> dict[str, Tensor]:
    """What tells the model where its last `number` tokens stand; nothing where no padding moves them."""
    if bool(mask.all()):
        return {}
    places = (mask.cumsum(1) - 1).clamp(min=0)[:, -number:]
    known = "position_ids" in _parameters(model)
    return {"attention_mask": mask} | ({"position_ids": places} if known else {})


def _last_logits(model: PreTrainedModel, number: int) -> dict[str, Any]:
    """The argument that restricts the head to the last positions, where the model's forward pass has it."""
    return {"logits_to_keep": number} if "logits_to_keep" in _parameters(model) else {}


def _parameters(model: PreTrainedModel) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(base_of(model).forward).parameters  # peft hides the signature


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
