"""Judges outcomes: a success, or a refusal in one sentence; soon, in little memory, leaving nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MOST_SECONDS, MOST_MEGABYTES, LONGEST = 30.0, 160.0, 700
PATIENCE = 90  # seconds on the clock, after which a case hangs


def complaints(outcome: dict[str, Any], usual: float) -> Iterator[str]:
    """What is wrong with how a case ended; each begins with a word or two that are the same for its kind."""
    stderr, code = outcome["err"], outcome["code"]
    if code not in (0, 2):
        yield f"code {code}: {stderr[-700:]}"
    if code == 2:
        lines = stderr.strip().splitlines()
        last = lines[-1] if lines else ""
        if not (last.startswith("offsite: ") and len(last) <= LONGEST and last.endswith((".", "?", "`"))):
            yield f"no sentence: {stderr[-700:]!r}"
        if outcome["left"]:
            yield f"left behind: {outcome['left']}"
    if odd := [each for each in stderr + outcome["out"] if not (each.isprintable() or each in "\n\r\t")]:
        yield f"steers the terminal: {odd[:5]!r} in {stderr[-300:]!r} {outcome['out'][-300:]!r}"
    if "Traceback" in stderr or "panicked" in stderr:
        yield f"leaks: {stderr[-700:]!r}"
    if outcome["events"]:
        yield f"did more: {outcome['events']}"
    if outcome["seconds"] > MOST_SECONDS or outcome["clock"] > PATIENCE:
        yield f"slow: {outcome['seconds']:.0f} s of processor time, {outcome['clock']:.0f} s"
    if outcome["mb"] > max(usual, 0.0) + MOST_MEGABYTES:
        yield f"large: {outcome['mb']:.0f} MiB, where {usual:.0f} are usual"
    if outcome["changed"] or outcome["canary"]:
        yield f"changed: {outcome['changed']}, canary {outcome['canary']}"
    passed = code == 0 and outcome["command"] in ("verify", "tune", "plug")
    if passed and outcome["sender"] == "owner" and outcome["differs"]:
        yield "altered: it passed as the owner's, who signed something else"
