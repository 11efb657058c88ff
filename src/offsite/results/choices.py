"""Choice nll: how likely a model finds the right choice among those given, in nats a question.

A question's choices c have summed log-likelihoods l_c, in nats. At a temperature T its choice nll is

    ln sum_c exp(l_c / T) - l_right / T.

Raw sums (T = 1) are far too sure of themselves. So one T is fitted for each model and task: the one of least
mean choice nll on half of the questions scores the other half, and the reverse (cross-fitting). The halves are
the even and the odd places. T stays within 0.1 and 1000; at 1000 all choices are about equally likely, and the
choice nll is that of guessing, the log of the number of choices. The error of the fit is not in any standard
error.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import chain
from statistics import fmean

Logliks = tuple[tuple[float, ...], ...]
"""Of each question, the summed log-likelihood of each of its choices, in nats."""
_Asked = tuple[Sequence[float], int]
_COLDEST, _HOTTEST = 0.1, 1000.0
_HALVINGS = 24  # of ln T, whose range is 9.2 wide: to 1e-6


@functools.lru_cache(maxsize=1024)
def choice_nlls(choices: Logliks, right: tuple[int, ...]) -> tuple[float, ...] | None:
    """Compute the choice nll of each question.

    None where a log-likelihood is not finite, and of fewer than two questions, which have no other half.
    """
    asked = list(zip(choices, right, strict=True))
    if len(asked) < 2 or not all(map(math.isfinite, chain.from_iterable(choices))):
        return None
    fitted = temperature(asked[1::2]), temperature(asked[::2])  # each on the other half
    return tuple(_nll(one, fitted[place % 2]) for place, one in enumerate(asked))


def picks(choices: Logliks, right: tuple[int, ...]) -> tuple[float, ...]:
    """For each question 1 where the right choice is the likeliest, of equals the first, or else 0."""
    return tuple(float(one.index(max(one)) == answer) for one, answer in zip(choices, right, strict=True))


def temperature(asked: Sequence[_Asked]) -> float:
    """Find the T of least mean choice nll.

    The mean is convex in 1 / T, so its slope changes sign at most once.
    """
    low, high = math.log(_COLDEST), math.log(_HOTTEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _slope(asked, math.exp(middle)) < 0 else (middle, high)
    return math.exp((low + high) / 2)


def _slope(asked: Sequence[_Asked], t: float) -> float:
    """The slope of the mean in 1 / T: what the softmax expects of l, less that of the right choice."""
    return fmean(_expected(one, t) - one[answer] for one, answer in asked)


def _expected(logliks: Sequence[float], t: float) -> float:
    most = max(logliks)
    weights = [math.exp((each - most) / t) for each in logliks]
    return sum(w * each for w, each in zip(weights, logliks, strict=True)) / sum(weights)


def _nll(asked: _Asked, t: float) -> float:
    logliks, answer = asked
    most = max(logliks)
    return math.log(sum(math.exp((each - most) / t) for each in logliks)) - (logliks[answer] - most) / t
