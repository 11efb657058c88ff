"""offsite evaluate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offsite.cli.options import Force, Json, Large, Limit, Seed, Tasks, a_bundle, a_model, words
from offsite.cli.shell import console, emit, output
from offsite.cli.tables import scores_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "evaluate"
HELP = """Score a model or an emulator bundle on tasks; the numbers equal lm-evaluation-harness's.

Example: `offsite evaluate tuned-model/ --tasks arc_easy,sciq --limit 200 -o scores.json`
"""


def command(
    path: Annotated[
        str, typer.Argument(callback=a_model, help="A model (folder, name, hub id) or an emulator bundle.")
    ],
    task_names: Tasks,
    adapter: Annotated[Path | None, typer.Option(callback=a_bundle, help="Plug this adapter in first.")] = None,
    limit: Limit = None,
    allow_large: Large = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Compute in the checkpoint's precision [default: bfloat16 where that is faster]."
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file for the scores.")] = None,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Open, put the adapter in, score, write."""
    if out:
        output(out, force, [path, *words(task_names), *([adapter] if adapter else [])], file=True)
    from offsite.data import tasks
    from offsite.files.atomic import write_json
    from offsite.model.precision import autocast
    from offsite.provenance import record
    from offsite.scoring import evaluate

    asked = [tasks.load(word, "test") for word in words(task_names)]
    model, tokenizer = _open(path, adapter, allow_large)
    with autocast(model, enabled=not exact) as context:
        scores = evaluate(model, tokenizer, asked, limit=limit)
    data: dict[str, Any] = {
        "scores": {name: asdict(score) for name, score in scores.items()},
        "precision": context,
        "sources": {task.name: task.source for task in asked},
        "notes": [task.note for task in asked if task.note],
        "record": record(seed),
    }
    if out:
        write_json(out, data)
    emit(data, json, lambda: console().print(scores_table(data["scores"], data["notes"])))


def _open(
    path: str, adapter: Path | None, allow_large: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from offsite.bundles.adapter import Adapter, swap
    from offsite.bundles.emulator import Emulator, is_emulator
    from offsite.errors import UserError
    from offsite.model import loading
    from offsite.model.modes import move
    from offsite.owner.plug import plug

    tuned = Adapter.load(adapter) if adapter else None
    if not is_emulator(path):
        model, tokenizer = loading.load(path)
        if tuned:
            plug(model, tuned)
        return model, tokenizer
    emulator = Emulator.load(path, allow_large=allow_large)
    if emulator.tokenizer is None:
        raise UserError(f"The emulator {path!r} came without a tokenizer, so it cannot be scored.")
    if tuned:
        _refuse_stranger(emulator.digest, tuned.emulator)
        swap(emulator.model, tuned)
    move(emulator.model, loading.device())
    return emulator.model, emulator.tokenizer


def _refuse_stranger(emulator: str, tuned_on: str) -> None:
    from offsite.errors import UserError

    if emulator != tuned_on:
        raise UserError(
            f"The adapter was tuned on another emulator: this one is {emulator[:12]}, it names {tuned_on[:12]}."
        )
