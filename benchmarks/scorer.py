"""Time the scorer of `offsite.evaluate` against lm-evaluation-harness's own class, on the same answers.

    python benchmarks/scorer.py [--tasks arc_easy ...] [--questions 100] [--rounds 3] [--clock wall] [--bf16]

Runs A B A B ... on SmolLM2-135M in float32, the harness with the batch size that is fastest for it on a first
part of the questions; prints every time, the median ratio and the largest difference of a log-likelihood. With
`--bf16` both run under bfloat16 autocast, as offsite scores where the processor has it. Use a quiet machine;
`--clock cpu` counts processor seconds, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from offsite.data import tasks
from offsite.model import loading, precision
from offsite.scoring.harness import HFLM, Scorer

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Timed = Callable[[Any, list[Any]], tuple[float, list[Any]]]


def stopwatch(clock: str) -> Timed:
    now = CLOCKS[clock]

    def timed(scorer: Any, requests: list[Any]) -> tuple[float, list[Any]]:
        start = now()
        found = scorer._loglikelihood_tokens(requests, disable_tqdm=True)
        return now() - start, found

    return timed


def requests_of(scorer: Scorer, questions: tuple[tasks.Question, ...]) -> list[Any]:
    texts = [(question.prompt, f" {choice}") for question in questions for choice in question.choices]
    return [(pair, *scorer._encode_pair(*pair)) for pair in texts]


def quickest(made: list[Any], requests: list[Any], timed: Timed) -> Any:
    timed(made[0], requests[:8])
    return min(made, key=lambda scorer: timed(scorer, requests)[0])


def compare(name: str, ours: Scorer, theirs: list[Any], asked: argparse.Namespace) -> None:
    requests = requests_of(ours, tasks.load(name, "test").questions[: asked.questions])
    timed = stopwatch(asked.clock)
    harness = quickest(theirs, requests[: max(64, len(requests) // 5)], timed)
    timed(ours, requests[:16])
    ratios, shift = [], 0.0
    for number in range(asked.rounds):
        seconds, scores = timed(ours, requests)
        harness_seconds, harness_scores = timed(harness, requests)
        ratios.append(harness_seconds / seconds)
        gaps = [abs(mine[0] - other[0]) for mine, other in zip(scores, harness_scores, strict=True)]
        shift = max(shift, *gaps)
        print(
            f"{name}, round {number + 1}: offsite {seconds:.1f} s, harness {harness_seconds:.1f} s", flush=True
        )
    print(
        f"{name}: {asked.questions} questions, {len(requests)} answers, harness in batches of "
        f"{harness.batch_size}: median ratio {statistics.median(ratios):.2f},",
        f"largest difference of a log-likelihood {shift:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--tasks", nargs="+", default=["arc_easy"], help="tasks by name, or files of questions")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 16, 32], help="the harness's own")
    parser.add_argument("--bf16", action="store_true", help="score under autocast, on both sides")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="wall or processor seconds")
    asked = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, tokenizer = loading.load(asked.model)
    ours = Scorer(model, tokenizer)
    theirs = [
        HFLM(
            pretrained=model,
            tokenizer=ours.tokenizer,
            backend="causal",
            batch_size=size,
            mixed_precision_dtype="bfloat16" if asked.bf16 else None,
        )
        for size in asked.batch_sizes
    ]
    with precision.autocast(model) if asked.bf16 else nullcontext():
        for name in asked.tasks:
            compare(name, ours, theirs, asked)


if __name__ == "__main__":
    main()
