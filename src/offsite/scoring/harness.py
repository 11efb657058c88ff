"""The one file that knows lm-evaluation-harness; importing it takes seconds, so do so in functions."""

from __future__ import annotations

import copy
import functools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import datasets
import lm_eval.api.task
import lm_eval.evaluator
import lm_eval.utils
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.data.tasks import Scoring, Task
from offsite.errors import UserError
from offsite.progress import bar
from offsite.scoring.scorer import answer_likelihoods
from offsite.untrusted.tokenize import hushed, refused

_METRICS: Mapping[Scoring, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm"),
    "exact_match": ("exact_match",),
}

_WINDOW = 512  # tokens that are predicted at once, as in Offsite-Tuning's figures

Request = tuple[tuple[str, str], list[int], list[int]]
"""The texts and the token ids of a prompt and an answer, as the harness asks for their likelihood."""


class Answered(NamedTuple):
    """What one question adds to the score; see `Score` for the meaning and units."""

    acc: float
    acc_norm: float
    nll: float
    """Summed over the right answer's tokens."""
    tokens: int


def run(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], seed: int
) -> dict[str, list[Answered]]:
    """Have the harness ask every question of the `tasks`; answers by task, in the order of the questions."""
    if not tasks:
        return {}
    with _quiet(), _mode_restored(model):
        scorer = Scorer(model, tokenizer)
        asked = {task.name: _harness_task(task, seed) for task in tasks}
        found = lm_eval.evaluator.evaluate(lm=scorer, task_dict={"tasks": asked}, bootstrap_iters=0)
    return {
        task.name: [
            _answered(sample, question.answer, scorer)
            for sample, question in zip(found["samples"][task.name], task.questions, strict=True)
        ]
        for task in tasks
    }


def roll(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[tuple[float, int]]:
    """The negative log-likelihood of each text, in nats, and its tokens: the harness's own rolling windows."""
    with _quiet(), _mode_restored(model):
        scorer = Scorer(model, tokenizer)
        longest = min(_WINDOW, scorer.max_length)
        windows = [_windows(scorer.tok_encode(text), scorer.prefix_token_id, longest) for text in texts]
        flat = [window for some in windows for window in some]
        with bar("Predicting texts", len(flat)) as advance:
            found = iter(answer_likelihoods(model, flat, advance))
    return [
        (-sum(next(found).loglik for _ in some), sum(len(predicted) for _, predicted in some))
        for some in windows
    ]


def _windows(ids: list[int], prefix: int, longest: int) -> list[tuple[list[int], list[int]]]:
    """What is read and what is predicted: each token once, the first of a window after its neighbour."""
    rolled = lm_eval.utils.get_rolling_token_windows(ids, prefix, longest, context_len=1)
    return [lm_eval.utils.make_disjoint_window(window) for window in rolled]


class Scorer(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """The harness's own transformers model, with its likelihoods computed by `answer_likelihoods`."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap a model in memory; the tokenizer is copied, for the harness gives it a padding token."""
        super().__init__(pretrained=model, tokenizer=copy.deepcopy(tokenizer), backend="causal")
        self.tokens: dict[tuple[str, str], int] = {}
        """How many tokens an answer has behind its prompt."""

    def tok_encode(self, string: str, *args: object, **options: object) -> list[int]:
        """The ids of `tokenizer(string)`, without an EOS that the tokenizer adds: an answer may follow."""
        with hushed(), refused():
            ids: list[int] = super().tok_encode(string, *args, **options)
        added = ids[1:] and ids[-1] == self.eot_token_id and not string.endswith(self.tokenizer.eos_token)
        return ids[:-1] if added else ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As the harness's, without its bars."""
        likelihoods: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return likelihoods

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: object) -> list[tuple[float, bool]]:
        for texts, prompt, answer in requests:
            _check(texts, prompt, answer, self.max_length)
            self.tokens[texts] = len(answer)
        pairs = [_cut(prompt, answer, self.max_length) for _, prompt, answer in requests]
        _warn_of_cuts(
            sum(cut[0] != request[1] for cut, request in zip(pairs, requests, strict=True)), self.max_length
        )
        with bar("Scoring answers", len(pairs)) as advance:
            return [(score.loglik, score.greedy) for score in answer_likelihoods(self.model, pairs, advance)]


def _check(texts: tuple[str, str], prompt: Sequence[int], answer: Sequence[int], longest: int) -> None:
    if not prompt:
        raise UserError(f"The prompt {texts[0]!r:.60} has no tokens; give the answers something to follow.")
    if not answer:
        raise UserError(
            f"The answer {texts[1]!r:.60} has no tokens of its own behind its prompt; give it some words."
        )
    if len(answer) > longest:
        raise UserError(
            f"The answer {texts[1]!r:.60} has {len(answer)} tokens, the model reads {longest}; shorten it."
        )


def _cut(prompt: list[int], answer: list[int], longest: int) -> tuple[list[int], list[int]]:
    """Drop from the left what the model cannot read, as the harness does; it predicts one token more."""
    return prompt[-(longest + 1 - len(answer)) :], answer


def _warn_of_cuts(cut: int, longest: int) -> None:
    if cut:
        warnings.warn(
            f"{cut} answers follow a prompt cut at its beginning: the model reads {longest} tokens.",
            stacklevel=2,
        )


def _harness_task(task: Task, seed: int) -> ConfigurableTask:
    """The task for the harness: its questions from memory, the answers one space after the prompt."""
    exact = task.scoring == "exact_match"
    rows = [
        {
            "prompt": question.prompt,
            "choices": list(question.choices),
            "answer": list(range(len(question.choices))) if exact else question.answer,
        }
        for question in task.questions
    ]
    config = {
        "task": task.name,
        "custom_dataset": lambda: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in _METRICS[task.scoring]
        ],
    }
    asked = ConfigurableTask(config=config)
    asked.set_fewshot_seed(seed)
    return asked


def _answered(sample: Mapping[str, Any], right: int, scorer: Scorer) -> Answered:
    [(loglik, _)] = sample["resps"][right]
    tokens = scorer.tokens[tuple(sample["arguments"][right])]
    acc = float(sample["acc"] if "acc" in sample else sample["exact_match"])
    return Answered(acc, float(sample.get("acc_norm", acc)), -loglik, tokens)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's advice and bars off the screen; a real error still shows."""
    logger, shown = logging.getLogger("lm_eval"), lm_eval.api.task.tqdm
    level = logger.level
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = functools.partial(shown, disable=True)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = shown
        logger.setLevel(level)


@contextmanager
def _mode_restored(model: PreTrainedModel) -> Iterator[None]:
    """The harness puts the model into evaluation mode; give every module its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
