"""offsite sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offsite.cli.options import AnyBundle, Json
from offsite.cli.shell import console, emit

NAME = "sign"
HELP = """Either side: sign a bundle before sending it. The signature is the file model.sig in its folder.

It is an OpenSSF model-signing signature, so `model_signing verify key` accepts it too.

Example: `offsite sign emulator/ --key owner.key`
"""


def command(
    bundle: AnyBundle,
    key: Annotated[Path, typer.Option(help="Your private key, made by `offsite keygen`.")],
    json: Json = False,
) -> None:
    """Check that the bundle is whole, and sign it."""
    from offsite.bundles import signing

    data = {"bundle": str(bundle), "fingerprint": signing.sign(bundle, key)}
    emit(
        data,
        json,
        lambda: console().print(f"Signed {bundle} with the key {data['fingerprint'][:12]}. Send this folder."),
    )
