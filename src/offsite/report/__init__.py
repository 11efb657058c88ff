"""What results say, as one HTML file: opens from disk, needs no network, prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from offsite.files.atomic import write_text
from offsite.report.comparison import comparison
from offsite.report.frontier import frontier
from offsite.report.page import render
from offsite.report.study import study

__all__ = ["write"]

_KINDS = {"study": study, "frontier": frontier}


def write(results: Mapping[str, object], path: Path) -> Path:
    """Write the report of a comparison, a study or a frontier to `path`, and return that.

    A comparison is as `compare` returns it: `rows` maps each of the five rows to its tasks and scores, with
    accuracies as shares of 1 and nll in nats per token of the right answer; `call` is the command, as one
    string or as its words. What is missing besides `rows`, `keep` and `method` is left out of the page. The
    others say what they are under `kind`; see `study.study` and `frontier.frontier`.

    Raises a UserError where the results do not have that shape or plotly is not installed; an OSError passes
    through, and nothing half-written stays.
    """
    page = render([_KINDS.get(str(results.get("kind")), comparison)(results)])
    write_text(path, page)
    return path
