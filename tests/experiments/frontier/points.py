"""Points of a frontier, scored or not, made up."""

from __future__ import annotations

from offsite.experiments.frontier import Wish
from offsite.experiments.frontier.choose import Amount, FrontierPoint

ALL = Wish()


def cell(nll, acc=None, error=0.01):
    return {"acc": acc, "acc_stderr": error, "acc_norm": acc, "acc_norm_stderr": error, "nll": nll,
            "nll_stderr": error, "n": 100}  # fmt: skip


ENDS = {"zero_shot": {"t": cell(4.0, 0.5)}, "fine_tuned": {"t": cell(2.0, 0.6)}}


def bare(cosine, **settings):
    estimate = {"cosine": cosine, "relative_error": 1 - cosine, "loss_gap": 1 - cosine}
    return FrontierPoint(settings or {"keep": cosine}, cosine, estimate)


def wished(min_gap=None, max_loss=None):
    """A wish for a gap of so many nats and a loss of such a share."""
    return Wish(
        None if min_gap is None else Amount(min_gap), None if max_loss is None else Amount(max_loss, True)
    )


def point(cosine, nll, gap, **settings):
    """A scored point: the answer `nll` plugged in, the emulator tuned `gap` nats worse."""
    rows = {
        "emulator_zero_shot": {"t": cell(5.0, 0.4)},
        "emulator_tuned": {"t": cell(nll + gap, 0.5)},
        "plugged_in": {"t": cell(nll, 0.55)},
    }
    return bare(cosine, **settings).scored(rows, ENDS)
