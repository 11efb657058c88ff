"""The log-likelihood of answers, without the work that cancels out.

A prompt and all its answers run through the model as one row: each answer sees the prompt and itself, and its
tokens stand at the positions they would have behind the prompt alone. The prompt's last position gives every
answer's first token; the head, often the costliest matrix, is computed only where an answer's token follows.

Rows are padded on the right, where causal attention cannot look, sorted by length, and cut into batches where
padding would cost more than another pass. Models that cannot be shown such rows (ALiBi, windows shorter than
the row) read each answer after a prompt of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from offsite.model.decoder import base_of
from offsite.progress import Advance

_T = TypeVar("_T")
Tokens = Sequence[int]

_BATCH_TOKENS = 1024
_ROW_TOKENS = 2048  # beyond, a prompt's answers go into several rows: the mask grows with the square
_WASTED_TOKENS = 64  # of padding in a batch: about what starting another one costs
_LOGITS = 2**26  # numbers in a batch's logits: 256 MB in float32
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")  # in configs
_shared: dict[tuple[str, torch.dtype], bool] = {}  # whether models of such a config read shared rows


class Likelihood(NamedTuple):
    """Of an answer: the sum of its tokens' log-likelihoods in nats, and whether greedy decoding gives it."""

    loglik: float
    greedy: bool


class _Row(NamedTuple):
    """A prompt with answers behind it, each without its last token, which nothing follows."""

    prompt: Tokens
    answers: Sequence[Tokens]
    places: Sequence[int]
    """Of the answers in the caller's order."""

    @property
    def starts(self) -> list[int]:
        """The column of each answer's first token, and of what follows the last answer."""
        return list(accumulate((len(answer) - 1 for answer in self.answers), initial=len(self.prompt)))

    @property
    def is_shared(self) -> bool:
        """Whether several answers stand in it, so that it needs a mask and positions."""
        return len(self.answers) > 1

    @property
    def length(self) -> int:
        return self.starts[-1]

    @property
    def known(self) -> range:
        """The columns that foretell tokens of answers, the prompt's last for all of them."""
        return range(len(self.prompt) - 1, self.length)

    @property
    def sources(self) -> list[int]:
        """Which of the `known` ones foretells each token of the answers, one answer after the other."""
        found = []
        for start, end in zip(self.starts, self.starts[1:], strict=False):
            found += [0, *range(start - self.known.start, end - self.known.start)]
        return found


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
    scores = [Likelihood(0.0, False)] * len(pairs)
    vocabulary = model.config.get_text_config().vocab_size

    def fit(run: Sequence[_Row]) -> bool:
        tokens, wanted = len(run) * run[0].length, sum(len(row.known) for row in run)
        small = tokens <= _BATCH_TOKENS and wanted * vocabulary <= _LOGITS
        # a mask of shared rows would have a row longer than the model's window see beyond it
        alike = run[0].is_shared == run[-1].is_shared
        return alike and small and tokens - sum(row.length for row in run) <= _WASTED_TOKENS

    with torch.no_grad():
        rows = sorted(_rows(model, pairs), key=lambda row: (row.is_shared, row.length), reverse=True)
        for run in _runs(rows, fit):
            for row, logits in zip(run, _logits(model, run), strict=True):
                for place, score in zip(row.places, _likelihoods(logits, row.answers), strict=True):
                    scores[place] = score
            advance(sum(len(row.answers) for row in run), "")
    return scores


def _rows(model: PreTrainedModel, pairs: Sequence[tuple[Tokens, Tokens]]) -> Iterator[_Row]:
    """The pairs by their prompts, as many answers in a row as the model can be shown at once."""
    prompts: dict[Tokens, list[tuple[Tokens, int]]] = {}
    for place, (prompt, answer) in enumerate(pairs):
        prompts.setdefault(tuple(prompt), []).append((answer, place))
    most = _longest_row(model) if any(len(behind) > 1 for behind in prompts.values()) else 0
    for prompt, behind in prompts.items():

        def fit(run: Sequence[tuple[Tokens, int]], known: int = len(prompt)) -> bool:
            return known + sum(len(answer) - 1 for answer, _ in run) <= most

        for run in _runs(behind, fit):
            answers, places = zip(*run, strict=True)
            yield _Row(prompt, answers, places)


def _longest_row(model: PreTrainedModel) -> int:
    """The tokens of a row with several answers; 0 where the model cannot be shown one."""
    config = model.config.get_text_config()
    key = (config.to_json_string(), model.dtype)
    if key not in _shared:
        _shared[key] = _shares(model)
    windows = [size for name in _WINDOWS if (size := getattr(config, name, None))]
    return min([_ROW_TOKENS, *windows]) if _shared[key] else 0


def _shares(model: PreTrainedModel) -> bool:
    """Whether a small row with two answers gives the model's own logits of each answer by itself."""
    if not {"attention_mask", "position_ids"} <= _parameters(model).keys():
        return False
    prompt, answers = (3, 4, 5), ((6, 7, 8), (9, 4, 3, 2))
    expected = torch.cat([_logits(model, [_Row(prompt, [answer], [0])])[0] for answer in answers]).float()
    try:
        [shared] = _logits(model, [_Row(prompt, answers, [0, 1])])
    except (ValueError, TypeError, RuntimeError, IndexError):  # as if it said no
        return False
    close = 1e-4 if model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type) else 0.05
    return bool((shared.float() - expected).abs().max() <= close * expected.abs().max())


def _logits(model: PreTrainedModel, run: Sequence[_Row]) -> list[Tensor]:
    """For each row (answer tokens, vocabulary): what foretells each token of its answers."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(_ids(row)) for row in run], batch_first=True)
    shown = _shown(run, ids.shape[1], model) if run[0].is_shared else {}
    wanted = torch.tensor([[number, column] for number, row in enumerate(run) for column in row.known])
    with _head_at(model, wanted.to(model.device)):
        logits = model(input_ids=ids.to(model.device), use_cache=False, **shown).logits
    found = torch.split(logits[0], [len(row.known) for row in run])
    return [own[row.sources] for own, row in zip(found, run, strict=True)]


@contextmanager
def _head_at(model: PreTrainedModel, wanted: Tensor) -> Iterator[None]:
    """Within, the head is computed of the `wanted` (row, column) alone; what follows sees one row of them."""

    def pick(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        return (given[0][wanted[:, 0], wanted[:, 1]][None],)

    head: Callable[[], nn.Module] = model.get_output_embeddings
    hook = head().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()


def _ids(row: _Row) -> list[int]:
    return [*row.prompt, *(token for answer in row.answers for token in answer[:-1])]


def _shown(run: Sequence[_Row], width: int, model: PreTrainedModel) -> dict[str, Tensor]:
    """Which columns each column sees, (rows, 1, width, width), and at which positions they stand."""
    seen = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(run), 1, 1)
    places = torch.arange(width).repeat(len(run), 1)
    for number, row in enumerate(run):
        known = len(row.prompt)
        for start, end in zip(row.starts, row.starts[1:], strict=False):
            seen[number, start:, known:start] = False
            places[number, start:end] -= start - known
        places[number, row.length :] = 0  # of padding, which may stand beyond what the model reads
    hidden = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
    return {"attention_mask": hidden[:, None].to(model.device), "position_ids": places.to(model.device)}


def _likelihoods(logits: Tensor, answers: Sequence[Tokens]) -> list[Likelihood]:
    """`logits`: (answer tokens, vocabulary), of the answers in order."""
    lengths = [len(answer) for answer in answers]
    tokens = torch.tensor([token for answer in answers for token in answer], device=logits.device)
    logliks = -functional.cross_entropy(logits.float(), tokens, reduction="none")
    greedy = logits.argmax(-1) == tokens
    return [
        Likelihood(float(loglik.double().sum()), bool(same.all()))
        for loglik, same in zip(
            torch.split(logliks.cpu(), lengths), torch.split(greedy.cpu(), lengths), strict=True
        )
    ]


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
