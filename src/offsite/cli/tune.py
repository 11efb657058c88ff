"""offsite tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offsite.cli.options import (
    EmulatorBundle,
    Epochs,
    Force,
    Json,
    Large,
    Rank,
    Rate,
    Seed,
    Steps,
    a_task,
    tuning_option,
)
from offsite.cli.shell import beside, console, emit, leftovers, outputs, staged_with
from offsite.data_owner.config import TuneConfig
from offsite.errors import UserError
from offsite.files.atomic import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from offsite.bundles.emulator import Emulator
    from offsite.data.encoding import Prepared
    from offsite.data_owner.plan import Plan
    from offsite.data_owner.tune import Tuned

NAME = "tune"
HELP = """Data owner: tune an emulator's adapter on private data. The data stay on this machine.

The data are a JSONL, CSV or parquet file, or a task's name. A row has prompt and completion, messages, text,
or prompt, choices and answer.

Example: `offsite tune emulator/ --data private.jsonl -o adapter/`

Another: `offsite tune emulator/ --data private.jsonl -o adapter/ --trusted-key owner.pub --lora-rank 8`
"""


Data = Annotated[str, typer.Option(callback=a_task, help="A data file, or the name of a task.")]
EvalData = Annotated[
    str | None,
    typer.Option(callback=a_task, help="Held-out rows of your own [default: some of the data, set apart]."),
]
Alpha = Annotated[int | None, tuning_option("lora_alpha")]
BatchSize = Annotated[int, tuning_option("batch_size")]
Accumulate = Annotated[int, tuning_option("accumulate")]
Recompute = Annotated[bool, tuning_option("gradient_checkpointing", "--gradient-checkpointing")]
Decay = Annotated[float, tuning_option("weight_decay")]
MaxLength = Annotated[int, tuning_option("max_length")]
Show = Annotated[
    int,
    typer.Option(min=0, help="Print this many rows as they will be trained, with the learnt tokens marked."),
]
Date = Annotated[str, tuning_option("date")]
Key = Annotated[
    Path | None,
    typer.Option(help="Refuse an emulator that is not signed with the private half of this public key."),
]
Trackers = Annotated[list[str] | None, tuning_option("report_to")]


def command(
    emulator: EmulatorBundle,
    data: Data,
    out: Annotated[Path, typer.Option("-o", "--output", help="The adapter bundle to write.")],
    eval_data: EvalData = None,
    epochs: Epochs = None,
    steps: Steps = None,
    lr: Rate = None,
    batch_size: BatchSize = TuneConfig.batch_size,
    accumulate: Accumulate = TuneConfig.accumulate,
    gradient_checkpointing: Recompute = False,
    weight_decay: Decay = TuneConfig.weight_decay,
    lora_rank: Rank = None,
    lora_alpha: Alpha = None,
    max_length: MaxLength = TuneConfig.max_length,
    show: Show = 0,
    date: Date = TuneConfig.date,
    trusted_key: Key = None,
    allow_large: Large = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    report_to: Trackers = None,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Read the data, tune, save the adapter and the data owner's private record."""
    private = outputs(out, None, force, [emulator, data, *([eval_data] if eval_data else [])])
    if lora_alpha is not None and lora_rank is None:
        raise UserError("--lora-alpha is the scale of a LoRA; add --lora-rank, or leave it out.")
    config = TuneConfig(
        epochs=epochs, steps=steps, lr=lr, batch_size=batch_size, accumulate=accumulate,
        gradient_checkpointing=gradient_checkpointing, weight_decay=weight_decay, lora_rank=lora_rank,
        lora_alpha=lora_alpha or TuneConfig.lora_alpha, max_length=max_length, date=date,
        report_to=tuple(report_to or ()), seed=seed,
    )  # fmt: skip
    opened = _opened(emulator, trusted_key, allow_large)
    read = _read(opened, data, eval_data, config, show)
    tuned = _tuned(opened, read, config, out, private, resume)
    _show(tuned, out, private, read.seen(show), json)


@dataclass(frozen=True)
class _Read:
    """What was read before the tuning, and what was said of it."""

    data: str
    eval_data: str | None
    rows: Prepared
    heldout: Prepared | None
    tokenizer: PreTrainedTokenizerBase
    audited: dict[str, Any]
    plan: Plan

    def seen(self, count: int = 1) -> dict[str, Any]:
        """As JSON, with the first `count` rows."""
        from offsite.cli import training_rows

        rows = training_rows.as_data(self.rows, self.tokenizer, count)
        return {"rows": rows, "audit": self.audited, "plan": asdict(self.plan)}


def _read(opened: Emulator, data: str, eval_data: str | None, config: TuneConfig, count: int) -> _Read:
    """Read the rows, and say what they are, what the emulator is, and what the tuning will do."""
    from offsite import audit
    from offsite.cli import audits, training_rows
    from offsite.data import tasks
    from offsite.data_owner.plan import plan
    from offsite.data_owner.tune import training_rows as prepared
    from offsite.model.decoder import longest

    examples = tasks.examples(data)
    rows = prepared(opened, examples, config)
    heldout = prepared(opened, tasks.examples(eval_data), config) if eval_data else None
    tokenizer = opened.tokenizer
    assert tokenizer is not None, "without one, no rows are prepared"
    training_rows.warn(rows, longest(opened.model))
    training_rows.show(rows, tokenizer, count)
    found = audit.emulator(opened, examples, max_length=config.max_length, seed=config.seed)
    audits.show_emulator(found)
    planned = plan(opened, rows, config, heldout)
    training_rows.announce(planned)
    return _Read(data, eval_data, rows, heldout, tokenizer, audits.as_data(found), planned)


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
    emulator: Emulator, read: _Read, config: TuneConfig, out: Path, private: Path, resume: bool
) -> Tuned:
    """Tune, and write the adapter and its receipt."""
    from offsite.data_owner.tune import tune
    from offsite.training.checkpoint import has_checkpoint

    with leftovers(beside(out, ".tuning"), has_checkpoint) as work:
        if resume and not has_checkpoint(work):
            typer.echo(
                "There is no interrupted run to go on from; this one begins at the first step.", err=True
            )
        tuned = tune(emulator, read.rows, config, heldout=read.heldout, work=work, resume=resume)
        with staged_with(private, out) as (receipt, folder):
            tuned.save(folder)
            _record(receipt, tuned, read)
    return tuned


def _record(folder: Path, tuned: Tuned, read: _Read) -> None:
    from offsite.provenance import record

    receipt = {
        "adapter": tuned.digest,
        "config": asdict(tuned.config),
        "learning_rate": tuned.rate and asdict(tuned.rate),
        "data": read.data,
        "eval_data": read.eval_data,
        **read.seen(),
        "curve": [point._asdict() for point in tuned.curve],
        "record": record(tuned.config.seed),
    }
    write_json(folder / "receipt.json", receipt)


def _show(tuned: Tuned, out: Path, private: Path, seen: dict[str, Any], json: bool) -> None:
    losses = [point.loss for point in tuned.curve if point.loss is not None]
    heldout = {point.step: point.heldout for point in tuned.curve if point.heldout is not None}
    last, asked = max(point.step for point in tuned.curve), tuned.config.steps
    kept = min(heldout, key=heldout.__getitem__, default=last)
    result = {
        "adapter": str(out),
        "receipt": str(private),
        "digest": tuned.digest,
        "learning_rate": tuned.rate and asdict(tuned.rate),
        "loss": {"first": losses[0], "last": losses[-1]} if losses else None,
        "heldout": {"first": heldout[min(heldout)], "best": heldout[kept]} if heldout else None,
        "steps": {"asked": asked, "made": last, "kept": kept},
        **seen,
    }

    def show() -> None:
        say = console().print
        say(f"Adapter in {out}. Send this folder.")
        say(str(tuned.rate))
        if losses:
            say(f"Loss on the data: {losses[0]:.2f} at first, {losses[-1]:.2f} at last.")
        if heldout:
            say(_of_heldout(heldout, kept))
        if asked is not None and last < asked:
            say(f"Stopped after {last} of {asked} steps, for the held-out loss fell no further.")
        say(f"Receipt in {private}: your call and curve. Keep it to yourself.")

    emit(result, json, show)


def _of_heldout(heldout: Mapping[int, float], kept: int) -> str:
    if kept == 0:
        return (
            f"Warning: no step lowered the held-out loss of {heldout[0]:.2f}, so the adapter is as it came; "
            "take a lower --lr, or other rows."
        )
    best = f"{heldout[kept]:.2f} at best, after {kept} steps: those are kept."
    first = min(heldout)
    return f"Held-out loss: {heldout[first]:.2f} {f'after {first} steps' if first else 'before'}, {best}"
