"""offsite inspect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.text import Text

from offsite.cli import audits
from offsite.cli.options import AnyBundle, Json, Large, a_model, a_task, a_text
from offsite.cli.shell import console, emit
from offsite.data import DEFAULT_TEXT

if TYPE_CHECKING:
    from offsite.audit import EmulatorAudit
    from offsite.bundles.emulator import Emulator

NAME = "inspect"
HELP = """Either side: check a bundle and show what it holds, what it reveals, its sizes and digests.

The model owner can add `--against MODEL`: how well an emulator's adapter gradients match the model's.

Example: `offsite inspect emulator/`

Example: `offsite inspect emulator/ --against smollm2-135m`
"""

Place = dict[str, Any]
"""What one place of the middle shows that is not as the config says: `ranks` by linear, `channels`."""


def command(
    bundle: AnyBundle,
    against: Annotated[
        str | None,
        typer.Option(
            callback=a_model,
            help="Model owner: the model that the emulator was made from, to compare gradients and loss.",
        ),
    ] = None,
    text: Annotated[
        str, typer.Option(callback=a_text, help="For --against: public texts, separated by commas.")
    ] = DEFAULT_TEXT,
    blocks: Annotated[
        int, typer.Option(min=1, help="For --against: number of blocks, from the text's end.")
    ] = 16,
    length: Annotated[int, typer.Option(min=2, help="For --against: tokens in a block.")] = 128,
    data: Annotated[
        str | None,
        typer.Option(
            callback=a_task, help="Data owner: your data, to show the loss on them and unusual weights."
        ),
    ] = None,
    allow_large: Large = False,
    json: Json = False,
) -> None:
    """Open the bundle as its receiver would, and describe it."""
    from offsite.bundles.emulator import Emulator, is_emulator
    from offsite.errors import UserError

    found = None
    if is_emulator(bundle):
        emulator = Emulator.load(bundle, allow_large=allow_large or not (against or data))
        facts = _emulator(bundle, emulator, _Against(against, text, blocks, length) if against else None)
        found = _audited(emulator, data) if data else None
        facts |= {"audit": audits.as_data(found)} if found else {}
    else:
        facts = _adapter(bundle)
        for option, given in (("--against compares an emulator with its model", against),
                              ("--data judges an emulator before tuning", data)):  # fmt: skip
            if given:
                raise UserError(f"{str(bundle)!r} is an adapter, where {option}.")

    def show() -> None:
        _show(bundle, facts)
        if found:
            audits.show_emulator(found, err=False)

    emit(facts, json, show)


def _audited(opened: Emulator, data: str) -> EmulatorAudit:
    """What the data owner sees before tuning."""
    from offsite import audit
    from offsite.data import tasks
    from offsite.model import loading
    from offsite.model.modes import move

    move(opened.model, loading.device())
    return audit.emulator(opened, tasks.examples(data))


class _Against(NamedTuple):
    """What an emulator is to be compared with, and on what."""

    model: str
    text: str
    blocks: int
    length: int

    def fidelity(self, emulator: Emulator) -> dict[str, object]:
        """The owner's figures."""
        from offsite.data import tasks
        from offsite.model import loading
        from offsite.model.modes import move
        from offsite.owner.build import keep_of
        from offsite.owner.fidelity import fidelity, held_out

        model, tokenizer = loading.load(self.model)
        tokens = held_out(tasks.texts(self.text), tokenizer, self.length, self.blocks)
        move(emulator.model, model.device)
        found = fidelity(emulator, model, tokens)
        return {
            **self._asdict(),
            "keep": keep_of(emulator, model),
            **asdict(found),
            "loss_gap": found.loss_gap,
        }


def _emulator(path: Path, emulator: Emulator, against: _Against | None) -> dict[str, object]:
    from offsite.bundles.contents import parameters
    from offsite.model.decoder import Decoder

    decoder = Decoder.of(emulator.model)
    middle = emulator.split.middle(len(decoder))
    inside = [id(tensor) for index in middle for tensor in decoder.tensors(index).values()]
    places, harmonizers = _places(emulator), _harmonizers(emulator)
    count = parameters(emulator)
    facts = {
        "kind": "emulator",
        "method": emulator.method,
        "plain": emulator.plain,
        "family": emulator.model.config.model_type,
        "layers": {"bottom": emulator.split.bottom, "middle": len(middle), "top": emulator.split.top},
        "parameters": {"all": count.all, "adapter": count.trainable, "middle": count.middle},
        "memory": asdict(emulator.memory) if emulator.memory else {},
        "places": places,
        "harmonizers": harmonizers,
        "reveals": [
            "the embeddings, the head and the adapter layers, as they are in the full model",
            f"a middle of {len(middle)} places; "
            + _middle(places, harmonizers, shared=len(inside) > len(set(inside))),
            "the method's name, the tokenizer, and a digest that recognises the full model",
        ],
    }
    owners = {"fidelity": against.fidelity(emulator)} if against else {}
    return _common(path, emulator) | facts | owners


def _places(emulator: Emulator) -> list[Place]:
    """Of each place in the middle, what its tensors' shapes show."""
    from offsite.model.decoder import Decoder, skeleton
    from offsite.model.linears import LowRank

    decoder, whole = Decoder.of(emulator.model), Decoder.of(skeleton(emulator.model.config))
    places = []
    for index in emulator.split.middle(len(whole)):
        place: Place = {}
        for name in whole.linears(index):
            linear = decoder.layers[index].get_submodule(name)
            if isinstance(linear, LowRank):
                place.setdefault("ranks", {})[name] = linear.down.out_features
                inputs = linear.down.in_features
            else:
                inputs = decoder.matrix(index, name).shape[1]
            if inputs != whole.matrix(index, name).shape[1]:  # nothing but channels can be fewer
                place["channels"] = inputs
        places.append(place)
    return places


def _harmonizers(emulator: Emulator) -> list[dict[str, int]]:
    """Of each harmonizer, after how many of the middle's places it stands, and its rank."""
    from offsite.model.harmonizers import harmonizer_tensors

    return [
        {"after": int(name.split(".")[1]) + 1 - emulator.split.bottom, "rank": tensor.shape[1]}
        for name, tensor in harmonizer_tensors(emulator.model).items()
        if name.endswith("up.weight")
    ]


def _middle(places: list[Place], harmonizers: list[dict[str, int]], *, shared: bool) -> str:
    """What the middle reveals of the layers in it."""
    parts = []
    if shared:
        parts.append("those that share one layer are seen, from which the kept layers can largely be guessed")
    if any(places):
        parts.append("each is one layer of the model, and what it kept is seen: " + _kept(places))
    if harmonizers:
        ranks = _range([harmonizer["rank"] for harmonizer in harmonizers])
        parts.append(
            f"{len(harmonizers)} more of the model's layers are replaced by harmonizers of rank {ranks}, and "
            "where they stood is seen"
        )
    return "; ".join(parts) or "which of the model's layers stand there is not said"


def _kept(places: list[Place]) -> str:
    ranks = [rank for place in places for rank in place.get("ranks", {}).values()]
    channels = [place["channels"] for place in places if "channels" in place]
    parts = []
    if ranks:
        parts.append(f"the rank of each of {len(ranks)} factored matrices ({_range(ranks)})")
    if channels:
        parts.append(f"the number of feed-forward channels of {len(channels)} places ({_range(channels)})")
    return " and ".join(parts)


def _range(numbers: list[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


def _adapter(path: Path) -> dict[str, object]:
    from offsite.bundles.adapter import Adapter

    adapter = Adapter.load(path)
    how = "whole layers" if adapter.lora is None else f"LoRA of rank {adapter.lora.rank}"
    return _common(path, adapter) | {
        "kind": "adapter",
        "form": how,
        "tuned_on": adapter.emulator,
        "layers": {"bottom": adapter.split.bottom, "top": adapter.split.top},
        "parameters": {"all": sum(tensor.numel() for tensor in adapter.tensors.values())},
        "reveals": [
            "how far each tensor moved, which a curious owner can probe for the tuning data",
            "versions of the libraries, and nothing of the data, the steps or the machine",
        ],
    }


def _common(path: Path, bundle: Any) -> dict[str, Any]:
    sizes = {file.name: file.stat().st_size for file in sorted(path.iterdir())}
    return {
        "digest": bundle.digest,
        "parent": bundle.origin.parent,
        "tokenizer": bundle.origin.tokenizer,
        "bytes": sizes,
    }


def _show(path: Path, data: dict[str, Any]) -> None:
    from offsite.bundles.memory import size as as_size

    say = console().print
    layers = ", ".join(f"{count} {name}" for name, count in data["layers"].items())
    how = data.get("method") or data.get("form")
    say(Text.assemble((str(path), "bold"), f" is a sound {data['kind']}: {how}"))
    say(f"  layers      {layers}" + (f" ({data['family']})" if "family" in data else ""))
    for name, count in data["parameters"].items():
        say(f"  parameters  {count / 1e6:,.1f} M {name}")
    for name, size in data["bytes"].items():
        say(f"  file        {name}, {as_size(size)}")
    if "memory" in data:
        needed = {name: as_size(count) for name, count in data["memory"].items()}
        say("  memory      {stored} opened, {tuning} to be tuned, {dense} exported".format(**needed))
    for name in ("digest", "parent", "tokenizer", "tuned_on"):
        if data.get(name):
            say(f"  {name:<11} {data[name]}")
    if "plain" in data:
        say(f"  opens       {_opens(data)}")
    for line in data["reveals"]:
        say(f"  reveals     {line}")
    if "fidelity" in data:
        _show_fidelity(data["fidelity"], say)


def _opens(data: dict[str, object]) -> str:
    """What the bundle takes to be opened."""
    if data["harmonizers"]:
        return "with offsite alone, for its harmonizers"
    return "transformers alone opens it" if data["plain"] else "`offsite export` makes it open in transformers"


def _show_fidelity(found: dict[str, Any], say: Callable[[str], None]) -> None:
    gap = found["loss_gap"]
    lines = {
        "against": "{model}, on the last {blocks} blocks of {length} tokens of {text}",
        "keep": "{keep:.1%} of the parameters of the model's middle are stored",
        "cosine": "{cosine:.3f} between the adapter's gradient and the model's (1: the same direction)",
        "error": "{relative_error:.3f} relative error of that gradient (0: the same gradient)",
        "loss": "{loss:.3f} nats a token, the model's {full_loss:.3f}: "
        + f"{abs(gap):.3f} {'more' if gap >= 0 else 'less'}",
        "private": "what --against says is the owner's view; it stands in no bundle and is not to be sent",
    }
    for name, line in lines.items():
        say(f"  {name:<11} " + line.format(**found))
