"""The answer to a wish, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from offsite.experiments.frontier.choose import FrontierPoint, Wish, choose, undominated
from offsite.experiments.frontier.grid import in_words
from offsite.results.statistics import Estimate


def verdict(points: Sequence[FrontierPoint], wish: Wish) -> str:
    """Answer the wish in a sentence, without a full stop."""
    if not wish:
        best = len(undominated(points))
        return f"Of the emulators scored {best} {_is(best)} not beaten in both loss and gap; a wish chooses one"
    chosen, closest = choose(points, wish)
    if chosen is not None:
        point = points[chosen]
        narrowly = " by less than a standard error" if wish.within_error(point) else ""
        return f"The emulator of {in_words(point.settings)} meets the wish{narrowly}: {_did(point)}"
    known = [point for point in points if point.reached is not None]
    if closest is None:
        return f"The wish cannot be judged: {_why_unknown(known)}"
    unmet = _unmet(known, wish)
    point = points[closest]
    return f"{unmet}; the closest, of {in_words(point.settings)}, {_short(point, wish)}: {_did(point)}"


def _unmet(points: Sequence[FrontierPoint], wish: Wish) -> str:
    gap, loss = f"a gap of {wish.min_gap}", str(wish.max_loss)
    if all(wish.lacks_gap(point) for point in points):
        return f"No emulator scored has {gap}"
    if all(wish.exceeds_loss(point) for point in points):
        return f"No emulator scored keeps its loss to {loss}"
    return f"No emulator scored has both {gap} and a loss of at most {loss}, though some have either"


def _short(point: FrontierPoint, wish: Wish) -> str:
    parts = []
    if lack := wish.lacks_gap(point):
        parts.append(f"lacks {lack:.3f} nats of the gap")
    if lack := wish.exceeds_loss(point):
        parts.append(f"loses {lack:.3f} nats more")
    return " and ".join(parts)


def _did(point: FrontierPoint) -> str:
    """Its loss and gap."""
    parts = []
    if point.loss:
        kept = f", so it keeps {point.gain.value:.1%} of what fine-tuning gains" if point.gain else ""
        parts.append(f"plugged in loses {_in_words(point.loss, point.loss_points)} against fine-tuned{kept}")
    if point.gap:
        parts.append(f"the emulator tuned is {_in_words(point.gap, point.gap_points)} worse than plugged in")
    return ", and ".join(parts)


def _in_words(nats: Estimate, points: Estimate | None) -> str:
    words = f"{nats.show(3)} {nats.spread(3)}".strip() + " nats"
    return words + (f" ({points.show(1)} {points.spread(1)}".rstrip() + " points)" if points else "")


def _why_unknown(points: Sequence[FrontierPoint]) -> str:
    if not points:
        return "no emulator was scored"
    return "fine-tuning is no better than zero-shot beyond its error here, so there is nothing to keep"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
