"""Time the scorer of `offsite.evaluate` against lm-evaluation-harness's own class, on the same answers.

    python benchmarks/scorer.py [--tasks arc_easy ...] [--questions 100] [--rounds 3] [--clock wall] [--bf16]

Runs A B A B ... on SmolLM2-135M in float32, the harness with the batch size that is fastest for it on a first
part of the questions; prints every time, the median ratio and the largest difference of a log-likelihood. With
`--bf16` both run under bfloat16 autocast, as offsite scores where the processor has it. Use a quiet machine;
`--clock cpu` counts processor seconds, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from lm_eval.models.huggingface import HFLM

from offsite.data import tasks
from offsite.model import loading, precision
from offsite.scoring.scorer import answer_likelihoods
from offsite.scoring.tokens import Pair, answer_pairs, reads

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Way = Callable[[list[Pair]], list[Any]]
"""Log-likelihoods first of each, of a prompt and an answer."""


def stopwatch(clock: str) -> Callable[[Way, list[Pair]], tuple[float, list[Any]]]:
    now = CLOCKS[clock]

    def timed(way: Way, pairs: list[Pair]) -> tuple[float, list[Any]]:
        start = now()
        found = way(pairs)
        return now() - start, found

    return timed


def harness(model: Any, tokenizer: Any, size: int, bf16: bool) -> Way:
    wrapped = HFLM(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),  # it is given a padding token
        backend="causal",
        batch_size=size,
        mixed_precision_dtype="bfloat16" if bf16 else None,
    )
    return lambda pairs: wrapped._loglikelihood_tokens(
        [((str(n), ""), *pair) for n, pair in enumerate(pairs)], disable_tqdm=True
    )


def compare(name: str, ours: Way, theirs: dict[int, Way], pairs: list[Pair], asked: argparse.Namespace) -> None:
    timed = stopwatch(asked.clock)
    part = pairs[: max(64, len(pairs) // 5)]
    timed(next(iter(theirs.values())), pairs[:8])
    size = min(theirs, key=lambda size: timed(theirs[size], part)[0])
    timed(ours, pairs[:16])
    ratios, shift = [], 0.0
    for number in range(asked.rounds):
        seconds, scores = timed(ours, pairs)
        harness_seconds, harness_scores = timed(theirs[size], pairs)
        ratios.append(harness_seconds / seconds)
        gaps = [abs(mine[0] - other[0]) for mine, other in zip(scores, harness_scores, strict=True)]
        shift = max(shift, *gaps)
        print(
            f"{name}, round {number + 1}: offsite {seconds:.1f} s, harness {harness_seconds:.1f} s", flush=True
        )
    print(
        f"{name}: {asked.questions} questions, {len(pairs)} answers, harness in batches of {size}: "
        f"median ratio {statistics.median(ratios):.2f},",
        f"largest difference of a log-likelihood {shift:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--tasks", nargs="+", default=["arc_easy"], help="tasks by name, or files of questions")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 16, 32], help="of the harness")
    parser.add_argument("--bf16", action="store_true", help="score under autocast, on both sides")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="wall or processor seconds")
    asked = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, tokenizer = loading.load(asked.model)
    model.eval()
    theirs = {size: harness(model, tokenizer, size, asked.bf16) for size in asked.batch_sizes}
    with precision.autocast(model) if asked.bf16 else nullcontext():
        for name in asked.tasks:
            questions = tasks.load(name, "test").questions[: asked.questions]
            groups = answer_pairs(questions, tokenizer, reads(model, tokenizer))
            pairs = [pair for group in groups for pair in group]
            compare(name, lambda some: answer_likelihoods(model, some, lambda *_: None), theirs, pairs, asked)


if __name__ == "__main__":
    main()
