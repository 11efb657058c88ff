"""Score a model on tasks: accuracy and likelihoods, in the numbers that lm-evaluation-harness gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import isfinite, sqrt
from statistics import fmean
from typing import TYPE_CHECKING

from offsite.errors import UserError
from offsite.progress import bar
from offsite.results.choices import Logliks
from offsite.results.schema import Score
from offsite.results.statistics import standard_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offsite.data.tasks import Question, Task
    from offsite.scoring.scorer import Likelihood
    from offsite.scoring.tokens import Pair

__all__ = ["Score", "evaluate"]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    limit: int | None = None,
) -> dict[str, Score]:
    """Score `model` on each task, zero-shot, as lm-evaluation-harness does (doi:10.5281/zenodo.10256836).

    Prompts are tokenized as `tokenizer(prompt)` does by default, with a BOS where it adds one. The model runs
    in its dtype, or under an autocast around the call, and keeps its mode; the softmax is taken in float32.

    Args:
        model: a causal language model, on any device.
        tokenizer: the model's tokenizer; it is not changed.
        tasks: what to ask; their names must differ.
        limit: ask only the first so many questions, or texts, of each task.

    Returns:
        the score of each task by name, in the order of `tasks`.

    Raises:
        UserError: no task, one twice or one without questions; a limit below 1; a prompt or an answer without
            tokens, an answer longer than the model can read.
    """
    _check(tasks, limit)
    from offsite.model.modes import evaluating

    with evaluating(model):
        return {task.name: _scored(model, tokenizer, task.first(limit)) for task in tasks}


def _scored(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> Score:
    from offsite.scoring.tokens import answer_pairs, reads, windows

    longest = reads(model, tokenizer)
    if task.scoring == "perplexity":
        texts = windows(task.texts, tokenizer, longest)
        predicted = _likelihoods(model, texts, "Predicting texts")
        nlls = [-sum(each.loglik for each in one) for one in predicted]
        tokens = [sum(len(answer) for _, answer in one) for one in texts]
        return Score(None, None, None, None, *_ratio(nlls, tokens), len(nlls))
    asked = answer_pairs(task.questions, tokenizer, longest)
    found = _likelihoods(model, asked, "Scoring answers")
    right = [question.answer for question in task.questions]
    nlls = [-one[answer].loglik for one, answer in zip(found, right, strict=True)]
    tokens = [len(one[answer][1]) for one, answer in zip(asked, right, strict=True)]
    if task.scoring == "exact_match":
        acc = acc_norm = [float(any(each.greedy for each in one)) for one in found]
    else:
        acc = [float(_best(one) == answer) for one, answer in zip(found, right, strict=True)]
        acc_norm = [float(_best_by_length(*pair)) for pair in zip(found, task.questions, strict=True)]
    kept = _kept(found) if task.scoring == "multiple_choice" else None
    numbers = (*_mean(acc), *_mean(acc_norm), *_ratio(nlls, tokens), len(acc))
    return Score(*numbers, kept, None if kept is None else tuple(right))


def _kept(found: Sequence[Sequence[Likelihood]]) -> Logliks | None:
    """The choices' log-likelihoods question by question; None where a model that diverged gives none."""
    if not all(isfinite(each.loglik) for one in found for each in one):
        return None
    return tuple(tuple(round(each.loglik, 4) for each in one) for one in found)


def _likelihoods(model: PreTrainedModel, groups: Sequence[Sequence[Pair]], what: str) -> list[list[Likelihood]]:
    """The likelihoods of all pairs, computed together, in their groups."""
    from offsite.scoring.scorer import answer_likelihoods

    flat = [pair for group in groups for pair in group]
    with bar(what, len(flat)) as advance:
        found = iter(answer_likelihoods(model, flat, advance))
    return [[next(found) for _ in group] for group in groups]


def _best(found: Sequence[Likelihood]) -> int:
    """The likeliest choice; of several the first."""
    return max(range(len(found)), key=lambda i: found[i].loglik)


def _best_by_length(found: Sequence[Likelihood], question: Question) -> bool:
    """Whether the right choice has the highest log-likelihood per character."""
    per_letter = [one.loglik / max(1, len(text)) for one, text in zip(found, question.choices, strict=True)]
    return per_letter.index(max(per_letter)) == question.answer


def _check(tasks: Sequence[Task], limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UserError(f"A limit of {limit} leaves no question; give 1 or more.")
    if not tasks:
        raise UserError("There is no task to score; name at least one.")
    name, times = Counter(task.name for task in tasks).most_common(1)[0]
    if times > 1:
        raise UserError(f"The task {name!r} is named {times} times; name it once.")
    empty = next((task.name for task in tasks if not (task.questions or task.texts)), None)
    if empty is not None:
        raise UserError(f"The task {empty!r} has no questions; give it some.")


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, in the closed form that the harness uses too."""
    return fmean(values), standard_error(values)


def _ratio(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """The mean over all tokens, and its standard error over questions, or texts (ratio estimator)."""
    mean, n = sum(sums) / sum(counts), len(sums)
    apart = [total - mean * count for total, count in zip(sums, counts, strict=True)]
    stderr = sqrt(sum(a * a for a in apart) / (n * (n - 1))) / fmean(counts) if n > 1 else 0.0
    return mean, stderr
