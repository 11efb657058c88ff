"""What `tune`, `plug` and, where it is the answer, `inspect` show of an audit: short tables and warnings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from offsite.audit import AdapterAudit, EmulatorAudit

_SHOWN = 3  # tensors that moved the furthest


def as_data(audit: EmulatorAudit | AdapterAudit) -> dict[str, object]:
    """All figures and warnings, for JSON."""
    return asdict(audit) | {"warnings": list(audit.warnings)}


def show_emulator(audit: EmulatorAudit, err: bool = True) -> None:
    """A few lines about an emulator that came in."""
    size, start = audit.parameters, audit.start
    _lines(
        f"parameters   {_millions(size.all)}: {_millions(size.trainable)} in the adapter layers, "
        f"{_millions(size.middle)} in the middle ({_millions(size.factored)} of them as factors)",
        f"loss         {start.loss:.2f} nats a token on {start.examples} of your examples",
        err=err,
    )
    if start.prompts is not None and start.swapped is not None:
        _lines(
            f"controls     {start.prompts:.2f} on their prompts, {start.swapped:.2f} on swapped answers",
            err=err,
        )
    _lines(f"odd weights  {len(audit.odd) or 'none'}", err=err)
    _warn(audit.warnings, err)


def show_adapter(audit: AdapterAudit) -> None:
    """A few lines about an adapter that came back."""
    for one in audit.moved[:_SHOWN]:
        matrix = "" if one.stable_rank is None else f", stable rank {one.stable_rank:.1f}"
        bound = "" if one.bound is None else f" (bound {one.bound:.3g})"
        _lines(f"moved        {one.shift:.3g} of its size{bound}{matrix}: {one.tensor}")
    _lines(f"median       {audit.median:.3g}, over {len(audit.moved)} tensors")
    if audit.loss:
        _lines(f"public text  {audit.loss.before:.2f} nats a token before, {audit.loss.after:.2f} plugged in")
    else:
        _lines("public text  not measured, for wikipedia is not in the cache; --text names a text")
    _warn(audit.warnings)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"


def _lines(*lines: str, err: bool = True) -> None:
    for line in lines:
        typer.echo(f"  {line}", err=err)


def _warn(warnings: Iterable[str], err: bool = True) -> None:
    for sentence in warnings:
        typer.echo(f"Warning: {sentence}", err=err)
