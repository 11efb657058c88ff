"""Rows as they will be trained: how many, what of them is cut or left out, and the first few as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from offsite.cli.tables import duration
from offsite.data.encoding import as_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from offsite.data.encoding import Prepared
    from offsite.data_owner.plan import Plan


def as_data(data: Prepared, tokenizer: PreTrainedTokenizerBase, count: int = 1) -> dict[str, object]:
    """What the receipt and `--json` have: counts, and the first `count` rows in pieces."""
    return {
        "trained": len(data.rows),
        "limit": data.limit,
        "cut": {"rows": data.cut_rows, "tokens": data.cut_tokens, "longest": data.longest},
        "untaught": {"rows": len(data.untaught), "first": data.untaught[0] if data.untaught else None},
        "first": [
            {
                "where": where,
                "pieces": [{"text": text, "learnt": learnt} for text, learnt in as_text(row, tokenizer)],
            }
            for row, where in zip(data.rows[:count], data.where, strict=False)
        ],
    }


def warn(data: Prepared, readable: int) -> None:
    """Say what will not be trained on, and how to keep it; `readable`: tokens that the emulator reads."""
    if data.cut_rows:
        way = f"--max-length {data.longest} keeps them"
        if data.longest > readable:
            way = f"the emulator reads {readable} tokens, so split those rows to keep them"
        rows = _counted(data.cut_rows, "row")
        typer.echo(
            f"Warning: {_counted(data.cut_tokens, 'token')} at the beginning of {rows} will be cut, for a row "
            f"has {data.limit} tokens at the most; {way}.",
            err=True,
        )
    if data.untaught:
        typer.echo(
            f"Warning: {_counted(len(data.untaught), 'row')} would teach nothing and will be left out, the "
            f"first at {data.untaught[0]}.",
            err=True,
        )


def announce(plan: Plan) -> None:
    """Say how many rows a tuning will see how often, and about how long it will take."""
    seen = plan.steps * plan.examples_a_step
    often = f"each about {plan.times:.3g} times" if plan.times >= 1 else f"of which it sees only {seen:,}, once"
    typer.echo(
        f"  {_counted(plan.rows, 'row')} to tune on, {often}, and {plan.heldout:,} held out; "
        f"{_counted(plan.steps, 'step')} of {plan.examples_a_step}, about {duration(plan.seconds)} or less.",
        err=True,
    )


def show(data: Prepared, tokenizer: PreTrainedTokenizerBase, count: int) -> None:
    """Print the first `count` rows, what is learnt in bold green on a terminal, else in [[ ]]."""
    screen = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    for row, where in zip(data.rows[:count], data.where, strict=False):
        line = Text(f"{where}: ", style="dim")
        for text, learnt in as_text(row, tokenizer):
            shown = _visible(text)
            if learnt and not screen.is_terminal:
                shown = f"[[{shown}]]"
            line.append(shown, style="bold green not dim" if learnt else "not dim")
        screen.print(line)


def _visible(text: str) -> str:
    """The text with its control characters written out: a terminal would obey them."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
