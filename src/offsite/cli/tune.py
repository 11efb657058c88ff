"""offsite tune."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offsite.cli.options import EmulatorBundle, Force, Json, Large, Rank, Seed, a_task
from offsite.cli.shell import beside, console, emit, leftovers, outputs, staged_with
from offsite.files.atomic import write_json

if TYPE_CHECKING:
    from offsite.bundles.emulator import Emulator
    from offsite.data.encoding import Prepared
    from offsite.data_owner.tune import TuneConfig, Tuned

NAME = "tune"
HELP = """Data owner: tune an emulator's adapter on private data. The data stay on this machine.

The data are a JSONL, CSV or parquet file, or a task's name. A row has prompt and completion, messages, text,
or prompt, choices and answer.

Example: `offsite tune emulator/ --data private.jsonl -o adapter/`

Another: `offsite tune emulator/ --data private.jsonl -o adapter/ --trusted-key owner.pub --lora-rank 8`
"""


Data = Annotated[str, typer.Option(callback=a_task, help="A data file, or the name of a task.")]
Show = Annotated[
    int,
    typer.Option(min=0, help="Print this many rows as they will be trained, with the learnt tokens marked."),
]
Date = Annotated[str | None, typer.Option(help="The date that a chat template prints as today's, YYYY-MM-DD.")]
Key = Annotated[
    Path | None,
    typer.Option(help="Refuse an emulator that is not signed with the private half of this public key."),
]
Trackers = Annotated[
    list[str] | None,
    typer.Option(
        help="Log to an experiment tracker; may be repeated: tensorboard (to ./runs or "
        "$TENSORBOARD_LOGGING_DIR), mlflow, trackio, wandb."
    ),
]


def command(
    emulator: EmulatorBundle,
    data: Data,
    out: Annotated[Path, typer.Option("-o", "--output", help="The adapter bundle to write.")],
    lora_rank: Rank = None,
    steps: Annotated[int, typer.Option(help="Maximum number of optimizer steps.")] = 150,
    batch_size: Annotated[int, typer.Option(help="Examples in an optimizer step.")] = 8,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-4,
    max_length: Annotated[int, typer.Option(help="Maximum tokens in an example.")] = 512,
    show: Show = 0,
    date: Date = None,
    trusted_key: Key = None,
    allow_large: Large = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    report_to: Trackers = None,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Read the data, tune, save the adapter and the data owner's private record."""
    private = outputs(out, None, force, [emulator, data])
    from offsite import audit
    from offsite.cli import audits, training_rows
    from offsite.data import tasks
    from offsite.data.encoding import DATE
    from offsite.data_owner.tune import TuneConfig
    from offsite.data_owner.tune import training_rows as prepared
    from offsite.model.decoder import longest

    config = TuneConfig(
        steps=steps, batch_size=batch_size, lr=lr, seed=seed, lora_rank=lora_rank, max_length=max_length,
        report_to=tuple(report_to or ()), date=date or DATE,
    )  # fmt: skip
    opened = _opened(emulator, trusted_key, allow_large)
    examples = tasks.examples(data)
    rows = prepared(opened, examples, config)
    tokenizer = opened.tokenizer
    assert tokenizer is not None, "without one, no rows are prepared"
    training_rows.warn(rows, longest(opened.model))
    training_rows.show(rows, tokenizer, show)
    found = audit.emulator(opened, examples, max_length=max_length, seed=seed)
    audits.show_emulator(found)
    audited = audits.as_data(found)
    seen = {"data": data, "rows": training_rows.as_data(rows, tokenizer), "audit": audited}
    tuned = _tuned(opened, rows, config, out, private, seen, resume)
    shown = training_rows.as_data(rows, tokenizer, show)
    _show(tuned, steps, out, private, {"rows": shown, "audit": audited}, json)


def _opened(path: Path, trusted_key: Path | None, allow_large: bool) -> Emulator:
    """Check the signature, if a key is given, and load the emulator onto the device."""
    from offsite.bundles.emulator import Emulator
    from offsite.model import loading
    from offsite.model.modes import move

    if trusted_key:
        from offsite.bundles import signing

        signing.verify(path, trusted_key)
    emulator = Emulator.load(path, allow_large=allow_large)
    move(emulator.model, loading.device())
    return emulator


def _tuned(
    emulator: Emulator,
    rows: Prepared,
    config: TuneConfig,
    out: Path,
    private: Path,
    seen: dict[str, Any],
    resume: bool,
) -> Tuned:
    """Tune, and write the adapter and its receipt, which has what was `seen` before."""
    from offsite.data_owner.tune import tune
    from offsite.training.checkpoint import has_checkpoint

    with leftovers(beside(out, ".tuning"), has_checkpoint) as work:
        if resume and not has_checkpoint(work):
            typer.echo(
                "There is no interrupted run to go on from; this one begins at the first step.", err=True
            )
        tuned = tune(emulator, rows, config, work=work, resume=resume)
        with staged_with(private, out) as (receipt, folder):
            tuned.save(folder)
            _record(receipt, tuned, config, seen)
    return tuned


def _record(folder: Path, tuned: Tuned, config: TuneConfig, seen: dict[str, Any]) -> None:
    from offsite.provenance import record

    receipt = {
        "adapter": tuned.digest,
        "config": asdict(config),
        **seen,
        "curve": [point._asdict() for point in tuned.curve],
        "record": record(config.seed),
    }
    write_json(folder / "receipt.json", receipt)


def _show(tuned: Tuned, steps: int, out: Path, private: Path, seen: dict[str, Any], json: bool) -> None:
    losses = [point.loss for point in tuned.curve if point.loss is not None]
    heldout = {point.step: point.heldout for point in tuned.curve if point.heldout is not None}
    last = max(point.step for point in tuned.curve)
    kept = min(heldout, key=heldout.__getitem__, default=last)
    result = {
        "adapter": str(out),
        "receipt": str(private),
        "digest": tuned.digest,
        "loss": {"first": losses[0], "last": losses[-1]} if losses else None,
        "heldout": {"first": next(iter(heldout.values())), "best": heldout[kept]} if heldout else None,
        "steps": {"asked": steps, "made": last, "kept": kept},
        **seen,
    }

    def show() -> None:
        say = console().print
        say(f"Adapter in {out}. Send this folder.")
        if losses:
            say(f"Loss on the data: {losses[0]:.2f} at first, {losses[-1]:.2f} at last.")
        if heldout:
            first = next(iter(heldout))
            say(
                f"Held-out loss: {heldout[first]:.2f} after {first} steps, {heldout[kept]:.2f} at best, after "
                f"{kept}: those are kept."
            )
        if last < steps:
            say(f"Stopped after {last} of {steps} steps, for the held-out loss fell no further.")
        say(f"Receipt in {private}: your call and curve. Keep it to yourself.")

    emit(result, json, show)
