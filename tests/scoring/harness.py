"""lm-evaluation-harness itself, with its class and its way through a task, to compare scores with."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import datasets
import lm_eval.evaluator
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

METRICS = {"multiple_choice": ("acc", "acc_norm"), "exact_match": ("exact_match",)}


def harness_model(model, tokenizer, **options):
    """Its wrapper of a model in memory; it gives the tokenizer a padding token."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), backend="causal", **options)


def harness_says(model, tokenizer, pairs):
    """What it makes of pairs of token ids."""
    requests = [((str(n), ""), prompt, answer) for n, (prompt, answer) in enumerate(pairs)]
    return harness_model(model, tokenizer, batch_size=5)._loglikelihood_tokens(requests, disable_tqdm=True)


def harness_rolls(model, tokenizer, texts, longest):
    """The log-likelihood of each text by its rolling windows."""
    asked = [SimpleNamespace(args=(text,)) for text in texts]
    wrapped = harness_model(model, tokenizer, max_length=longest)
    return wrapped.loglikelihood_rolling(asked, disable_tqdm=True)


def harness_scores(model, tokenizer, task):
    """The results of a whole task, with its samples: questions from memory, one space before each answer."""
    asked = ConfigurableTask(config=_config(task))
    wrapped = harness_model(model, tokenizer, batch_size=4)
    return lm_eval.evaluator.evaluate(lm=wrapped, task_dict={"tasks": {task.name: asked}}, bootstrap_iters=1)


def _config(task):
    exact = task.scoring == "exact_match"
    rows = [
        {
            "prompt": question.prompt,
            "choices": list(question.choices),
            "answer": list(range(len(question.choices))) if exact else question.answer,
        }
        for question in task.questions
    ]
    return {
        "task": task.name,
        "custom_dataset": lambda: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in METRICS[task.scoring]
        ],
    }
