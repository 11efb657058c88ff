"""offsite verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offsite.cli.options import AnyBundle, Json
from offsite.cli.shell import console, emit

NAME = "verify"
HELP = """Either side: check that a bundle is byte for byte what the holder of a key signed.

A signature shows who sent the bundle, not that it is harmless: `tune`, `plug` and `inspect` examine that.

Example: `offsite verify emulator/ --key owner.pub`
"""


def command(
    bundle: AnyBundle,
    key: Annotated[Path, typer.Option(help="The sender's public key.")],
    json: Json = False,
) -> None:
    """Refuse what is unsigned, altered, has a file too many or too few, or is signed with another key."""
    from offsite.bundles import keys, signing

    files = signing.verify(bundle, key)
    signer = keys.fingerprint(key)
    emit(
        {"bundle": str(bundle), "fingerprint": signer, "files": files},
        json,
        lambda: console().print(f"{bundle} is as the key {signer[:12]} signed it: all {len(files)} files."),
    )
