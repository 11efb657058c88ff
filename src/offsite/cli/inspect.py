"""offsite inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from offsite.cli.shell import Json, console, emit

if TYPE_CHECKING:
    from offsite.emulator import Emulator

NAME = "inspect"
HELP = """Either side: what is in a bundle, what it reveals, its sizes and digests. Checks it on the way.

Example: `offsite inspect emulator/`
"""


def command(
    bundle: Annotated[Path, typer.Argument(help="An emulator or adapter bundle.")], json: Json = False
) -> None:
    """Open the bundle as its receiver would, and describe it."""
    from offsite.emulator import is_emulator

    data = _emulator(bundle) if is_emulator(bundle) else _adapter(bundle)
    emit(data, json, lambda: _show(bundle, data))


def _emulator(path: Path) -> dict[str, Any]:
    from offsite.adapter import adapter_tensors
    from offsite.decoder import Decoder
    from offsite.emulator import Emulator

    emulator = Emulator.load(path)
    decoder = Decoder.of(emulator.model)
    total = sum(parameter.numel() for parameter in emulator.model.parameters())
    adapter = sum(tensor.numel() for tensor in adapter_tensors(emulator.model, emulator.split).values())
    middle = len(emulator.split.middle(len(decoder)))
    return _common(path, emulator) | {
        "kind": "emulator",
        "method": emulator.method,
        "plain": emulator.plain,
        "family": emulator.model.config.model_type,
        "layers": {"bottom": emulator.split.bottom, "middle": middle, "top": emulator.split.top},
        "parameters": {"all": total, "adapter": adapter},
        "reveals": [
            "the embeddings, the head and the adapter layers, as they are in the full model",
            f"a middle of {middle} places; " + _places(emulator),
            "the method's name, the tokenizer, and a digest that recognises the full model",
        ],
    }


def _places(emulator: Emulator) -> str:
    if emulator.plain:
        return "which of the model's layers stand there is not said"
    return "those that share one layer are seen, from which the kept layers can largely be guessed"


def _adapter(path: Path) -> dict[str, Any]:
    from offsite.adapter import Adapter

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
    say = console().print
    layers = ", ".join(f"{count} {name}" for name, count in data["layers"].items())
    how = data.get("method") or data.get("form")
    say(Text.assemble((str(path), "bold"), f" is a sound {data['kind']}: {how}"))
    say(f"  layers      {layers}" + (f" ({data['family']})" if "family" in data else ""))
    for name, count in data["parameters"].items():
        say(f"  parameters  {count / 1e6:,.1f} M {name}")
    for name, size in data["bytes"].items():
        say(f"  file        {name}, {size / 1e6:,.2f} MB")
    for name in ("digest", "parent", "tokenizer", "tuned_on"):
        if data.get(name):
            say(f"  {name:<11} {data[name]}")
    if "plain" in data:
        opens = (
            "transformers alone opens it" if data["plain"] else "`offsite export` makes it open in transformers"
        )
        say(f"  opens       {opens}")
    for line in data["reveals"]:
        say(f"  reveals     {line}")
