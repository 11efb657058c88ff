"""offsite plug."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.cli.options import Force, Json, a_bundle, a_model, a_text, some_bundles
from offsite.cli.shell import emit, mark, outputs, staged_with
from offsite.files.atomic import write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from offsite.bundles.adapter import Adapter

_TEXT, _BLOCKS, _LENGTH = "wikipedia", 16, 128  # public text that takes seconds

NAME = "plug"
HELP = """Model owner: put a tuned adapter into the full model and write a transformers checkpoint.

Example: `offsite plug smollm2-135m adapter/ -o tuned-model/`

Another: `offsite plug smollm2-135m adapter/ -o tuned-model/ --trusted-key their.pub --max-shift 0.1`
"""

TrustedKey = Annotated[
    Path | None,
    typer.Option(help="Refuse an adapter that is not signed with the private half of this public key."),
]
Receipts = Annotated[
    list[Path] | None,
    typer.Option(
        help="Folder with receipts of sent emulators; may be repeated [default: the output's and this one]."
    ),
]
MaxShift = Annotated[
    float | None,
    typer.Option(
        min=0.0, help="Refuse an adapter with a tensor that moved by more than this share of its norm."
    ),
]
Expect = Annotated[
    list[Path] | None,
    typer.Option(
        callback=some_bundles,
        help="A trusted adapter: warn where the new one moved over twice as far; may be repeated.",
    ),
]
PublicText = Annotated[
    str | None,
    typer.Option(
        callback=a_text, help="Public text for the loss check [default: wikipedia, if it is in the cache]."
    ),
]


def command(
    model: Annotated[str, typer.Argument(callback=a_model, help="The model that the emulator was made from.")],
    adapter: Annotated[Path, typer.Argument(callback=a_bundle, help="The adapter bundle that came back.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint to write.")],
    trusted_key: TrustedKey = None,
    receipts: Receipts = None,
    max_shift: MaxShift = None,
    expect: Expect = None,
    text: PublicText = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Check that the adapter is for this model, plug it in, save."""
    private = outputs(out, None, force, [model, adapter, *(expect or ()), *([text] if text else [])])
    from offsite import audit
    from offsite.bundles.adapter import Adapter
    from offsite.cli import audits
    from offsite.errors import UserError
    from offsite.model import checkpoint, loading
    from offsite.owner.plug import plug

    if max_shift is not None and not max_shift >= 0:
        raise UserError(f"--max-shift is a share of a tensor's size, such as 0.1, not {max_shift}.")
    if trusted_key:
        from offsite.bundles import signing

        signing.verify(adapter, trusted_key)
    tuned = Adapter.load(adapter)
    known = _is_recorded(tuned, receipts, [out.parent.resolve(), Path.cwd()])
    trusted = [Adapter.load(path) for path in expect or ()]
    whole, tokenizer = loading.load(model)
    displaced = plug(whole, tuned)
    tokens = _public(text, whole, tokenizer)
    found = audit.adapter(whole, displaced, trusted=trusted, tokens=tokens)
    if max_shift is not None:
        found.check(max_shift)
    audits.show_adapter(found)
    with staged_with(private, out) as (receipt, folder):
        _record(receipt, tuned, audits.as_data(found))
        checkpoint.write(folder, whole, tokenizer)
        mark(folder, {"adapter": tuned.digest, "emulator": tuned.emulator})
    if not known:
        typer.echo(
            "No receipt of this model was found, so nothing shows that you sent the emulator that the adapter "
            "was tuned on; --receipts names their folder.",
            err=True,
        )
    data = {"model": str(out), "receipt": str(private), "adapter": tuned.digest}
    message = (
        f"Tuned model in {out}: a plain transformers checkpoint.\n"
        f"Receipt in {private}: how far each tensor moved. Keep it to yourself."
    )
    emit(data | {"recorded": known, "audit": audits.as_data(found)}, json, lambda: typer.echo(message))


def _public(text: str | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor | None:
    """Blocks of public text, (blocks, length); none where none is asked for and none is at hand."""
    from offsite.data import tasks
    from offsite.model.decoder import longest
    from offsite.owner.fidelity import held_out

    if text is None and not tasks.at_hand(_TEXT):
        return None
    return held_out(tasks.texts(text or _TEXT), tokenizer, min(_LENGTH, longest(model)), _BLOCKS)


def _record(folder: Path, tuned: Adapter, audit: dict[str, object]) -> None:
    from offsite.provenance import record

    receipt = {"adapter": tuned.digest, "tuned_on": tuned.emulator, "audit": audit, "record": record(0)}
    write_json(folder / "receipt.json", receipt)


def _is_recorded(tuned: Adapter, receipts: list[Path] | None, usual: list[Path]) -> bool:
    """Whether a receipt names the emulator.

    What lies beside the adapter is not looked at, unless the output lies there too: its sender could have put a
    receipt there. `receipts` that the owner names are the safe way.
    """
    from offsite.errors import UserError
    from offsite.owner.receipt import is_recorded

    known = is_recorded(tuned, receipts or list(dict.fromkeys(usual)))
    if receipts and not known:
        raise UserError(
            f"No receipt in {', '.join(repr(str(folder)) for folder in receipts)} is of the adapter's model; "
            "name the folder that `offsite compress` wrote beside the emulator, or the one that holds it."
        )
    return known
