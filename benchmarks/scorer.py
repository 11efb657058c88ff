"""Time the scorer of `offsite.evaluate` against lm-evaluation-harness's own class, on the same answers.

    python benchmarks/scorer.py [--questions 100] [--rounds 3] [--batch-size 16]

Runs A B A B ... on SmolLM2-135M and ARC-Easy; prints every time and the median ratio. Use a quiet machine.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

from offsite import models, tasks
from offsite.scoring.harness import HFLM, Scorer


def timed(score: Callable[..., Any], requests: list[Any]) -> tuple[float, list[Any]]:
    start = time.perf_counter()
    found = score(requests, disable_tqdm=True)
    return time.perf_counter() - start, found


def requests_of(scorer: Scorer, questions: tuple[tasks.Question, ...]) -> list[Any]:
    texts = [(question.prompt, f" {choice}") for question in questions for choice in question.choices]
    return [(pair, *scorer._encode_pair(*pair)) for pair in texts]


def compare(questions: int, rounds: int, batch_size: int) -> None:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, tokenizer = models.load("smollm2-135m")
    ours = Scorer(model, tokenizer)
    theirs = HFLM(pretrained=model, tokenizer=ours.tokenizer, backend="causal", batch_size=batch_size)
    requests = requests_of(ours, tasks.load("arc_easy", "test").questions[:questions])
    warm = requests[:16]
    for scorer in (ours, theirs):
        timed(scorer._loglikelihood_tokens, warm)
    ratios, shift = [], 0.0
    for number in range(rounds):
        seconds, scores = timed(ours._loglikelihood_tokens, requests)
        harness_seconds, harness_scores = timed(theirs._loglikelihood_tokens, requests)
        ratios.append(harness_seconds / seconds)
        gaps = [abs(mine[0] - other[0]) for mine, other in zip(scores, harness_scores, strict=True)]
        shift = max(shift, *gaps)
        print(f"round {number + 1}: offsite {seconds:.1f} s, harness {harness_seconds:.1f} s")
    print(
        f"{questions} questions, {len(requests)} answers: median ratio {statistics.median(ratios):.2f}, ",
        end="",
    )
    print(f"largest difference of a log-likelihood {shift:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16, help="of the harness's own class")
    arguments = parser.parse_args()
    compare(arguments.questions, arguments.rounds, arguments.batch_size)
