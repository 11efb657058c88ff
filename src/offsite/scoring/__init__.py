"""Score a model on tasks through the field's own harness, so that the numbers compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from math import sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from offsite.errors import UserError
from offsite.results.schema import Score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offsite.data.tasks import Task
    from offsite.scoring.harness import Answered

__all__ = ["Score", "evaluate"]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Score]:
    """Score `model` on each task, zero-shot, through lm-evaluation-harness (doi:10.5281/zenodo.10256836).

    The harness gets the questions from memory: private ones leave no copy in a data set cache. Prompts are
    tokenized as `tokenizer(prompt)` does by default, with a BOS where it adds one. The model runs in its own
    precision, or that of an autocast around the call, and keeps its mode; the softmax is taken in float32.

    Args:
        model: a causal language model, on any device.
        tokenizer: the model's own; it is not changed.
        tasks: what to ask; their names must differ.
        limit: ask only the first so many questions, or texts, of each task.
        seed: of the harness's random generators; nothing in a zero-shot score depends on it.

    Returns:
        the score of each task by name, in the order of `tasks`.

    Raises:
        UserError: the harness is not installed; no task, one twice or one without questions; a limit below 1;
            a prompt or an answer without tokens, an answer longer than the model can read.
    """
    _check(tasks, limit)
    from offsite.scoring.harness import roll, run

    limited = [task.first(limit) for task in tasks]
    asked = [task for task in limited if task.scoring != "perplexity"]
    found = {name: _score(answers) for name, answers in run(model, tokenizer, asked, seed).items()}
    for task in limited:
        if task.scoring == "perplexity":
            found[task.name] = _predicted(roll(model, tokenizer, task.texts))
    return {task.name: found[task.name] for task in tasks}


def _check(tasks: Sequence[Task], limit: int | None) -> None:
    if find_spec("lm_eval") is None or find_spec("datasets") is None:
        raise UserError("Scoring needs lm-evaluation-harness: pip install 'offsite[eval]'.")
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


def _score(answered: Sequence[Answered]) -> Score:
    acc, acc_stderr = _mean([one.acc for one in answered])
    acc_norm, acc_norm_stderr = _mean([one.acc_norm for one in answered])
    nll, nll_stderr = _ratio([one.nll for one in answered], [one.tokens for one in answered])
    return Score(acc, acc_stderr, acc_norm, acc_norm_stderr, nll, nll_stderr, len(answered))


def _predicted(texts: Sequence[tuple[float, int]]) -> Score:
    nll, nll_stderr = _ratio(*zip(*texts, strict=True))
    return Score(None, None, None, None, nll, nll_stderr, len(texts))


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, in the closed form that the harness uses too."""
    return fmean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0


def _ratio(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """The mean over all tokens, and its standard error over questions, or texts (ratio estimator)."""
    mean, n = sum(sums) / sum(counts), len(sums)
    apart = [total - mean * count for total, count in zip(sums, counts, strict=True)]
    stderr = sqrt(sum(a * a for a in apart) / (n * (n - 1))) / fmean(counts) if n > 1 else 0.0
    return mean, stderr
