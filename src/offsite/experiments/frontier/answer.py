"""The answer to a wish, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from offsite.experiments.frontier.choose import FrontierPoint, Wish, choose, undominated
from offsite.experiments.frontier.grid import in_words


def verdict(points: Sequence[FrontierPoint], wish: Wish) -> str:
    """Answer the wish in a sentence, without a full stop."""
    if not wish:
        best = len(undominated(points))
        return f"Of the emulators scored {best} {_is(best)} not beaten in both gain and gap; a wish chooses one"
    chosen, closest = choose(points, wish)
    if chosen is not None:
        point = points[chosen]
        narrowly = " by less than a standard error" if wish.within_error(point) else ""
        return f"The emulator of {in_words(point.settings)} meets the wish{narrowly}: {_did(point)}"
    known = [point for point in points if point.fall is not None]
    if closest is None:
        return f"The wish cannot be judged: {_why_unknown(known, wish)}"
    unmet = _unmet(known, wish)
    point = points[closest]
    return f"{unmet}; the closest, of {in_words(point.settings)}, {_short(point, wish)}: {_did(point)}"


def _unmet(points: Sequence[FrontierPoint], wish: Wish) -> str:
    gap = f"a gap of {wish.min_gap or 0:g} points"
    loss = f"{100 * (wish.max_loss or 0):g}% of what fine-tuning gains"
    if all(wish.lacks_gap(point.gap) for point in points):
        return f"No emulator scored has {gap}"
    if all(wish.lacks_gain(point.gain) for point in points):
        return f"No emulator scored keeps its loss to {loss}"
    return f"No emulator scored has both {gap} and a loss of at most {loss}, though some have either"


def _short(point: FrontierPoint, wish: Wish) -> str:
    lacks = [(wish.lacks_gap(point.gap), "points of the gap"), (wish.lacks_gain(point.gain), "% of the gain")]
    parts = [f"{lack:.1f}{'' if what[0] == '%' else ' '}{what}" for lack, what in lacks if lack]
    return f"lacks {' and '.join(parts)}"


def _did(point: FrontierPoint) -> str:
    parts = []
    if point.gap is not None:
        error = "" if point.gap_stderr is None else f" (standard error {point.gap_stderr:.1f})"
        parts.append(f"plugged in lies {point.gap:.1f} points above the emulator tuned{error}")
    if point.gain is not None:
        error = "" if point.gain_stderr is None else f" (standard error {point.gain_stderr:.1%})"
        parts.append(f"plugged in reaches {point.gain:.1%}{error} of what fine-tuning gains")
    return " and ".join(parts)


def _why_unknown(points: Sequence[FrontierPoint], wish: Wish) -> str:
    if not points:
        return "no emulator was scored"
    if all(wish.lacks_gap(point.gap) == float("inf") for point in points):
        return "no task here has an accuracy, in which the gap counts"
    return "fine-tuning does not clearly lower the answer nll here, so there is nothing to hold a loss against"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
