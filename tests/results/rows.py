"""Rows of made-up choices, and the five rows of them."""

from __future__ import annotations

import math
import random

from offsite.results.schema import ROWS, Score
from offsite.results.statistics import standard_error


def score_of(choices, right):
    """As `evaluate` would score it, but for what no choice says."""
    hits = [float(one.index(max(one)) == place) for one, place in zip(choices, right, strict=True)]
    acc, error = sum(hits) / len(hits), standard_error(hits)
    return Score(acc=acc, acc_stderr=error, nll=3.0, nll_stderr=0.1, n=len(hits), choices=choices, right=right)


def made(skills, questions=200, choices=4, seed=0, sure=8.0):
    """A `Score` for each of `skills`: how much the right choice stands out of noise that all have in common."""
    rng = random.Random(seed)
    noise = [[rng.gauss(0, 1) for _ in range(choices)] for _ in range(questions)]
    right = tuple(rng.randrange(choices) for _ in range(questions))
    found = []
    for skill in skills:
        sums = [
            [sure * (each + rng.gauss(0, 0.2) + skill * (place == answer)) for place, each in enumerate(one)]
            for one, answer in zip(noise, right, strict=True)
        ]
        found.append(score_of(tuple(tuple(round(each, 4) for each in one) for one in sums), right))
    return found


def five(zero=0.0, tuned=1.5, emulator=0.5, plugged=1.3, task="t", **more):
    """The five rows of such scores."""
    scores = made((zero, tuned, zero, emulator, plugged), **more)
    return {row.key: {task: score} for row, score in zip(ROWS, scores, strict=True)}


def by_nll(*nlls):
    """Zero-shot, fine-tuned and plugged in, by (answer nll, error) and without choices; None: not there."""
    keys = ("zero_shot", "fine_tuned", "plugged_in")
    cells = zip(keys, nlls, strict=True)
    return {key: {"t": Score(nll=cell[0], nll_stderr=cell[1], n=9)} for key, cell in cells if cell}


def entropy(count):
    """Of guessing among so many choices."""
    return math.log(count)
